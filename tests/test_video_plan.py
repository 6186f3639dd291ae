"""Requests and plans against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from longtake.types import Sampling, VideoError, VideoInfo
from longtake.video import plan


def info(duration: float = 10.0, fps: float = 30.0) -> VideoInfo:
    return VideoInfo(
        path="talk.mp4",
        duration_seconds=duration,
        fps=fps,
        num_frames=round(duration * fps),
        width=64,
        height=48,
        codec="h264",
    )


def steady(duration: float = 10.0, fps: float = 30.0) -> NDArray[np.float64]:
    return np.arange(round(duration * fps)) / fps


def asked(**sampling: object) -> plan.Requests:
    return plan.requests(Sampling(**sampling), info(), steady)  # type: ignore[arg-type]


def test_uniform_times_are_midpoints() -> None:
    assert plan.uniform_times(0.0, 10.0, 4).tolist() == [1.25, 3.75, 6.25, 8.75]
    assert plan.uniform_times(4.0, 6.0, 1).tolist() == [5.0]


@pytest.mark.parametrize(
    ("start", "stop", "fps", "expected"),
    [
        (0.0, 2.5, 1.0, [0.0, 1.0, 2.0]),
        (0.0, 2.0, 1.0, [0.0, 1.0]),  # half-open: 2.0 is outside
        (1.0, 2.0, 4.0, [1.0, 1.25, 1.5, 1.75]),
        (0.0, 0.1, 1.0, [0.0]),
        (0.0, 0.3, 10.0, [0.0, 0.1, 0.2]),  # 3 / 10 falls a rounding error short of 0.3
    ],
)
def test_fps_times(start: float, stop: float, fps: float, expected: list[float]) -> None:
    np.testing.assert_allclose(plan.fps_times(start, stop, fps), expected, atol=1e-12)


def test_fps_windows_reach_a_tenth_of_the_interval_to_either_side() -> None:
    requests = asked(fps=2.0, stop_seconds=1.5)
    assert requests.seconds.tolist() == [0.0, 0.5, 1.0]
    np.testing.assert_allclose(requests.low, [0.0, 0.45, 0.95])  # nothing before the span
    np.testing.assert_allclose(requests.high, [0.05, 0.55, 1.05])


def test_fps_leaves_no_gap_above_1_2_intervals() -> None:
    requests = asked(fps=1.0)
    assert (requests.high[1:] - requests.low[:-1]).max() <= 1.2 + 1e-9


def test_count_windows_tile_the_span() -> None:
    requests = asked(count=4, start_seconds=2.0, stop_seconds=6.0)
    assert requests.seconds.tolist() == [2.5, 3.5, 4.5, 5.5]
    assert requests.low.tolist() == [2.0, 3.0, 4.0, 5.0]
    assert requests.high.tolist() == [3.0, 4.0, 5.0, 6.0]


def test_windows_of_close_times_end_halfway_between_them() -> None:
    requests = asked(at_seconds=(3.0, 2.8, 9.9))
    assert requests.seconds.tolist() == [2.8, 3.0, 9.9]  # in the order of time
    np.testing.assert_allclose(requests.low, [2.3, 2.9, 9.4])
    np.testing.assert_allclose(requests.high, [2.9, 3.5, 10.0])


def test_a_stated_tolerance_is_used() -> None:
    requests = asked(fps=1.0, tolerance_seconds=0.25, stop_seconds=2.0)
    np.testing.assert_allclose(requests.low, [0.0, 0.75])
    np.testing.assert_allclose(requests.high, [0.25, 1.25])


def test_max_frames_switches_to_uniform_above_the_cap() -> None:
    below, above = asked(fps=1.0, max_frames=10), asked(fps=1.0, max_frames=5)
    assert below.seconds.tolist() == list(range(10))
    assert above.seconds.tolist() == [1.0, 3.0, 5.0, 7.0, 9.0]
    assert above.low.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]


def test_more_fps_than_the_video_has_reads_every_frame_and_says_so() -> None:
    requests = asked(fps=60.0)
    assert requests.every
    assert "every frame" in requests.warnings[0]
    assert "60" in requests.warnings[0]
    assert "30" in requests.warnings[0]


def test_the_videos_own_fps_reads_every_frame_without_a_word() -> None:
    requests = plan.requests(Sampling(fps=29.97), info(fps=30000 / 1001), lambda: steady(fps=30000 / 1001))
    assert requests.every
    assert requests.warnings == ()


def test_the_cap_counts_the_videos_own_frames() -> None:
    assert asked(fps=1000.0, max_frames=300).every
    assert len(asked(fps=1000.0, max_frames=299)) == 299


BURST = np.array([0.0, 5.0, *(10 + np.arange(60) / 30), 20.0, 40.0])  # 64 frames, 60 of them within two seconds


def uneven(**sampling: object) -> plan.Requests:
    return plan.requests(Sampling(**sampling), info(60.0, 64 / 60), lambda: BURST)  # type: ignore[arg-type]


def test_fastest_by_hand() -> None:
    assert plan.fastest(BURST) == pytest.approx(30.0)
    assert plan.fastest(np.array([0.0, 30.0, 60.0])) == pytest.approx(1 / 30)
    assert plan.fastest(BURST[:1]) == plan.fastest(BURST[:0]) == 0.0
    late = np.arange(100) / 30
    late[50] += 0.02  # one frame out of its place makes no other rate
    assert plan.fastest(late) == pytest.approx(30.0, rel=0.05)


def test_a_rate_above_the_mean_but_below_the_fastest_is_kept() -> None:
    requests = uneven(fps=2.0)
    assert not requests.every
    assert len(requests) == 120
    capped = uneven(fps=2.0, start_seconds=10.0, stop_seconds=12.0, max_frames=10)
    assert capped.seconds.tolist() == [10, 10.5, 11, 11.5]


def test_every_frame_of_an_uneven_span_is_counted_as_it_is() -> None:
    assert (uneven(fps=25.0).every, len(uneven(fps=25.0))) == (True, 64)
    assert len(uneven(fps=60.0, max_frames=64)) == 64
    assert len(uneven(fps=60.0, start_seconds=10.5, stop_seconds=11.0)) == 15
    capped = uneven(fps=60.0, start_seconds=10.0, stop_seconds=12.0, max_frames=59)
    assert capped.seconds[0] == pytest.approx(10 + 1 / 59)
    assert uneven(fps=60.0, start_seconds=10.0, stop_seconds=12.0, max_frames=60).every


def test_the_frame_shown_at_the_start_is_counted_where_the_next_is_late() -> None:
    assert len(uneven(fps=2.0, start_seconds=25.0, stop_seconds=35.0)) == 1  # the frame of 20 s
    assert len(uneven(fps=2.0, start_seconds=25.0, stop_seconds=45.0)) == 2  # and that of 40 s
    assert len(uneven(fps=2.0, start_seconds=39.5, stop_seconds=45.0)) == 1  # half a second later is no wait


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(fps=1.0, start_seconds=10.0), r"start is 10 s but the video ends at 10\.00 s"),
        (Sampling(count=3, start_seconds=99.0), r"start is 99 s"),
        (Sampling(at_seconds=(1.0, 12.5)), r"12\.5 s was asked for, which is outside 0 to 10\.00 s"),
        (Sampling(at_seconds=(-1.0,)), r"-1 s was asked for"),
        (Sampling(at_seconds=(float("nan"),)), r"nan s was asked for"),
        (Sampling(at_seconds=()), r"at_seconds is empty"),
    ],
)
def test_times_outside_the_video_are_refused(sampling: Sampling, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        plan.requests(sampling, info(), steady)


def stretches(requests: plan.Requests, keyframes: list[float]) -> list[tuple[int, int, int, bool]]:
    found = plan.stretches(requests, np.array(keyframes))
    return [(s.keyframe, s.first, s.stop, s.on_keyframe) for s in found]


def test_exact_requests_are_grouped_by_the_keyframe_before_them() -> None:
    requests = asked(at_seconds=(1.0, 3.0, 4.0, 9.0), exact=True)
    # Keyframe 2, at 8 s, is reached by a jump; keyframe 1 serves a request for exactly its own time.
    assert stretches(requests, [0.0, 4.0, 8.0]) == [(0, 0, 2, False), (1, 2, 3, False), (2, 3, 4, False)]


def test_a_keyframe_inside_the_window_serves_a_nearest_request() -> None:
    # Windows: [0, 2.5), [2.5, 5), [5, 7.5), [7.5, 10). Keyframe 6.0 is nearer to 6.25 than 7.0 is.
    assert stretches(asked(count=4), [0.0, 2.6, 6.0, 7.0]) == [
        (0, 0, 1, True),
        (1, 1, 2, True),
        (2, 2, 3, True),
        (3, 3, 4, False),  # none in [7.5, 10): decode on from 7.0
    ]


def test_a_window_is_half_open() -> None:
    # The keyframe at 5.0 belongs to the second request only.
    assert stretches(asked(count=2), [0.0, 5.0]) == [(0, 0, 1, True), (1, 1, 2, True)]


def test_requests_behind_a_keyframe_that_serves_another_go_on_from_it() -> None:
    assert stretches(asked(fps=1.0, stop_seconds=4.0), [0.0, 2.95]) == [(0, 0, 3, True), (1, 3, 4, True)]


def test_with_one_keyframe_there_is_one_stretch() -> None:
    assert stretches(asked(fps=1.0), [0.0]) == [(0, 0, 10, True)]
    assert stretches(asked(fps=1.0, exact=True), [0.0]) == [(0, 0, 10, False)]


def test_every_frame_begins_at_the_keyframe_before_the_start() -> None:
    assert stretches(asked(fps=30.0, start_seconds=5.0), [0.0, 4.0, 8.0]) == [(1, 0, 0, False)]


@pytest.mark.parametrize(
    ("t", "low", "high", "exact", "first", "expected"),
    [
        (25, 0, 99, True, False, 20),  # the last at or before
        (20, 0, 99, True, False, 20),
        (5, 0, 99, True, False, 10),  # before the first: the first
        (99, 0, 99, True, False, 40),
        (26, 16, 36, False, False, 30),  # the nearest inside
        (26, 16, 36, False, True, 20),  # the earliest inside
        (24, 22, 26, False, False, 20),  # none inside: the one shown then
        (24, 22, 26, False, True, 20),
        (30, 30, 30, False, False, 30),  # an empty window too
        (15, 10, 20, False, False, 10),  # half-open: 20 is outside
    ],
)
def test_choose(t: float, low: float, high: float, exact: bool, first: bool, expected: int) -> None:
    assert plan.choose([10, 20, 30, 40], t, low, high, exact=exact, first=first) == expected
