"""Banks: resumed or not the same bytes; units and mixes lose, double and misplace nothing."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import world
from longtake.data.probe_world.bank import (
    GROUP,
    BankRecipe,
    Mix,
    Mixer,
    Placed,
    RenderedVideos,
    Unit,
    bank_video,
    build_bank,
    cut_units,
    plan_pair,
    read_events,
)
from longtake.data.probe_world.needles import Card, Mover
from longtake.data.probe_world.probe import SMALL, place_event

RECIPE = BankRecipe(videos=5, frames=24, seed=3, side=16)
FEATURES = 2 * 3  # of a frame: tokens x dim


def encode(pixels: torch.Tensor) -> torch.Tensor:
    """Two tokens of three features: the mean colours of the upper and the lower half."""
    return pixels.float().unflatten(2, (2, 8)).mean((3, 4)).transpose(1, 2).bfloat16()


def test_a_bank_resumed_after_an_interrupt_is_byte_equal(tmp_path):
    build_bank(RECIPE, world.clips(), encode, tmp_path / "whole", workers=0)
    calls = 0

    def interrupted(pixels: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return encode(pixels)

    with pytest.raises(KeyboardInterrupt):
        build_bank(RECIPE, world.clips(), interrupted, tmp_path / "parts", workers=0)
    with (tmp_path / "parts" / "features.bin").open("ab") as sink:
        sink.write(b"half a video")  # as a kill between features and their line would leave
    build_bank(RECIPE, world.clips(), encode, tmp_path / "parts", workers=1)
    build_bank(RECIPE, world.clips(), encode, tmp_path / "parts", workers=0)  # nothing left to do
    for name in ("features.bin", "videos.jsonl"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert (tmp_path / "whole" / "features.bin").stat().st_size == 5 * 24 * FEATURES * 2


def test_a_kill_at_any_time_loses_no_video_that_is_counted(tmp_path):
    """While video n is encoded, the lines and the features of the n before it are on disk, whole."""
    done = []

    def looking(pixels: torch.Tensor) -> torch.Tensor:
        lines = (tmp_path / "videos.jsonl").read_text()
        assert lines == "" or lines.endswith("\n")
        assert (tmp_path / "features.bin").stat().st_size == len(done) * 24 * FEATURES * 2
        assert len(lines.splitlines()) == len(done)
        done.append(1)
        return encode(pixels)

    build_bank(RECIPE, world.clips(), looking, tmp_path, workers=0)
    assert len(done) == 5


def test_a_share_of_a_banks_cards_is_small():
    """Heights are pixels of the drawn cards, which are turned by up to 8 degrees: at most 1.13 times as high."""
    shares = []
    for number in range(20):
        video = bank_video(BankRecipe(small=0.5), world.clips(), number)
        for _, event in video.cards:
            drawn, _, _ = place_event(event, event.start_seconds, video.size[::-1], "train")
            shares.append((event.card_size == SMALL, drawn.height / min(video.size)))
    small, rest = ([height for is_small, height in shares if is_small == wanted] for wanted in (True, False))
    assert 0.35 < len(small) / len(shares) < 0.65
    assert 0.38 <= min(small) <= max(small) < 0.55 * 1.15
    assert max(rest) > 0.8


def test_features_and_events_are_those_of_the_videos(tmp_path):
    build_bank(RECIPE, world.clips(), encode, tmp_path, workers=0)
    raw = torch.from_numpy(np.fromfile(tmp_path / "features.bin", np.int16)).view(torch.bfloat16)
    assert torch.equal(raw.reshape(5, 24, 2, 3)[3], encode(RenderedVideos(RECIPE, world.clips())[3][0]))
    for number, (fps, placed) in enumerate(read_events(tmp_path)):
        video = bank_video(RECIPE, world.clips(), number)
        assert fps == video.fps
        assert [event.what for event in placed] == [event.what for event in video.events]
        for event, real in zip(placed, video.events, strict=True):
            shown = [n for n in range(24) if real.start_seconds <= n / fps < real.stop_seconds]
            assert list(range(event.first, event.stop)) == shown


def test_rendered_videos_are_the_frames_shrunk():
    video = bank_video(RECIPE, world.clips(), 2)
    frames = np.concatenate([chunk.pixels for chunk in video.frames()])
    rendered, _ = RenderedVideos(RECIPE, world.clips())[2]
    assert rendered.shape == (24, 3, 16, 16)
    expected = Image.fromarray(frames[7].transpose(1, 2, 0)).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(rendered[7].permute(1, 2, 0).numpy(), np.asarray(expected))


def test_bank_videos_are_full_of_needles():
    videos = [bank_video(BankRecipe(), world.clips(), number) for number in range(80)]
    assert np.mean([len(video.cards) for video in videos]) == pytest.approx(6.2, abs=0.5)
    assert np.mean([len(video.movers) for video in videos if video.fps == 1]) == pytest.approx(1.0, abs=0.3)
    assert not any(video.movers for video in videos if video.fps == 2)  # they would be too fast
    assert {video.fps for video in videos} == {1.0, 2.0}
    assert {video.split for video in videos} == {"train"}


def test_a_pair_of_groups_keeps_its_needles_to_itself():
    rng = np.random.default_rng(0)
    lengths, kinds, shared = Counter(), Counter(), 0
    for _ in range(600):
        planned = plan_pair(rng, "train", with_movers=True)
        kinds[tuple(type(plan.what).__name__ for plan in planned)] += 1
        assert all(0 <= plan.first < plan.stop <= 8 for plan in planned)
        if len(planned) == 2:
            before, after = planned
            assert before.stop <= after.first
            if (before.stop - 1) // GROUP == after.first // GROUP:  # in one group: two cards
                shared += 1
                assert before.what.colour != after.what.colour
        lengths.update(plan.stop - plan.first for plan in planned if isinstance(plan.what, Card))
        assert all(5 <= plan.stop - plan.first <= 8 for plan in planned if isinstance(plan.what, Mover))
    assert set(lengths) == {1, 2, 3, 4}
    assert lengths[1] < lengths[2]
    alone = [("Card",), ("Mover",), ("NoneType",), ("Card", "Card"), ("Card", "NoneType"), ("NoneType", "Card"), ()]
    assert all(kinds[kind] for kind in alone)
    assert 80 < shared < kinds["Card", "Card"]


def test_the_record_says_where_a_needle_is(tmp_path):
    """The middle of what differs from the same video without its events, frame by frame."""
    recipe = BankRecipe(videos=6, frames=8, seed=3, side=16)
    build_bank(recipe, world.clips(), encode, tmp_path, workers=0)
    checked = 0
    for number, (_, placed) in enumerate(read_events(tmp_path)):
        video = bank_video(recipe, world.clips(), number)
        bare = replace(video, events=(), foreign=())
        (height, width), fps = video.size, video.fps
        for event in (event for event in placed if event.what is not None):
            assert len(event.centres) == event.stop - event.first
            for frame, (x, y) in zip(range(event.first, event.stop), event.centres, strict=True):
                pair = (np.asarray(v.picture(frame / fps), np.int16) for v in (video, bare))
                rows, columns = np.nonzero(np.abs(next(pair) - next(pair)).max(2) > 8)
                assert (rows.min() + rows.max() + 1) / 2 / height == pytest.approx(y, abs=0.04)
                assert (columns.min() + columns.max() + 1) / 2 / width == pytest.approx(x, abs=0.04)
                checked += 1
    assert checked > 10


RED, BLUE = (Card(content="7", colour=colour, outline="round") for colour in ("red", "blue"))


def test_units_by_hand():
    placed = [
        Placed(what=RED, first=5, stop=9),  # groups 1 and 2
        Placed(what=None, first=10, stop=12),  # group 2: the same run
        Placed(what=BLUE, first=12, stop=14),  # group 3: a run of its own
        Placed(what=None, first=15, stop=15),  # seen on no frame
    ]
    units = cut_units([(1.0, placed), (1.0, [])], 6)
    assert [(u.first_group, u.groups) for u in units] == [(0, 1), (1, 2), (3, 1), (4, 2), (6, 6)]
    assert [len(u.events) for u in units] == [0, 2, 1, 0, 0]
    assert units[1].events == (Placed(what=RED, first=1, stop=5), Placed(what=None, first=6, stop=8))
    assert units[2].events == (Placed(what=BLUE, first=0, stop=2),)
    assert units[1].colours == {"red"}


def a_bank(videos: int, frames: int = 40) -> list[tuple[float, list[Placed]]]:
    """Events of a bank without its pictures."""
    recipe = BankRecipe(videos=videos, frames=frames, seed=8)
    rows = []
    for number in range(videos):
        video = bank_video(recipe, world.clips(), number)
        rows.append((video.fps, [placed(event, video.fps) for event in video.events]))
    return rows


def placed(event, fps: float) -> Placed:
    frames = [n for n in range(1000) if event.start_seconds <= n / fps < event.stop_seconds]
    return Placed(what=event.what, first=frames[0], stop=frames[-1] + 1)


@pytest.fixture(scope="module")
def bank() -> list[tuple[float, list[Placed]]]:
    return a_bank(150)


def test_units_cover_every_group_once_and_lose_no_event(bank):
    units = cut_units(bank, 10)
    groups = [group for unit in units for group in range(unit.first_group, unit.first_group + unit.groups)]
    assert groups == list(range(150 * 10))
    back = Counter()
    for unit in units:
        video, group = divmod(unit.first_group, 10)
        assert group + unit.groups <= 10
        for event in unit.events:
            assert 0 <= event.first < event.stop <= unit.groups * GROUP
            back[video, event.what, event.first + group * GROUP, event.stop + group * GROUP] += 1
    assert back == Counter((n, e.what, e.first, e.stop) for n, (_, events) in enumerate(bank) for e in events)


@pytest.fixture(scope="module")
def mixer(bank) -> Mixer:
    return Mixer(cut_units(bank, 10), "train")


def mixes(mixer: Mixer) -> list[Mix]:
    return [mixer.mix(np.random.default_rng(n), 3 + 2 * n, 1 + n % 6, 0.5) for n in range(40)]


def test_mixes_have_their_length_and_different_colours(mixer):
    seen = Counter()
    for n, mix in enumerate(mixes(mixer)):
        assert len(mix.groups) == 3 + 2 * n
        assert mix.video.num_frames == len(mix.groups) * GROUP
        assert mix.video.fps * mix.frame_seconds == 1
        colours = [card.colour for card, _ in mix.video.cards]
        assert len(set(colours)) == len(colours) <= 1 + n % 6
        assert len(mix.video.movers) <= 1
        times = [(event.start_seconds, event.stop_seconds) for event in mix.video.events]
        assert times == sorted(times)
        assert all(before[1] <= after[0] for before, after in zip(times, times[1:], strict=False))
        seen.update(len(colours) for _ in mix.video.cards[:1])
        seen["mover"] += len(mix.video.movers)
        assert mix.start_seconds % (GROUP * mix.frame_seconds) == 0
        assert mix.group_seconds[0] == mix.start_seconds
        seen["late"] += mix.start_seconds > 0
        for _, event in mix.video.cards:
            assert 0 <= mix.frames_of(event)[0] < mix.video.num_frames
        seen[mix.frame_seconds] += 1
    assert all(seen[what] for what in (1, 2, 3, 4, 5, "mover", 0.5, 1.0, 2.0))
    assert 10 <= seen["late"] <= 30


def test_late_videos_begin_with_any_digit(mixer):
    starts = [mixer.mix(np.random.default_rng(n), 3, 1, 0.0, 1.0).start_seconds for n in range(400)]
    assert max(starts) > 10_000
    assert {str(int(start))[0] for start in starts if 1000 <= start < 10_000} == set("123456789")
    assert not any(mixer.mix(np.random.default_rng(n), 3, 1, 0.0, 0.0).start_seconds for n in range(40))


def test_every_row_of_a_mix_shows_what_its_events_say(mixer, bank):
    """Frame by frame, by the bank's own record of what is on each of its frames."""
    for mix in mixes(mixer):
        for frame in range(mix.video.num_frames):
            group = int(mix.groups[frame // GROUP])
            video, place = divmod(group, 10)
            on_bank = place * GROUP + frame % GROUP
            recorded = [e.what for e in bank[video][1] if e.first <= on_bank < e.stop]
            at = mix.start_seconds + frame * mix.frame_seconds
            said = [e.what for e in mix.video.events if e.start_seconds <= at < e.stop_seconds]
            assert said == recorded


def test_cards_fit_even_where_a_unit_has_two(bank):
    both = [Placed(what=RED, first=1, stop=3), Placed(what=BLUE, first=3, stop=6)]
    mixer = Mixer(cut_units([*bank[:20], *[(1.0, both)] * 60], 10), "train")
    assert any(sum(isinstance(e.what, Card) for e in unit.events) > 1 for unit in mixer.busy)
    for seed in range(200):
        assert len(mixer.mix(np.random.default_rng(seed), 12, 1, 0.0).video.cards) <= 1


def test_mixes_follow_their_generator(mixer):
    one, again, other = (mixer.mix(np.random.default_rng(seed), 20, 4, 0.5) for seed in (1, 1, 2))
    assert np.array_equal(one.groups, again.groups)
    assert one.video == again.video
    assert not np.array_equal(one.groups, other.groups)


def test_units_are_sorted_by_what_they_hold(mixer):
    def kinds(unit: Unit) -> set[type]:
        return {type(event.what) for event in unit.events}

    assert all(Card in kinds(unit) for unit in mixer.busy)
    assert all(kinds(unit) == {Mover} for unit in mixer.moving)
    assert all(kinds(unit) == {type(None)} for unit in mixer.cuts)
    assert all(kinds(unit) == set() for unit in mixer.plain)
    assert min(map(len, (mixer.busy, mixer.moving, mixer.cuts, mixer.plain))) > 5
