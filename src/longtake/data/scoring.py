"""Ways to score many videos: in this process, in several, on Ray. All give the same scores, in the order they come.

Each takes a function that makes a Scorer, which is called once in each process; it must be picklable.
"""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from longtake.data.scorer import Scored, Scorer, VideoPart
from longtake.types import LongtakeError

MakeScorer = Callable[[], Scorer]

VIDEOS_A_BLOCK = 8  # on Ray; a block's scores come together


def score_here(parts: Sequence[VideoPart], scorer: Scorer) -> Iterator[Scored]:
    """One after the other, in this process."""
    return map(scorer.score, parts)


def score_in_processes(parts: Sequence[VideoPart], make: MakeScorer, workers: int) -> Iterator[Scored]:
    """In ``workers`` processes of this machine, a video at a time each.

    Raises LongtakeError, naming the video, when a process ends early: killed, or by a mistake that it has printed.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy PyTorch's threads in any state
    left = iter(parts)
    busy: dict[Any, tuple[BaseProcess, VideoPart]] = {}  # by our end of the process's pipe
    try:
        for _, part in zip(range(workers), left, strict=False):  # in this order, or a part would be lost
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, make), daemon=True)
            process.start()
            theirs.close()
            ours.send(part)
            busy[ours] = process, part
        while busy:
            ready: list[Any] = wait(list(busy))
            for pipe in ready:
                worker, scoring = busy.pop(pipe)
                yield _received(pipe, worker, scoring)
                if (following := next(left, None)) is None:
                    pipe.close()  # the worker ends
                else:
                    pipe.send(following)
                    busy[pipe] = worker, following
    finally:
        for pipe, (worker, _) in busy.items():
            worker.terminate()
            pipe.close()


def _received(pipe: Any, worker: BaseProcess, part: VideoPart) -> Scored:
    try:
        scored: Scored = pipe.recv()
    except (EOFError, ConnectionError) as gone:
        worker.join()
        code = worker.exitcode or 0
        how = f"was killed (signal {-code})" if code < 0 else f"ended with exit code {code}"
        raise LongtakeError(
            f"{part.path}: the process that scored it {how}; what was scored is kept, run again to go on, "
            "with fewer --workers if memory ran out"
        ) from gone
    return scored


def _serve(theirs: Connection[Scored, VideoPart], make: MakeScorer) -> None:
    """A worker's life: make a scorer, score what comes, end when nothing more can come."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent says what happened
    scorer = make()
    with suppress(EOFError, BrokenPipeError):  # the parent is done, or is no more
        while True:
            theirs.send(scorer.score(theirs.recv()))


def score_on_ray(parts: Sequence[VideoPart], make: MakeScorer, workers: int, *, gpu: bool) -> Iterator[Scored]:
    """On Ray Data: ``workers`` actors, wherever the cluster has room; every machine must see the same media folder.

    Ray starts a killed actor again. Raises LongtakeError when Ray is not installed or gives up.
    """
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as missing:
        raise LongtakeError("--engine ray needs Ray: pip install 'longtake[ray]'") from missing
    started_here = not ray.is_initialized()
    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # progress is ours to tell
    ray.data.DataContext.get_current().enable_progress_bars = False
    blocks = min(len(parts), max(workers, -(-len(parts) // VIDEOS_A_BLOCK)))
    rows = ray.data.from_items([{"part": pickle.dumps(part)} for part in parts], override_num_blocks=blocks)
    pool = ray.data.ActorPoolStrategy(size=workers)
    scored = rows.map(_RayScorer, fn_constructor_args=(make,), compute=pool, num_gpus=1 if gpu else 0)
    try:
        for row in scored.iter_rows():
            yield pickle.loads(row["scored"])
    except ray.exceptions.RayError as error:
        first = str(error).strip().split("\n")[0]
        raise LongtakeError(f"Ray stopped: {first}; what was scored is kept, run again to go on") from error
    finally:
        if started_here:
            ray.shutdown()


class _RayScorer:
    """One actor's scorer."""

    def __init__(self, make: MakeScorer) -> None:
        self.scorer = make()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"scored": pickle.dumps(self.scorer.score(pickle.loads(row["part"])))}
