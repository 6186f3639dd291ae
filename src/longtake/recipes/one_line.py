"""What is wrong with a recipe's command, in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from longtake.types import LongtakeError


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """In here a LongtakeError ends the program with its message alone."""
    try:
        yield
    except LongtakeError as error:
        sys.exit(f"error: {error}")
