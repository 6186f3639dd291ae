"""Settings, processes, one optimiser step and checkpoints: what every stage on ``accelerate`` shares.

One process, several that hold the whole model each (DDP), several that hold a part each (FSDP2, PyTorch's
``fully_shard``), or several with all weights and a part of the optimiser each (DeepSpeed's ZeRO-2); a checkpoint of one
can be continued by another. The loops are in the stages' own files.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from longtake.train import checkpoint, zero
from longtake.types import LongtakeError

if TYPE_CHECKING:
    from accelerate import Accelerator

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How a stage is optimised, saved and spread over processes.

    lr: AdamW's peak rate; it warms up over ``warmup`` of all steps and falls to 0 along a cosine.
    beta2: AdamW's second beta; what is learned in a few hundred steps may want less than the usual 0.999.
    steps: None means ``epochs`` times all data.
    batch: rows of a step, over all processes; micro_batch: rows of one pass on one process.
    clip: the gradient's largest norm.
    precision: "bf16" computes under autocast; weights and optimiser are float32 either way.
    checkpointing: layers are computed again in the backward pass instead of being kept.
    shard: FSDP2 instead of DDP, with several processes; offload: its shards wait in the machine's memory.
    zero: DeepSpeed's ZeRO-2 instead of DDP; offload: its optimiser waits and works there.
    keep: how many checkpoints stay.
    """

    lr: float
    batch: int
    micro_batch: int = 1
    steps: int | None = None
    epochs: int = 1
    warmup: float = 0.03
    weight_decay: float = 0.0
    beta2: float = 0.999
    clip: float = 1.0
    seed: int = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    checkpointing: bool = False
    shard: bool = False
    zero: bool = False
    offload: bool = False
    log_every: int = 10
    eval_every: int = 500
    save_every: int = 500
    keep: int = 2

    def __post_init__(self) -> None:
        for name in ("batch", "micro_batch", "epochs", "log_every", "eval_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise LongtakeError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.steps is not None and self.steps < 1:
            raise LongtakeError(f"steps is {self.steps}; it must be at least 1")
        if not self.clip > 0:
            raise LongtakeError(f"clip is {self.clip}; it must be positive, or inf to clip nothing")
        if self.seed < 0:
            raise LongtakeError(f"seed is {self.seed}; it must not be negative")
        if not self.lr > 0 or not 0 <= self.warmup <= 1:
            raise LongtakeError(f"lr is {self.lr} and warmup {self.warmup}; lr must be positive, warmup from 0 to 1")
        if not 0 <= self.beta2 < 1:
            raise LongtakeError(f"beta2 is {self.beta2}; it must be at least 0 and below 1")
        if self.precision not in ("bf16", "fp32"):
            raise LongtakeError(f"precision is {self.precision!r}; it must be 'bf16' or 'fp32'")
        if self.shard and self.zero:
            raise LongtakeError("shard and zero are both true; one of FSDP2 and ZeRO-2 must be false: set shard=false")
        if self.offload and not (self.shard or self.zero):
            raise LongtakeError("offload is a way of sharding; set shard=true too, or zero=true")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step of ``steps``."""
        return self.lr * checkpoint.cosine(step, steps, math.ceil(self.warmup * steps), floor=0.0)

    def steps_for(self, rows: int) -> int:
        """How many steps to train: ``steps``, or as many as all epochs over so many rows take."""
        return self.steps or math.ceil(self.epochs * rows / self.batch)

    def refuse_sharding(self, why: str) -> None:
        """Raises LongtakeError, with the reason, where a stage that cannot spread its weights is told to."""
        if self.shard or self.zero:
            name = "shard" if self.shard else "zero"
            raise LongtakeError(f"{name} is true; {why}: set {name}=false (LoRA saves memory too)")

    def is_due(self, every: int, done: int, steps: int) -> bool:
        """Whether something that happens every so many steps, and at the end, is due after ``done`` steps."""
        return done % every == 0 or done == steps


def start_processes(fit: Fit, *later: Fit) -> Accelerator:
    """Find this process's place among the others; call it once a stage, before data and model are made.

    later: of stages that follow in this program. Processes meet at the first call only, so that it must ask for what
    any of them needs.

    Raises LongtakeError for sharding with one process, for ZeRO-2 without DeepSpeed, and under accelerate's DeepSpeed.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import InitProcessGroupKwargs

    handlers: list[Any] = []
    if any(each.shard and each.offload for each in (fit, *later)) and torch.cuda.is_available():
        handlers.append(InitProcessGroupKwargs(backend="cpu:gloo,cuda:nccl"))  # norms of gradients that wait on the CPU
    AcceleratorState._reset_state()  # the stage before, in this process, may have had another precision
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        raise LongtakeError("ACCELERATE_USE_DEEPSPEED is true; it must be unset: start with torchrun and set zero=true")
    accelerator = Accelerator(
        mixed_precision="bf16" if fit.precision == "bf16" else "no",
        cpu=not torch.accelerator.is_available(),  # else accelerate would leave processes without one apart, each alone
        kwargs_handlers=handlers,
        step_scheduler_with_optimizer=False,
    )
    assert accelerator.num_processes == int(os.environ.get("WORLD_SIZE", "1"))
    if any(each.shard for each in (fit, *later)) and accelerator.num_processes == 1:
        raise LongtakeError("shard needs several processes; start with torchrun --nproc-per-node N -m longtake.cli ...")
    if any(each.zero for each in (fit, *later)):
        zero.check()
    return accelerator


def end_processes() -> None:
    """Leave the other processes, as the last thing a program does: else one may crash, rarely, while it leaves."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def gathered(own: Mapping[int, Any]) -> list[Any]:
    """Values of all processes in the order of their places; the same everywhere. Every process must call it."""
    from accelerate.utils import gather_object

    everyone: list[tuple[int, Any]] = gather_object(list(own.items()))
    return [value for _, value in sorted(everyone, key=lambda pair: pair[0])]


def micro_batches(fit: Fit, processes: int) -> int:
    """How many passes each process makes in a step."""
    return math.ceil(math.ceil(fit.batch / processes) / fit.micro_batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Figures of one optimiser step.

    loss, more: means over everything counted. norm: of the gradient, before clipping.
    """

    loss: float
    norm: float
    counted: int
    more: tuple[float, ...] = ()


class Run:
    """A module spread over the processes, its optimiser, and its checkpoints in ``folder``."""

    def __init__(
        self,
        fit: Fit,
        accelerator: Accelerator,
        module: nn.Module,
        folder: Path,
        *,
        faster: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Train the weights that need a gradient.

        faster: parts of the module by their dotted name, and how many times the rate of all others theirs is.
        module: on this machine, the same on every process; its ``forward`` gives a summed loss. The classes of the
        blocks that are sharded one by one are what its model calls ``_no_split_modules``.
        """
        self.fit, self.accelerator, self.folder = fit, accelerator, folder
        self.more: dict[str, Any] = {}  # what ``save`` was given beside the weights, once resumed
        accelerator.gradient_accumulation_steps = micro_batches(fit, accelerator.num_processes)
        if fit.shard:
            self.module = shard(module, accelerator, offload=fit.offload)
            self._optimiser = accelerator.prepare(_adamw(self.module, fit, faster))
        elif fit.zero:
            bf16, optimiser = fit.precision == "bf16", _adamw(module, fit, faster)
            self.module = zero.spread(module, optimiser, clip=fit.clip, bf16=bf16, offload=fit.offload)
            self._optimiser = self.module.optimizer
        else:
            self.module, self._optimiser = accelerator.prepare(module, _adamw(module, fit, faster))
        self.module.train()

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return bool(self.accelerator.is_main_process)

    def total(self, *values: float) -> list[float]:
        """Each value summed over all processes."""
        summed: Tensor = self.accelerator.reduce(
            torch.tensor(values, dtype=torch.float64, device=self.accelerator.device), "sum"
        )
        return summed.tolist()

    def update(
        self, parts: Sequence[Part], loss_of: Callable[[Part], Tensor | Sequence[Tensor]], counted: int, rate: float
    ) -> Update:
        """Do one optimiser step over this process's micro-batches.

        loss_of: a part's summed loss, through ``self.module``; figures behind it are summed up likewise. counted: what
        that is summed over in all of this process's parts. The step's loss is the sum over all processes divided by the
        count over all processes, so that no micro-batch weighs more than its tokens.
        """
        accelerator = self.accelerator
        (total,) = self.total(counted)
        accelerator.step, accelerator.gradient_accumulation_steps = 0, len(parts)  # an epoch's last step has fewer
        # all three take the mean over processes, accelerate's backward over micro-batches too; both are undone here
        scale = (1 if self.fit.zero else len(parts)) * accelerator.num_processes / max(1.0, total)
        for group in self._optimiser.param_groups:
            group["lr"] = rate * group.get("times", 1.0)
        sums, norm = [], torch.zeros(())
        for part in parts:
            with accelerator.accumulate(*[] if self.fit.zero else [self.module]):
                with accelerator.autocast():
                    found = loss_of(part)
                loss, *more = [found] if isinstance(found, Tensor) else found
                sums.append(torch.stack([figure.detach().double() for figure in (loss, *more)]))
                if self.fit.zero:
                    norm = zero.learn(self.module, loss * scale, last=accelerator.sync_gradients)
                    continue
                accelerator.backward(loss * scale)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self.module.parameters(), self.fit.clip)
                self._optimiser.step()
                self._optimiser.zero_grad()
        summed: Tensor = accelerator.reduce(torch.stack(sums).sum(0), "sum")
        means = [value / max(1.0, total) for value in summed.tolist()]
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return Update(loss=means[0], norm=float(whole), counted=int(total), more=tuple(means[1:]))

    @torch.no_grad()
    def mean(self, parts: Iterable[Part], loss_of: Callable[[Part], Tensor], counted: Callable[[Part], int]) -> float:
        """The mean of a loss over all parts, in eval mode, without learning. Every process must bring as many parts."""
        self.module.eval()
        summed, count = 0.0, 0
        for part in parts:
            with self.accelerator.autocast():
                summed += float(loss_of(part))
            count += counted(part)
        self.module.train()
        summed, total = self.total(summed, count)
        return summed / max(1.0, total)

    def save(self, step: int, **more: Any) -> None:
        """Write a checkpoint: trained weights, optimiser, random states. Every process must call it.

        more: tensors and plain values of the stage's own, found in ``more`` when it resumes.
        """
        from accelerate.utils import gather_object

        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        state = {
            "weights": get_model_state_dict(self._bare, options=options),
            "optimiser": zero.optimiser_state(self.module)
            if self.fit.zero
            else get_optimizer_state_dict(self.module, self._optimiser.optimizer, options=options),
            "rng": gather_object([_random_state()]),
            "more": more,
        }
        if self.is_main:
            checkpoint.write(self.folder, step, state, keep=self.fit.keep)

    def resume(self) -> int:
        """Put the newest checkpoint back, if there is one; returns the step to go on from. Every process must call it.

        Random states are put back where as many processes go on as there were.
        """
        state = checkpoint.read(self.folder, mmap=True)
        if state is None:
            return 0
        options = StateDictOptions(full_state_dict=True, strict=False)
        if self.fit.zero:
            zero.set_weights_and_state(self.module, state["weights"], state["optimiser"])
        else:
            set_model_state_dict(self.module, state["weights"], options=options)
            set_optimizer_state_dict(self.module, self._optimiser.optimizer, state["optimiser"], options=options)
        self.more = state.get("more", {})
        if len(state["rng"]) == self.accelerator.num_processes:
            _set_random_state(state["rng"][self.accelerator.process_index])
        return int(state["step"])

    def whole_weights(self) -> dict[str, Any]:
        """All weights by name, on the CPU; empty on processes that write no files. Every process must call it."""
        return get_model_state_dict(self._bare, options=StateDictOptions(full_state_dict=True, cpu_offload=True))

    @property
    def _bare(self) -> nn.Module:
        """The module, without DeepSpeed's engine around it."""
        return cast(nn.Module, self.module.module) if self.fit.zero else self.module


def shard(module: nn.Module, accelerator: Accelerator, *, offload: bool) -> nn.Module:
    """Shard a module by FSDP2: each block that its model names as whole, then the rest. A frozen tower stays whole."""
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    policy = CPUOffloadPolicy(pin_memory=accelerator.device.type == "cuda") if offload else OffloadPolicy()
    frozen = {p for part in whole_and_frozen(module) for p in part.parameters()}
    if not offload:
        module.to(accelerator.device)
    for part in whole_and_frozen(module):
        part.to(accelerator.device)
    for buffer in module.buffers():
        buffer.data = buffer.data.to(accelerator.device)
    for block in blocks_of(module):
        if not frozen.intersection(block.parameters()):
            fully_shard(block, mesh=mesh, offload_policy=policy)
    fully_shard(module, mesh=mesh, offload_policy=policy, ignored_params=frozen)
    return module


def whole_and_frozen(module: nn.Module) -> list[nn.Module]:
    """Parts that no gradient reaches and that may run unequally often on different processes: a frozen tower."""
    towers = [part for name, part in module.named_modules() if name.rsplit(".", 1)[-1] == "vision_tower"]
    return [tower for tower in towers if not any(p.requires_grad for p in tower.parameters())]


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a module, by the names of their classes that its models declare."""
    names = {name for part in module.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    return [part for part in module.modules() if type(part).__name__ in names | {"DTSStage"}]


def _adamw(module: nn.Module, fit: Fit, faster: Mapping[str, float]) -> torch.optim.Optimizer:
    """AdamW on what needs a gradient; only matrices decay. Parts that are faster are groups of their own."""
    groups: list[dict[str, Any]] = []
    parts = {p: times for name, times in faster.items() for p in module.get_submodule(name).parameters()}
    for times in dict.fromkeys([1.0, *faster.values()]):
        trained = [p for p in module.parameters() if p.requires_grad and parts.get(p, 1.0) == times]
        more = {} if times == 1.0 else {"times": times}
        groups += [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": fit.weight_decay, **more},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0, **more},
        ]
    betas = (0.9, fit.beta2)
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=fit.lr, betas=betas, fused=True)


def _random_state() -> dict[str, Any]:
    """The random states of torch, numpy and Python, as tensors and plain values."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, cached),
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
