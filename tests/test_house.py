"""The shape of the house: no circle of imports, not even one hidden in a function, and no room that holds it all."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from statistics import median

PACKAGE = Path(__file__).parents[1] / "internevo"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
LARGEST_ROOM = 0.2
"""Share of the package's lines."""
LONGEST_FUNCTION, MEDIAN_FUNCTION = 60, 8
"""Lines."""


def imports(path: Path) -> set[str]:
    """The modules of the package that a file names in an import, wherever it stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            found |= {name if (name := f"{node.module}.{one.name}") in MODULES else node.module for one in node.names}
        elif isinstance(node, ast.Import):
            found |= {one.name for one in node.names if one.name in MODULES}
    return found


def test_no_circle_of_imports() -> None:
    """Modules that need none of those left are taken away in turn; what stays is in a circle, or needs one."""
    left = {name: imports(path) for name, path in MODULES.items()}
    assert sum(map(len, left.values())) > 500  # the walk finds them
    while free := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in free:
            del left[name]
    assert not left


def test_no_room_holds_too_much() -> None:
    lines = Counter[str]()
    for path in MODULES.values():
        lines[path.relative_to(PACKAGE).parts[0]] += len(path.read_text(encoding="utf-8").splitlines())
    room, most = lines.most_common(1)[0]
    assert most <= LARGEST_ROOM * lines.total(), f"{room} has {most} of {lines.total()} lines"


def test_functions_are_short() -> None:
    lengths = {
        f"{module}.{node.name}": node.end_lineno - node.lineno + 1
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.end_lineno
    }
    assert len(lengths) > 1000  # the walk finds them
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION} == {}
    assert median(lengths.values()) <= MEDIAN_FUNCTION
