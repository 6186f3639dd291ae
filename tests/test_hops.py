"""Questions of several hops: answers by a second way of finding them, traces, balance, wordings and their videos."""

import re
from collections import Counter

import numpy as np
import pytest

import world
from longtake.data.probe_world.hop_words import WORDINGS
from longtake.data.probe_world.hops import (
    CARD_FRAMES,
    FORMS,
    LONGEST_TRACE,
    MOVER_FRAMES,
    Hop,
    cards_by_shape,
    conclusion,
    count_cards,
    draw_hop,
    draw_hops,
    draw_pair,
    form_of,
    hop_video,
    word_of,
)
from longtake.data.probe_world.needles import COLOURS, DIRECTIONS, SYMBOLS, Card, Mover
from longtake.data.probe_world.questions import score
from longtake.model import EMBEDDED
from longtake.models.processor import VideoLLMProcessor
from longtake.types import LongtakeError


def card(text: str) -> Card:
    colour, shape = text.split()
    return Card(content=shape, colour=colour, outline="round")


CARDS = tuple(map(card, ["red star", "blue moon", "pink heart", "green cross", "cyan circle"]))
LEFT = Mover(shape="diamond", colour="orange", direction="left")
WITH_MOVER = (CARDS[0], LEFT, CARDS[1], CARDS[3])

EXPECTED = {
    "shape": [("red", "star"), ("blue", "moon"), ("pink", "heart"), ("green", "cross"), ("cyan", "circle")],
    "after": [("red", "moon"), ("blue", "heart"), ("pink", "cross"), ("green", "circle")],
    "before": [("blue", "star"), ("pink", "moon"), ("green", "heart"), ("cyan", "cross")],
    "two after": [("red", "heart"), ("blue", "cross"), ("pink", "circle")],
    "three after": [("red", "cross"), ("blue", "circle")],
    "three before": [("green", "star"), ("cyan", "moon")],
}


@pytest.mark.parametrize("form", list(EXPECTED))
def test_forms_by_hand(form):
    assert [(words["colour"], answer) for words, _, answer in FORMS[form].asked(CARDS)] == EXPECTED[form]
    assert [found[-1].content for _, found, _ in FORMS[form].asked(CARDS)] == [answer for _, answer in EXPECTED[form]]


def test_forms_with_a_mover_by_hand():
    assert list(FORMS["direction"].asked(WITH_MOVER)) == [({"shape": "diamond"}, (LEFT,), "left")]
    assert list(FORMS["after move"].asked(WITH_MOVER)) == [({"shape": "diamond"}, (LEFT, CARDS[1]), "moon")]
    assert list(FORMS["after move"].asked((*CARDS[:3], LEFT))) == []
    assert [(words["colour"], found, answer) for words, found, answer in FORMS["order"].asked(WITH_MOVER)] == [
        ("red", (CARDS[0], LEFT), "after"),
        ("blue", (LEFT, CARDS[1]), "before"),
        ("green", (LEFT, CARDS[3]), "before"),
    ]


def test_what_is_between_by_hand():
    found = {(w["colour"], w["other"]): (way, said) for w, way, said in FORMS["between"].asked(CARDS)}
    assert found["red", "blue"] == (CARDS[:2], "0")
    assert found["pink", "red"] == (CARDS[:3], "1")  # in the order of the video
    assert found["red", "cyan"] == (CARDS, "3")
    assert len(found) == 5 * 4


def hop(form: str, things: tuple, number: int) -> Hop:
    words, found, answer = list(FORMS[form].asked(things))[number]
    text = WORDINGS["train"][form][0]
    return Hop(split="train", form=form, things=things, wording=text, text=text.format(**words), found=found,
               answer=answer)  # fmt: skip


def test_traces_by_hand():
    last = hop("three before", CARDS, -1)
    assert last.text == "What shape is on the card three before the cyan card?"
    assert last.trace == "the green card, the pink card, the blue card: moon"
    assert [word_of(thing) for thing in last.way] == ["green", "pink", "blue"]
    assert (last.hops, last.place, last.question.task, last.question.answer) == (4, 1, "three before", "moon")
    assert score(last.question, conclusion(last.trace))
    assert conclusion("moon") == "moon"
    order = hop("order", WITH_MOVER, 0)
    assert order.text == "Did the diamond move left before or after the red card?"
    assert (order.trace, order.place) == ("the red card, the diamond: after", None)
    assert hop("between", CARDS, 2).trace == "the red card, the blue card, the pink card: 1"
    assert hop("after move", WITH_MOVER, 0).trace == "the blue card: moon"
    assert hop("shape", CARDS, 0).trace == "star"
    assert hop("direction", WITH_MOVER, 0).trace == "left"
    assert hop("shape", CARDS, 0).way == ()
    assert [word_of(thing) for thing in order.way] == ["red", "diamond"]


def seen_by_reading(hop: Hop) -> str:
    """The answer once more, from the question's sentence and the order of things alone."""
    text, cards = hop.text.lower(), [thing for thing in hop.things if isinstance(thing, Card)]
    words = re.findall(r"\w+", text)
    places = [n for n, own in enumerate(cards) if own.colour in words]
    if hop.form in ("direction", "after move", "order"):
        at, mover = next((n, thing) for n, thing in enumerate(hop.things) if isinstance(thing, Mover))
        if hop.form == "direction":
            return mover.direction
        return hop.things[at + 1].content if hop.form == "after move" else "before" if at <= places[0] else "after"
    if hop.form == "between":
        return str(places[1] - places[0] - 1)
    steps = {"right": 1, "two": 2, "three": 3}
    far = next((steps[word] for word in words if word in steps), 0)
    return cards[places[0] + (far if "after" in words else -far)].content


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("form", list(FORMS))
def test_answers_agree_with_the_sentence_read_again(form, split):
    rng = np.random.default_rng(3)
    for _ in range(5):
        hop = draw_hop(rng, split, form, 16)
        assert seen_by_reading(hop) == hop.answer
        assert hop.answer in FORMS[form].answers
        assert {thing.split for thing in hop.things} == {split}
        assert len({thing.colour for thing in hop.things}) == len(hop.things)
        assert len({own.content for own in hop.cards}) == len(hop.cards) == count_cards(form, 16)
        assert set(hop.found) <= set(hop.things)
        wordings = WORDINGS[split][form]
        same = [f for f in FORMS[form].asked(hop.things) if any(w.format(**f[0]) == hop.text for w in wordings)]
        assert {f[2] for f in same} == {hop.answer}  # a question has one answer


def every_wording() -> list[str]:
    return [wording for split in WORDINGS.values() for form in split.values() for wording in form]


def test_a_pair_asks_the_same_and_is_answered_differently():
    rng = np.random.default_rng(5)
    for form in [*FORMS] * 10:
        one, other = draw_pair(rng, "train", form, 16)
        assert one.text == other.text
        assert one.answer != other.answer
        assert {one.answer, other.answer} <= set(FORMS[form].answers)


@pytest.mark.parametrize("form", [name for name, form in FORMS.items() if form.earliest is not None])
def test_no_place_of_a_card_has_the_answer_more_often(form):
    """In both videos of a pair; the 99.99% quantile of chi-square, by Wilson and Hilferty."""
    drawn = [draw_pair(np.random.default_rng([17, n]), "train", form, 16) for n in range(60)]
    for side in range(2):
        found = Counter(pair[side].place for pair in drawn)
        places = range(FORMS[form].earliest, count_cards(form, 16) - FORMS[form].behind)
        assert set(found) <= set(places)
        expected, degrees = 60 / len(places), len(places) - 1
        largest = degrees * (1 - 2 / (9 * degrees) + 3.719 * np.sqrt(2 / (9 * degrees))) ** 3
        assert sum((found[place] - expected) ** 2 / expected for place in places) < largest


def test_how_many_cards_a_video_has():
    assert [count_cards("shape", frames) for frames in (10, 12, 14, 16, 30)] == [5, 6, 7, 7, 7]
    assert [count_cards("order", frames) for frames in (10, 16)] == [2, 5]


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("form", list(FORMS))
def test_answers_are_uniform_given_the_form(form, split):
    """The 99.99% quantile of chi-square, by Wilson and Hilferty."""
    rng, answers = np.random.default_rng(11), FORMS[form].answers
    said = [draw_hop(rng, split, form, 16).answer for _ in range(240)]
    counts = np.array([Counter(said)[answer] for answer in answers])
    expected, degrees = len(said) / len(answers), len(answers) - 1
    largest = degrees * (1 - 2 / (9 * degrees) + 3.719 * np.sqrt(2 / (9 * degrees))) ** 3
    assert ((counts - expected) ** 2 / expected).sum() < largest


def test_hops_and_forms_come_in_turn():
    forms = [form_of(number) for number in range(24)]
    assert [FORMS[form].hops for form in forms] == [1, 2, 3, 4] * 6
    assert set(forms) == set(FORMS)
    assert Counter(forms)["three after"] == Counter(forms)["three before"] == 3


def test_several_questions_about_one_video():
    forms = Counter()
    for number in range(48):
        asked = draw_hops(np.random.default_rng([19, number]), "train", number, 16)
        assert [hop.hops for hop in asked] == [1, 2, 3, 4]
        assert len({hop.things for hop in asked}) == 1
        assert asked[number % 4].form == form_of(number)
        moves = any(isinstance(thing, Mover) for thing in asked[0].things)
        assert {hop.form for hop in asked} & {"direction", "order"} == ({"direction", "order"} if moves else set())
        for hop in asked:
            assert seen_by_reading(hop) == hop.answer
            assert hop.answer in FORMS[hop.form].answers
        forms.update(hop.form for hop in asked)
    assert set(forms) == set(FORMS)
    (first, *_) = draw_hops(np.random.default_rng(7), "train", 0, 16)
    assert first == draw_hop(np.random.default_rng(7), "train", form_of(0), 16)


def sentences(split: str) -> set[str]:
    colours, shapes = list(COLOURS), list(SYMBOLS)
    ways = list(DIRECTIONS)
    filled = set()
    for form in FORMS:
        for wording in WORDINGS[split][form]:
            for n in range(8):
                values = {"colour": colours[n], "shape": shapes[n], "other": colours[n - 1], "way": ways[n % 4]}
                filled.add(wording.format(**values).lower())
    return filled


def test_no_sentence_is_on_both_sides_and_every_tested_word_was_trained():
    assert not sentences("train") & sentences("test")

    def words(split):
        return {word for text in sentences(split) for word in re.findall(r"\w+", text)}

    assert words("test") <= words("train")
    assert tuple(WORDINGS["train"]) == tuple(WORDINGS["test"]) == tuple(FORMS)
    assert max(Counter(every_wording()).values()) == 1


def test_traces_are_short_in_the_packaged_models_tokens():
    tokenizer = VideoLLMProcessor.from_pretrained(EMBEDDED).tokenizer
    rng = np.random.default_rng(0)
    traces = [draw_hop(rng, split, form, 16).trace for split in WORDINGS for form in FORMS for _ in range(20)]
    longest = max(len(tokenizer(trace)["input_ids"]) for trace in traces)
    assert longest < LONGEST_TRACE


def test_a_video_shows_its_things_in_order_each_apart():
    rng = np.random.default_rng(2)
    for form in ("three after", "order"):
        for seed in range(6):
            hop = draw_hop(rng, "train", form, 16)
            video = hop_video(hop, world.clips(), 16, seed)
            assert tuple(event.what for event in video.events) == hop.things
            shown = [[n for n in range(16) if e.start_seconds <= n < e.stop_seconds] for e in video.events]
            lengths = [MOVER_FRAMES if isinstance(thing, Mover) else CARD_FRAMES for thing in hop.things]
            assert [len(frames) for frames in shown] == lengths
            assert all(after[0] - before[-1] > 1 for before, after in zip(shown, shown[1:], strict=False))
    again = hop_video(hop, world.clips(), 16, 5)
    assert again.events == video.events
    (frames,) = again.frames()
    assert frames.pixels.shape == (16, 3, *again.size)


def test_every_shape_is_on_cards_of_both_splits():
    for split in ("train", "test"):
        assert all(len({own.colour for own in cards}) > 1 for cards in cards_by_shape(split))


def test_too_few_frames_are_refused():
    with pytest.raises(LongtakeError, match="frames is 9; .* at least 10"):
        draw_hop(np.random.default_rng(0), "train", "shape", 9)
    with pytest.raises(LongtakeError, match="frames is 13; .* at least 14"):
        draw_hops(np.random.default_rng(0), "train", 0, 13)
    for number in range(40):
        assert len(draw_hops(np.random.default_rng(number), "test", number, 14)) == 4
