"""Keys and values that grow in place, against transformers' cache that copies."""

import pytest
import torch
from transformers import DynamicCache

from longtake.backbones import keys
from longtake.backbones.keys import crop, exchange, growing


def columns(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.randn(2, 2, 3, count, 4, generator=torch.Generator().manual_seed(seed))
    return drawn[0], drawn[1]


def write(caches, count: int, seed: int) -> None:
    """The same columns into every layer of all caches, which then hold the same."""
    for layer in range(2):
        ours, theirs = (cache.update(*columns(count, seed + layer), layer) for cache in caches)
        assert all(map(torch.equal, ours, theirs))
        assert all(map(torch.equal, (caches[0].layers[layer].keys, caches[0].layers[layer].values), ours))


@torch.no_grad()
def test_it_holds_what_a_cache_that_copies_holds(monkeypatch):
    """Written, cropped, written over, more than there is room for, and after rows were chosen by transformers."""
    monkeypatch.setattr(keys, "MOST_SPARE", 2)
    caches = growing(2, 6), DynamicCache()
    for number, (count, kept) in enumerate([(4, 3), (2, 5), (9, 14), (1, 15), (1, 16), (3, 0), (5, 5)]):
        write(caches, count, 10 * number)
        for cache in caches:
            crop(cache, kept)
            assert cache.get_seq_length() == kept
    for cache in caches:
        cache.batch_select_indices(torch.tensor([1, 0]))
    write(caches, 2, 90)
    for cache in caches:
        cache.batch_repeat_interleave(1)
        exchange(cache, slice(1, 3), torch.tensor([1, 0]))
    write(caches, 1, 95)


@torch.no_grad()
def test_it_copies_nothing_while_there_is_room(monkeypatch):
    monkeypatch.setattr(keys, "MOST_SPARE", 2)
    cache = growing(1, 16)
    first, _ = cache.update(*columns(3), 0)
    begins = [cache.update(*columns(count), 0)[0].data_ptr() for count in (1, 12, 2)]
    assert begins == [first.data_ptr()] * 3
    assert cache.update(*columns(1), 0)[0].data_ptr() != first.data_ptr()
    assert cache.get_seq_length() == 19


def test_what_was_run_with_gradients_can_be_run_backwards():
    """Also when the cache is cropped and written over before that."""
    cache = growing(1, 16)
    with torch.no_grad():
        cache.update(*columns(3), 0)
    made = [new.requires_grad_() for new in columns(2, seed=1)]
    held, values = cache.update(*made, 0)
    loss = (held.square() * values).sum()
    crop(cache, 3)
    with torch.no_grad():
        for _ in range(2):
            cache.update(*columns(1, seed=2), 0)
            crop(cache, 3)
    loss.backward()
    torch.testing.assert_close(made[0].grad, 2 * made[0].detach() * made[1].detach())
    assert not torch.equal(held[:, :, 3:4], columns(1, seed=2)[0])


@pytest.mark.parametrize("rows", [[1, 0], [1, 1]])
@torch.no_grad()
def test_rows_exchange_columns(rows):
    cache = growing(1, 8)
    given, values = (held.clone() for held in cache.update(*columns(4), 0))
    exchange(cache, slice(1, 3), torch.tensor(rows))
    for held, before in ((cache.layers[0].keys, given), (cache.layers[0].values, values)):
        assert torch.equal(held[:, :, 1:3], before[rows][:, :, 1:3])
        assert torch.equal(held[:, :, [0, 3]], before[:, :, [0, 3]])
