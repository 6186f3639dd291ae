"""Questions: the split of their wordings, their answers recomputed frame by frame, and how answers are scored."""

import re
from collections import Counter

import numpy as np
import pytest

import world
from longtake.data.probe_world.needles import COLOURS, CONTENTS, SYMBOLS, Card, Mover
from longtake.data.probe_world.probe import Event, ProbeVideo, make_video
from longtake.data.probe_world.questions import (
    TASKS,
    WORDINGS,
    Question,
    ask_all,
    best_constant,
    onset,
    score,
    vocabulary_text,
)
from longtake.train.embedded.tokenizer import SPECIAL, cached_tokenizer, train_tokenizer


def sentences(split: str) -> set[str]:
    """Every sentence that can be asked."""
    filled = set()
    for task in TASKS:
        for wording in WORDINGS[split][task]:
            for colour in COLOURS:
                for shape in SYMBOLS:
                    for kind in ("number", "letter", "shape"):
                        filled.add(wording.format(colour=colour, shape=shape, kind=kind).lower())
    return filled


def words(texts: set[str]) -> set[str]:
    return {word for text in texts for word in re.findall(r"\w+", text.lower())}


def test_no_sentence_is_on_both_sides_and_every_tested_word_was_trained():
    assert not sentences("train") & sentences("test")
    assert words(sentences("test")) <= words(sentences("train"))
    for split in ("train", "test"):
        assert tuple(WORDINGS[split]) == TASKS
        every = [w for task in TASKS for w in WORDINGS[split][task]]
        assert len(set(every)) == len(every)


def test_no_sentence_is_asked_for_two_tasks():
    tasks = Counter(w for split in ("train", "test") for task in TASKS for w in WORDINGS[split][task])
    assert max(tasks.values()) == 1


def seen_by_frame(video: ProbeVideo) -> list[tuple[int, Card | Mover]]:
    """What a viewer sees, needle by needle: the first frame it is on, and what it is."""
    seen: dict[int, tuple[int, Card | Mover]] = {}
    for n in range(video.num_frames):
        for number, event in enumerate(video.events):
            if event.what is not None and event.start_seconds <= n / video.fps < event.stop_seconds:
                seen.setdefault(number, (n, event.what))
    return sorted(seen.values(), key=lambda pair: pair[0])


def expected(task: str, text: str, video: ProbeVideo) -> str:
    """The answer from frames and the question's own words."""
    seen = seen_by_frame(video)
    cards = [(n, what) for n, what in seen if isinstance(what, Card)]
    colours = [card.colour for _, card in cards]
    asked = next((word for word in re.findall(r"\w+", text) if word in COLOURS), "")
    if task == "order":
        return ", ".join(colours)
    if task == "count":
        return str(len(colours))
    if task == "is_there":
        return "yes" if asked in colours else "no"
    if task == "direction":
        return next(what.direction for _, what in seen if isinstance(what, Mover))
    place = colours.index(asked)
    if task == "what":
        return cards[place][1].content
    if task == "when":
        return f"{int(cards[place][0] / video.fps)} s"
    return f"the {colours[place + 1]} card" if place + 1 < len(colours) else "nothing"


@pytest.mark.parametrize(("split", "fps"), [("train", 1.0), ("test", 1.0), ("test", 2.5)])
def test_answers_are_what_a_viewer_sees(split, fps):
    asked = Counter()
    for seed in range(25):
        video = make_video(seed, split=split, clips=world.clips(), num_frames=int(90 * fps), fps=fps)
        questions = ask_all(video, np.random.default_rng(seed), 1000)
        for question in questions:
            assert question.answer == expected(question.task, question.text, video), question
            assert question.text.lower() in sentences_of(split, question.task), question.text
            asked[question.task] += 1
        assert len({q.text for q in questions}) == len(questions)
        right_words = [q for q in questions if q.task == "what" and "Which" in q.text]
        for question in right_words:
            kind = question.event.what.kind
            assert kind in question.text
        answers = [q.answer for q in questions if q.task == "is_there"]
        assert answers.count("yes") == answers.count("no") == min(len(video.cards), 8 - len(video.cards))
    assert set(asked) == set(TASKS)


def sentences_of(split: str, task: str) -> set[str]:
    return {
        wording.format(colour=colour, shape=shape, kind=kind).lower()
        for wording in WORDINGS[split][task]
        for colour in COLOURS
        for shape in SYMBOLS
        for kind in ("number", "letter", "shape")
    }


def test_events_belong_to_what_is_asked():
    video = make_video(4, split="train", clips=world.clips(), num_frames=120, num_cards=4, mover=True)
    for question in ask_all(video, np.random.default_rng(0), 100):
        if question.task in ("order", "count") or question.answer == "no":
            assert question.event is None
        else:
            assert question.event.what.colour in question.text


def test_the_limit_draws_from_all_and_follows_its_generator():
    video = make_video(4, split="test", clips=world.clips(), num_frames=120, num_cards=6, mover=True)
    every = ask_all(video, np.random.default_rng(0), 1000)
    assert len(every) == 6 * 3 + 2 * 2 + 3
    some = ask_all(video, np.random.default_rng(1), 10)
    assert len(some) == 10
    assert some == ask_all(video, np.random.default_rng(1), 10)
    assert some != ask_all(video, np.random.default_rng(2), 10)


@pytest.mark.parametrize(
    ("start", "fps", "second"), [(4.0, 1.0, 4), (4.01, 1.0, 5), (4.3, 2.0, 4), (4.6, 2.0, 5), (5.0, 0.5, 6)]
)
def test_onset_is_the_second_of_the_first_frame_that_shows_it(start, fps, second):
    event = Event(what=None, start_seconds=start, stop_seconds=start + 2, seed=0)
    video = ProbeVideo(seed=0, split="test", fps=fps, num_frames=30, size=(8, 8), shots=(), events=(event,), foreign=())
    assert onset(video, event) == second


@pytest.mark.parametrize(
    ("task", "truth", "answer", "right"),
    [
        ("when", "12 s", "12 s", True),
        ("when", "12 s", "14 s", True),
        ("when", "12 s", "10", True),
        ("when", "12 s", "at 13.9 seconds", True),
        ("when", "12 s", "14.5 s", False),
        ("when", "12 s", "9 s", False),
        ("when", "12 s", "1 2 s", False),
        ("when", "12 s", "soon", False),
        ("when", "0 s", "2 s", True),
        ("what", "7", "7", True),
        ("what", "7", " 7. ", True),
        ("what", "7", "17", False),
        ("what", "A", "a", True),
        ("order", "red, blue", "Red,  blue", True),
        ("order", "red, blue", "blue, red", False),
        ("is_there", "yes", "Yes!", True),
        ("is_there", "no", "nothing", False),
        ("after", "the red card", "red card", False),
        ("count", "3", "", False),
    ],
)
def test_scores_by_hand(task, truth, answer, right):
    assert score(Question(task=task, text="?", answer=truth), answer) is right


def test_the_tokenizer_says_everything_and_one_digit_at_a_time():
    tokenizer = train_tokenizer()
    assert tokenizer.get_vocab() == train_tokenizer().get_vocab()
    assert len(tokenizer) <= 2048
    for text in [*vocabulary_text(), "a café at 16:9, naïve? 你好"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    for number in ("7", "42", "8191"):
        assert len(tokenizer(number)["input_ids"]) == len(number)
    assert all(len(tokenizer(token)["input_ids"]) == 1 for token in SPECIAL)
    assert all(len(tokenizer(content)["input_ids"]) <= 2 for content in CONTENTS)
    for colour in COLOURS:
        assert len(tokenizer(f" {colour}")["input_ids"]) == 1


def test_a_kept_tokenizer_stays_when_wordings_are_added(tmp_path, monkeypatch):
    file = tmp_path / "work" / "tokenizer.json"
    first = cached_tokenizer(file)
    assert first.get_vocab() == train_tokenizer().get_vocab()
    more = {**WORDINGS["train"], "count": (*WORDINGS["train"]["count"], "How many cards does the wizard conjure up?")}
    monkeypatch.setitem(WORDINGS, "train", more)
    again = cached_tokenizer(file)
    assert again.get_vocab() == first.get_vocab() != train_tokenizer().get_vocab()
    text = "<|im_start|>user\n927: How many wizards?<|im_end|>"
    assert again(text)["input_ids"] == first(text)["input_ids"]
    assert (again.pad_token, again.eos_token) == (first.pad_token, first.eos_token)


def test_the_best_constant_answer():
    def asked(task: str, *answers: str) -> list[Question]:
        return [Question(task=task, text="?", answer=answer) for answer in answers]

    assert best_constant(asked("what", "7", "7", "k", "star")) == 0.5
    assert best_constant(asked("when", "0 s", "4 s", "9 s")) == pytest.approx(2 / 3)  # "2 s", which no one's answer is
    assert best_constant(asked("when", "1 s", "1 s", "5 s", "6 s", "7 s")) == pytest.approx(3 / 5)  # not the commonest
    rng = np.random.default_rng(0)
    for _ in range(20):
        questions = asked("when", *(f"{second} s" for second in rng.integers(0, 60, 40)))
        tried = [np.mean([score(question, f"{second} s") for question in questions]) for second in range(70)]
        assert best_constant(questions) == pytest.approx(max(tried))
