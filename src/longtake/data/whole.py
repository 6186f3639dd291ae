"""Files that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longtake.outputs import scratch_beside, unwritable


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to, which takes its place when the block ends, and is removed when it fails.

    Raises LongtakeError, with ``path`` as it was, when it cannot be written.
    """
    scratch = scratch_beside(path)
    try:
        yield scratch
        scratch.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        scratch.unlink(missing_ok=True)
