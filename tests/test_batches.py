"""Order, ranks, resuming, padding, broken media: the same conversations whatever the number of ranks and the start."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fakes
import make_videos
import tiny
from longtake.data.conversations.batches import Batch, Loader, collate
from longtake.data.conversations.conversations import Conversation, Media, Turn
from longtake.data.conversations.examples import ExampleMaker
from longtake.data.conversations.media import MediaReader, VariableSampling
from longtake.data.conversations.order import Order, Pick, Source, part
from longtake.models.processor import VideoLLMProcessor
from longtake.types import IGNORE, LongtakeError, VideoError

PAD = tiny.ID["<|endoftext|>"]


def words(name: str, letters: int = 5, media: tuple[Media, ...] = ()) -> Conversation:
    turns = (Turn(role="user", parts=(*media, "What?")), Turn(role="assistant", parts=("a" * letters,)))
    return Conversation(name=name, turns=turns)


def source(name: str, count: int, weight: float = 1.0, seed: int = 0) -> Source:
    letters = np.random.default_rng(seed).integers(1, 200, count).tolist()
    made = [words(f"{name}{i}", n) for i, n in enumerate(letters)]
    return Source(name=name, conversations=made, weight=weight)


def answer_length(conversation: Conversation, epoch: int) -> int:
    return len(conversation.turns[-1].text)


def order(*sources: Source, **changes: object) -> Order:
    return Order(sources, answer_length, **({"rows": 4, "seed": 1, "window_steps": 3} | changes))


def names(picks: tuple[Pick, ...]) -> list[str]:
    return [pick.conversation.name for pick in picks]


def maker(**changes: object) -> ExampleMaker:
    processor = VideoLLMProcessor(tiny.tokenizer(), frame_height=32, frame_width=32, tokens_per_group=4)
    sampling = VariableSampling(short_seconds=10, short_fps=(1.0, 2.0))
    reader = MediaReader(sampling, seed=0, frame_size=(32, 32))
    return ExampleMaker(processor=processor, reader=reader, **changes)


def loader(sources: list[Source], make: ExampleMaker | None = None, **changes: object) -> Loader:
    make = make or maker()
    by_step = Order(sources, make.length, rows=int(changes.pop("rows", 6)), seed=1, window_steps=3)
    return Loader(by_step, make, pad_id=PAD, **({"micro_rows": 2} | changes))


def rows_of(batches: tuple[Batch, ...]) -> list[str]:
    return [name for batch in batches for name in batch.names]


def test_an_epoch_holds_every_conversation_once_and_the_next_one_too_in_another_order():
    by_step = order(source("a", 21))
    assert by_step.steps_per_epoch == 6
    epochs = [[names(by_step.batch(6 * epoch + step)) for step in range(6)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(name for batch in epoch for name in batch) == sorted(f"a{i}" for i in range(21))
        assert sorted(map(len, epoch)) == [1, 4, 4, 4, 4, 4]
    assert epochs[0] != epochs[1] != epochs[2]
    assert {pick.epoch for pick in by_step.batch(13)} == {2}


def test_a_step_depends_on_seed_and_number_alone():
    sources = [source("a", 21), source("b", 9, weight=0.5)]
    forward, backward = order(*sources), order(*sources)
    steps = 3 * forward.steps_per_epoch
    first = [forward.batch(step) for step in range(steps)]
    assert [backward.batch(step) for step in reversed(range(steps))] == first[::-1]
    assert order(*sources).batch(17) == first[17]
    assert [order(*sources, seed=2).batch(step) for step in range(4)] != first[:4]


def test_weights_are_how_often_a_conversation_comes_and_passes_are_complete():
    by_step = order(source("a", 30, weight=0.4), source("b", 10, weight=3.0))
    epoch = by_step.steps_per_epoch
    assert epoch == (12 + 30 + 3) // 4
    picks = [pick for step in range(5 * epoch) for pick in by_step.batch(step)]
    assert Counter(pick.source for pick in picks) == {"a": 5 * 12, "b": 5 * 30}
    counts = Counter(pick.conversation.name for pick in picks)
    assert {counts[f"b{i}"] for i in range(10)} == {15}
    assert {counts[f"a{i}"] for i in range(30)} == {2}
    first = [name for step in range(2 * epoch) for name in names(by_step.batch(step)) if name[0] == "a"]
    assert len(set(first)) == len(first) == 24


def test_batches_hold_similar_lengths():
    def spread(by_step: Order) -> float:
        lengths = [[answer_length(p.conversation, 0) for p in by_step.batch(s)] for s in range(by_step.steps_per_epoch)]
        return float(np.mean([max(batch) - min(batch) for batch in lengths]))

    sources = [source("a", 400)]
    mixed, sorted_ = spread(order(*sources, window_steps=1)), spread(order(*sources, window_steps=20))
    assert sorted_ < mixed / 8
    means = [answer_length(order(*sources, window_steps=20).batch(s)[0].conversation, 0) for s in range(20)]
    assert means != sorted(means)  # batches of a window are shuffled


def test_lengths_are_asked_for_one_window_only():
    asked = []

    def length(conversation: Conversation, epoch: int) -> int:
        asked.append(conversation.name)
        if conversation.name == "a3":
            raise VideoError("broken")
        return 1

    by_step = Order([source("a", 40)], length, rows=4, seed=0, window_steps=2)
    by_step.batch(7)
    by_step.batch(6)
    assert len(asked) == 8
    assert "a3" in [name for step in range(10) for name in names(by_step.batch(step))]


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_ranks_take_disjoint_parts_of_each_batch(ranks):
    by_step = order(source("a", 21), rows=7)
    for step in range(by_step.steps_per_epoch):
        batch = by_step.batch(step)
        parts = [part(batch, rank, ranks) for rank in range(ranks)]
        assert sorted(name for mine in parts for name in names(mine)) == sorted(names(batch))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_bad_orders_are_refused():
    with pytest.raises(LongtakeError, match="source a has no conversations"):
        Source(name="a", conversations=[])
    with pytest.raises(LongtakeError, match="source a has weight 0; it must be a positive number"):
        source("a", 1, weight=0)
    with pytest.raises(LongtakeError, match=r"the sources are \['a', 'a'\]; name at least one"):
        order(source("a", 2), source("a", 3))
    with pytest.raises(LongtakeError, match="rows is 0"):
        order(source("a", 2), rows=0)
    with pytest.raises(LongtakeError, match="source a has 2 conversations and weight 0.1, so an epoch sees none"):
        order(source("a", 2, weight=0.1), source("b", 3))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_united_ranks_learn_the_same_whatever_their_number(ranks):
    sources = [source("a", 17), source("b", 8, weight=0.5)]
    alone = list(loader(sources).steps(0, 9))
    runs = [list(loader(sources, rank=rank, ranks=ranks).steps(0, 9)) for rank in range(ranks)]
    for step, whole in enumerate(alone):
        assert len({len(run[step]) for run in runs}) == 1
        assert sorted(name for run in runs for name in rows_of(run[step])) == sorted(rows_of(whole))
        assert sum(b.num_learned for run in runs for b in run[step]) == sum(b.num_learned for b in whole)


def contents(step: tuple[Batch, ...]) -> list[tuple[object, ...]]:
    return [(b.names, b.ids.tolist(), b.labels.tolist(), [c.seconds.tolist() for c in b.clips]) for b in step]


def with_videos(folder: Path, count: int = 10) -> Source:
    made = []
    for i in range(count):
        path = fakes.write_video(folder / f"{i}.mp4", [20 * j for j in range(2 + i)], fps=2, size=32)
        made.append(words(f"v{i}", 3 * i + 1, (Media(kind="video", path=path),)))
    return Source(name="v", conversations=made)


@pytest.mark.parametrize(("threads", "ahead"), [(1, 0), (3, 4)])
def test_starting_anywhere_equals_skipping(tmp_path, threads, ahead):
    sources = [with_videos(tmp_path), source("b", 8)]
    whole = [contents(step) for step in loader(sources, rows=4).steps(0, 12)]
    late = loader(sources, rows=4, threads=threads, ahead=ahead)
    assert [contents(step) for step in late.steps(7, 12)] == whole[7:]


def test_a_run_stopped_anywhere_goes_on_in_the_same_order():
    sources = [source("a", 17), source("b", 8)]
    whole = [rows_of(step) for step in loader(sources).steps(0, 14)]
    seen = []
    for begin, end in ((0, 3), (3, 4), (4, 9), (9, 14)):
        with closing(loader(sources, threads=2).steps(begin, 99)) as steps:
            seen += [rows_of(next(steps)) for _ in range(begin, end)]
    assert seen == whole


def write_order(file: Path, start: int) -> None:
    """Names of the rows of each step to a line of a file; slow enough to be killed within."""
    with (
        file.open("a") as sink,
        closing(loader([source("a", 17), source("b", 8)], threads=2).steps(start, 20)) as steps,
    ):
        for step in steps:
            print(" ".join(rows_of(step)), file=sink, flush=True)
            time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_run_goes_on_in_the_same_order(tmp_path):
    context = multiprocessing.get_context("spawn")
    file = tmp_path / "rows"
    killed = context.Process(target=write_order, args=(file, 0))
    killed.start()
    while not file.exists() or file.read_text().count("\n") < 3:
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    lines = file.read_text().splitlines()
    assert 3 <= len(lines) < 20
    resumed = context.Process(target=write_order, args=(file, len(lines)))
    resumed.start()
    resumed.join()
    whole = [" ".join(rows_of(step)) for step in loader([source("a", 17), source("b", 8)]).steps(0, 20)]
    assert file.read_text().splitlines() == whole


def test_leaving_early_ends_the_threads():
    with closing(loader([source("a", 17)], threads=2).steps(0, 99)) as steps:
        next(steps)
    assert not [t for t in threading.enumerate() if t.name.startswith("longtake-")]


def test_collate_pads_on_the_right_and_places_clips(tmp_path):
    Image.fromarray(make_videos.drawn(1)).save(tmp_path / "a.png")
    image = Media(kind="image", path=tmp_path / "a.png")
    make = maker()
    three = [
        make.make(words("x", 9, (image, image)), 0),
        make.make(words("y"), 0),
        make.make(words("z", 4, (image,)), 0),
    ]
    batch = collate(three, PAD)
    assert batch.names == ("x", "y", "z")
    assert batch.clip_rows.tolist() == [0, 0, 2]
    assert batch.clips == three[0].clips + three[2].clips
    longest = len(three[0])
    for row, example in enumerate(three):
        n, rest = len(example), longest - len(example)
        assert batch.ids[row].tolist() == example.ids.tolist() + [PAD] * rest
        assert batch.labels[row].tolist() == example.labels.tolist() + [IGNORE] * rest
        assert batch.mask[row].tolist() == [1] * n + [0] * rest
        assert batch.positions[row].tolist() == list(range(longest))
        assert torch.equal(batch.question_ids[row], example.question_ids)
    assert batch.num_tokens == sum(map(len, three))
    assert batch.num_padding == 3 * longest - sum(map(len, three))
    assert batch.num_learned == 9 + 5 + 4 + 3  # letters and end tokens


def test_right_padding_changes_no_loss():
    make = maker()
    examples = [make.make(words("x", 30), 0), make.make(words("y", 3), 0)]
    model = tiny.video_llm()

    def summed(batch: Batch) -> float:
        with torch.no_grad():
            out = model(
                batch.ids,
                attention_mask=batch.mask,
                position_ids=batch.positions,
                labels=batch.labels,
                num_items_in_batch=1,
            )
        return float(out.loss)

    alone = [summed(collate([example], PAD)) for example in examples]
    assert summed(collate(examples, PAD)) == pytest.approx(sum(alone), rel=1e-5)


def test_an_idle_batch_runs_and_learns_nothing():
    idle = collate([], PAD)
    assert (idle.names, idle.clips, idle.num_learned, idle.ids.tolist()) == ((), (), 0, [[PAD]])
    model = tiny.video_llm()
    out = model(
        idle.ids, attention_mask=idle.mask, position_ids=idle.positions, labels=idle.labels, num_items_in_batch=1
    )
    out.loss.backward()
    assert out.loss.item() == 0
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def test_rows_of_like_length_make_little_padding():
    batches = [batch for step in loader([source("a", 60)]).steps(0, 10) for batch in step]
    assert 0 < sum(b.num_padding for b in batches) / sum(b.ids.numel() for b in batches) < 0.1


def spoilt(folder: Path) -> Iterator[Media]:
    bad = folder / "bad.mp4"
    bad.write_bytes(b"no video at all")
    yield Media(kind="video", path=bad)
    yield Media(kind="video", path=folder / "missing.mp4")
    (folder / "bad.png").write_bytes(b"no image at all")
    yield Media(kind="image", path=folder / "bad.png")


@pytest.mark.parametrize("ranks", [1, 2])
def test_broken_media_are_named_and_their_rows_missing(tmp_path, ranks):
    healthy = source("a", 9)
    bad = Source(name="bad", conversations=[words(f"bad{i}", 5, (m,)) for i, m in enumerate(spoilt(tmp_path))])
    runs = [loader([healthy, bad], rank=rank, ranks=ranks, max_broken=0.25) for rank in range(ranks)]
    steps = [list(run.steps(0, 4)) for run in runs]
    seen = [name for run in steps for step in run for name in rows_of(step)]
    assert Counter(seen) == {f"a{i}": 2 for i in range(9)}  # two epochs
    assert [[len(step) for step in run] for run in steps] == [[3 if ranks == 1 else 2] * 4] * ranks
    told = {name: reason for run in runs for name, reason in run.broken.names.items()}
    assert sorted(told) == ["bad/bad0", "bad/bad1", "bad/bad2"]
    assert "missing.mp4: no such file" in told["bad/bad1"]
    assert "bad.png: not a readable image" in told["bad/bad2"]


def test_a_micro_batch_of_broken_rows_only_is_idle(tmp_path):
    bad = Source(name="bad", conversations=[words(f"bad{i}", 5, (m,)) for i, m in enumerate(spoilt(tmp_path))])
    (step,) = loader([bad], rows=3, max_broken=1.0).steps(0, 1)
    assert [batch.names for batch in step] == [(), ()]


def test_too_much_broken_is_told(tmp_path):
    bad = Source(name="bad", conversations=[words(f"bad{i}", 5, (m,)) for i, m in enumerate(spoilt(tmp_path))])
    told = r"3 of 9 conversations have broken or missing media, more than 25.0% \(first: .*bad.*; .*\); mend or remove"
    read = loader([source("a", 6), bad], rows=9, max_broken=0.25)
    list(read.steps(0, 1))
    with pytest.raises(LongtakeError, match=told) as caught:
        read.broken.check()
    assert not isinstance(caught.value, VideoError)

def test_too_long_ones_are_named_apart():
    short_and_long = Source(name="a", conversations=[words("x", 5), words("y", 500)])
    run = loader([short_and_long], maker(max_tokens=200))
    assert [rows_of(step) for step in run.steps(0, 1)] == [["x"]]
    assert list(run.broken.too_long) == ["a/y"]
    assert run.broken.names == {}


def test_other_errors_pass_through():
    marked = Source(name="a", conversations=[Conversation(name="x", turns=(
        Turn(role="user", parts=("<|video|>",)), Turn(role="assistant", parts=("A.",))))])  # fmt: skip
    with pytest.raises(LongtakeError, match="x: has 0 media but 1 marks"):
        list(loader([marked]).steps(0, 1))


def test_reading_runs_ahead(monkeypatch):
    made = []
    slow = maker()
    monkeypatch.setattr(
        ExampleMaker, "make", lambda self, c, e, make=ExampleMaker.make: made.append(c.name) or make(self, c, e)
    )
    with closing(loader([source("a", 30)], slow, ahead=2).steps(0, 5)) as steps:
        next(steps)
        deadline = time.monotonic() + 10
        while len(made) < 18 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(made) == 18  # the step asked for and two more
