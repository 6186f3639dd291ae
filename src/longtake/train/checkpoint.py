"""Atomic checkpoints and the small parts that every training loop shares.

A run's folder holds ``checkpoint-STEP.pt`` for the last few steps at which it was saved.
"""

from __future__ import annotations

import errno
import json
import math
import pickle
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from longtake.outputs import remove_abandoned, replaced, system_error
from longtake.train.embedded.optimiser import Optimiser
from longtake.types import LongtakeError

State = dict[str, Any]  # tensors and plain values, so that reading a checkpoint runs no code


def save(folder: Path, step: int, modules: Mapping[str, nn.Module], optimiser: Optimiser, *, keep: int = 2) -> None:
    """Write a step's checkpoint whole or not at all, then drop all but the last ``keep``. Raises as ``write`` does."""
    state = {
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "optimiser": optimiser.state_dict(),
        "rng": torch.get_rng_state(),
    }
    write(folder, step, state, keep=keep)


def write(folder: Path, step: int, state: State, *, keep: int = 2) -> None:
    """Write ``folder/checkpoint-STEP.pt`` beside the others, then drop all but the last ``keep``.

    Raises LongtakeError when the disk is full; the checkpoints written before stay as they are.
    """
    file = folder / f"checkpoint-{step:08d}.pt"
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder / "checkpoint-", r"\d{8}\.pt")
    with room_in(folder, f"the checkpoint of step {step}"):
        with replaced(file, sync=True) as scratch, scratch.open("wb") as sink:
            torch.save({"step": step, **state}, sink)
    for old in sorted(_steps(folder))[:-keep]:
        (folder / f"checkpoint-{old:08d}.pt").unlink()


@contextmanager
def room_in(folder: Path, what: str) -> Iterator[None]:
    """Turn a full disk in the block into a LongtakeError that says what did not fit and which checkpoint is intact."""
    try:
        yield
    except (LongtakeError, OSError, RuntimeError, SafetensorError) as error:
        cause = system_error(error)
        if cause is None or cause.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        last = max(_steps(folder), default=None)
        kept = "there is no checkpoint" if last is None else f"the checkpoint of step {last} is intact"
        raise LongtakeError(
            f"the disk is full: {what} does not fit in {folder}; {kept}: make room and start the same command again"
        ) from error


def _steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint, in no order."""
    return [int(file.stem.removeprefix("checkpoint-")) for file in folder.glob("checkpoint-" + "[0-9]" * 8 + ".pt")]


def read(folder: Path, *, mmap: bool = False) -> State | None:
    """The newest checkpoint that can be read, its step under "step"; None when there is none at all.

    A damaged one is passed over with a warning. mmap: tensors stay on disk until they are used.

    Raises LongtakeError when there are checkpoints and none can be read.
    """
    steps = sorted(_steps(folder), reverse=True)
    for step in steps:
        file = folder / f"checkpoint-{step:08d}.pt"
        try:
            state: State = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            warnings.warn(f"{file} is damaged and was passed over", stacklevel=2)
            continue
        return state
    if steps:
        raise LongtakeError(f"none of the {len(steps)} checkpoints in {folder} can be read; delete them to begin anew")
    return None


def modules_of(folder: Path) -> dict[str, Any]:
    """Weights of an earlier stage's parts, by name, from its folder. Raises LongtakeError without a checkpoint."""
    state = read(folder)
    if state is None:
        raise LongtakeError(f"{folder} holds no checkpoint; run the stage {folder.name} first")
    modules: dict[str, Any] = state["modules"]
    return modules


def last_step(folder: Path) -> int:
    """The step that ``resume`` will go on from; 0 when there is no checkpoint."""
    state = read(folder, mmap=True)
    return 0 if state is None else int(state["step"])


def resume(folder: Path, modules: Mapping[str, nn.Module], optimiser: Optimiser) -> int:
    """Load the newest readable checkpoint, if any, torch's random state too; returns the step to go on from."""
    state = read(folder)
    if state is None:
        return 0
    for name, module in modules.items():
        module.load_state_dict(state["modules"][name])
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["rng"])
    return int(state["step"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle:
    """A part of a training over which the learning rate goes up and comes down again.

    until_step: where it ends. peak: the highest rate, as a share of the recipe's.
    """

    until_step: int
    peak: float = 1.0


def in_cycle(cycles: Sequence[Cycle], step: int) -> tuple[int, int, float]:
    """The steps that come before a step in its cycle, how many that cycle has, and its peak.

    Raises ValueError for a step behind the last cycle.
    """
    begin = 0
    for cycle in cycles:
        if step < cycle.until_step:
            return step - begin, cycle.until_step - begin, cycle.peak
        begin = cycle.until_step
    raise ValueError(f"step {step} is not in {cycles}")


def cosine(step: int, total: int, warmup: int, floor: float = 0.02) -> float:
    """Learning-rate factor: linear warm-up, then a cosine down to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, total - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def trapezoid(step: int, total: int, warmup: int, cooldown: float) -> float:
    """Learning-rate factor: linear warm-up, flat, then linear to 0 over the last ``cooldown`` of all steps.

    Unlike a cosine it doesn't depend on ``total`` until the end, so a run can be made longer while it runs.
    """
    return min(1.0, (step + 1) / warmup, max(0.0, (total - step) / (cooldown * total)))


class Log:
    """Running means of named figures, printed and appended to a JSONL file."""

    def __init__(self, file: Path, total: int, start: int = 0) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._total, self._start = file, total, start
        self._begun = time.monotonic()
        self._sums: dict[str, list[float]] = {}

    def add(self, **figures: float) -> None:
        """Count one step's figures."""
        for name, value in figures.items():
            self._sums.setdefault(name, []).append(float(value))

    def write(self, step: int, **more: Any) -> None:
        """Print and append the means since the last call, with the time left."""
        seconds = time.monotonic() - self._begun
        left = seconds / max(1, step - self._start) * (self._total - step)
        means = {name: round(sum(v) / len(v), 4) for name, v in self._sums.items()}
        self._sums.clear()
        row = {"step": step, "seconds": round(seconds, 1), **means, **more}
        with self._file.open("a") as sink:
            sink.write(json.dumps(row) + "\n")
        shown = "  ".join(f"{name} {value}" for name, value in {**means, **more}.items())
        print(f"{step}/{self._total}  {seconds / 60:.1f} min, {left / 60:.1f} left  {shown}", flush=True)
