"""Books of what was left out: shared by all processes, named in files beside the log, kept with the checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from longtake.data.left_out import Broken
from longtake.outputs import write_json
from longtake.train.checkpoint import room_in
from longtake.train.run import Run
from longtake.types import LongtakeError

Books = Mapping[str, Broken]  # by the name of the file that lists it


def books_of(data: Broken, held: Broken | None) -> Books:
    """The books by their files' names: of what is learned from and, where there is some, of what is measured on."""
    return {"left_out.json": data} | ({} if held is None else {"left_out_held.json": held})


def resume(run: Run, books: Books) -> int:
    """Resume as ``Run.resume`` does, and bring back what the earlier run had left out."""
    step = run.resume()
    states = run.more.get("left_out", {})
    for file in books.keys() & states.keys():
        books[file].load(states[file])
    return step


def save(run: Run, step: int, books: Books) -> None:
    """Save as ``Run.save`` does, with what was left out so far."""
    run.save(step, left_out={file: broken.state() for file, broken in books.items()})


def share(run: Run, books: Books) -> None:
    """Bring together what the processes have left out since the last call. Every process must call it.

    What is new is written down before too much of it stops the run: LongtakeError, on every process.
    """
    from accelerate.utils import gather_object

    fresh = [broken.take() for broken in books.values()]
    counts = run.total(*map(len, fresh))
    for (file, broken), count, own in zip(books.items(), counts, fresh, strict=True):
        if count:
            broken.merge(gather_object(own))
            if run.is_main:
                write(run.folder / file, broken)
            run.accelerator.wait_for_everyone()
            broken.check()


def tell(run: Run, books: Books) -> None:
    """Say at the end how much was left out, and where it is named."""
    if run.is_main:
        announce(run.folder, books)


def announce(folder: Path, books: Books) -> None:
    """The same, for one process to call."""
    for file, broken in books.items():
        if broken.all:
            write(folder / file, broken)
            print(f"{len(broken.all)} were left out; {folder / file} names them", file=sys.stderr, flush=True)


@contextmanager
def written(folder: Path, books: Books) -> Iterator[None]:
    """Write down what this process knows to be left out where an error in the block ends the run."""
    try:
        yield
    except LongtakeError:
        for file, broken in books.items():
            if broken.fresh:
                write(folder / file, broken)
        raise


def write(file: Path, broken: Broken) -> None:
    """Write the names and reasons to a file, whole or not at all."""
    with room_in(file.parent, "the list of what was left out"):
        write_json(file, broken.all, indent=1)
