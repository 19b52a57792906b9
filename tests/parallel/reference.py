"""Training written a second time, in float64 on one process: what every layout is compared with.

It shares no code with `internevo`, and imports nothing from it: a proof must not share the assumptions of what it
proves. It takes plain values only: the configuration as dictionaries, weights by name, rows of tokens, their labels
and the lengths of their documents. Everything else is computed here: positions, masks, the learning rate, the size
of each step, gradients (by autograd, on plain tensors) and updates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Config = Mapping[str, Any]
"""A part of the configuration: keys and plain values."""


@dataclass
class Rows:
    """One step's rows."""

    tokens: Tensor
    """int64 `[rows, seq]`."""
    labels: Tensor
    """int64 `[rows, seq]`; negative where there is nothing to predict."""
    lengths: Sequence[Sequence[int]]
    """Lengths of each row's documents, which add up to `seq`."""
    weights: Tensor | None = None
    """`[rows, seq]`: how much each label counts; None: all alike."""


@dataclass
class Trained:
    """What the steps did."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Those of the first step, before clipping."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """By kind (`exp_avg`, `exp_avg_sq`, `momentum_buffer`) and name."""


def train(
    config: Config,
    weights: Mapping[str, Tensor],
    batches: Sequence[Rows],
    moments: Mapping[str, Mapping[str, Tensor]] | None = None,
    updates_before: int = 0,
) -> Trained:
    """Train one step on each of `batches`, from these weights.

    `moments`, by kind and name, and `updates_before` are the optimizer's state before the first step; zero if absent.
    Raises ValueError when a batch has not as many rows as the configuration says.
    """
    now = {name: value.double().clone() for name, value in weights.items()}
    kept = {kind: {name: value.double() for name, value in of.items()} for kind, of in (moments or {}).items()}
    result, seen = Trained(), 0
    for step, rows in enumerate(batches):
        if len(rows.tokens) != rows_of_step(config["train"], seen):
            raise ValueError(f"step {step} has {len(rows.tokens)} rows, not {rows_of_step(config['train'], seen)}")
        seen += rows.tokens.numel()
        leaves = {name: value.clone().requires_grad_() for name, value in now.items()}
        loss = mean_loss(config["model"], leaves, rows)
        found = torch.autograd.grad(loss, list(leaves.values()))
        gradients = dict(zip(leaves, found, strict=True))
        norm = math.sqrt(sum(float((one**2).sum()) for one in found))
        if step == 0:
            result.gradients = gradients
        clip = config["optimizer"]["clip"]
        share = min(1.0, clip / norm) if clip > 0 else 1.0
        lr = learning_rate(config, step)
        for name, value in now.items():
            gradient = gradients[name] * share
            if config["optimizer"]["name"] == "muon" and name.startswith("blocks.") and value.ndim == 2:
                muon(name, value, gradient, kept, config, lr)
            else:
                adamw(name, value, gradient, kept, config, lr, updates_before + step + 1)
        result.losses.append(loss.item())
        result.norms.append(norm)
    result.weights, result.moments = now, kept
    return result


def rows_of_step(train: Config, seen: int) -> int:
    """Rows of the step that begins after `seen` tokens of the stage."""
    for leg in train["batch_ramp"]:
        if seen < leg["until"]:
            return int(leg["batch_tokens"] // train["seq_len"])
    return int(train["batch_tokens"] // train["seq_len"])


def learning_rate(config: Config, step: int) -> float:
    """Of a step of the run's only stage, counted from 0."""
    schedule, peak, steps = config["schedule"], config["optimizer"]["lr"], config["train"]["steps"]
    warmup, final = schedule["warmup"], schedule["final"]
    if step < warmup:
        return float(peak * (step + 1) / warmup)
    done = (step - warmup) / max(1, steps - 1 - warmup)
    shapes = {
        "constant": 1.0,
        "linear": 1 + (final - 1) * done,
        "cosine": final + (1 - final) * (1 + math.cos(math.pi * done)) / 2,
        "wsd": 1.0
        if done <= 1 - schedule["decay"]
        else 1 + (final - 1) * (done - 1 + schedule["decay"]) / schedule["decay"],
    }
    return float(peak * shapes[schedule["name"]])


def mean_loss(model: Config, w: Mapping[str, Tensor], rows: Rows) -> Tensor:
    """Cross-entropy in nats, the mean over all labels of the step by their weights."""
    seq = rows.tokens.shape[1]
    positions = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in rows.lengths])
    document = torch.stack([torch.repeat_interleave(torch.tensor(lengths)) for lengths in rows.lengths])
    seen = (document[:, :, None] == document[:, None, :]) & torch.ones(seq, seq).tril().bool()
    turn = rotations(model, positions)
    x = w["embed.weight"][rows.tokens]
    for number in range(model["layers"]):
        block = {name.removeprefix(f"blocks.{number}."): value for name, value in w.items()}
        x = x + attention(model, block, rms_norm(x, block["attention_norm.weight"], model), turn, seen)
        h = rms_norm(x, block["feed_forward_norm.weight"], model)
        gate = h @ block["feed_forward.gate.weight"].T
        x = (
            x
            + (gate * torch.sigmoid(gate) * (h @ block["feed_forward.up.weight"].T))
            @ block["feed_forward.down.weight"].T
        )
    head = w["embed.weight"] if model["tied"] else w["head.weight"]
    scores = rms_norm(x, w["norm.weight"], model) @ head.T
    real = rows.labels >= 0
    chosen = scores[real].gather(1, rows.labels[real][:, None])[:, 0]
    weights = torch.ones(rows.labels.shape) if rows.weights is None else rows.weights
    counted = weights.to(scores.dtype)[real]
    return ((scores[real].logsumexp(1) - chosen) * counted).sum() / (counted.sum() or 1)


def rms_norm(x: Tensor, weight: Tensor, model: Config) -> Tensor:
    """Over the last dimension."""
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + model["norm_eps"]) * weight


def attention(model: Config, block: Mapping[str, Tensor], x: Tensor, turn: Tensor, seen: Tensor) -> Tensor:
    """Each query head `h` with kv head `h // (heads / kv_heads)`, over the tokens that `seen` allows."""

    shape = model["attention"]

    def heads(name: str, count: int) -> Tensor:
        """`[rows, heads, seq, head_dim]`"""
        out = x @ block[f"attention.{name}.weight"].T
        if shape["bias"]:
            out = out + block[f"attention.{name}.bias"]
        return out.reshape(*x.shape[:2], count, shape["head_dim"]).transpose(1, 2)

    q, k, v = heads("wq", shape["heads"]), heads("wk", shape["kv_heads"]), heads("wv", shape["kv_heads"])
    if shape["qk_norm"]:
        q, k = (
            rms_norm(q, block["attention.q_norm.weight"], model),
            rms_norm(k, block["attention.k_norm.weight"], model),
        )
    group = shape["heads"] // shape["kv_heads"]
    served = [head // group for head in range(shape["heads"])]
    scores = rotated(q, turn) @ rotated(k, turn)[:, served].transpose(2, 3) / math.sqrt(shape["head_dim"])
    weights = torch.softmax(scores.masked_fill(~seen[:, None], -math.inf), dim=-1)
    return (weights @ v[:, served]).transpose(1, 2).flatten(2) @ block["attention.wo.weight"].T


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """Channels `i` and `i + head_dim / 2` as one complex number, multiplied by its turn."""
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half], x[..., half:]) * turn[:, None]
    return torch.cat([turned.real, turned.imag], dim=-1)


def rotations(model: Config, positions: Tensor) -> Tensor:
    """Complex `[rows, seq, head_dim / 2]`: what each position multiplies each pair of channels with."""
    dim, scaling = model["attention"]["head_dim"], model["rope"]["scaling"]
    speeds = [model["rope"]["base"] ** (-2 * i / dim) for i in range(dim // 2)]
    length, size = scaling["factor"], 1.0
    if scaling["kind"] == "linear":
        speeds = [speed / length for speed in speeds]
    elif scaling["kind"] == "llama3":
        speeds = [llama3_speed(speed, scaling) for speed in speeds]
    elif scaling["kind"] == "yarn":
        speeds = yarn_speeds(speeds, model)
        size = 1 + 0.1 * math.log(length) if scaling["temperature"] is None else scaling["temperature"]
    angles = positions[..., None].double() * torch.tensor(speeds, dtype=torch.float64)
    return torch.polar(torch.full_like(angles, size), angles)


def llama3_speed(speed: float, scaling: Config) -> float:
    """By wavelength: short ones stay, long ones are stretched, those between are blended (Llama 3.1)."""
    wavelength, original = 2 * math.pi / speed, scaling["original_seq_len"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    if wavelength < original / high:
        return speed
    if wavelength > original / low:
        return float(speed / scaling["factor"])
    smooth = (original / wavelength - low) / (high - low)
    return float((1 - smooth) * speed / scaling["factor"] + smooth * speed)


def yarn_speeds(speeds: Sequence[float], model: Config) -> list[float]:
    """A linear ramp over whole channels, between those that turn `beta_fast` and `beta_slow` times (YaRN)."""
    dim, scaling = model["attention"]["head_dim"], model["rope"]["scaling"]

    def channel(turns: float) -> float:
        return dim / 2 * math.log(scaling["original_seq_len"] / (2 * math.pi * turns), model["rope"]["base"])

    first = max(0, math.floor(channel(scaling["beta_fast"])))
    last = min(dim - 1, math.ceil(channel(scaling["beta_slow"])))
    shares = [min(1.0, max(0.0, (i - first) / max(last - first, 0.001))) for i in range(len(speeds))]
    return [
        speed / scaling["factor"] * share + speed * (1 - share) for speed, share in zip(speeds, shares, strict=True)
    ]


def adamw(
    name: str, value: Tensor, gradient: Tensor, kept: dict[str, dict[str, Tensor]], config: Config, lr: float, time: int
) -> None:
    """Move a weight in place; `time` is 1 at the first update."""
    model, optimizer = config["model"], config["optimizer"]
    first, second = optimizer["betas"]
    mean, square = kept.setdefault("exp_avg", {}), kept.setdefault("exp_avg_sq", {})
    mean[name] = first * mean.get(name, torch.zeros_like(value)) + (1 - first) * gradient
    square[name] = second * square.get(name, torch.zeros_like(value)) + (1 - second) * gradient**2
    outside = name in ("embed.weight", "head.weight")
    if value.ndim == 2 and (optimizer["decay_embeddings"] or not outside):
        value -= lr * optimizer["weight_decay"] * value
    # a wider model's matrices learn slower; decay is not told so
    wide = model["width_base"] > 0 and value.ndim == 2 and name != "embed.weight"
    rate = lr * (model["width_base"] / model["hidden"] if wide else 1.0)
    root = torch.sqrt(square[name] / (1 - second**time)) + optimizer["eps"]
    value -= rate * (mean[name] / (1 - first**time)) / root


def muon(
    name: str, value: Tensor, gradient: Tensor, kept: dict[str, dict[str, Tensor]], config: Config, lr: float
) -> None:
    """Move a matrix in place: Nesterov momentum, five Newton-Schulz steps (Jordan 2024), scaled as Moonlight has it."""
    model, optimizer = config["model"], config["optimizer"]
    momentum = optimizer["momentum"]
    buffers = kept.setdefault("momentum_buffer", {})
    buffers[name] = momentum * buffers.get(name, torch.zeros_like(value)) + (1 - momentum) * gradient
    x = momentum * buffers[name] + (1 - momentum) * gradient
    x = x / torch.linalg.matrix_norm(x)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x - 4.7750 * square @ x + 2.0315 * square @ square @ x
    value -= lr * optimizer["weight_decay"] * value
    # an orthogonal matrix moves activations by its largest singular value, which the scale makes grow with the root
    rate = lr * math.sqrt(model["width_base"] / model["hidden"]) if model["width_base"] else lr
    value -= rate * 0.2 * math.sqrt(max(value.shape)) * x
