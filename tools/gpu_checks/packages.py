"""Packages that a machine with torch may lack, carried as wheels: of Python alone, so that they fit every machine."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

PACKAGES = {
    "omegaconf": ("omegaconf", "reading YAML, so the quickstart, needs it"),
    "torchao": ("torchao", "FP8 needs it"),
    "liger_kernel": ("liger-kernel", "the loss `liger` needs it"),
}
"""By module: the package, and what needs it."""
WHEELS, SITE = Path("gpu-wheels"), Path("gpu-wheels/site")


def fetch(root: Path) -> int:
    """Get the wheels, on a machine with a network; the exit code."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--platform", "any", "-c", str(root / "constraints.txt")]
    names = [package for package, _ in PACKAGES.values()]
    done = subprocess.run([*command, "-d", str(root / WHEELS), *names], check=False)
    if not done.returncode:
        sizes = {path.name: path.stat().st_size for path in sorted((root / WHEELS).glob("*.whl"))}
        print(f"{', '.join(sizes)}: {sum(sizes.values()) / 1e6:.1f} MB in {WHEELS}; carry the folder along")
    return done.returncode


def provide(root: Path) -> tuple[str, str]:
    """Unpack the wheels of what cannot be imported here; a folder for Python's path, if needed, and what was done."""
    missing = [module for module in PACKAGES if find_spec(module) is None]
    site, told = root / SITE, []
    for module in missing:
        package, use = PACKAGES[module]
        wheels = sorted((root / WHEELS).glob(f"{module}-*.whl"))
        if wheels:
            with zipfile.ZipFile(wheels[-1]) as wheel:  # all that an installer does with a wheel of Python alone
                wheel.extractall(site)
            told.append(f"{package} comes from {wheels[-1].name}")
        else:
            told.append(f"{package} is not installed and not in {WHEELS} (make gpu-wheels): {use}")
    return (str(site) if site.exists() else "", "; ".join(told) or "all there")
