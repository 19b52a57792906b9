"""The quickstart's corpus is the same in every process, so that its numbers can be compared."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BUILD = """
import sys
from pathlib import Path
from internevo.quickstart.corpus import build_corpus
build_corpus(*map(Path, sys.argv[1:]))
"""


def test_no_order_depends_on_how_a_process_hashes(tmp_path: Path) -> None:
    package = tmp_path / "library" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from package import " + ", ".join(f"part{n}" for n in range(20)) + "\n", encoding="utf-8"
    )
    for number in range(20):
        back = "import package\n" if number % 3 == 0 else ""  # a circle
        (package / f"part{number}.py").write_text(f'{back}"""What part {number} is for."""\n', encoding="utf-8")
    made = []
    for seed in ("1", "2", "3"):
        command = [sys.executable, "-c", BUILD, str(tmp_path / seed), str(tmp_path / "library")]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": seed}, timeout=120)
        made.append({file.name: file.read_bytes() for file in (tmp_path / seed).iterdir()})
    assert any(made[0].values())
    assert made[0] == made[1] == made[2]
