"""How many threads PyTorch works with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from longtake.types import LongtakeError


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def use_threads(count: int) -> None:
    """Let PyTorch work with so many threads from now on. Raises LongtakeError for fewer than one."""
    if count < 1:
        raise LongtakeError(f"threads is {count}; it must be at least 1")
    torch.set_num_threads(count)
