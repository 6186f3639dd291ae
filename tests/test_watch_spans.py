"""What a watched video's groups stand for where its frames are uneven: every moment belongs to one group."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fakes import FakeBackbone
from longtake.evidence import evidence_spans
from longtake.memory import load_memory, read_tensors, save_memory, write_tensors
from longtake.types import Memory, Sampling
from longtake.video import read
from longtake.watch import watch
from make_videos import make
from test_video_vfr import fully_decoded

SCREEN = [*(round(1000 * i / 30) for i in range(60)), 30_000, 60_000, 90_000, 119_960]  # two busy seconds, then still
BURST = [0, 5000, *(10_000 + round(1000 * i / 30) for i in range(60)), 15_000, 20_000, 30_000, 40_000]


# Files that are busy most of the frames look like ones of constant rate with holes.
HOLES = "ignore:(about .* frames seem to be missing|and in . more places)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spans")


def uneven(folder: Path, times: list[int], name: str) -> Path:
    path = folder / f"{len(times)}-{name}"
    return path if path.exists() else make(path, count=len(times), times=times)


def groups(memory: Memory) -> list[tuple[float, float]]:
    """Start and stop of every group, as evidence tells them."""
    scores = torch.zeros(memory.tokens.grid[0], dtype=torch.float64)
    found = []
    for group in range(len(scores)):
        (span,) = evidence_spans(scores.index_fill(0, torch.tensor(group), 1.0), memory)
        found.append((span.start_seconds, span.stop_seconds))
    return found


@pytest.mark.parametrize("name", ["still.mp4", "still.mkv"])
@pytest.mark.parametrize("times", [SCREEN, BURST], ids=["screen", "burst"])
@pytest.mark.parametrize("sampling", [Sampling(fps=0.5), Sampling(fps=2.0), Sampling(fps=2.0, exact=True),
                                      Sampling(count=40), Sampling(fps=60.0, start_seconds=1.0)])
@pytest.mark.filterwarnings("ignore:60 frames a second asked", HOLES)
def test_groups_of_a_still_picture_cover_it(folder, name, times, sampling):
    memory = watch(FakeBackbone(), uneven(folder, times, name), sampling)
    found = groups(memory)
    starts, stops = np.array(found).T
    first = sampling.start_seconds or 0.0
    assert starts[0] == memory.start_seconds
    assert first <= starts[0] <= first + (0.0 if sampling.count is None else memory.group_seconds / 4)
    assert (stops > starts).all()
    assert (starts[1:] >= stops[:-1]).all()
    # what lies between two groups is less than frames may miss their times by
    assert (starts[1:] - stops[:-1] <= 0.2 * memory.group_seconds / 4).all()
    assert stops[-1] == pytest.approx(memory.provenance.duration_seconds)


@pytest.mark.filterwarnings(HOLES)
def test_a_still_picture_by_hand(folder):
    memory = watch(FakeBackbone(), uneven(folder, SCREEN, "hand.mkv"), Sampling(fps=0.1))
    # every ten seconds: 0 (the first frame), 10 and 20 (the last busy one, begun at 1.967), 30, 30, 30, 60, ...
    assert memory.start_seconds == 0.0
    assert memory.tokens.seconds[::4].tolist() == [0.0, 40.0, 80.0]
    assert memory.group_seconds == pytest.approx(40.0)
    assert groups(memory) == [(0.0, 40.0), (40.0, 80.0), (80.0, pytest.approx(119.993))]


@pytest.mark.parametrize("sampling", [Sampling(fps=2.0), Sampling(fps=60.0), Sampling(at_seconds=(0.5, 33.0, 33.5))])
def test_spans_are_those_of_a_full_decode(folder, sampling):
    path = uneven(folder, SCREEN, "read.mp4")
    shown, _ = fully_decoded(path)
    ends = [*shown[1:], None]
    since = []
    for chunk in read(path, sampling):
        for second, (start, stop) in zip(chunk.seconds, chunk.spans, strict=True):
            number = int(np.argmin(np.abs(shown - second)))
            assert start >= shown[number]
            if ends[number] is not None:
                assert stop == pytest.approx(ends[number], abs=1e-6)
                assert start < stop
            since.append(start)
    assert (np.diff(since) > 0).all()


def test_evidence_stays_within_what_was_watched(folder):
    path = make(folder / "even.mp4", count=240, fps=24)
    memory = watch(FakeBackbone(), path, Sampling(fps=1.0, start_seconds=1.0, stop_seconds=6.0))
    assert memory.provenance.frames == 5
    assert groups(memory)[0][0] >= 1.0
    assert groups(memory)[-1][1] == memory.stop_seconds == 6.0


@pytest.mark.parametrize("seconds", [7.0, 8.0, 9.5])
@pytest.mark.parametrize("exact", [True, False])
def test_even_videos_have_the_groups_they_always_had(folder, seconds, exact):
    path = make(folder / f"{seconds}.mp4", count=round(24 * seconds), fps=24)
    memory = watch(FakeBackbone(), path, Sampling(fps=1.0, exact=exact))
    assert groups(memory) == groups(dataclasses.replace(memory, group_stops=None))


def test_memories_of_before_are_read(folder):
    memory = watch(FakeBackbone(), make(folder / "old.mp4", count=240, fps=24), Sampling(fps=1.0))
    save_memory(memory, folder / "new")
    assert load_memory(folder / "new").group_stops == memory.group_stops
    tensors, header = read_tensors(folder / "new", "longtake.memory")
    del header["group_stops"]
    write_tensors(folder / "old", tensors, "longtake.memory", json.loads(json.dumps(header)))
    old = load_memory(folder / "old")
    assert old.group_stops is None
    assert groups(old) == groups(memory)
