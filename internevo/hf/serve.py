"""Serving an export: handing it to whichever inference engine is installed, behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from internevo.files.errors import UserError

ENGINES = {"vllm": ("vllm",), "lmdeploy": ("lmdeploy",), "transformers": ("fastapi", "uvicorn")}
"""In the order in which they are looked for, with the modules that each needs."""


def choose_engine(name: str) -> str:
    """The engine called `name`, or with `auto` the first that is installed. Raises UserError when there is none."""
    if name not in (*ENGINES, "auto"):
        raise UserError(f"--engine: must be auto, {', '.join(ENGINES)}, found {name!r}")
    wanted = tuple(ENGINES) if name == "auto" else (name,)
    for engine in wanted:
        if all(map(find_spec, ENGINES[engine])):
            return engine
    hint = "pip install vllm, or 'internevo[serve]' for transformers' own server"
    raise UserError(f"{' and '.join(wanted)} cannot serve here: not installed. {hint}")


def engine_command(engine: str, folder: Path, host: str, port: int, extra: Sequence[str] = ()) -> list[str]:
    """The command that serves the Hugging Face folder. The code in an export of InternLM2 is trusted."""
    remote = ["--trust-remote-code"] if (folder / "modeling_internlm2.py").exists() else []
    if engine == "lmdeploy":
        options = ["--server-name", host, "--server-port", str(port)]
        return [_script(engine), "serve", "api_server", str(folder), *options, *extra]
    return [_script(engine), "serve", str(folder), "--host", host, "--port", str(port), *remote, *extra]


def _script(name: str) -> str:
    """The command of this Python's environment, which need not be on the path."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name) or name
