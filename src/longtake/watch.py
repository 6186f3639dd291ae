"""Video and backbone to Memory: read, encode and keep in a stream, in memory that grows only by the kept tokens."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

import longtake.video
from longtake.memory import check_target, save_memory, token_tensors, tokens_of
from longtake.shards import Shard, Shards
from longtake.types import Frames, Memory, Provenance, Sampling, VideoError
from longtake.video.timing import timed

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from longtake.backbones.base import Backbone

__all__ = ["watch", "watch_frames"]

CHUNK_FRAMES = 32  # encoded at once when frames come at the model's own small size
CHUNK_FRAMES_UNSIZED = 8  # when they come at the video's size: 1080p is 6 MB a frame
SHARD_FRAMES = 256  # at most this many frames are watched again after an interruption
READ_AHEAD_CHUNKS = 2
_LONGEST_INTERVAL = 1.2  # by fps no frame is further than that many intervals from the next, by any tolerance of ours
SPARE_ROOM = 1.125  # of the room for what is planned; making room again copies everything, and unfilled room is free

Progress = Callable[[int], None]


def watch(
    backbone: Backbone,
    path: str | os.PathLike[str],
    sampling: Sampling,
    *,
    target: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Memory:
    """Watch a video file once. Reading runs in its own thread, beside encoding.

    target: where the memory is saved. Tokens then also go to numbered shards beside it as they come; an interrupted
        watch of the same video, sampling and model continues from them; they are removed when the memory stands.
    progress: called with frames watched so far and frames planned.

    Raises VideoError when the file or the span holds no frame, LongtakeError when the target cannot be written or is a
    file that is no memory.
    Warns with each thing that the reader had to leave out.
    """
    if target is not None:
        check_target(Path(target))
    step = max(1, (CHUNK_FRAMES if backbone.frame_size else CHUNK_FRAMES_UNSIZED) // backbone.frames_per_group)
    reading = longtake.video.read(
        path, sampling, size=backbone.frame_size, chunk_frames=step * backbone.frames_per_group
    )
    with closing(reading):
        identity = longtake.video.identity(path)
        shards = None if target is None else _shards(backbone, Path(target), identity, sampling)
        memory = watch_frames(
            backbone,
            reading,
            sampling,
            video=os.path.abspath(path),  # so that it names the same file wherever the memory is asked
            video_identity=identity,
            duration_seconds=reading.info.duration_seconds,
            num_planned=reading.num_planned,
            shards=shards,
            progress=None if progress is None else lambda done: progress(done, reading.num_planned),
        )
    provenance = dataclasses.replace(memory.provenance, warnings=reading.warnings)
    for line in provenance.warnings:
        warnings.warn(line, stacklevel=2)
    memory = dataclasses.replace(memory, provenance=provenance)
    if target is not None and shards is not None:
        save_memory(memory, target)
        shards.remove()
    return memory


def watch_frames(
    backbone: Backbone,
    chunks: Iterable[Frames],
    sampling: Sampling,
    *,
    video: str = "",
    video_identity: str = "",
    duration_seconds: float = 0.0,
    num_planned: int = 0,
    shards: Shards | None = None,
    progress: Progress | None = None,
) -> Memory:
    """Watch frames from anywhere: chunks of any length, in the order of time, all of one video.

    duration_seconds: the video's; 0.0 means that it ends with its last group.
    num_planned: how many frames are expected, so that room for their tokens is made once; without it (0), and when
        more come, the tokens stand twice in memory while room is made again.
    """
    spent = {"read": 0.0, "encode": 0.0, "compress": 0.0}  # compress stays 0 where it is a part of encoding
    kept = _Kept(num_planned)
    _continue(kept, shards)
    _encode_rest(backbone, chunks, kept, spent, shards, progress)
    if not kept.length.frames:
        raise VideoError(f"{video or 'these frames'}: no frame to watch in the chosen span; widen start and stop")
    whole = kept.since(_Length())
    spans, per_group = whole.frame_spans.numpy(), backbone.frames_per_group
    interval = _interval(spans[:, 0], sampling)
    end = min(duration_seconds or math.inf, sampling.stop_seconds or math.inf)
    stops = _group_stops(spans, per_group, interval, end)
    provenance = Provenance(
        model=backbone.name,
        video=video,
        video_identity=video_identity,
        sampling=sampling,
        frames=kept.length.frames,
        duration_seconds=duration_seconds or stops[-1],
        seconds=spent,
    )
    return Memory(
        tokens=whole.tokens,
        group_seconds=interval * per_group,
        start_seconds=float(spans[0, 0]),
        provenance=provenance,
        group_stops=stops,
    )


def _shards(backbone: Backbone, target: Path, identity: str, sampling: Sampling) -> Shards:
    key = {"model": backbone.name, "video": identity, "sampling": dataclasses.asdict(sampling)}
    shards = Shards(target=target, watch=json.dumps(key, sort_keys=True))
    shards.check()
    return shards


def _continue(kept: _Kept, shards: Shards | None) -> None:
    """Keep what the shards of an interrupted watch hold, one after the other."""
    if shards is None:
        return
    for shard in shards.resume():
        kept.add(shard)
    if shards.remove_rest():
        line = f"{shards.target}: shards of another or a broken watch stood beside it; they are watched again"
        warnings.warn(line, stacklevel=4)


def _encode_rest(
    backbone: Backbone,
    chunks: Iterable[Frames],
    kept: _Kept,
    spent: dict[str, float],
    shards: Shards | None,
    progress: Progress | None,
) -> None:
    """Encode the frames behind those that are kept, and keep them; add the seconds to ``spent``."""
    written = kept.length
    groups = _whole_groups(_skip(timed(chunks, spent), written.frames), backbone.frames_per_group)
    with closing(_read_ahead(groups, READ_AHEAD_CHUNKS)) as waiting:
        for frames in waiting:
            start = time.perf_counter()
            kept.add(_encode(backbone, frames, kept.length.groups))
            spent["encode"] += time.perf_counter() - start
            if shards is not None and kept.length.frames - written.frames >= SHARD_FRAMES:
                shards.write(kept.since(written))
                written = kept.length
            if progress is not None:
                progress(kept.length.frames)


@torch.no_grad()
def _encode(backbone: Backbone, frames: Frames, first_group: int) -> Shard:
    """One chunk's tokens on the CPU, its groups numbered from ``first_group``."""
    spans = _spans(frames).copy()
    tokens = backbone.encode(dataclasses.replace(frames, seconds=spans[:, 0])).cpu()
    placed = dataclasses.replace(tokens, position=tokens.position + torch.tensor([first_group, 0, 0]))
    return Shard(tokens=placed, frame_spans=torch.from_numpy(spans))


class _Length(NamedTuple):
    """How much of a video is kept."""

    frames: int = 0
    groups: int = 0
    tokens: int = 0


class _Kept:
    """The tokens and frame times so far, each tensor in one allocation into which parts are copied as they come.

    The parts themselves are let go. Held until the end, they would stand beside their join; and, small among the
    model's large passing tensors, they would leave holes too small for the next ones, so that the process grew by many
    times the tokens.
    """

    def __init__(self, num_planned: int) -> None:
        self.length = _Length()
        self._num_planned = num_planned
        self._tokens: dict[str, Tensor] = {}
        self._spans: Tensor | None = None
        self._grid: list[int] = []  # rows and columns

    def add(self, part: Shard) -> None:
        """Copy in the part that follows."""
        groups, *grid = part.tokens.grid
        self._grid = self._grid or grid
        assert self._grid == grid, f"frames of one video gave grids of {self._grid} and {grid} rows and columns"
        length, spans = self.length, part.frame_spans
        planned = self._num_planned / len(spans)
        for name, tensor in token_tensors(part.tokens).items():
            self._tokens[name] = _placed(self._tokens.get(name), length.tokens, tensor, planned)
        self._spans = _placed(self._spans, length.frames, spans, planned)
        self.length = _Length(length.frames + len(spans), length.groups + groups, length.tokens + len(part.tokens))

    def since(self, start: _Length) -> Shard:
        """All that was added after ``start``, as views of what is kept."""
        assert self._spans is not None, "nothing was added yet"
        tokens = {name: room[start.tokens : self.length.tokens] for name, room in self._tokens.items()}
        return Shard(
            tokens=tokens_of(tokens, [self.length.groups - start.groups, *self._grid]),
            frame_spans=self._spans[start.frames : self.length.frames],
        )


def _placed(room: Tensor | None, filled: int, part: Tensor, planned: float) -> Tensor:
    """The room with ``part`` behind its ``filled`` rows; a larger one, for ``planned`` such parts, if it does not fit.

    room ``(rows, ...)`` and part ``(new rows, ...)`` agree in all but the first dimension. A watch may be continued in
    another floating-point type; then the wider one is kept.
    """
    room = part[:0] if room is None else room
    stop, dtype = filled + len(part), torch.promote_types(room.dtype, part.dtype)
    if stop > len(room) or dtype != room.dtype:
        num_rows = max(stop, 2 * filled, int(len(part) * planned * SPARE_ROOM))
        larger = torch.empty((num_rows, *part.shape[1:]), dtype=dtype)
        larger[:filled] = room[:filled]
        room = larger
    room[filled:stop] = part
    return room


def _interval(seconds: NDArray[np.float64], sampling: Sampling) -> float:
    """The usual time from one frame to the next; for a single frame what was asked for, or a second."""
    steps = np.diff(seconds)
    if (steps > 0).any():
        return float(np.median(steps[steps > 0]))
    return 1.0 / sampling.fps if sampling.fps is not None else 1.0


def _group_stops(
    spans: NDArray[np.float64], frames_per_group: int, interval: float, end: float
) -> tuple[float, ...]:
    """The times at which groups end: after an interval for each frame, or later, when the last picture goes.

    No group reaches into the next, nor the last beyond ``end``, which an incomplete one reaches when no further frame
    was to be expected before it.

    spans: float64 ``(frames, 2)``, as in ``Frames``.
    """
    since, until = spans.T
    starts = since[::frames_per_group]
    reach = starts + interval * frames_per_group
    if len(since) % frames_per_group:
        reach[-1] = end if end <= since[-1] + _LONGEST_INTERVAL * interval else since[-1] + interval
    lasts = np.minimum(np.arange(1, len(starts) + 1) * frames_per_group, len(since)) - 1
    limits = np.append(starts[1:], end if end > starts[-1] else math.inf)  # a container may say less than it holds
    return tuple(np.minimum(np.maximum(reach, until[lasts]), limits).tolist())


def _skip(chunks: Iterable[Frames], num_frames: int) -> Iterator[Frames]:
    """Chunks without the first ``num_frames`` frames."""
    for chunk in chunks:
        left = _part(chunk, min(num_frames, len(chunk)), len(chunk))
        num_frames -= len(chunk) - len(left)
        if len(left):
            yield left


def _whole_groups(chunks: Iterable[Frames], frames_per_group: int) -> Iterator[Frames]:
    """Chunks made anew of whole groups; only the last chunk may end within a group."""
    rest: Frames | None = None
    for chunk in chunks:
        if rest is not None:
            chunk = Frames(
                pixels=np.concatenate([rest.pixels, chunk.pixels]),
                seconds=np.concatenate([rest.seconds, chunk.seconds]),
                spans=np.concatenate([_spans(rest), _spans(chunk)]),
            )
        whole = len(chunk) - len(chunk) % frames_per_group
        rest = _part(chunk, whole, len(chunk)) if whole < len(chunk) else None
        if whole:
            yield _part(chunk, 0, whole)
    if rest is not None:
        yield rest


def _part(frames: Frames, start: int, stop: int) -> Frames:
    return Frames(
        pixels=frames.pixels[start:stop], seconds=frames.seconds[start:stop], spans=_spans(frames)[start:stop]
    )


def _spans(frames: Frames) -> NDArray[np.float64]:
    """The frames' spans; where they are not known each lasts from its time to its time."""
    return np.stack([frames.seconds, frames.seconds], axis=1) if frames.spans is None else frames.spans


def _read_ahead(chunks: Iterable[Frames], depth: int) -> Generator[Frames]:
    """Chunks made in another thread, at most ``depth`` of them ahead; an error there is raised here."""
    source = iter(chunks)
    pool = ThreadPoolExecutor(1, thread_name_prefix="longtake-read")
    try:
        waiting = deque(pool.submit(next, source, None) for _ in range(depth))
        while (chunk := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, source, None))
            yield chunk
    finally:
        pool.shutdown(cancel_futures=True)
