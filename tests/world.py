"""A small probe world for tests: a few drawn clips, made once."""

from functools import lru_cache

from longtake.data.probe_world.haystack import Clip, drawn_clip


@lru_cache
def clips(first_seed: int = 0, count: int = 3, seconds: float = 8.0) -> list[Clip]:
    """Drawn clips; the same list every time, so do not change it."""
    return [drawn_clip(seed, seconds) for seed in range(first_seed, first_seed + count)]
