"""Ways to do the same work on many files: in this process, in several, on Ray. All give equal results.

Each takes a function that makes the work, which is called once in each process; it and the items must be picklable.
Results come as they are done, in any order.
"""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from longtake.types import LongtakeError, first_line

Engine = Literal["process", "ray"]

ITEMS_A_BLOCK = 8  # on Ray; a block's results come together


class Item(Protocol):
    """What a file's work is told."""

    @property
    def path(self) -> Path: ...


ItemT = TypeVar("ItemT", bound=Item)
ResultT = TypeVar("ResultT")


def work(
    items: Sequence[ItemT],
    make: Callable[[], Callable[[ItemT], ResultT]],
    *,
    workers: int = 1,
    engine: Engine = "process",
    gpu: bool = False,
    here: Callable[[ItemT], ResultT] | None = None,
) -> Iterator[ResultT]:
    """The results of all items, by ``workers`` of an engine.

    gpu: whether each of Ray's actors needs one. here: the work as it was already made in this process, for one worker.

    Raises LongtakeError for a worker that ends early, and when Ray is not installed or gives up.
    """
    if engine == "ray":
        return work_on_ray(items, make, workers, gpu=gpu)
    if workers > 1:
        return work_in_processes(items, make, workers)
    return map(here or make(), items)


def work_in_processes(
    items: Sequence[ItemT], make: Callable[[], Callable[[ItemT], ResultT]], workers: int
) -> Iterator[ResultT]:
    """The results of all items, by ``workers`` processes of this machine, an item at a time each.

    Raises LongtakeError, naming the file, when a process ends early: killed, or by a mistake that it has printed; and
    those that the work raises.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy PyTorch's threads in any state
    left = iter(items)
    busy: dict[Any, tuple[BaseProcess, ItemT]] = {}  # by our end of the process's pipe
    try:
        for _, item in zip(range(workers), left, strict=False):  # in this order, or an item would be lost
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, make), daemon=True)
            process.start()
            theirs.close()
            ours.send(item)
            busy[ours] = process, item
        while busy:
            ready: list[Any] = wait(list(busy))
            for pipe in ready:
                worker, doing = busy.pop(pipe)
                yield _received(pipe, worker, doing)
                if (following := next(left, None)) is None:
                    pipe.close()  # the worker ends
                else:
                    pipe.send(following)
                    busy[pipe] = worker, following
    finally:
        for pipe, (worker, _) in busy.items():
            worker.terminate()
            pipe.close()


def _received(pipe: Any, worker: BaseProcess, item: Item) -> Any:
    try:
        received = pipe.recv()
    except (EOFError, ConnectionError) as gone:
        worker.join()
        code = worker.exitcode or 0
        how = f"was killed (signal {-code})" if code < 0 else f"ended with exit code {code}"
        raise LongtakeError(
            f"{item.path}: the process that worked on it {how}; what was done is kept, run again to go on, "
            "with fewer workers if memory ran out"
        ) from gone
    if isinstance(received, LongtakeError):
        raise received
    return received


def _serve(theirs: Any, make: Callable[[], Callable[[Any], Any]]) -> None:
    """A worker's life: make the work, do what comes, end when nothing more can come."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent says what happened
    do = make()
    with suppress(EOFError, BrokenPipeError):  # the parent is done, or is no more
        while True:
            item = theirs.recv()
            try:
                theirs.send(do(item))
            except LongtakeError as error:
                theirs.send(error)


def work_on_ray(
    items: Sequence[ItemT], make: Callable[[], Callable[[ItemT], ResultT]], workers: int, *, gpu: bool
) -> Iterator[ResultT]:
    """The results of all items, by ``workers`` Ray actors wherever the cluster has room; all must see the same folders.

    Ray starts a killed actor again. Raises LongtakeError when Ray is not installed or gives up.
    """
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as missing:
        raise LongtakeError("the engine ray needs Ray: pip install -e '.[ray]' in longtake's checkout") from missing
    if not items:
        return
    started_here = not ray.is_initialized()
    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # progress is ours to tell
    ray.data.DataContext.get_current().enable_progress_bars = False
    blocks = min(len(items), max(workers, -(-len(items) // ITEMS_A_BLOCK)))
    rows = ray.data.from_items([{"item": pickle.dumps(item)} for item in items], override_num_blocks=blocks)
    pool = ray.data.ActorPoolStrategy(size=workers)
    done = rows.map(_RayWorker, fn_constructor_args=(make,), compute=pool, num_gpus=1 if gpu else 0)
    try:
        for row in done.iter_rows():
            yield pickle.loads(row["result"])
    except ray.exceptions.RayError as error:
        raise LongtakeError(f"Ray stopped: {first_line(error)}; what was done is kept, run again to go on") from error
    finally:
        if started_here:
            ray.shutdown()


class _RayWorker:
    """One actor's work."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self.do = make()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"result": pickle.dumps(self.do(pickle.loads(row["item"])))}
