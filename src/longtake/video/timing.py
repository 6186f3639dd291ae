"""How long reading takes, where frames are read and worked on in turn."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable

from longtake.types import Frames


def timed(chunks: Iterable[Frames], spent: dict[str, float]) -> Generator[Frames, None, None]:
    """The same chunks; the seconds that each takes to come are added to ``spent["read"]``."""
    source = iter(chunks)
    while True:
        begun = time.perf_counter()
        frames = next(source, None)
        spent["read"] += time.perf_counter() - begun
        if frames is None:
            return
        yield frames
