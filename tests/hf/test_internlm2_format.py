"""The InternLM2 format: its own code in transformers, and what other readers of the release's files ask of them."""

from __future__ import annotations

import ast
import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from internevo.files.errors import UserError
from internevo.hf.export import export
from tests.hf.models import ModelWeights, our_model
from tools.check_export import check
from tools.check_transformers_versions import SHAPES, write_exports

STABLE = {
    "transformers": {"DynamicCache", "GenerationMixin", "PretrainedConfig", "PreTrainedModel"},
    "transformers.modeling_outputs": {"BaseModelOutputWithPast", "CausalLMOutputWithPast"},
}
"""What is there, and means the same, in every transformers from 4.38 on."""


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("exports")
    return {made[0].name: made for made in write_exports(folder)}


@pytest.mark.parametrize("name", SHAPES)
def test_it_does_in_transformers_what_our_model_does(exports: dict[str, tuple[Path, Path]], name: str) -> None:
    """Logits, causality, padding, caches, generation, training. `tools/check_transformers_versions.py` does this in
    environments of other versions."""
    folder, expected = exports[name]
    check(str(folder), torch.load(expected))


def test_its_code_leans_on_nothing_that_changes() -> None:
    """Another model's class, whose meaning changes between versions, would need a look at every version."""
    for file in ("configuration_internlm2.py", "modeling_internlm2.py"):
        source = files("internevo.hf.internlm2").joinpath(file).read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                assert {name.name for name in node.names} == {"torch"}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.split(".")[0] != "torch":
                assert {name.name for name in node.names} <= STABLE[node.module]


def test_a_linear_scaling_has_the_two_fields_of_the_release(exports: dict[str, tuple[Path, Path]]) -> None:
    facts = json.loads((exports["linear"][0] / "config.json").read_text())
    assert facts["rope_scaling"] == {"type": "linear", "factor": 4.0}
    assert isinstance(facts["rope_scaling"]["factor"], float)
    assert json.loads((exports["grouped"][0] / "config.json").read_text())["rope_theta"] == 1e6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": {"head_dim": 32}}, "its head_dim is hidden / heads, 64 / 4, and this model's is 32"),
        (
            {"rope": {"scaling": {"kind": "yarn", "factor": 4.0, "original_seq_len": 64}}},
            "it does not know rotary scaling of the kind yarn",
        ),
    ],
)
def test_what_readers_of_the_format_would_get_wrong_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    model = our_model(**changes)
    with pytest.raises(UserError, match=f"internlm2 cannot hold this model: {message}. What can: llama"):
        export(ModelWeights(model), model.config, tmp_path / "out", "internlm2", seq_len=64, tokenizer=None)
    assert not list(tmp_path.iterdir())


def test_its_configuration_knows_linear_scaling_only() -> None:
    from internevo.hf.internlm2.configuration_internlm2 import InternLM2Config

    with pytest.raises(ValueError, match="rope_scaling of type 'dynamic': this InternLM2 code knows linear scaling"):
        InternLM2Config(rope_scaling={"type": "dynamic", "factor": 2.0})
