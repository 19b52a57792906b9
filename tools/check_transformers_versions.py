"""Exports of the InternLM2 format in environments of several versions of transformers.

    python tools/check_transformers_versions.py [--versions 4.38.2 4.57.6] [--work FOLDER]

For each version an environment is made in FOLDER (kept, so that a second call is quick), with transformers and what it
asks for from PyPI, and torch from the environment that this runs in. In each, `check_export.py` compares three exports
with our model. It exits 1 when a version fails. CI runs the same check with its own version, in `tests/hf`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import venv
from importlib.metadata import distributions
from pathlib import Path

import torch

from internevo.hf.export import export
from internevo.tokens.tokenizer import load_tokenizer
from internevo.tokens.train_tokenizer import train_tokenizer
from tests.hf.models import ModelWeights, our_logits, our_model

VERSIONS = ("4.38.2", "4.41.2", "4.46.3", "4.57.6")
"""Tokenizers 0.15, 0.19, 0.20 and 0.22."""
SHAPES = {
    "grouped": {"attention": {"kv_heads": 2}, "rope": {"base": 1e6}},
    "tied": {"tied": True, "attention": {"kv_heads": 1}},
    "linear": {"attention": {"kv_heads": 4}, "rope": {"scaling": {"kind": "linear", "factor": 4.0}}},
}
TEXT = "def f(x):\n\treturn x  # 浦语 naïve\n"


def write_exports(work: Path) -> list[tuple[Path, Path]]:
    """(folder, file of what is expected) of an export of each shape, new in `work`."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))]
    tokenizer = load_tokenizer(train_tokenizer(texts, work / "tokenizer.model", 512))
    made = []
    for name, changes in SHAPES.items():
        model = our_model(**changes)
        folder, expected = work / name, work / f"{name}.pt"
        export(ModelWeights(model), model.config, folder, "internlm2", seq_len=128, tokenizer=tokenizer)
        tokens = torch.randint(0, model.config.vocab, (2, 40), generator=torch.Generator().manual_seed(0))
        known = {"tokens": tokens, "logits": our_logits(model, tokens), "rope_theta": model.config.rope.base}
        torch.save({**known, "text": TEXT, "ids": tokenizer.encode(TEXT)}, expected)
        made.append((folder, expected))
    return made


def environment(version: str, work: Path) -> Path:
    """The interpreter of an environment with this transformers; made unless it is there."""
    folder = work / f"transformers-{version}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        packages = [f"transformers=={version}", "jinja2"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        site = next(folder.glob("lib/python*/site-packages"))
        (site / "torch_of_the_caller.pth").write_text(f"{torch_alone(work)}\n", encoding="utf-8")
        (folder / "complete").touch()
    return python


def torch_alone(work: Path) -> Path:
    """A folder of links to this environment's torch and what it needs, and to nothing else that is installed."""
    folder = work / "torch"
    folder.mkdir(exist_ok=True)
    wanted, seen = ["torch", "numpy"], set()
    while wanted:
        name = wanted.pop()
        if name in seen or not (found := [d for d in distributions(name=name) if d.files]):
            continue
        seen.add(name)
        for top in {file.parts[0] for file in found[0].files} - {"..", "__pycache__"}:
            if not (folder / top).is_symlink():
                (folder / top).symlink_to(found[0].locate_file(top))
        needs = [line for line in found[0].requires or [] if "extra ==" not in line]
        wanted += [re.match(r"[\w.-]+", line)[0] for line in needs]
    return folder


def main() -> None:
    """Make what is missing, check, say how each version did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", nargs="+", default=VERSIONS)
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "internevo" / "transformers-versions")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    fresh = options.work / f"exports-{os.getpid()}"
    made = write_exports(fresh)
    failed = []
    for version in options.versions:
        python = environment(version, options.work)
        for folder, expected in made:
            print(f"{folder.name}: ", end="", flush=True)
            script = Path(__file__).with_name("check_export.py")
            # modules that an export brings are cached by the folder's name
            environ = {**os.environ, "HF_HOME": str(fresh / f"home-{version}"), "HF_HUB_OFFLINE": "1"}
            if subprocess.run([python, script, folder, expected], env=environ).returncode:
                failed.append(f"{version} {folder.name}")
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
