"""Muon for the matrices inside a network, AdamW for everything else, behind one update.

Muon (Jordan et al., 2024; ``torch.optim.Muon``) taught the embedded tower to read in far fewer steps; ``python
benchmarks/training.py optimiser`` compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST_MATRIX = 64  # a linear layer with fewer inputs or outputs is a head, and left to AdamW


class Optimiser:
    """Two optimisers as one; each learning rate is a peak that ``update`` scales."""

    def __init__(self, modules: Mapping[str, nn.Module], lr: float, muon_lr: float, weight_decay: float) -> None:
        """Take all weights of ``modules`` that need a gradient.

        lr: AdamW's peak rate. muon_lr: Muon's, in AdamW's scale (its update has the size that AdamW's would have).
        weight_decay: of matrices only.
        """
        self._params = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
        inner = {id(p): p for module in modules.values() for p in _matrices(module) if p.requires_grad}
        rest = [p for p in self._params if id(p) not in inner]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
        self._parts: dict[str, tuple[torch.optim.Optimizer, float]] = {"adamw": (adamw, lr)}
        if inner:
            muon = torch.optim.Muon(
                list(inner.values()), lr=muon_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            self._parts["muon"] = (muon, muon_lr)

    def update(self, loss: Tensor, share: float) -> None:
        """Do one step on a scalar loss at ``share`` (0 to 1) of the peak rates; the gradient's norm is clipped to 1."""
        for part, _ in self._parts.values():
            part.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._params, 1.0)
        for part, peak in self._parts.values():
            for group in part.param_groups:
                group["lr"] = peak * share
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of both optimisers."""
        return {name: part.state_dict() for name, (part, _) in self._parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state_dict`` gave."""
        for name, (part, _) in self._parts.items():
            part.load_state_dict(state[name])


def _matrices(module: nn.Module) -> list[Tensor]:
    """Weights of linear layers that are neither heads nor tied to an embedding."""
    tied = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Embedding)}
    linear = [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear)]
    return [weight for weight in linear if min(weight.shape) >= SMALLEST_MATRIX and id(weight) not in tied]
