"""What files import, by language."""

from __future__ import annotations

import pytest

from internevo.refine.code.imports import FINDERS
from internevo.refine.code.imports.tree import FileTree
from internevo.refine.code.languages import language_of


def found(path: str, text: str, *others: str, **settings: str) -> list[str]:
    """What a file imports in a repository with these others; what can wait has a `?` behind it."""
    language = language_of(path)
    assert language is not None
    tree = FileTree([path, *others], settings)
    imports = FINDERS[language.name](path, text, tree)
    return [one.path + ("" if one.at_once else "?") for one in imports]


PACKAGE = ("pkg/__init__.py", "pkg/a.py", "pkg/sub/__init__.py", "pkg/sub/b.py", "other.py", "src/lib/__init__.py")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import pkg.a, other as o", ["pkg/a.py", "other.py"]),
        ("import pkg.a.no.such", ["pkg/a.py"]),
        ("from pkg import a, name", ["pkg/a.py", "pkg/__init__.py"]),
        ("from pkg.sub import (  # ) not the end\n    b,\n    c as d,\n)", ["pkg/sub/b.py", "pkg/sub/__init__.py"]),
        ("from pkg import \\\n    a", ["pkg/a.py"]),
        ("from . import a\nfrom .a import x", ["pkg/a.py", "pkg/a.py"]),
        ("from .sub.b import x\nfrom .. import other", ["pkg/sub/b.py", "other.py"]),
        ("def f():\n    import other\n", ["other.py?"]),
        ("if True: import other", ["other.py"]),
        ("x = 1; import other; import pkg", ["other.py", "pkg/__init__.py"]),
        ('"""\nimport other\n"""\ns = "x; import other"\n# import other\n', []),
        ('x = """a""" + """\nimport other"""\nimport pkg', ["pkg/__init__.py"]),
        ("import numpy, os.path", []),
        ("import lib", ["src/lib/__init__.py"]),
        ("from other import *", ["other.py"]),
    ],
)
def test_python(text: str, expected: list[str]) -> None:
    assert found("pkg/me.py", text, *PACKAGE) == expected


def test_a_module_is_not_shadowed_by_one_of_its_name_in_the_package() -> None:
    assert found("pkg/json.py", "import json", "pkg/__init__.py", "json.py") == ["json.py"]
    assert found("scripts/run.py", "import helper", "scripts/helper.py", "helper.py") == ["scripts/helper.py"]
    # a repository that is a package itself
    package = ("__init__.py", "subprocess.py", "tasks.py", "helper.py")
    text = "import subprocess\nfrom subprocess import run\nfrom . import tasks\nimport helper\n"
    assert found("events.py", text, *package) == ["tasks.py", "helper.py"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('#include "a.h"', ["src/a.h"]),
        ('#  include "../include/lib/b.hpp"', ["include/lib/b.hpp"]),
        ("#include <lib/b.hpp>", ["include/lib/b.hpp"]),
        ("#include <string.h>", []),
        ('#include "string.h"', ["util/string.h"]),
        ("#include <util/string.h>", ["util/string.h"]),
        ('#include "deep/c.h"', ["third/x/deep/c.h"]),
        ('// #include "a.h"\n/* #include "a.h"\n#include "a.h" */\nchar *s = "/*";\n#include "a.h"', ["src/a.h"]),
        ('#include "missing.h"', []),
    ],
)
def test_c(text: str, expected: list[str]) -> None:
    others = ("src/a.h", "include/lib/b.hpp", "util/string.h", "third/x/deep/c.h")
    assert found("src/me.cc", text, *others) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import com.x.A;", ["app/src/com/x/A.java"]),
        ("import static com.x.A.Inner.method;", ["app/src/com/x/A.java"]),
        ("import com.x.*;", ["app/src/com/x/A.java", "app/src/com/x/B.kt"]),
        ("import com.x.B as Other", ["app/src/com/x/B.kt"]),
        ("import com.x.{A, B => C}", ["app/src/com/x/A.java", "app/src/com/x/B.kt"]),
        ("import java.util.List;\n// import com.x.A;", []),
    ],
)
def test_java_kotlin_and_scala(text: str, expected: list[str]) -> None:
    others = ("app/src/com/x/A.java", "app/src/com/x/B.kt", "app/src/com/x/notes.txt")
    assert found("app/src/com/y/Me.java", text, *others) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import a from './a'", ["web/a.ts"]),
        ('import {\n  a,\n  b\n} from "./a";', ["web/a.ts"]),
        ("import './style.css'\nexport * from '../index.js'", ["web/style.css", "index.js"]),
        ("import type { T } from './lib'", ["web/lib/index.tsx"]),
        ("import x from './a.js'", ["web/a.ts"]),
        ("const x = require('./lib');", ["web/lib/index.tsx"]),
        ("function f() {\n  return import('./a')\n}", ["web/a.ts?"]),
        ("import React from 'react'\n// import './a'\nconst u = 'http://x'; import './a'", ["web/a.ts"]),
        ("import x from '.'", ["web/index.ts"]),
    ],
)
def test_javascript_and_typescript(text: str, expected: list[str]) -> None:
    others = ("web/a.ts", "index.js", "web/lib/index.tsx", "web/style.css", "web/index.ts")
    assert found("web/me.ts", text, *others) == expected


def test_go() -> None:
    text = (
        'package main\nimport (\n\t"fmt"\n\tu "example.com/x/util"\n\t"github.com/y/util"\n)\nimport "example.com/x"\n'
    )
    others = ("util/a.go", "util/b.go", "util/a_test.go", "root.go", "fmt/c.go")
    module = {"go.mod": "module example.com/x // the module\n\ngo 1.22\n"}
    assert found("cmd/main.go", text, *others, **module) == ["util/a.go", "util/b.go", "root.go"]
    assert found("cmd/main.go", text, *others) == []
    nested = {**module, "util/go.mod": "module example.com/x/util\n"}
    assert found("cmd/main.go", text, *others, **nested) == ["util/a.go", "util/b.go", "root.go"]


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("src/lib.rs", "mod a;\npub(crate) mod b;\nmod inline { }", ["src/a.rs", "src/b/mod.rs"]),
        ("src/b/mod.rs", "mod c;", ["src/b/c.rs"]),
        ("src/a.rs", "use crate::b::c::Thing;", ["src/b/c.rs"]),
        ("src/a.rs", "use crate::{b::{self, c::X}, d};\n", ["src/b/mod.rs", "src/b/c.rs", "src/lib.rs"]),
        ("src/b/c.rs", "use super::Y;\nuse super::super::a::Z;", ["src/b/mod.rs", "src/a.rs"]),
        ("src/a.rs", "use std::fmt;\nuse serde::Serialize;\n// mod b;", []),
        ("src/a.rs", "use crate as root;\nuse super::b as other;\n", ["src/lib.rs", "src/b/mod.rs"]),
        ("src/a.rs", "use self-made things;\nuse crate-level docs;\nuse crate.b;\nuse crate::b;\n", ["src/b/mod.rs"]),
        ("src/a.rs", "use crate::" + "{" * 5000 + "b" + "}" * 5000 + ";", ["src/b/mod.rs"]),
        ("src/a.rs", "use crate::{{b, }, b::{c::{X}}}};\nuse crate::{b::c", ["src/b/mod.rs", "src/b/c.rs"]),
    ],
)
def test_rust(path: str, text: str, expected: list[str]) -> None:
    assert found(path, text, "src/lib.rs", "src/a.rs", "src/b/mod.rs", "src/b/c.rs") == expected
