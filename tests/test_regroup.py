"""The same video in other groups: groups, times and events by hand, and nothing seen that no frame shows."""

import numpy as np
import pytest

import world
from longtake.data.probe_world.bank import BankRecipe, Mix, Mixer, Placed, bank_video, cut_units
from longtake.data.probe_world.needles import Card, Mover
from longtake.data.probe_world.probe import Event, ProbeVideo
from longtake.data.probe_world.questions import Question
from longtake.data.probe_world.regroup import group_frames, regroup
from longtake.train.embedded.ledger import NOTED, noted_targets
from longtake.train.embedded.rows import event_groups, looked_at_groups

RED, BLUE = (Card(content="7", colour=colour, outline="round") for colour in ("red", "blue"))
STAR = Mover(shape="star", colour="red", direction="up")


def video(events: list[tuple[Card | Mover | None, int, int]], blocks: int = 2) -> Mix:
    """A mix in blocks of eight frames, half a second each; an event's centre moves by a hundredth a frame."""
    placed = tuple(
        Placed(what=what, first=first, stop=stop, centres=tuple((n / 100, 0.5) for n in range(first, stop)))
        for what, first, stop in events
    )
    timed = tuple(Event(what=w, start_seconds=a / 2, stop_seconds=b / 2, seed=0) for w, a, b in events)
    whole = ProbeVideo(seed=0, split="train", fps=2.0, num_frames=8 * blocks, size=(0, 0), shots=(), events=timed,
                       foreign=())  # fmt: skip
    return Mix(groups=np.array([5, 2])[:blocks], video=whole, frame_seconds=0.5, start_seconds=0.0, placed=placed,
               frames_per_group=8)  # fmt: skip


EVENTS = [(RED, 1, 4), (None, 4, 5), (STAR, 8, 14), (BLUE, 13, 15)]


def test_groups_of_every_size_by_hand():
    mix = video(EVENTS)
    assert regroup(mix, 8).groups.tolist() == [5, 2]
    assert regroup(mix, 4).groups.tolist() == [10, 11, 4, 5]
    assert regroup(mix, 1).groups.tolist() == [*range(40, 48), *range(16, 24)]
    assert regroup(mix, 2, every=2).groups.tolist() == [10, 11, 4, 5]
    assert regroup(mix, 4).group_seconds.tolist() == [0, 2, 4, 6]
    assert regroup(mix, 2, every=2).group_seconds.tolist() == [0, 2, 4, 6]
    assert regroup(mix, 1, every=8).group_seconds.tolist() == [0, 4]
    assert regroup(mix, 4).video is mix.video
    for size, every in ((3, 1), (8, 2), (16, 1)):
        with pytest.raises(ValueError, match="do not divide"):
            regroup(mix, size, every)


def test_what_falls_between_frames_that_are_seen_is_not_seen():
    seen = regroup(video(EVENTS), 2, every=4)  # frames 0, 4, 8, 12
    assert [(e.what, e.first, e.stop) for e in seen.placed] == [(None, 1, 2), (STAR, 2, 4)]
    assert [x for x, _ in seen.placed[1].centres] == [0.08, 0.12]
    assert [event_groups(seen, event) for event in seen.video.events] == [
        slice(0, 0), slice(0, 1), slice(1, 2), slice(0, 0),
    ]  # fmt: skip
    every_second = regroup(video(EVENTS), 4, every=2)  # frames 0, 2, ... 14
    assert [(e.what, e.first, e.stop) for e in every_second.placed] == [
        (RED, 1, 2), (None, 2, 3), (STAR, 4, 7), (BLUE, 7, 8),
    ]  # fmt: skip


def test_an_answer_about_what_is_not_seen_looks_at_no_group():
    seen = regroup(video(EVENTS), 2, every=4)
    for task in ("what", "when"):
        asked = Question(task=task, text="?", answer="7", event=seen.video.events[0])
        assert not looked_at_groups(seen, asked).any()
    star = Question(task="when", text="?", answer="4 s", event=seen.video.events[2])
    assert looked_at_groups(seen, star).tolist() == [[False, True]]


def test_onsets_are_told_in_quarters_of_a_group():
    card = Placed(what=RED, first=11, stop=14)
    assert [card.onset_in(8, 8), card.onset_in(8, 4), card.onset_in(10, 2), card.onset_in(11, 1)] == [1, 3, 2, 0]
    assert card.onset_in(12, 4) == card.onset_in(12, 1) == 4
    names = list(NOTED)
    for size, onsets in ((1, {0, 4}), (2, {0, 2, 4}), (4, {0, 1, 4}), (8, {0})):
        targets = noted_targets(regroup(video([(RED, 1, 4), (STAR, 8, 14)]), size), 16)
        assert targets.shape[:2] == (16 // size, 16)
        told = targets[..., names.index("onset")]
        assert set(told[told >= 0].tolist()) == onsets
        # one frame shows no direction
        assert (targets[..., names.index("direction")] >= 0).any() == (size > 1)


@pytest.mark.parametrize(("size", "every"), [(1, 1), (2, 1), (4, 1), (8, 1), (1, 8), (2, 4), (4, 2), (2, 2)])
def test_mixed_videos_show_the_banks_frames(size, every):
    """By frame: what a mix says is seen on a group's frame is what the bank has on that frame."""
    recipe = BankRecipe(videos=12, frames=24, plain=0.3)
    bank = [bank_video(recipe, world.clips(), number) for number in range(recipe.videos)]
    events = []
    for one in bank:
        frames = [[n for n in range(24) if e.start_seconds <= n / one.fps < e.stop_seconds] for e in one.events]
        events.append((one.fps, [
            Placed(what=e.what, first=f[0], stop=f[-1] + 1) for e, f in zip(one.events, frames, strict=True) if f
        ]))  # fmt: skip
    mixer = Mixer(cut_units(events, 3, 8), "train", 8)
    table = group_frames(np.arange(recipe.videos * 24).reshape(-1, 8), size, every)
    assert table.shape == (recipe.videos * 24 // (size * every), size)
    rng = np.random.default_rng(0)
    for _ in range(20):
        whole = mixer.mix(rng, 3, 4, 0.5, late=0.0)
        assert whole.frames_per_group == 8
        assert whole.video.num_frames == 24
        mix = regroup(whole, size, every)
        flat = table[mix.groups].reshape(-1)
        for frame, in_bank in enumerate(flat):
            number, place = divmod(int(in_bank), 24)
            there = [e.what for e in events[number][1] if e.first <= place < e.stop]
            assert [e.what for e in mix.placed if e.first <= frame < e.stop] == there


def test_a_bank_may_leave_pairs_as_they_are():
    videos = [bank_video(BankRecipe(plain=0.5), world.clips(), number) for number in range(60)]
    assert np.mean([len(video.cards) for video in videos]) == pytest.approx(3.1, abs=0.5)
