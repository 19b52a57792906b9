"""What trains a stage's model: on one process here, over many ranks in `sharded.py` and `pipelined.py`."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from internevo.config.schema import StageConfig
from internevo.data.batch import Batch, digest
from internevo.data.loader import WHOLE, Part
from internevo.model.attention import choose_kernel
from internevo.model.transformer import Transformer
from internevo.train.loss_model import LossModel
from internevo.train.micro_batch import micro_batches
from internevo.train.optimizer import build_optimizer, clip_gradients, set_learning_rate, state_tensors
from internevo.train.precision import bf16_copy


class Engine(ABC):
    """A stage's model and optimizer, wherever they lie."""

    stage: StageConfig
    device: torch.device
    part: Part = WHOLE
    """Which part of a step's rows this process reads."""

    @abstractmethod
    def forward_backward(self, batch: Batch) -> Tensor:
        """Run a step's micro-batches and add to every parameter's gradient that of the mean loss over all labels.

        Returns that loss, the same on all ranks.
        """

    @abstractmethod
    def update(self, loss: Tensor, lr: float) -> tuple[Tensor, bool]:
        """Clip the gradients and move the weights by them, unless `loss` or a gradient is not finite.

        Such a step changes neither weights nor optimizer state. Returns the global gradient norm before clipping, the
        same on all ranks, and whether the weights were moved. The gradients are gone after it.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All that a checkpoint holds of model and optimizer, by name, as far as this process has it.

        `model/NAME` is an fp32 weight, `optimizer/NAME/KIND` its optimizer state: whole, or a distributed tensor.
        """

    @abstractmethod
    def load(self, read: Callable[[Mapping[str, Tensor]], None]) -> None:
        """Take model and optimizer from a checkpoint: `read` fills named tensors in place, on all ranks together."""

    @abstractmethod
    def losses(self, batch: Batch) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(losses, labels, positions) of this process's share of the batch, equally shaped, without gradients.

        The loss is 0 where there is no label.
        """

    def digest(self, batch: Batch) -> str:
        """The fingerprint of the step's token ids, on all ranks."""
        return digest(batch.tokens)

    @abstractmethod
    def add_up(self, values: Tensor) -> Tensor:
        """The sum of what every share of a batch gave, on all ranks."""

    def close(self) -> None:
        """Give up all memory; the engine is of no use after it."""
        self.__dict__.clear()
        gc.collect()  # FSDP makes circles


class TorchEngine(Engine):
    """An engine with fp32 parameters, or parts of them, and torch's optimizer on them."""

    optimizer: torch.optim.Optimizer

    @abstractmethod
    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The fp32 parameters that this process holds, or holds a part of, by name."""

    @abstractmethod
    def clip_gradients(self, max_norm: float) -> Tensor:
        """Scale all gradients down to a global norm of `max_norm` if it is larger; 0 only measures.

        Returns the norm before clipping, the same on all ranks.
        """

    def updated(self) -> None:
        """Called when the parameters have new values."""

    def update(self, loss: Tensor, lr: float) -> tuple[Tensor, bool]:
        norm = self.clip_gradients(self.stage.optimizer.clip)
        finite = bool(torch.isfinite(loss) & torch.isfinite(norm))
        if finite:
            set_learning_rate(self.optimizer, lr)
            self.optimizer.step()
            self.updated()
        self.optimizer.zero_grad(set_to_none=True)
        return norm, finite

    def state(self) -> dict[str, Tensor]:
        return state_tensors(self.named_parameters(), self.optimizer)

    def load(self, read: Callable[[Mapping[str, Tensor]], None]) -> None:
        read(self.state())
        self.updated()


class LocalEngine(TorchEngine):
    """All on one process. With bf16, the passes run on a bf16 copy of the model."""

    def __init__(self, master: Transformer, stage: StageConfig, device: torch.device):
        master.config = stage.model  # a stage may change the rotary base
        self.stage, self.device, self.master = stage, device, master
        model = master if stage.train.precision == "fp32" else bf16_copy(master)
        model.use_kernel(choose_kernel(stage.train.attention, device))
        model.recompute = stage.train.recompute == "full"
        if stage.train.compile:
            model.compile_blocks()
        self.model = LossModel(model)
        self.optimizer = build_optimizer(self.named_parameters(), stage.optimizer)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.master.named_parameters())

    def forward_backward(self, batch: Batch) -> Tensor:
        labels = max(1, batch.label_count)
        total = torch.zeros((), device=self.device)
        for micro in micro_batches(batch, self.stage.train.micro_batch, self.device):
            loss = self.model(micro) / labels
            loss.backward()
            total += loss.detach()
        return total

    def clip_gradients(self, max_norm: float) -> Tensor:
        return clip_gradients(self.master.parameters(), max_norm)

    @torch.no_grad()
    def updated(self) -> None:
        if self.model.transformer is not self.master:
            torch._foreach_copy_(list(self.model.parameters()), list(self.master.parameters()))

    @torch.no_grad()
    def losses(self, batch: Batch) -> list[tuple[Tensor, Tensor, Tensor]]:
        rows = self.stage.train.micro_batch
        micros = micro_batches(batch, rows, self.device)
        return [(self.model(micro, summed=False), micro.labels, micro.positions) for micro in micros]

    def add_up(self, values: Tensor) -> Tensor:
        return values
