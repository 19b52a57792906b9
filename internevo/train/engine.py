"""What trains a stage's model: on one process here, over many ranks in `sharded.py` and `pipelined.py`."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from internevo.config.schema import StageConfig
from internevo.data.batch import Batch, digest
from internevo.data.loader import WHOLE, Part
from internevo.files.errors import UserError
from internevo.model.transformer import Transformer
from internevo.optim.groups import width_rate
from internevo.optim.optimizers import Given, Optimizers, clip_scale
from internevo.parallel.block_settings import compute_dtype, prepare_model, stage_kernel
from internevo.parallel.context import ContextCut
from internevo.train.loss_model import LossModel, loss_model
from internevo.train.micro_batch import Staged
from internevo.train.precision import bf16_copy
from internevo.train.recorder import Recorder


class Engine(ABC):
    """A stage's model and optimizer, wherever they lie."""

    stage: StageConfig
    device: torch.device
    part: Part = WHOLE
    """Which part of a step's rows this process reads."""
    cut: ContextCut | None = None
    """What cuts rows whose tokens lie on several ranks."""
    recorder: Recorder
    """What the model records of each step."""
    notes: tuple[str, ...] = ()
    """What a person should know of how the stage runs."""

    def stage_batch(self, batch: Batch) -> Staged:
        """The batch with this process's micro-batches on their way to the device. Any thread may call it."""
        kernel = stage_kernel(self.stage, self.device)
        return Staged.of(batch, self.stage.train.micro_batch, self.device, self.cut, kernel)

    @abstractmethod
    def forward_backward(self, staged: Staged) -> Tensor:
        """Run a step's micro-batches and add to every parameter's gradient that of the mean loss over all labels.

        Returns that loss, the same on all ranks, a scalar on the device.
        """

    @abstractmethod
    def update(self, loss: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """Clip the gradients and move the weights by them, unless `loss` or a gradient is not finite.

        Such a step changes neither weights nor optimizer state. Returns the global gradient norm before clipping, the
        same on all ranks, and whether the weights were moved: scalars on the device, which nobody has waited for. The
        gradients are gone after it.
        """

    @abstractmethod
    def state(self) -> Mapping[str, Tensor]:
        """All that a checkpoint holds of model and optimizer, by name, as far as this process has it.

        `model/NAME` is an fp32 weight, `optimizer/NAME/KIND` its optimizer state, in the dtype that it is kept in:
        whole, or a distributed tensor. Tensors are live, or made when they are looked up, or `HostCopies`.
        """

    @abstractmethod
    def load(self, read: Callable[[Mapping[str, Tensor]], None]) -> None:
        """Take model and optimizer from a checkpoint: `read` fills named tensors in place, on all ranks together.

        What was saved in another dtype is converted.
        """

    @abstractmethod
    def losses(self, batch: Batch) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(losses, labels, positions) of this process's share of the batch, equally shaped, without gradients.

        The loss is 0 where there is no label.
        """

    def digest(self, batch: Batch) -> str:
        """The fingerprint of the whole step's data, the same on all ranks and under every layout."""
        return digest(batch)

    @abstractmethod
    def add_up(self, values: Tensor) -> Tensor:
        """The sum of what every share of a batch gave, on all ranks."""

    def close(self) -> None:
        """Give up all memory; the engine is of no use after it."""
        self.__dict__.clear()
        gc.collect()  # FSDP makes circles


def refuse_frozen(model: nn.Module, setting: str) -> None:
    """Raise UserError for a parameter that does not learn."""
    if frozen := [name for name, parameter in model.named_parameters() if not parameter.requires_grad]:
        raise UserError(f"{setting} trains all parameters, and {frozen[0]} is frozen")


class TorchEngine(Engine):
    """An engine with fp32 parameters, or parts of them, and torch's optimizer on them."""

    optimizers: Optimizers

    @abstractmethod
    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The fp32 parameters that this process holds, or holds a part of, by name."""

    def learning(self) -> dict[str, nn.Parameter]:
        """Those of them that learn; the others are frozen, and have neither gradient nor optimizer state."""
        return {name: p for name, p in self.named_parameters().items() if p.requires_grad}

    @abstractmethod
    def gradient_norm(self) -> Tensor:
        """The global norm of all gradients, the same on all ranks."""

    def before_update(self) -> None:
        """Called when the gradients are complete."""

    def updated(self) -> None:
        """Called when the parameters have new values."""

    def update(self, loss: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        for parameter in self.learning().values():
            if parameter.grad is None:  # it took no part in the step, as an expert that no token chose
                parameter.grad = torch.zeros_like(parameter)
        norm = self.gradient_norm()
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        self.before_update()
        self.optimizers.step(lr, clip_scale(norm, self.stage.optimizer.clip), finite)
        self.updated()
        for parameter in self.named_parameters().values():
            parameter.grad = None
        return norm, finite

    def state(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.named_parameters().items():
            tensors[f"model/{name}"] = parameter.detach()
            kept = self.optimizers.state(name) if parameter.requires_grad else {}
            for kind, value in kept.items():
                tensors[f"optimizer/{name}/{kind}"] = self.as_parameter(value, parameter)
        return tensors

    def as_parameter(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        """A state tensor as checkpoints know it: cut over ranks as its parameter is."""
        return value

    def load(self, read: Callable[[Mapping[str, Tensor]], None]) -> None:
        read(self.state())
        self.updated()


class OneProcess(Engine):
    """An engine whose whole model is on this process."""

    model: LossModel

    def forward_backward(self, staged: Staged) -> Tensor:
        labels = max(1, staged.batch.label_count)
        total = torch.zeros((), device=self.device)
        for micro in staged:
            run = partial(self.model, micro)
            loss = self.recorder.forward(self.model, run, micro.tokens.numel(), labels) / labels
            loss.backward()
            total += loss.detach()
        return total

    @torch.no_grad()
    def losses(self, batch: Batch) -> list[tuple[Tensor, Tensor, Tensor]]:
        return [(self.model(one, summed=False), one.labels, one.positions) for one in self.stage_batch(batch)]

    def add_up(self, values: Tensor) -> Tensor:
        return values


class LocalEngine(OneProcess, TorchEngine):
    """All on one process. With bf16, the passes run on a bf16 copy of the model."""

    def __init__(self, master: Transformer, stage: StageConfig, device: torch.device):
        master.config = stage.model  # a stage may change the rotary base
        self.stage, self.device, self.master = stage, device, master
        self.recorder = Recorder()
        model = master if stage.train.precision == "fp32" else bf16_copy(master)
        prepare_model(model, stage, device)
        self.model = loss_model(model, stage, device)
        rate, dtype = width_rate(stage.model), compute_dtype(stage)
        self.optimizers = Optimizers(Given(self.learning(), master.roles, stage.optimizer, rate, dtype))

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.master.named_parameters())

    def gradient_norm(self) -> Tensor:
        return nn.utils.get_total_norm([p.grad for p in self.master.parameters() if p.grad is not None])

    @torch.no_grad()
    def updated(self) -> None:
        if self.model.transformer is not self.master:
            torch._foreach_copy_(list(self.model.parameters()), list(self.master.parameters()))
