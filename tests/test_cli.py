"""The command as a person meets it, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
import yaml
from typer.testing import CliRunner

from internevo.cli import shared
from internevo.cli.verbs import app
from internevo.tokens.train_tokenizer import train_tokenizer
from tests.tokens.stores import numbered, write_store

VERBS = ["config", "train", "launch", "verify", "report", "export", "generate", "quickstart"]
VERBS += ["import", "sweep", "eval", "serve", "doctor", "chat"]
GROUPS = [["tokenizer", "train"], ["data", "prepare"], ["data", "inspect"], ["data", "import"]]
GROUPS += [["data", "chat"], ["data", "pairs"], ["data", "reference"]]
GROUPS += [["data", "refine"], ["data", "classifier", "train"]]


def internevo(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "internevo", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)


@pytest.mark.parametrize("verb", [[verb] for verb in VERBS] + GROUPS, ids=" ".join)
def test_every_verb_has_help_with_an_example(verb: list[str]) -> None:
    shown = internevo(*verb, "--help")
    assert shown.returncode == 0
    assert f"internevo {' '.join(verb)}" in shown.stdout.replace("│", "")
    assert "Example" in shown.stdout


@pytest.mark.parametrize(
    "verb", [[], ["tokenizer"], ["data"], ["data", "index"]] + [[v] for v in VERBS] + GROUPS, ids=str
)
def test_help_has_words_and_a_short_name(verb: list[str]) -> None:
    """`-h` shows what `--help` does, and values are called by what they are, not by their types."""
    shown = CliRunner().invoke(app, [*verb, "-h"], env={"COLUMNS": "160"})
    assert shown.exit_code == 0, shown.output
    assert shown.output == CliRunner().invoke(app, [*verb, "--help"], env={"COLUMNS": "160"}).output
    assert not re.findall(r"<[\w\[\] ]+>", shown.output), shown.output  # <a|b>, what there is to choose from, may stay
    assert not re.findall(r"\{[a-z_]+\}", shown.output.partition("╭")[0])  # what is to be given


def test_help_names_keys_that_the_verb_has() -> None:
    assert "train.seq_len" in CliRunner().invoke(app, ["train", "-h"]).output
    shown = CliRunner().invoke(app, ["data", "refine", "-h"]).output
    assert "train.seq_len" not in shown
    assert "executor.workers=8" in shown


def test_shells_complete_verbs_and_options() -> None:
    """What the script that `--install-completion` installs asks, and the answers."""
    for typed, expected in (("internevo ev", ["eval"]), ("internevo launch --part", ["--partition"])):
        environment = {
            **os.environ,
            "_INTERNEVO_COMPLETE": "complete_bash",
            "COMP_WORDS": typed,
            "COMP_CWORD": str(len(typed.split()) - 1),
        }
        command = str(Path(sys.executable).with_name("internevo"))
        done = subprocess.run([command], capture_output=True, text=True, env=environment, timeout=60)
        assert done.stdout.split() == expected


def test_version_and_help_are_quick_to_come() -> None:
    """They load neither torch nor transformers."""
    code = "import sys; sys.argv = ['internevo', '--version']\ntry:\n import internevo.cli as c; c.main()\n"
    code += "finally: print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert shown.stdout.startswith("internevo ")
    assert shown.stdout.strip().endswith("[]")


def test_config_prints_yaml_that_is_the_same_config(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "name: run\nmodel: {preset: tiny}\ntrain: {seq_len: 64, batch_tokens: 512, steps: 5}\n"
        "data: {sources: [{path: web}]}\n"
    )
    write_store(tmp_path / "web", numbered([5]))
    shown = internevo("config", "run.yaml", "optimizer.lr=1e-3", cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert yaml.safe_load(shown.stdout)["optimizer"]["lr"] == 1e-3
    (tmp_path / "again.yaml").write_text(shown.stdout)
    assert internevo("config", "again.yaml", cwd=tmp_path).stdout == shown.stdout


def test_config_prints_the_tree_before_there_is_data(tmp_path: Path) -> None:
    """And what is missing, and what it comes to, as comments at its end."""
    (tmp_path / "run.yaml").write_text(
        "name: run\nmodel: {preset: tiny}\ntokenizer: no.model\ntrain: {seq_len: 64, batch_tokens: 512, steps: 5}\n"
        "data: {sources: [{path: web}]}\n"
    )
    shown = internevo("config", "run.yaml", "data.sources.web.weight=3", cwd=tmp_path)
    assert shown.returncode == 0
    assert yaml.safe_load(shown.stdout)["data"]["sources"][0]["weight"] == 3
    assert re.search(r"\n# model: [\d,]+ parameters, .*\n# stage train: 5 steps of 512 tokens .*\n$", shown.stdout)
    assert "there is no token store at web" in shown.stderr
    assert "tokenizer: no.model does not exist" in shown.stderr
    write_store(tmp_path / "web", numbered([5]))
    (tmp_path / "web.idx").write_bytes(b"")
    torn = internevo("config", "run.yaml", "tokenizer=null", cwd=tmp_path)
    assert torn.returncode == 2
    assert yaml.safe_load(torn.stdout)["name"] == "run"
    assert "web.idx is not the index of a token store" in torn.stderr


def test_an_option_of_another_verb_is_told_with_the_verb(tmp_path: Path) -> None:
    for arguments, verb in (
        (["train", "run.yaml", "--nproc", "4"], "`internevo launch`"),
        (["train", "run.yaml", "--slurm"], "`internevo launch`"),
        (["data", "prepare", "a", "--eos", "4"], "`internevo data index`"),
        (["report", "runs/a", "--replay", "4"], "`internevo verify`"),
    ):
        ended = internevo(*arguments, cwd=tmp_path)
        assert ended.returncode == 2
        assert f"No such option: {arguments[-2] if arguments[-1] == '4' else arguments[-1]}" in ended.stderr
        assert f"{verb} has it" in " ".join(ended.stderr.split())
    assert "has it" not in internevo("train", "run.yaml", "--nothing").stderr


def test_long_work_prints_lines_into_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice a minute; here, after each piece, of which small files make one a thousand."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3000):
        (folder / f"{number:04}.txt").write_text("text of some length " * 50)
    tokenizer = train_tokenizer(["text of some length " * 50], tmp_path / "small.model", 280)
    monkeypatch.setattr(shared, "_LOG_EVERY_S", 0)
    command = ["data", "prepare", str(folder), "--tokenizer", str(tokenizer), "--out", str(tmp_path / "out")]
    shown = CliRunner().invoke(app, [*command, "--workers", "1"])
    assert shown.exit_code == 0, shown.output
    said = [line for line in shown.output.splitlines() if line.startswith("preparing: ")]
    form = r"preparing: (\d) of 3 MB · [\d,.]+ MB/s · [\d,]+ tokens/s( · \d+:\d\d:\d\d left)?"
    found = [re.fullmatch(form, line) for line in said]
    assert [one and one[1] for one in found] == ["1", "2", "3"], said
    assert re.search(r"wrote .*out: 3,000 documents, [\d,]+ tokens; held out: 0 documents, 0 tokens", shown.output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["config", "no.yaml"], "error: no.yaml does not exist"),
        (["train", "bad.yaml"], "train.seq_length: unknown key; did you mean seq_len?"),
        (["report", "runs/none"], "runs/none"),
        (["export", "runs/none", "out"], "runs/none"),
        (["generate", "runs/none"], "runs/none"),
        (["verify", "runs/none"], "runs/none is not a run folder"),
        (["tokenizer", "train", "none.txt", "--out", "t.model"], "none.txt does not exist"),
        (["data", "prepare", "bad.yaml", "--tokenizer", "no.model", "--out", "x"], "no.model does not exist"),
        *(
            (["data", "prepare", "bad.yaml", "--tokenizer", "no.model", "--out", "x", option, value], message)
            for option, value, message in (
                ("--held-out", "5", "Invalid value for '--held-out'"),
                ("--held-out", "1", "must be below 1, found 1"),
                ("--held-out", "nan", "Invalid value for '--held-out'"),
                ("--max-rejects", "-1", "Invalid value for '--max-rejects'"),
                ("--max-rejects", "nan", "Invalid value for '--max-rejects'"),
                ("--shard-tokens", "0", "--shard-tokens"),
                ("--workers", "-2", "--workers"),
            )
        ),
        (
            ["data", "import", "bad.yaml", "--from", "internevo", "--out", "x", "--held-out", "5"],
            "Invalid value for '--held-out'",
        ),
        (["data", "import", "bad.yaml", "--from", "internevo", "--out", "s3://b/x"], "s3:/b/x is in object storage"),
        (["data", "inspect", "none"], "none"),
        (["data", "refine", "no.yaml"], "error: no.yaml does not exist"),
        (["data", "refine", "bad.yaml"], "describes a run, not a refinery"),
        (["data", "classifier", "train", "none.jsonl", "bad.yaml", "--out", "x"], "none.jsonl does not exist"),
        (["trian"], "No such command"),
        (["train"], "Missing argument"),
        (["export", "a", "b", "--format", "gguf"], "gguf"),
    ],
)
def test_a_mistake_ends_with_one_message_and_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "bad.yaml").write_text("name: run\ntrain: {seq_length: 5}\n")
    ended = internevo(*arguments, cwd=tmp_path)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.yaml"]  # nothing was made


def numeric_options(group: typer.Typer) -> Iterator[tuple[str, Any]]:
    """Every option and argument that is a number, of all verbs."""
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from numeric_options(inner.typer_instance)
    for verb in group.registered_commands:
        assert verb.callback is not None
        for name, hint in get_type_hints(verb.callback, include_extras=True).items():
            kind, *more = get_args(hint) or (hint,)
            if {int, float} & {kind, *get_args(kind)}:
                yield f"{verb.callback.__name__} {name}", more[0] if more else None


def test_every_number_on_the_command_line_has_a_range() -> None:
    found = dict(numeric_options(app))
    assert not [name for name, option in found.items() if option is None or None in (option.min, option.max)]
    assert len(found) > 25  # the walk finds them


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--temperature", "-1", "Invalid value"),
        ("--temperature", "nan", "Invalid value"),
        ("--top-p", "2", "Invalid value"),
        ("--top-p", "0", "must be above 0, found 0"),
        ("--tokens", "0", "Invalid value"),
        ("--seed", "-1", "Invalid value"),
    ],
)
def test_a_number_out_of_range_is_refused_by_its_option(option: str, value: str, said: str) -> None:
    done = CliRunner().invoke(app, ["generate", "runs/none", option, value])
    assert done.exit_code == 2
    shown = " ".join(done.output.replace("│", " ").split())
    assert option in shown
    assert said in shown


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_nobody_reads_stops_no_work(tmp_path: Path, stream: str) -> None:
    """A page is written when its table cannot be printed, and a note to nobody is no error."""
    store, page = tmp_path / "web", tmp_path / "page.html"
    write_store(store, numbered([3, 4]))
    command = [
        sys.executable,
        "-c",
        f"""
from internevo.cli.shared import note
note(["to nobody"])
import sys
sys.argv = ["internevo", "data", "inspect", {str(store)!r}, "--page", {str(page)!r}]
from internevo.cli import main
main()
""",
    ]
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: full}
        assert subprocess.run(command, **streams, timeout=120).returncode == 0
    assert page.is_file()
