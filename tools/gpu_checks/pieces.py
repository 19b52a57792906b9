"""What else a step is made of, on the GPU beside float64 or the CPU: losses, weights, updates, rotations."""

from __future__ import annotations

from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from internevo.config.presets import model_preset
from internevo.config.schema import OptimizerConfig, StageConfig, TrainConfig
from internevo.data.batch import IGNORE
from internevo.model.initial import initial_model
from internevo.model.rope import rotary_tables, rotate
from internevo.optim.groups import decays
from internevo.optim.muon import orthogonalise
from internevo.optim.split_fp32 import join, noise_like, round_by_chance, split
from internevo.parallel.world import World
from internevo.train.build import make_engine
from internevo.train.loss import LOGITS, summed_cross_entropy

from .compare import compare
from .device import device
from .parts import Part
from .record import Records
from .work import Absent, Checks


def checks(part: Part, small: bool, records: Records) -> Checks:
    """All of them; what is compiled comes last."""
    yield "split and join", split_and_join
    yield "rounding by chance", by_chance
    yield "rotations", partial(rotations, False)
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        yield f"Muon's iteration, {name}", partial(muon, dtype)
        for kind in ("plain", "chunked", "torch", "liger"):
            yield f"loss {kind}, {name}", partial(loss, kind, dtype, False)
    for state in ("split", "bf16"):
        yield f"update, state {state}", partial(update, state, False)
    if not small:
        yield "update, state split, compiled", partial(update, "split", True)
        yield "update, state bf16, compiled", partial(update, "bf16", True)
        yield "rotations, compiled", partial(rotations, True)
        for dtype in (torch.bfloat16, torch.float32):
            yield f"loss chunked, {str(dtype).removeprefix('torch.')}, compiled", partial(loss, "chunked", dtype, True)


def split_and_join() -> dict[str, Any]:
    """Every kind of fp32 number comes back bit by bit, and the halves are the CPU's."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (2**20,), generator=generator).to(torch.int32)
    bits = bits[(bits & 0x7F800000) != 0x7F800000]  # not infinite and not NaN
    bits = bits[(bits & 0x7FFFFFFF) < 0x7F7F8000]  # nor rounded to infinity
    numbers = bits.view(torch.float32)
    high, rest = split(numbers.to(device()))
    host_high, host_rest = split(numbers)
    same = {
        "whole": torch.equal(join(high, rest).cpu().view(torch.int32), bits),
        "upper halves": torch.equal(high.cpu().view(torch.int16), host_high.view(torch.int16)),
        "lower halves": torch.equal(rest.cpu(), host_rest),
    }
    wrong = [name for name, equal in same.items() if not equal]
    told = f"not the same: {', '.join(wrong)}" if wrong else f"{len(bits):,} numbers, bit by bit"
    return {"status": "wrong" if wrong else "right", "told": told}


def by_chance() -> dict[str, Any]:
    """The same chance as on the CPU, and the right mean."""
    count, step = 2**20, torch.tensor(7.0)
    numbers = torch.full((count,), 1.0 + 2**-10)
    noise = noise_like(numbers.to(device()), step.to(device()), 3)
    if not torch.equal(noise.cpu(), noise_like(numbers, step, 3)):
        return {"status": "wrong", "told": "the noise is not that of the CPU"}
    mean = round_by_chance(numbers.to(device()), noise).double().mean().item()
    right = abs(mean - (1 + 2**-10)) < 2**-7 / count**0.5 * 4  # four deviations, of neighbours 2**-7 apart
    return {"status": "right" if right else "wrong", "told": f"mean {mean:.7f} of {1 + 2**-10:.7f}"}


def rotations(compiled: bool) -> dict[str, Any]:
    """Positions up to a row of 128k beside float64; the angle itself is fp32, as the model defines it."""
    config = model_preset("internlm2-7b")
    generator = torch.Generator().manual_seed(0)
    positions = torch.cat([torch.arange(512), torch.arange(130_560, 131_072)])[None]
    x = torch.randn(1, 1024, 4, config.attention.head_dim, generator=generator)

    def turn(x: Tensor, positions: Tensor) -> Tensor:
        return rotate(x, *rotary_tables(positions, config))

    function = torch.compile(turn) if compiled else turn
    got = function(x.to(device()), positions.to(device()))
    exponents = torch.arange(0, config.attention.head_dim, 2, dtype=torch.float64) / config.attention.head_dim
    angles = positions.double()[..., None, None] * config.rope.base**-exponents
    wanted = rotate(x.double(), angles.cos(), angles.sin())
    return compare({"near": (got[:, :512], wanted[:, :512]), "far": (got[:, 512:], wanted[:, 512:])}, 2e-2)


def muon(dtype: torch.dtype) -> dict[str, Any]:
    """The iteration beside the same in float64, for a wide and a tall matrix; singular values come out near one."""
    generator = torch.Generator().manual_seed(0)
    pairs = {}
    for shape in ((256, 640), (640, 256)):
        matrix = torch.randn(shape, generator=generator).to(dtype)
        got = orthogonalise(matrix.to(device()))
        values = torch.linalg.svdvals(got.float().cpu())
        pairs[f"{shape[0]} x {shape[1]}"] = got, orthogonalise(matrix.double())
        pairs[f"singular values of {shape[0]} x {shape[1]}, to 1 by 0.5"] = (
            (values - 1).abs().clamp(min=0.5),
            (torch.full_like(values, 0.5)),
        )
    return compare(pairs, 5e-2 if dtype == torch.bfloat16 else 1e-3)


@cache
def _loss_reference(dtype: torch.dtype) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Features and weight, labels, and in float64 the loss a token and both gradients."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 1300, 128, generator=generator).to(dtype)
    weight = (torch.randn(4133, 128, generator=generator) / 4).to(dtype)
    labels = torch.randint(0, len(weight), (1, 1300), generator=generator)
    labels[0, ::7] = IGNORE
    wide = [features.double().requires_grad_(), weight.double().requires_grad_()]
    total = F.cross_entropy((wide[0] @ wide[1].T)[0], labels[0], ignore_index=IGNORE, reduction="sum")
    grads = torch.autograd.grad(total, wide)
    return [features, weight], labels, [total.detach() / (labels != IGNORE).sum(), *grads]


def loss(kind: str, dtype: torch.dtype, compiled: bool) -> dict[str, Any]:
    """The loss and both gradients; ours in several chunks."""
    if kind == "liger" and (find_spec("liger_kernel") is None or device().type != "cuda"):
        raise Absent("liger-kernel is not installed, or there is no GPU")
    if kind == "torch" and not hasattr(F, "linear_cross_entropy"):
        raise Absent(f"torch {torch.__version__} has no linear_cross_entropy")
    inputs, labels, wanted = _loss_reference(dtype)
    there = [x.to(device()).requires_grad_() for x in inputs]
    usual = LOGITS[device().type]
    LOGITS[device().type] = 2**21  # chunks of 512 tokens
    try:
        total = summed_cross_entropy(*there, labels.to(device()), kind=kind, compiled=compiled)
        grads = torch.autograd.grad(total, there)
    finally:
        LOGITS[device().type] = usual
    pairs = zip((total / (labels != IGNORE).sum().item(), *grads), wanted, strict=True)
    return compare(dict(zip(("loss", "d features", "d weight"), pairs, strict=True)), _tolerance(dtype))


def update(state: str, compiled: bool) -> dict[str, Any]:
    """Three updates with given gradients beside AdamW in float64."""
    train = TrainConfig(precision="bf16", seq_len=64, batch_tokens=64, steps=10, compile=compiled)
    stage = StageConfig(model=model_preset("tiny"), train=train, optimizer=OptimizerConfig(state=state))
    model = initial_model(stage.model, "cpu", 0)
    engine = make_engine(stage, World.alone(device()), model)
    weights = {name: p.detach().double() for name, p in model.named_parameters()}
    first, second = ({name: torch.zeros_like(p) for name, p in weights.items()} for _ in range(2))
    generator, config, lr = torch.Generator().manual_seed(0), stage.optimizer, 1e-2
    (beta1, beta2), good = config.betas, torch.zeros((), device=device())
    for step in (1, 2, 3):
        given = {name: torch.randn(p.shape, generator=generator).bfloat16() for name, p in weights.items()}
        for name, parameter in engine.parameters.items():
            parameter.grad = given[name].to(device())
        engine.update(good, lr)
        norm = torch.stack([g.double().norm() for g in given.values()]).norm()
        for name, weight in weights.items():
            gradient = given[name].double() / max(1.0, float(norm) / config.clip)
            first[name] += (gradient - first[name]) * (1 - beta1)
            second[name] += (gradient**2 - second[name]) * (1 - beta2)
            decay = config.weight_decay if decays(engine.roles[name], config) else 0.0
            root = (second[name] / (1 - beta2**step)).sqrt() + config.eps
            weight.mul_(1 - lr * decay).sub_(lr / (1 - beta1**step) * first[name] / root)
    got = {name.removeprefix("model/"): x for name, x in engine.state().items() if name.startswith("model/")}
    # moments in bf16 are off by a 256th each, and weights by that share of what they have moved
    return compare({name: (got[name], weight) for name, weight in weights.items()}, 1e-3 if state == "bf16" else 1e-6)


def _tolerance(dtype: torch.dtype) -> float:
    return 2e-2 if dtype == torch.bfloat16 else 1e-3
