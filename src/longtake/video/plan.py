"""Which moments are asked for, and what must be decoded to get them: pure functions of times and keyframes.

A request is a moment ``t`` with a window ``[low, high)`` of acceptable frame times. In exact mode the window plays no
part: the frame shown at ``t`` is wanted. In nearest mode any frame in the window will do, and windows never overlap
(each ends halfway to the next request), so no frame answers two requests unless the video itself shows nothing else.

A plan is a list of stretches. Each begins at a keyframe and decodes on from there until its last request is served;
what lies between the end of one stretch and the keyframe of the next is neither decoded nor, where the container can
seek, read. In nearest mode a request whose window holds a keyframe is served by that keyframe alone; and the last
request of a stretch takes the first frame of its window, so that decoding can stop there.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtake.types import Sampling, VideoError, VideoInfo

SAME_SECONDS = 1e-6  # times closer than this are one moment: requests are floats, timestamps are fractions
_FPS_SLACK = 1e-3  # 29.97 asked of a 29.970030 video is that video's own rate
_FAST_STEPS = 16  # over so many the rate of the fastest part is taken: one late or early frame makes none; ours
_FAST_SHARE = 0.8  # of that rate must be asked for to read every frame; ours
_LATE_INTERVALS = 1.5  # when the first of every frame begins later, the one shown at the start comes before it; ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """What to read: either every frame that begins in ``[start, stop)``, or one frame for each of ``seconds``.

    seconds, low, high: float64 ``(requests,)``, ascending. When ``every`` is set there is one, for the start: where no
    frame begins in its window, the one shown at the start comes before the others.
    num_every: how many frames are expected then.
    """

    start_seconds: float
    stop_seconds: float
    every: bool = False
    exact: bool = True
    seconds: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    num_every: int = 0
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.num_every if self.every else len(self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Requests ``[first, stop)``, decoded from one keyframe on.

    keyframe: its place in the timeline. on_keyframe: the request ``first`` is served by the keyframe itself.
    """

    keyframe: int
    first: int
    stop: int
    on_keyframe: bool = False

    def cut(self, first: int) -> Stretch | None:
        """The rest of the stretch from request ``first`` on; None where nothing is left."""
        if first >= self.stop:
            return None
        return self if first <= self.first else Stretch(keyframe=self.keyframe, first=first, stop=self.stop)


def uniform_times(start: float, stop: float, count: int) -> NDArray[np.float64]:
    """Midpoints of ``count`` equal parts of ``[start, stop)``: every frame stands for the part around it."""
    return np.asarray(start + (np.arange(count) + 0.5) * ((stop - start) / count), np.float64)


def fps_times(start: float, stop: float, fps: float) -> NDArray[np.float64]:
    """``start + i / fps`` for every such time before ``stop``; at least the first."""
    count = max(1, int(np.ceil((stop - start) * fps - SAME_SECONDS * fps)))
    return np.asarray(start + np.arange(count) / fps, np.float64)


def requests(sampling: Sampling, info: VideoInfo, shown: Callable[[], NDArray[np.float64]]) -> Requests:
    """The moments that a sampling means on one video. Raises VideoError when they lie outside it.

    shown: gives float64 ``(frames,)``, ascending: when the video's frames begin. It is called only where that matters,
    as finding out may take reading the file.
    """
    start, stop = _span(sampling, info)
    if sampling.at_seconds is not None:
        seconds = np.sort(np.array(sampling.at_seconds, np.float64))
        _check_inside(seconds, start, stop, info)
        return _with_windows(sampling, seconds, start, stop, default_tolerance=0.5)
    if sampling.count is not None:
        return _uniform(sampling, start, stop, sampling.count)
    assert sampling.fps is not None
    above = 0 < info.fps * (1 - _FPS_SLACK) <= sampling.fps
    inside = _inside(shown(), start, stop, info) if above else None
    if inside is not None and sampling.fps >= _FAST_SHARE * fastest(inside):
        asked = _every(sampling.fps, info, start, stop, inside)
    else:
        seconds = fps_times(start, stop, sampling.fps)
        asked = _with_windows(sampling, seconds, start, stop, default_tolerance=0.1 / sampling.fps)
    if sampling.max_frames is not None and len(asked) > sampling.max_frames:
        return _uniform(sampling, start, stop, sampling.max_frames)
    return asked


def _inside(shown: NDArray[np.float64], start: float, stop: float, info: VideoInfo) -> NDArray[np.float64]:
    first, last = np.searchsorted(shown, (start - SAME_SECONDS, stop - SAME_SECONDS), side="left")
    return shown[first:last] if stop < info.duration_seconds else shown[first:]


def fastest(shown: NDArray[np.float64]) -> float:
    """Frames a second in the fastest part of ascending times, taken over 16 steps (fewer, where there are fewer)."""
    steps = min(_FAST_STEPS, len(shown) - 1)
    return steps / float((shown[steps:] - shown[:-steps]).min()) if steps > 0 else 0.0


def _every(fps: float, info: VideoInfo, start: float, stop: float, inside: NDArray[np.float64]) -> Requests:
    """Every frame of the span, ``inside`` being when they begin."""
    told = f"{fps:g} frames a second asked of a {info.fps:g} frames a second video: every frame is read"
    late = min(start + _LATE_INTERVALS / fps, stop)
    return Requests(
        start_seconds=start,
        stop_seconds=stop if stop < info.duration_seconds else float("inf"),  # one may begin at the declared end
        every=True,
        seconds=np.array([start]),
        low=np.array([start]),
        high=np.array([late]),
        num_every=len(inside) + (len(inside) == 0 or bool(inside[0] >= late - SAME_SECONDS)),
        warnings=(told,) if fps > info.fps * (1 + _FPS_SLACK) else (),
    )


def _span(sampling: Sampling, info: VideoInfo) -> tuple[float, float]:
    start = sampling.start_seconds or 0.0
    end = info.duration_seconds
    if start >= end:
        raise VideoError(
            f"{info.path}: start is {start:g} s but the video ends at {end:.2f} s; choose an earlier start"
        )
    return start, min(end, sampling.stop_seconds if sampling.stop_seconds is not None else end)


def _check_inside(seconds: NDArray[np.float64], start: float, stop: float, info: VideoInfo) -> None:
    if len(seconds) == 0:
        raise VideoError(f"{info.path}: at_seconds is empty; name at least one time")
    outside = seconds[~((seconds >= start) & (seconds <= stop + SAME_SECONDS))]
    if len(outside):
        raise VideoError(
            f"{info.path}: {outside[0]:g} s was asked for, which is outside {start:g} to {stop:.2f} s; choose within"
        )


def _uniform(sampling: Sampling, start: float, stop: float, count: int) -> Requests:
    half = (stop - start) / count / 2
    return _with_windows(sampling, uniform_times(start, stop, count), start, stop, default_tolerance=half)


def _with_windows(
    sampling: Sampling, seconds: NDArray[np.float64], start: float, stop: float, *, default_tolerance: float
) -> Requests:
    tolerance = default_tolerance if sampling.tolerance_seconds is None else sampling.tolerance_seconds
    halfway = (seconds[1:] + seconds[:-1]) / 2
    return Requests(
        start_seconds=start,
        stop_seconds=stop,
        exact=sampling.exact,
        seconds=seconds,
        low=np.maximum(seconds - tolerance, np.concatenate([[start], halfway])),
        high=np.minimum(seconds + tolerance, np.concatenate([halfway, [stop]])),
    )


def stretches(asked: Requests, keyframes: NDArray[np.float64]) -> list[Stretch]:
    """Group requests by the keyframe from which each is best decoded; ``keyframes`` are shown seconds, ascending."""
    if asked.every:
        return [Stretch(keyframe=_last_before(keyframes, asked.start_seconds), first=0, stop=0)]
    plan: list[Stretch] = []
    for number, second in enumerate(asked.seconds.tolist()):
        inside = None if asked.exact else _keyframe_inside(asked, number, keyframes)
        keyframe = _last_before(keyframes, second) if inside is None else inside
        if plan and plan[-1].keyframe == keyframe:
            last = plan[-1]
            plan[-1] = Stretch(keyframe=keyframe, first=last.first, stop=number + 1, on_keyframe=last.on_keyframe)
        else:
            plan.append(Stretch(keyframe=keyframe, first=number, stop=number + 1, on_keyframe=inside is not None))
    return plan


def _last_before(keyframes: NDArray[np.float64], second: float) -> int:
    return max(0, int(np.searchsorted(keyframes, second + SAME_SECONDS, side="right")) - 1)


def _keyframe_inside(asked: Requests, number: int, keyframes: NDArray[np.float64]) -> int | None:
    """The keyframe nearest to a request among those inside its window."""
    first, stop = np.searchsorted(keyframes, (asked.low[number], asked.high[number]), side="left")
    if first == stop:
        return None
    return int(first + np.argmin(np.abs(keyframes[first:stop] - asked.seconds[number])))


def choose(known: list[int], t: float, low: float, high: float, *, exact: bool, first: bool) -> int:
    """Which of ascending frame times answers a request: in ticks, like ``t`` and the window (any real numbers).

    exact: the last at or before ``t``. Otherwise the nearest to ``t`` inside ``[low, high)`` (``first``: the earliest
    inside), and when none is inside the one shown at ``t``. Before the first frame that is the first frame.
    """
    after = bisect_right(known, t)
    shown = known[max(after - 1, 0)]
    if exact:
        return shown
    inside = known[bisect_left(known, low) : bisect_left(known, high)]
    if not inside:
        return shown
    return inside[0] if first else min(inside, key=lambda time: abs(time - t))
