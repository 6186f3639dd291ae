"""Probe videos: reproducible, needles drawn onto the frames they replace, events where and as long as they say."""

import dataclasses

import numpy as np
import pytest

import world
from longtake.data.probe_world.needles import DIRECTIONS, Card, Mover, draw_card_choice
from longtake.data.probe_world.probe import MAX_CARDS, SIZES, Event, ProbeVideo, make_video, place_event


def render(video: ProbeVideo, **window: int) -> np.ndarray:
    return np.concatenate([frames.pixels for frames in video.frames(**window)])


def without_events(video: ProbeVideo) -> ProbeVideo:
    return dataclasses.replace(video, events=(), foreign=())


def event_frames(video: ProbeVideo, event: Event) -> list[int]:
    return [n for n in range(video.num_frames) if event.start_seconds <= n / video.fps < event.stop_seconds]


def probe(seed: int, split: str = "train", num_frames: int = 128, **settings) -> ProbeVideo:
    return make_video(seed, split=split, clips=world.clips(), num_frames=num_frames, **settings)


def test_a_seed_gives_the_same_video_whatever_the_chunks():
    video, again = probe(5, num_frames=40), probe(5, num_frames=40)
    whole = render(video)
    assert video == again
    for chunk in (1, 7, 40):
        assert np.array_equal(render(again, chunk_frames=chunk), whole)
    assert np.array_equal(render(video, start=11, stop=23), whole[11:23])
    seconds = np.concatenate([frames.seconds for frames in video.frames(chunk_frames=9)])
    assert seconds.tolist() == list(range(40))
    assert whole.shape == (40, 3, *video.size)


def test_seeds_and_splits_differ():
    events = [probe(seed, split).events for seed in (1, 2, 3) for split in ("train", "test")]
    assert len(set(events)) == 6


def test_frames_are_shown_at_their_rate():
    seconds = np.concatenate([frames.seconds for frames in probe(1, num_frames=25, fps=12.5).frames()])
    assert seconds == pytest.approx(np.arange(25) / 12.5)


@pytest.mark.parametrize("split", ["train", "test"])
def test_events_are_apart_long_enough_and_of_the_split(split):
    for seed in range(60):
        video = probe(seed, split)
        times = [(event.start_seconds, event.stop_seconds) for event in video.events]
        assert all(0 <= start < stop <= 128 for start, stop in times)
        assert all(after[0] - before[1] >= 1 - 1e-9 for before, after in zip(times, times[1:], strict=False))
        for event in video.events:
            length = event.stop_seconds - event.start_seconds
            assert length >= 6 if isinstance(event.what, Mover) else 1.5 <= length <= 4
            if event.what is not None:
                assert event.what.split == split
        colours = [card.colour for card, _ in video.cards]
        assert len(set(colours)) == len(colours)
        assert 1 <= len(colours) <= MAX_CARDS
        assert len(video.movers) <= 1
        # as many foreign cuts as cards when there is room, so that a cut betrays nothing
        assert sum(event.what is None for event in video.events) == len(colours)


def test_asked_for_cards_and_movers_are_there():
    video = probe(3, num_cards=4, mover=True, size=(90, 160))
    assert (len(video.cards), len(video.movers), video.size) == (4, 1, (90, 160))
    assert {probe(seed).size for seed in range(40)} == set(SIZES)
    assert {len(probe(seed, mover=False, num_frames=16).movers) for seed in range(5)} == {0}
    assert {len(probe(seed).movers) for seed in range(20)} == {0, 1}


def test_a_short_video_loses_cuts_before_cards():
    for seed in range(40):
        video = probe(seed, num_frames=8)
        assert len(video.cards) == 1
        assert all(event.stop_seconds <= 8 for event in video.events)


def test_a_needle_is_drawn_onto_the_frame_it_replaces():
    seen = {Card: 0, Mover: 0, type(None): 0}
    for seed in range(6):
        video = probe(seed, num_frames=64, num_cards=3, mover=True)
        shown, hay = render(video), render(without_events(video))
        busy = np.zeros(64, bool)
        for place, event in enumerate(video.events):
            for n in event_frames(video, event):
                busy[n] = True
                seen[type(event.what)] += 1
                changed = (shown[n] != hay[n]).any(0)
                if event.what is None:
                    other = np.asarray(video.foreign[place].picture(n / video.fps, video.size)).transpose(2, 0, 1)
                    assert np.array_equal(shown[n], other)
                    assert changed.mean() > 0.2
                    continue
                drawn, x, y = place_event(event, n / video.fps, video.size[::-1], video.split)
                opaque = np.zeros(video.size, bool)
                box = opaque[y : y + drawn.height, x : x + drawn.width]
                assert box.shape == (drawn.height, drawn.width)  # all of it is in the picture
                box |= np.asarray(drawn)[..., 3] > 0
                assert not changed[~opaque].any()
                assert changed[opaque].mean() > 0.7
        assert np.array_equal(shown[~busy], hay[~busy])
    assert min(seen.values()) >= 12


def test_cards_take_at_least_two_fifths_of_the_shorter_side():
    rng = np.random.default_rng(0)
    shares = []
    for seed in range(150):
        event = Event(what=draw_card_choice(rng, "train"), start_seconds=0.0, stop_seconds=2.0, seed=seed)
        drawn, x, y = place_event(event, 1.0, (256, 144), "train")
        rows, columns = np.nonzero(np.asarray(drawn)[..., 3] > 127)
        shares.append((max(np.ptp(rows), np.ptp(columns)) + 1) / 144)
        assert drawn.size == (drawn.height, drawn.height)
        assert drawn.height >= 0.4 * 144
        assert 0 <= x <= 256 - drawn.width
        assert 0 <= y <= 144 - drawn.height
    assert min(shares) > 0.385  # a slightly turned card loses its tips
    assert max(shares) <= 0.9 + 1 / 144
    assert np.mean(shares) == pytest.approx(0.65, abs=0.05)


def test_a_card_stands_still_and_looks_the_same_all_its_time():
    event = Event(what=Card(content="7", colour="red", outline="round"), start_seconds=3.0, stop_seconds=6.0, seed=9)
    first, x, y = place_event(event, 3.0, (256, 144), "train")
    last, u, v = place_event(event, 5.9, (256, 144), "train")
    assert (first, x, y) == (last, u, v)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_movers_move_the_way_they_say(direction):
    """Measured on rendered frames: the middle of all pixels that differ from the haystack's."""
    video = probe(1, num_frames=40, num_cards=0, mover=False, size=(144, 256))
    for seed in range(4):
        mover = Mover(shape="star", colour="red", direction=direction)
        event = Event(what=mover, start_seconds=10.0, stop_seconds=17.0, seed=seed)
        moving = dataclasses.replace(video, events=(event,), foreign=video.shots[:1])
        difference = (render(moving, start=10, stop=17) != render(video, start=10, stop=17)).any(1)
        centres = np.array([np.argwhere(frame).mean(0) for frame in difference])  # (row, column)
        axis = 0 if direction in ("up", "down") else 1
        sign = 1 if direction in ("down", "right") else -1
        steps = np.diff(centres, axis=0)
        assert (sign * steps[:, axis] > 0).all()
        assert sign * (centres[-1] - centres[0])[axis] > 0.35 * video.size[axis]
        assert np.abs(steps[:, 1 - axis]).max() < np.abs(steps[:, axis]).min()


def test_fewer_than_one_frame_a_second_are_refused():
    with pytest.raises(ValueError, match="fps is 0.5; below 1 a card could fall between two frames"):
        probe(0, fps=0.5)
