"""Atomic checkpoints and the small parts that every training loop shares."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn


def save(folder: Path, step: int, modules: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer) -> None:
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


def last_step(folder: Path) -> int:
    """The step that ``resume`` will go on from; 0 when there is no checkpoint."""
    file = folder / "checkpoint.pt"
    return int(torch.load(file, weights_only=True, mmap=True)["step"]) if file.exists() else 0


def resume(folder: Path, modules: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer) -> int:
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


def cosine(step: int, total: int, warmup: int, floor: float = 0.02) -> float:
    """Learning-rate factor: linear warm-up, then a cosine down to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, total - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def update(
    optimiser: torch.optim.Optimizer, modules: Mapping[str, nn.Module], loss: torch.Tensor, lr: float
) -> None:
    """One step of the optimiser at a learning rate, with the gradient's norm over all modules clipped to 1."""
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_([p for module in modules.values() for p in module.parameters()], 1.0)
    optimiser.step()


def adamw(modules: Mapping[str, nn.Module], lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with decay on matrices only."""
    params = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)


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
