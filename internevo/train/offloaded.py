"""The engine on DeepSpeed: ZeRO whose optimizer state and weights may lie in host memory or on NVMe disks.

DeepSpeed (arXiv 1910.02054, 2101.06840, 2104.07857) shards, offloads and updates; batches, loss, checkpoints and
everything else are as in the other engines, so that a run may change from one to the other.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from internevo.checkpoint.staging import HostCopies
from internevo.config.schema import StageConfig
from internevo.data.batch import IGNORE, Batch
from internevo.data.loader import Part
from internevo.files.errors import UserError
from internevo.model.documents import Documents
from internevo.model.initial import empty_model, initial_values
from internevo.model.transformer import Transformer
from internevo.optim.adamw import adamw
from internevo.optim.groups import set_learning_rate, width_rate
from internevo.parallel.block_settings import compute_dtype, prepare_model
from internevo.parallel.collectives import sum_over
from internevo.parallel.mesh import Place
from internevo.parallel.world import World, start_groups
from internevo.train.engine import Engine, Losses, joint_digest, refuse_frozen
from internevo.train.loss_model import loss_model
from internevo.train.micro_batch import MicroBatch, Staged
from internevo.train.objective import make_objective
from internevo.train.recorder import Recorder

MOMENTS = ("exp_avg", "exp_avg_sq")


def import_deepspeed() -> ModuleType:
    """The deepspeed package. Raises UserError where it is not installed."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise UserError(
            f"parallel.zero.engine: deepspeed needs the deepspeed package ({error}). Install it with "
            "pip install 'internevo[deepspeed]', or use the engine fsdp."
        ) from None
    deepspeed.utils.logger.setLevel("WARNING")
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # DeepSpeed's affair
    return deepspeed


def warn_of_locks() -> None:
    """Warn of each lock of a compilation. One that was killed leaves it, and whoever waits for it waits for ever."""
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in sorted(root.glob("**/lock")):
        warnings.warn(
            f"{lock}: a process compiles this operator of DeepSpeed, or was killed while it did. If training does not "
            "start and no other process compiles it, remove this file.",
            stacklevel=2,
        )


class OffloadedEngine(Engine):
    """A stage's model and optimizer under DeepSpeed, on data-parallel ranks."""

    def __init__(self, stage: StageConfig, world: World):
        self.deepspeed = import_deepspeed()
        if world.rank == 0:
            warn_of_locks()
        self.linear = nn.functional.linear
        """torch's own, in whose place stage 3 puts another for the whole process."""
        self.stage, self.device, self.objective = stage, world.device, make_objective(stage)
        self.part = Part(world.rank, world.size)
        if not dist.is_initialized():  # DeepSpeed wants a group even for one process
            os.environ.setdefault("LOCAL_RANK", "0")
            start_groups(world.device, store=dist.HashStore(), rank=0, world_size=1)
        self.ranks = Place(dist.group.WORLD, world.rank, world.size)
        self.recorder = Recorder(self.ranks, replicas=world.size, control=world.control)
        with torch.device("meta"):
            whole = Transformer(stage.model)
        refuse_frozen(dict(whole.named_parameters()), "parallel.zero.engine=deepspeed")
        self.shapes = {name: parameter.shape for name, parameter in whole.named_parameters()}
        config = deepspeed_config(stage, world.size, max(shape.numel() for shape in self.shapes.values()))
        if self._shards_weights:
            with self.deepspeed.zero.Init(config_dict_or_path=config):
                transformer = Transformer(stage.model)
            nn.functional.linear = on_one_line(nn.functional.linear)
        else:  # as it will lie: ranks of a node would each have it in fp32 in host memory first
            transformer = empty_model(stage.model, world.device, compute_dtype(stage))
        prepare_model(transformer, stage, world.device)
        self.parameters = dict(transformer.named_parameters())
        for name, shape in self.shapes.items():
            first = initial_values(name, shape, whole.roles[name], stage.model, stage.train.seed)
            self._set_compute_weight(name, first)
        model = loss_model(transformer, stage, world.device)
        if self._shards_weights:  # the loss uses it outside its module
            self.deepspeed.zero.register_external_parameter(model, transformer.head.weight)
        optimizer = adamw(self.parameters, whole.roles, stage.optimizer, width_rate(stage.model))
        self.engine, *_ = self.deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        if stage.train.precision == "bf16":
            for name, shape in self.shapes.items():  # DeepSpeed made the fp32 weights from rounded ones
                first = initial_values(name, shape, whole.roles[name], stage.model, stage.train.seed)
                self._set_master(name, first)

    def forward_backward(self, staged: Staged) -> Tensor:
        labels, divisor = max(1, staged.batch.label_count), self.objective.divisor(staged.batch) or 1
        total = torch.zeros((), device=self.device)
        for micro in staged:
            run = partial(self.engine, micro)
            loss = self.recorder.forward(self.engine.module, run, micro.tokens.numel(), labels) / divisor
            self.engine.backward(loss * self.ranks.size)  # DeepSpeed averages over them
            total += loss.detach()
        return sum_over(total, self.ranks)

    def update(self, loss: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        set_learning_rate(self.engine.optimizer, lr)
        self.engine.step()
        norm = torch.as_tensor(float(self.engine.get_global_grad_norm()), device=self.device)
        return norm, torch.tensor(self.engine.was_step_applied(), device=self.device)

    def state(self) -> HostCopies:
        """Each tensor whole, in host memory, on one of the ranks: DeepSpeed gathers a new one."""
        if self._steps == 0:  # no update yet, or none that was applied: DeepSpeed has no moments then
            self._make_moments()
            self._set_steps(0.0)
        self._link_moments()
        tensors = HostCopies()
        steps = torch.tensor(float(self._steps))
        for number, (name, parameter) in enumerate(self.parameters.items()):
            ours = number % self.ranks.size == self.ranks.rank
            for key, value in self._whole(name, parameter):
                if ours:
                    tensors[key] = value.cpu()
            if ours:
                tensors[f"optimizer/{name}/step"] = steps.clone()
        return tensors

    def load(self, read: Callable[[Mapping[str, Tensor]], None]) -> None:
        self._make_moments()
        steps = torch.zeros(())
        for name, shape in self.shapes.items():
            weight, *moments = (torch.zeros(shape) for _ in range(1 + len(MOMENTS)))
            named = {f"optimizer/{name}/{kind}": moment for kind, moment in zip(MOMENTS, moments, strict=True)}
            read({f"model/{name}": weight, f"optimizer/{name}/step": steps, **named})
            self._set_compute_weight(name, weight)
            self._set_master(name, weight)
            for kind, moment in zip(MOMENTS, moments, strict=True):
                self._set_master(name, moment, kind)
        self._set_steps(float(steps))

    @torch.no_grad()
    def losses(self, batch: Batch) -> Losses:
        return [(self.engine.module(one, summed=False), one) for one in self.stage_batch(batch)]

    def digest(self, batch: Batch) -> str:
        return joint_digest(batch, self.ranks, self.device)

    def add_up(self, values: Tensor) -> Tensor:
        return sum_over(values, self.ranks)

    def close(self) -> None:
        """DeepSpeed's hooks keep its objects alive for ever (0.19.8), so what they hold is taken from them."""
        optimizer = self.engine.optimizer
        self.engine.destroy()
        nn.functional.linear = self.linear
        for parameter in self.parameters.values():
            parameter.data = torch.empty(0)
            parameter.__dict__.clear()
        for one in (optimizer.optimizer, optimizer):
            one.__dict__.clear()
        super().close()

    @property
    def _shards_weights(self) -> bool:
        return self.stage.parallel.zero.stage == 3

    def _whole(self, name: str, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
        """The fp32 weight and its moments, gathered by all ranks together."""
        utils = self.deepspeed.utils
        yield f"model/{name}", utils.safe_get_full_fp32_param(parameter)
        for kind in MOMENTS:
            yield f"optimizer/{name}/{kind}", utils.safe_get_full_optimizer_state(parameter, kind)

    def _set_compute_weight(self, name: str, value: Tensor) -> None:
        """Set the weight that forward passes use."""
        parameter = self.parameters[name]
        with torch.no_grad(), self.deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if parameter.shape == value.shape:  # whole on rank 0 only, which sends it to the others
                parameter.copy_(value)

    def _set_master(self, name: str, value: Tensor, kind: str | None = None) -> None:
        """Set the fp32 weight that the optimizer updates, or with `kind` its moment."""
        parameter, utils = self.parameters[name], self.deepspeed.utils
        if not self._shards_weights:
            if kind is None:
                utils.safe_set_full_fp32_param(parameter, value)
            else:
                utils.safe_set_full_optimizer_state(parameter, value, kind)
            return
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = nn.functional.pad(value.flatten(), (0, size * self.ranks.size - value.numel()))
        part = padded[self.ranks.rank * size :][:size]
        if kind is None:
            utils.safe_set_local_fp32_param(parameter, part)
        else:
            utils.safe_set_local_optimizer_state(parameter, part, kind)

    def _make_moments(self) -> None:
        """Let DeepSpeed make the optimizer's state, wherever it keeps it: by a step of no gradient and no size."""
        zeros = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
        nothing = MicroBatch(zeros, zeros + IGNORE, zeros, Documents.of([1, 1], self.device), filler=True)
        self.engine.backward(self.engine(nothing))
        self.update(torch.zeros(()), lr=0.0)
        self._link_moments()

    def _link_moments(self) -> None:
        """Let weights know their moments. Stage 2 does so after the first group's first step, too early for others."""
        if not self._shards_weights:
            optimizer = self.engine.optimizer
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()

    def _set_steps(self, steps: float) -> None:
        """Set how many updates the moments have seen."""
        for state in self._base_state.values():
            step = state["step"]
            state["step"] = torch.full_like(step, steps) if isinstance(step, Tensor) else int(steps)

    @property
    def _base_state(self) -> dict[Any, dict[str, Any]]:
        return self.engine.optimizer.optimizer.state

    @property
    def _steps(self) -> int:
        return max((int(state.get("step", 0)) for state in self._base_state.values()), default=0)


def on_one_line(linear: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`linear` on tokens in one line, where DeepSpeed's adds a bias within the product.

    In rows it adds it in place, to the very product that selective recomputation kept, and then once more (0.19.8).
    """

    def call(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])

    return call


def deepspeed_config(stage: StageConfig, world: int, largest: int) -> dict[str, Any]:
    """What DeepSpeed is told. `largest` is the number of elements of the largest parameter."""
    zero, train = stage.parallel.zero, stage.train
    pinned = torch.cuda.is_available()
    sharding: dict[str, Any] = {"stage": zero.stage}
    for part, place in (("optimizer", zero.offload.optimizer), ("param", zero.offload.parameters)):
        if place != "none":
            path = {"nvme_path": zero.offload.path} if place == "nvme" else {}
            sharding[f"offload_{part}"] = {"device": place, "pin_memory": pinned, **path}
    if zero.offload.parameters == "nvme":  # the buffers must hold a rank's part of the largest matrix, and need no more
        sharding["offload_param"]["buffer_size"] = -(-largest // world)
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": train.micro_batch,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # a step ends when it is said to
        "gradient_clipping": stage.optimizer.clip,
        "zero_optimization": sharding,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW is as fast on a CPU, and needs no compiler
        "steps_per_print": 1_000_000_000,
    }
    if compute_dtype(stage) == torch.bfloat16:
        settings["bf16"] = {"enabled": True, "check_grad_overflow": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
        settings["communication_data_type"] = "fp32"
    return settings
