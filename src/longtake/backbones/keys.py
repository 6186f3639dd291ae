"""Caches of keys and values in what transformers calls ``Cache``: grown in place, made shorter, exchanged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache as KeyValues
from transformers.cache_utils import DynamicLayer

MOST_SPARE = 512  # columns that a layer keeps room for, at most


class GrowingLayer(DynamicLayer):
    """A layer that writes further columns in place, where the class above copies all of them for each.

    Where gradients are on, it does as that class: what was written in place could not be run backwards.

    columns: how many to make room for at once.
    """

    def __init__(self, columns: int) -> None:
        super().__init__()
        self._columns = columns
        self._whole: tuple[Tensor, Tensor] | None = None  # with room behind keys and values, which are views of them

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Takes new columns, ``(rows, key heads, new, dim)``; gives all so far."""
        if torch.is_grad_enabled():
            self._whole = None
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if self._whole is None or self._whole[0].shape[-2] < stop or not self._is_view():
            self._grow(key_states, value_states, start, stop)
        assert self._whole is not None
        for whole, new in zip(self._whole, (key_states, value_states), strict=True):
            whole[..., start:stop, :] = new
        self.keys, self.values = (whole[..., :stop, :] for whole in self._whole)
        return self.keys, self.values

    def _is_view(self) -> bool:
        """Whether keys still are what was written last: transformers' own methods may have put others there."""
        assert self.keys is not None
        assert self._whole is not None
        return self.keys.data_ptr() == self._whole[0].data_ptr() and len(self.keys) == len(self._whole[0])

    def _grow(self, key_states: Tensor, value_states: Tensor, start: int, stop: int) -> None:
        columns = max(stop, self._columns)
        columns += min(MOST_SPARE, columns // 8)
        made = []
        for old, new in ((self.keys, key_states), (self.values, value_states)):
            whole = new.new_empty(*new.shape[:-2], columns, new.shape[-1])
            if start:
                assert old is not None
                whole[..., :start, :] = old
            made.append(whole)
        self._whole = made[0], made[1]


def growing(layers: int, columns: int) -> KeyValues:
    """An empty cache with room for ``columns``, and a few more."""
    return KeyValues(layers=[GrowingLayer(columns) for _ in range(layers)])


def crop(key_values: KeyValues, length: int) -> None:
    """Forget all columns behind the first ``length``, in place."""
    extra = key_values.get_seq_length() - length
    assert extra >= 0, f"{-extra} columns of this cache were cropped away by a shorter one that shares its keys"
    key_values.crop(-extra)


def exchange(key_values: KeyValues, columns: slice, rows: Tensor) -> None:
    """Give each row the given columns of another, in place. rows: int64 ``(batch,)``, whose."""
    for layer in key_values.layers:
        assert isinstance(layer, DynamicLayer)
        for held in (layer.keys, layer.values):
            assert held is not None
            held[:, :, columns] = held[rows, :, columns]
