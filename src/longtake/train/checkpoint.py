"""Atomic checkpoints and the small parts that every training loop shares."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from longtake.train.optimiser import Optimiser


def save(folder: Path, step: int, modules: Mapping[str, nn.Module], optimiser: Optimiser) -> None:
    """Write ``folder/checkpoint.pt`` whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "step": step,
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "optimiser": optimiser.state_dict(),
        "rng": torch.get_rng_state(),
    }
    scratch = folder / "checkpoint.tmp"
    torch.save(state, scratch)
    scratch.replace(folder / "checkpoint.pt")


def modules_of(folder: Path) -> dict[str, Any]:
    """Weights of an earlier stage's parts, by name. Raises FileNotFoundError where that has left no checkpoint."""
    modules: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)["modules"]
    return modules


def last_step(folder: Path) -> int:
    """The step that ``resume`` will go on from; 0 when there is no checkpoint."""
    file = folder / "checkpoint.pt"
    return int(torch.load(file, weights_only=True, mmap=True)["step"]) if file.exists() else 0


def resume(folder: Path, modules: Mapping[str, nn.Module], optimiser: Optimiser) -> int:
    """Load the last checkpoint if there is one, torch's random state too; returns the step to go on from."""
    file = folder / "checkpoint.pt"
    if not file.exists():
        return 0
    state = torch.load(file, weights_only=True)
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
    """How many steps a step is into its cycle, how many that has, and its peak.

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
