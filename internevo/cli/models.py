"""Verbs about models: to and from Hugging Face, sampling."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from internevo.cli.shared import (
    ModelArgument,
    SeedOption,
    StepOption,
    TemperatureOption,
    TemplateOption,
    TopPOption,
    app,
    argument,
    moving,
    note,
    option,
    out,
    plain,
    stream,
    then,
)

if TYPE_CHECKING:
    from internevo.hf.export import ExportReport
    from internevo.train.stored_model import StoredModel

Format = StrEnum("Format", "auto internlm2 llama mistral qwen2 qwen3")  # what `export` writes
Dtype = StrEnum("Dtype", "fp32 bf16 fp16")  # what exported weights are stored as

OutputArgument = Annotated[Path, argument("The folder to make.", "OUTPUT")]
WorkersOption = Annotated[int, option("Processes that read and write, for large models.", "N", least=1, most=1024)]


@app.command("import")
def import_folder(
    folder: Annotated[Path, argument("A Hugging Face folder, or a checkpoint of InternEvo's.", "FOLDER")],
    output: OutputArgument,
    workers: WorkersOption = 1,
) -> None:
    """Import a Hugging Face folder as a checkpoint, and check that it computes the same logits.

    Knows InternLM2, Llama, Mistral, Qwen2 and Qwen3 models, and InternEvo's own checkpoints (`model_tp0_pp0.pt`). What
    it makes can be evaluated, sampled from, exported, and trained on: `train.init_from` names it (or the Hugging Face
    folder itself, which need not be imported for that).

    Example: `internevo import Llama-3.2-1B imports/llama`
    """
    from internevo.hf.imports import MODEL_FILE, import_model

    with moving("importing") as progress:
        report = import_model(folder, output, workers=workers, progress=progress)
    note(report.facts.notes)
    out.print(f"wrote {plain(output)}: {plain(report)}")
    then(f"a config that begins with `_base_: {output}/{MODEL_FILE}`, then internevo train CONFIG")


@app.command()
def export(
    model: ModelArgument,
    output: OutputArgument,
    format: Annotated[
        Format, option("The family. auto: the one it was imported from, or the plainest that holds the model.")
    ] = Format.auto,
    step: StepOption = None,
    dtype: Annotated[Dtype | None, option("What the weights are stored as; as trained when absent.")] = None,
    template: TemplateOption = None,
    workers: WorkersOption = 1,
    adapter: Annotated[
        bool, option("Write the adapter of train.lora alone, as PEFT's files.", None, "--adapter")
    ] = False,
) -> None:
    """Export a run to a Hugging Face folder, and check that it computes the same logits.

    A run with `train.lora` is exported as a whole model, its adapter merged; with `--adapter` as PEFT's files, in fp32,
    which load on a base of the family.

    Every format but `internlm2` loads with plain transformers; that one has the names and layout of the InternLM2
    release, for LMDeploy, vLLM, and transformers with `trust_remote_code=True`. A model that was trained on
    conversations takes its chat template along, and the tokens at which its answers stop.

    Example: `internevo export runs/tiny exports/tiny --format llama`
    """
    import torch

    from internevo.align.talking import exported_chat
    from internevo.train.stored_model import open_model

    stored = open_model(model, step)
    note(stored.notes)
    if adapter:
        _export_adapter(stored, output, stored.family if format is Format.auto and stored.family else format)
        return
    chat = exported_chat(stored, template)
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
    family = stored.family if format is Format.auto and stored.family else format
    stored_as = dtypes[dtype] if dtype else stored.dtype
    report = _export(stored, output, family, tokenizer=stored.tokenizer, chat=chat, dtype=stored_as, workers=workers)
    if report.overflowed:
        count = f"{report.overflowed:,} weights"
        out.print(f"[bold yellow]warning:[/] {count} are too large for {report.dtype} and became infinite")
    out.print(f"wrote {plain(output)} from {plain(stored.name)}: {plain(report)}")
    then(f"internevo serve {output}, or load it with transformers")


def _export_adapter(stored: StoredModel, output: Path, family: str) -> None:
    """Write PEFT's files, and say how to load them."""
    from internevo.align.adapter_files import export_adapter

    report = export_adapter(stored, output, family)
    out.print(f"wrote {plain(output)} from {plain(stored.name)}: {plain(report)}")
    then(f"peft.PeftModel.from_pretrained(model, '{output}'), with the model of {report.base} from transformers")


def _export(stored: StoredModel, output: Path, family: str, **options: Any) -> ExportReport:
    """Export with a progress bar; `options` are those of `hf.export`."""
    from internevo.hf.export import export as export_model

    with moving("exporting") as progress:
        return export_model(
            stored.weights, stored.config, output, family, seq_len=stored.seq_len, progress=progress, **options
        )


@app.command()
def generate(
    model: ModelArgument,
    prompt: Annotated[str, option("The text to continue.", "TEXT")] = "",
    tokens: Annotated[int, option("Maximum number of new tokens.", "N", least=1, most=2**20)] = 128,
    temperature: TemperatureOption = 0.8,
    top_p: TopPOption = 0.95,
    seed: SeedOption = 0,
    step: StepOption = None,
) -> None:
    """Sample text from a model.

    Example: `internevo generate runs/tiny --prompt "def main("`
    """
    from internevo.train.sample import sample_text
    from internevo.train.stored_model import open_model

    stored = open_model(model, step)
    note(stored.notes)
    for piece in sample_text(stored, prompt, tokens, temperature=temperature, top_p=top_p, seed=seed):
        stream(piece)
    out.print()
    then(f"internevo export {model} DIR")


@app.command()
def serve(
    model: ModelArgument,
    step: StepOption = None,
    host: Annotated[str, option("The address to listen at.", "HOST")] = "127.0.0.1",
    port: Annotated[int, option("The port to listen at.", "PORT", least=0, most=65535)] = 8000,
    engine: Annotated[str, option("auto, vllm, lmdeploy or transformers.", "ENGINE")] = "auto",
    page: Annotated[
        bool, option("A page to talk to the model, at /, before the engine.", None, "--page/--no-page")
    ] = True,
    extra: Annotated[list[str] | None, argument("Options for the engine, after `--`.", "-- OPTIONS")] = None,
) -> None:
    """Serve a model behind an OpenAI-compatible endpoint, with the inference engine that is installed.

    A run or an import is exported first, once for each checkpoint, into its `serve` folder. vLLM is taken if it is
    there, then LMDeploy, then transformers' own server. A model that talks has a page to talk to it at `/`.

    Example: `internevo serve runs/tiny --port 8000`, then with the openai package
    `OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="-").completions.create(model="runs/tiny/...", prompt="Once")`
    """
    import os

    from internevo.align.front import start_front
    from internevo.align.talking import talks
    from internevo.hf.serve import choose_engine, engine_command
    from internevo.train.stored_model import open_model

    stored = open_model(model, step)
    note(stored.notes)
    chosen = choose_engine(engine)
    folder = _served(model, stored)
    base = f"http://{host}:{port}"
    if page and talks(stored):
        port = start_front(host, port, stored.name, str(folder), stored.seq_len)
        host = "127.0.0.1"
        out.print(f"a page to talk to it: {base}/")
    command = engine_command(chosen, folder, host, port, extra or ())
    out.print(f"serving {plain(folder)} with {chosen} on {base}/v1")
    out.print(f"[dim]{plain(' '.join(command))}[/]")
    os.execvp(command[0], command)


def _served(model: Path, stored: StoredModel) -> Path:
    """The Hugging Face folder that is served: the model itself, or its export, which is made where there is none."""
    from internevo.align.talking import exported_chat

    if (model / "config.json").is_file():
        return model
    folder = model / "serve" / f"step-{stored.step:06d}"
    if not folder.exists():
        tokenizer, chat = stored.needs_tokenizer(), exported_chat(stored)
        report = _export(stored, folder, stored.family or "auto", tokenizer=tokenizer, chat=chat, dtype=stored.dtype)
        out.print(f"wrote {plain(folder)}: {plain(report)}")
    return folder
