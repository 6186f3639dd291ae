"""What a table's parts cost: operations, counted with PyTorch's formulas, and core-seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop, shape_wrapper

ATEN: Any = torch.ops.aten
ON_CPU = {  # which PyTorch's counter has on other devices only
    ATEN._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *a, out_shape=None, **more: sdpa_flop(q, k, v),
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda g, q, k, v, *a, out_shape=None, **more: sdpa_backward_flop(g, q, k, v)
    ),
}
COUNTED: Mapping[Any, Callable[..., int]] = {
    **flop_registry,
    **{name: shape_wrapper(count) for name, count in ON_CPU.items()},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a step costs: operations, core-seconds. once, once_operations: seconds and operations before the first."""

    operations: float
    seconds: float
    once: float = 0.0
    once_operations: float = 0.0

    def steps(self, operations: float, most: int | None = None) -> int:
        """As many steps as so many operations buy, at least one and at most ``most``."""
        bought = max(1, round(operations / self.operations))
        return bought if most is None else min(most, bought)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of what a table costs: how often it is still to be done, and core-seconds each time."""

    name: str
    times: int
    seconds: float


class Operations(TorchDispatchMode):
    """Counts floating-point operations with PyTorch's formulas.

    PyTorch's own counter follows modules too, which it cannot do where gradients are switched off halfway, as a rollout
    does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if count := COUNTED.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=found)
        return found
