"""How many bytes of tensors are alive, counted from every operation's outcome: a second way to know about memory."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While it is entered: storages made by operations, alive now and at most; views count nothing.

    known: tensors made before, which count as well.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self._most = 0  # of all storages not known to be gone
        for tensor in known:
            self._add(tensor)
        self.peak = self.now

    @property
    def now(self) -> int:
        """Bytes alive."""
        self._storages = {key: entry for key, entry in self._storages.items() if not entry[0].expired()}
        self._most = sum(size for _, size in self._storages.values())
        return self._most

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        _, old = self._storages.get(storage._cdata, (None, 0))
        self._storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._most += storage.nbytes() - old

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outcome = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(outcome):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf)
        if self._most > self.peak:
            self.peak = max(self.peak, self.now)
        return outcome
