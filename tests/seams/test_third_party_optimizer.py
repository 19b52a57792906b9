"""An optimizer that knows nothing of this package: it moves the same on any ranks, and nothing on a bad step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from internevo.files.errors import UserError
from internevo.hf.export import export
from internevo.model.initial import initial_model
from internevo.optim.groups import parameter_groups
from internevo.optim.optimizers import Given
from internevo.parallel.world import World
from tests.hf.models import ModelWeights
from tests.parallel.jobs import ALONE, begun, engine_of, joined, stage_of, train, whole
from tests.seams.compare import LAYOUT, same_as_one_rank


class Signs(torch.optim.Optimizer):
    """The sign of averaged gradients."""

    def __init__(self, groups: list[dict[str, Any]], lr: float):
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {"average": torch.zeros_like(parameter), "rows": torch.ones(3)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["average"].lerp_(parameter.grad, 0.1)
                state["rows"] += 1  # state may have any shape
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(torch.tanh(state["average"] * 100), alpha=group["lr"])


def signs(given: Given) -> list[torch.optim.Optimizer]:
    return [Signs(parameter_groups(given.parameters, given.roles, given.config, given.rate), given.config.lr)]


def lazy(given: Given) -> list[torch.optim.Optimizer]:
    """State that comes with the first step: a checkpoint could not be loaded into it."""
    return [torch.optim.Adam(given.parameters.values(), fused=False)]


def test_state_must_be_there_from_the_beginning() -> None:
    with pytest.raises(
        UserError, match=r"test_third_party_optimizer:lazy has no state for embed.weight when it is made"
    ):
        engine_of(stage_of({"optimizer": "tests.seams.test_third_party_optimizer:lazy"}), ALONE)
    with pytest.raises(UserError, match=r"os:sep cannot be imported .sep is a str, neither a class nor a function"):
        engine_of(stage_of({"optimizer": "os:sep"}), ALONE)


class Anchored(Signs):
    """It keeps the weights that it was given at first."""

    def __init__(self, groups: list[dict[str, Any]], lr: float):
        super().__init__(groups, lr)
        for parameter, state in self.state.items():
            state["anchor"] = parameter.detach().clone()


def anchored(given: Given) -> list[torch.optim.Optimizer]:
    return [Anchored(parameter_groups(given.parameters, given.roles, given.config, given.rate), given.config.lr)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_made_when_the_weights_are_there(precision: str) -> None:
    changes = {"optimizer": "tests.seams.test_third_party_optimizer:anchored", "precision": precision}
    state = engine_of(stage_of(changes), ALONE).state()
    for name in [name.removeprefix("model/") for name in state if name.startswith("model/")]:
        assert torch.equal(state[f"optimizer/{name}/anchor"], state[f"model/{name}"]), name


MINE = {"optimizer": "tests.seams.test_third_party_optimizer:signs"}


def test_it_trains_as_on_one_rank(store: Path, ranks: Any) -> None:
    same_as_one_rank(MINE, store, ranks)


def moved_by_an_infinite_gradient(world: World, changes: dict[str, Any]) -> list[str]:
    """What a step changes whose gradient is infinite in one number, on the last rank alone."""
    engine = engine_of(stage_of(changes), world)
    before = {name: value.clone() for name, value in whole(engine.state()).items()}
    for parameter in engine.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    if world.rank == world.size - 1:
        last: nn.Parameter = list(engine.parameters.values())[-1]
        gradient = last.grad
        assert gradient is not None
        part = gradient.to_local() if hasattr(gradient, "to_local") else gradient
        part.view(-1)[0] = torch.inf
    norm, updated = engine.update(torch.tensor(1.0), 0.1)
    assert not updated
    assert torch.isinf(norm)
    after = whole(engine.state())
    return [name for name, value in before.items() if not torch.equal(value, after[name])]


def test_an_infinite_gradient_moves_nothing(ranks: Any) -> None:
    assert moved_by_an_infinite_gradient(ALONE, MINE) == []
    for changes in (LAYOUT, {"zero": 2}, {"tensor": 4, "sequence": False}):
        for found in ranks(4).run(moved_by_an_infinite_gradient, {**changes, **MINE}):
            assert found == []


class Counting(Signs):
    """It counts its steps in a plain number."""

    def __init__(self, groups: list[dict[str, Any]], lr: float):
        super().__init__(groups, lr)
        for state in self.state.values():
            state["count"] = 0


def counting(given: Given) -> list[torch.optim.Optimizer]:
    return [Counting(parameter_groups(given.parameters, given.roles, given.config, given.rate), given.config.lr)]


def single(given: Given) -> torch.optim.Optimizer:
    return signs(given)[0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("counting", r"keeps 'count' of embed.weight as int; a checkpoint holds tensors"),
        ("single", r"must return a list of torch.optim.Optimizer; it returned a Signs"),
    ],
)
def test_what_no_checkpoint_could_hold_is_refused(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        engine_of(stage_of({"optimizer": f"tests.seams.test_third_party_optimizer:{name}"}), ALONE)


class Factored(Signs):
    """It keeps the mean square of each row, of the rows that it has: other ones on other ranks."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter, state in self.state.items():
            state["rows"][:] = parameter.grad.square().sum()
        super().step()


def factored(given: Given) -> list[torch.optim.Optimizer]:
    return [Factored(parameter_groups(given.parameters, given.roles, given.config, given.rate), given.config.lr)]


def refusal(world: World, changes: dict[str, Any], store: Path) -> str:
    """What two steps end with."""
    try:
        train(world, changes, store, 2)
    except UserError as error:
        return str(error)
    return "nothing"


def test_state_that_ranks_cannot_share_is_refused(store: Path, ranks: Any) -> None:
    changes = {"optimizer": "tests.seams.test_third_party_optimizer:factored"}
    assert refusal(ALONE, {**changes, "micro_batch": 8}, store) == "nothing"
    for layout in ({"zero": 1}, {"tensor": 2}):
        for found in ranks(2).run(refusal, {**changes, **layout}, store):
            assert "'rows' of embed.weight is not of the parameter's shape and differs over the ranks" in found
    for found in ranks(2).run(refusal, {**changes, "zero": 0}, store):  # each has all of every parameter
        assert found == "nothing"


class Drifting(Signs):
    """It moves every number, also one without a gradient."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        for parameter in self.state:
            parameter.add_(0.01)


def drifting(given: Given) -> list[torch.optim.Optimizer]:
    return [Drifting(parameter_groups(given.parameters, given.roles, given.config, given.rate), given.config.lr)]


def beyond_the_real(world: World, changes: dict[str, Any]) -> dict[str, float]:
    """After two updates: the largest number in what only fills up each parameter that has such a part."""
    engine = engine_of(stage_of(changes), world)
    for _ in range(2):
        for parameter in engine.parameters.values():
            parameter.grad = torch.ones_like(parameter)
        engine.update(torch.tensor(1.0), 0.1)
    largest = {}
    for name, parameter in engine.parameters.items():
        if parameter.shape != engine.shapes[name]:
            rest = joined(parameter.detach()).clone()
            rest[tuple(slice(length) for length in engine.shapes[name])] = 0
            largest[name] = float(rest.abs().max())
    return largest


@pytest.mark.parametrize("zero", [1, 3])
def test_what_fills_up_uneven_parts_stays_zero(zero: int, ranks: Any) -> None:
    odd = {"optimizer": "tests.seams.test_third_party_optimizer:drifting", "width": 161, "vocab": 513}
    for found in ranks(4).run(beyond_the_real, {**odd, "tensor": 2, "zero": zero}):
        assert {"embed.weight", "head.weight"} < found.keys(), found
        assert set(found.values()) == {0.0}, found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_begins_with_the_weights_of_another_model(precision: str, tmp_path: Path, ranks: Any) -> None:
    changes = {"optimizer": "tests.seams.test_third_party_optimizer:anchored", "precision": precision}
    shape = stage_of(changes).model
    model = initial_model(shape, "cpu", seed=99)
    export(ModelWeights(model), shape, tmp_path / "hf", "llama", seq_len=64, tokenizer=None)
    for state in (begun(ALONE, changes, str(tmp_path / "hf")), ranks(2).run(begun, changes, str(tmp_path / "hf"))[0]):
        for name, weight in model.named_parameters():
            assert torch.equal(state[f"model/{name}"], weight), name
            assert torch.equal(state[f"optimizer/{name}/anchor"], weight), name
