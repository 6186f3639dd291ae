"""A cache of keys and values made shorter, or given room, in what transformers calls ``Cache``."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import Cache as KeyValues
from transformers.cache_utils import DynamicLayer


def crop(key_values: KeyValues, length: int) -> None:
    """Forget all columns behind the first ``length``, in place."""
    extra = key_values.get_seq_length() - length
    assert extra >= 0, f"{-extra} columns of this cache were cropped away by a shorter one that shares its keys"
    key_values.crop(-extra)


def exchange(key_values: KeyValues, columns: slice, rows: Tensor) -> None:
    """Give each row the given columns of another, in place. rows: int64 ``(batch,)``, whose."""
    for layer in key_values.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        keys, values = layer.keys.clone(), layer.values.clone()
        keys[:, :, columns], values[:, :, columns] = layer.keys[rows, :, columns], layer.values[rows, :, columns]
        layer.keys, layer.values = keys, values


class RoomyLayer(DynamicLayer):
    """A layer that writes further columns in place, where the class above copies all of them for each.

    keys, values: ``(rows, key heads, columns so far, dim)``; they are copied. columns: how many more there is room for.
    """

    def __init__(self, keys: Tensor, values: Tensor, columns: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._roomy_keys, self._roomy_values = (
            torch.cat([whole, whole.new_empty(*whole.shape[:-2], columns, whole.shape[-1])], dim=-2)
            for whole in (keys, values)
        )
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Takes new columns, ``(rows, key heads, new, dim)``; gives all so far."""
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        self._roomy_keys[..., start:stop, :] = key_states
        self._roomy_values[..., start:stop, :] = value_states
        seen = self._roomy_keys[..., :stop, :], self._roomy_values[..., :stop, :]
        self.keys, self.values = seen
        return seen


def with_room(key_values: KeyValues, columns: int) -> KeyValues:
    """A copy of keys and values with room for further columns; the given ones stay as they are. Without gradient."""
    roomy = copy.copy(key_values)
    roomy.layers = []
    for layer in key_values.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        roomy.layers.append(RoomyLayer(layer.keys, layer.values, columns))
    return roomy
