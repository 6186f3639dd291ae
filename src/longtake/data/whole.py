"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longtake.types import LongtakeError


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to, which takes its place when the block ends, and is removed when it fails.

    Raises LongtakeError, with ``path`` as it was, when it cannot be written.
    """
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        yield scratch
        scratch.replace(path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise LongtakeError(f"could not write {path}: {reason}; free space or choose another place") from error
    finally:
        scratch.unlink(missing_ok=True)
