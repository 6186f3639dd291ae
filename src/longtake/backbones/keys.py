"""A cache of keys and values made shorter, or wider, in what transformers calls ``Cache``."""

# mypy: disable-error-code="no-untyped-call"
# (Transformers' own methods are only partly typed.)

from __future__ import annotations

import copy

from transformers import Cache as KeyValues


def crop(key_values: KeyValues, length: int) -> None:
    """Forget all columns behind the first ``length``, in place."""
    extra = key_values.get_seq_length() - length
    assert extra >= 0, f"{-extra} columns of this cache were cropped away by a shorter one that shares its keys"
    key_values.crop(-extra)


def repeated(key_values: KeyValues, times: int) -> KeyValues:
    """Every row ``times`` times over, leaving the given keys and values alone."""
    repeated = copy.copy(key_values)
    repeated.layers = [copy.copy(layer) for layer in key_values.layers]
    repeated.batch_repeat_interleave(times)
    return repeated
