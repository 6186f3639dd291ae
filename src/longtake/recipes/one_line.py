"""What is wrong with a command, in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from longtake.types import LongtakeError


def to_stderr(line: str) -> None:
    """Print a line to stderr as it is."""
    print(line, file=sys.stderr)


@contextmanager
def errors_in_one_line(tell: Callable[[str], None] = to_stderr) -> Iterator[None]:
    """In here a user's mistake ends the program with one line and exit code 1, and Ctrl-C with exit code 130.

    Mistakes are a LongtakeError, and an OSError of a path that somebody named.
    """
    try:
        yield
    except LongtakeError as error:
        told = str(error)
    except OSError as error:
        if error.filename is None:
            raise
        told = f"{error.filename}: {error.strerror}; check the path, its permissions and the space there"
    except KeyboardInterrupt:
        tell("interrupted")
        sys.exit(130)
    else:
        return
    tell("error: " + " ".join(told.split()))
    sys.exit(1)
