"""What trains a stage's model: its weights, what runs it, and the optimizers that move it, over a mesh of ranks."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from internevo.checkpoint.tensors import LazyTensors, Piece
from internevo.config.choices import is_yours
from internevo.config.derive import step_sizes
from internevo.config.schema import StageConfig
from internevo.data.batch import Batch, combine_digests
from internevo.data.loader import WHOLE, Part
from internevo.files.errors import UserError
from internevo.model.transformer import Transformer
from internevo.optim.groups import width_rate
from internevo.optim.optimizers import Given, Optimizers, clip_scale
from internevo.optim.split_fp32 import REST, set_weight, whole_weight
from internevo.parallel.alike import check_alike
from internevo.parallel.block_settings import compute_dtype, stage_kernel
from internevo.parallel.build_rank_model import first_part
from internevo.parallel.collectives import gather_dim, sum_over
from internevo.parallel.context import ContextCut
from internevo.parallel.gradients import gradient_norm
from internevo.parallel.mesh import Mesh, Place
from internevo.parallel.tensor import TensorParallel, complete_gradients, local
from internevo.parallel.whole_matrices import WholeMatrices
from internevo.parallel.zero import Rectangle, cut_alike, rows_to_shard
from internevo.train.micro_batch import MicroBatch, Staged
from internevo.train.recorder import Recorder

Losses = list[tuple[Tensor, MicroBatch]]
"""Micro-batches, each with the loss of every label, fp32 `[rows, seq]`."""


class Engine(ABC):
    """A stage's model and optimizer, wherever they lie."""

    stage: StageConfig
    device: torch.device
    part: Part = WHOLE
    """Which part of a step's rows this process reads."""
    cut: ContextCut | None = None
    """What cuts rows whose tokens lie on several ranks."""
    sharing: Sequence[Place] = ()
    """The groups of ranks among which each row's tokens are shared out."""
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
        """Run a step's micro-batches and add to every parameter's gradient that of the mean loss over all labels, each
        by its weight.

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

        `model/NAME` is a weight, fp32 if it learns, `optimizer/NAME/KIND` its optimizer state, in the dtype that it is
        kept in: whole, or a distributed tensor. Tensors are live, or made when they are looked up, or `HostCopies`.
        """

    @abstractmethod
    def load(self, read: Callable[[Mapping[str, Tensor]], None]) -> None:
        """Take model and optimizer from a checkpoint: `read` fills named tensors in place, on all ranks together.

        What was saved in another dtype is converted.
        """

    def begin(self, read: Callable[[Mapping[str, Tensor]], None]) -> None:
        """Take the first weights alone; optimizers begin with these. With `train.lora`, they are the frozen ones."""
        self.load(read)

    @abstractmethod
    def losses(self, batch: Batch) -> Losses:
        """Of this process's share of the batch, without gradients. The loss is 0 where there is no label."""

    @abstractmethod
    def digest(self, batch: Batch) -> str:
        """The fingerprint of the whole step's data, the same on all ranks and under every layout."""

    @abstractmethod
    def add_up(self, values: Tensor) -> Tensor:
        """The sum of what every share of a batch gave, on all ranks."""

    def close(self) -> None:
        """Give up all memory; the engine is of no use after it."""
        self.__dict__.clear()
        gc.collect()  # FSDP makes circles


class Runner(ABC):
    """A rank's part of the model and how micro-batches go through it: one after the other, or in a pipeline."""

    notes: tuple[str, ...] = ()
    """What a person should know of how it runs."""

    @property
    @abstractmethod
    def transformers(self) -> list[Transformer]:
        """What this rank has of the model."""

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All that this rank has, by name."""
        return {name: p for part in self.transformers for name, p in part.named_parameters()}

    @abstractmethod
    def forward_backward(self, staged: Staged) -> Tensor:
        """Run a step's micro-batches. Returns this rank's share of the mean loss, a scalar on the device."""

    @abstractmethod
    def losses(self, staged: Staged) -> Losses:
        """As for an engine."""

    def weights_changed(self) -> None:  # noqa: B027
        """Called on all ranks when the parameters have new values."""


class TorchEngine(Engine):
    """An engine on a mesh of ranks, of which one process is the smallest, with optimizers that are torch's.

    | ranks | what the optimizers move | what runs |
    |---|---|---|
    | one, fp32 | the weights | the same |
    | one, bf16 | fp32 weights | a bf16 copy of them, made anew after each update |
    | one, bf16, `optimizer.state` split or bf16 | bf16 weights, with the rest of fp32 in the optimizers | the same |
    | several | fp32 parts of the weights | what ZeRO gathers of them, in the precision of the passes |

    What is frozen is kept in the precision of the passes alone.

    With `parallel.zero.offload.optimizer: cpu` the fp32 parts, and so the optimizers, are in host memory.
    """

    def __init__(
        self,
        stage: StageConfig,
        mesh: Mesh,
        make_runner: Callable[[StageConfig, Mesh, Recorder], Runner],
        model: Transformer | None = None,
    ):
        """With the weights of `model`, on one process, which are trained in place where they are kept whole; or with
        those of the stage's seed. Raises LayoutError when the sizes do not fit."""
        self.stage, self.mesh, self.device = stage, mesh, mesh.device
        if model is not None:
            model.config = stage.model  # a stage may change the rotary base
        self.part = Part(mesh.data.rank, mesh.data.size)
        self.cut = ContextCut(mesh) if mesh.layout.context > 1 else None
        self.sharing = (mesh.ring, mesh.ulysses)
        self.tensor = TensorParallel(mesh.tensor, stage.parallel.sequence)
        self.recorder = Recorder(mesh.everyone, mesh.tensor, mesh.replicas.size, stage.parallel.sequence, mesh.control)
        self.runner = make_runner(stage, mesh, self.recorder)
        self.notes = self.runner.notes
        self.roles = self.runner.transformers[0].roles  # of the whole model, as each part was made from one
        self.shapes = self.runner.transformers[0].shapes
        self.parameters = self.runner.parameters
        """What the optimizers move, and checkpoints know: by name, what this process has, or has a part of."""
        self.copies: dict[str, nn.Parameter] = {}
        """What runs, where that is another."""
        if mesh.alone and compute_dtype(stage) != torch.float32:
            self._keep_fp32(model)
        self._filled_up = {
            name: Rectangle.of(p, self.shapes[name], self.roles[name].cut, mesh)
            for name, p in self.parameters.items()
            if p.shape != self.shapes[name]
        }
        """Where tensor parallelism does not divide a parameter evenly: what of this rank's part is real."""
        if not self._split:  # an optimizer may begin with something made from the weights
            self._set_first_weights(model)
        self.local = {name: nn.Parameter(local(p.detach())) for name, p in self.learning().items()}
        """What the optimizers see: each rank's parts, as plain tensors that share the parameters' memory."""
        self._build_optimizers()
        self._moved = False
        self._add_up_in_fp32()
        if self._split:  # a part of each weight is in the optimizers
            self._set_first_weights(model)
        self._weights_changed()

    def _set_first_weights(self, model: Transformer | None) -> None:
        if model is None:
            # a base is read: drawing the numbers of 70 billion weights would take minutes
            for name in self.parameters if self.stage.train.init_from is None else self.saved():
                self._set_weight(name, first_part(name, self.shapes[name], self.roles[name], self.stage, self.mesh))
        elif self._split:
            for name, given in model.named_parameters():
                self._set_weight(name, given.detach())

    def _keep_fp32(self, model: Transformer | None) -> None:
        """Where the passes compute in less: fp32 weights, or the rest of them in the optimizers."""
        if self.stage.optimizer.state != "fp32":
            refuse_frozen(self.parameters, f"optimizer.state={self.stage.optimizer.state}")
            return
        if model is not None:
            self.copies, self.parameters = self.parameters, dict(model.named_parameters())
            for name, copy in self.copies.items():
                copy.requires_grad_(self.parameters[name].requires_grad)
            return
        self.copies = self.learning()
        in_fp32 = {name: nn.Parameter(torch.empty_like(p, dtype=torch.float32)) for name, p in self.copies.items()}
        self.parameters = {**self.parameters, **in_fp32}  # what is frozen is only what runs

    def _build_optimizers(self) -> None:
        stage, learning = self.stage, self.learning()
        given = Given(
            self.local,
            self.roles,
            stage.optimizer,
            width_rate(stage.model),
            compute_dtype(stage),
            compiled=stage.train.compile,
        )
        if not self.mesh.alone:
            rows = {name: rows_to_shard(p) for name, p in learning.items()}
            given = replace(given, on_whole=WholeMatrices(self.mesh, rows, self.roles, self.shapes))
        self.optimizers = Optimizers(given)

    def _add_up_in_fp32(self) -> None:
        """Let several micro-batches' bf16 gradients add up where the optimizers look for them."""
        several = max(step_sizes(self.stage.train)) > self.stage.train.micro_batch
        for name, parameter in (self.copies or (self.parameters if self._split and several else {})).items():
            if parameter.requires_grad:
                self.local[name].grad_dtype = torch.float32
                parameter.register_post_accumulate_grad_hook(_hand_gradient_to(self.local[name]))

    @property
    def _split(self) -> bool:
        """Whether the rest of each fp32 weight is in the optimizers."""
        return any(p.dtype == torch.bfloat16 for p in self.learning().values())

    def learning(self) -> dict[str, nn.Parameter]:
        """The parameters that learn; the others are frozen, and have neither gradient nor optimizer state."""
        return {name: p for name, p in self.parameters.items() if p.requires_grad}

    def forward_backward(self, staged: Staged) -> Tensor:
        loss = self.runner.forward_backward(staged)
        complete_gradients(self.parameters, self.roles, self.tensor, self.device)
        return self.add_up(loss)

    def update(self, loss: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        learning = self.learning()
        for name, parameter in learning.items():
            moved = self.local[name]
            if parameter.grad is not None:
                moved.grad_dtype = parameter.grad.dtype
                moved.grad = local(parameter.grad)
            elif moved.grad is None:  # it took no part in the step, as an expert that no token chose
                moved.grad = torch.zeros_like(moved, dtype=moved.grad_dtype)
        for name, mine in self._filled_up.items():
            if name in learning and (gradient := self.local[name].grad) is not None:
                mine.clear_rest(gradient)
        norm = gradient_norm(self.local, self.roles, self.mesh)
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        self.optimizers.step(lr, clip_scale(norm, self.stage.optimizer.clip), finite)
        for parameter in (*learning.values(), *self.local.values()):
            parameter.grad = None
        self._clear_rest()  # an optimizer may move what has no gradient
        if not self._moved:  # at once, not when it is to be saved
            self._check_state()
            self._moved = True
        self._weights_changed()
        return norm, finite

    def _clear_rest(self) -> None:
        """Set what only fills up parameters to zero."""
        for name, mine in self._filled_up.items():
            mine.clear_rest(local(self.parameters[name].detach()))

    def _check_state(self) -> None:
        """Raise UserError for state of a user's optimizer that no checkpoint could hold."""
        if is_yours(self.stage.optimizer.name):
            check_alike(self.local, {name: self.optimizers.state(name) for name in self.local}, self.mesh)

    def saved(self) -> dict[str, nn.Parameter]:
        """The parameters that checkpoints hold: all, but with `train.lora` not those that `train.init_from` gives."""
        return self.learning() if self.stage.train.lora.rank else self.parameters

    def state(self) -> Mapping[str, Tensor]:
        self._check_state()
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.saved().items():
            kept = dict(self.optimizers.state(name)) if parameter.requires_grad else {}
            split = self._split and kept.pop(REST, None) is not None
            weight = torch.empty(parameter.shape, device="meta") if split else local(parameter.detach())
            tensors[f"model/{name}"] = self.stored(name, weight)
            for kind, value in kept.items():
                tensors[f"optimizer/{name}/{kind}"] = self.stored(name, value)
        if not self._split:
            return tensors
        return LazyTensors(tensors, lambda key: self._whole_weight(key.removeprefix("model/")))

    def stored(self, name: str, value: Tensor) -> Tensor:
        """A plain tensor about this rank's part of a parameter as checkpoints know it: cut over ranks as that is.

        One of another shape is about the whole parameter, and the same on all ranks.
        """
        parameter = self.parameters[name]
        if self.mesh.alone or value.shape != local(parameter).shape:
            return value
        like = cut_alike(value, parameter)
        if (mine := self._filled_up.get(name)) is None:
            return like
        return Piece(mine.of_it(value), mine.first, self.shapes[name], like)

    def load(self, read: Callable[[Mapping[str, Tensor]], None]) -> None:
        if self._split:  # one after the other: an fp32 weight has no place of its own
            for name, parameter in self.parameters.items():
                weight, kept = torch.empty(parameter.shape), self.optimizers.state(name)
                others = {f"optimizer/{name}/{kind}": value for kind, value in kept.items() if kind != REST}
                read({f"model/{name}": weight, **others})
                self._set_weight(name, weight)
        else:
            read(self.state())
        self._weights_changed()

    def begin(self, read: Callable[[Mapping[str, Tensor]], None]) -> None:
        if self.stage.train.lora.rank:
            frozen = {name: p for name, p in self.parameters.items() if not p.requires_grad}
            read({f"model/{name}": self.stored(name, local(p.detach())) for name, p in frozen.items()})
            self._clear_rest()
            self._weights_changed()
            return
        self.load(read)
        if not self._split:  # one of a split weight holds a part of it, and nothing made from it
            del self.optimizers
            self._build_optimizers()

    def _whole_weight(self, name: str) -> Tensor:
        """The fp32 weight, on the device."""
        return whole_weight(self.parameters[name], self.optimizers.state(name))

    def _set_weight(self, name: str, weight: Tensor) -> None:
        """Give a parameter this rank's part of an fp32 weight."""
        state = self.optimizers.state(name) if self._split else {}
        set_weight(local(self.parameters[name].detach()), state, weight)

    @torch.no_grad()
    def _weights_changed(self) -> None:
        if self.copies:
            torch._foreach_copy_(list(self.copies.values()), [self.parameters[name] for name in self.copies])
        self.runner.weights_changed()

    @torch.no_grad()
    def losses(self, batch: Batch) -> Losses:
        return self.runner.losses(self.stage_batch(batch))

    def digest(self, batch: Batch) -> str:
        return joint_digest(batch, self.mesh.data, self.device)

    def add_up(self, values: Tensor) -> Tensor:
        return sum_over(sum_over(values, self.mesh.replicas), self.mesh.pipeline)


def refuse_frozen(parameters: Mapping[str, nn.Parameter], setting: str) -> None:
    """Raise UserError for a parameter that does not learn."""
    if frozen := [name for name, parameter in parameters.items() if not parameter.requires_grad]:
        raise UserError(f"{setting} trains all parameters, and {frozen[0]} is frozen")


def joint_digest(batch: Batch, readers: Place, device: torch.device) -> str:
    """`data.batch.digest` of a step of which each rank of `readers` has its rows; the same on all. Waits for them."""
    hashes = torch.frombuffer(bytearray(batch.row_digests), dtype=torch.uint8)
    everyones = gather_dim(hashes.to(device), 0, readers) if readers.size > 1 else hashes
    return combine_digests([everyones.cpu().numpy().tobytes()], batch.divisor)


def _hand_gradient_to(moved: nn.Parameter) -> Callable[[Tensor], None]:
    """What a bf16 parameter does with a micro-batch's gradient: it is added to the fp32 one of what is moved by it."""

    def hook(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if moved.grad is None:
            moved.grad = parameter.grad.float()
        else:
            moved.grad.add_(parameter.grad)
        parameter.grad = None

    return hook
