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
    draw_pair,
    form_of,
    hop_video,
)
from longtake.data.probe_world.needles import COLOURS, DIRECTIONS, SYMBOLS, Card, Mover
from longtake.data.probe_world.questions import score
from longtake.model import EMBEDDED
from longtake.models.processor import VideoLLMProcessor
from longtake.types import LongtakeError


def card(text: str) -> Card:
    colour, shape = text.split()
    return Card(content=shape, colour=colour, outline="round")


REDS = tuple(map(card, ["red star", "blue moon", "red heart", "green cross", "blue circle"]))
LEFT = Mover(shape="diamond", colour="pink", direction="left")
WITH_MOVER = (REDS[0], LEFT, REDS[1], REDS[3])

EXPECTED = {
    "shape": [("green", "cross")],
    "colour": [("star", "red"), ("moon", "blue"), ("heart", "red"), ("cross", "green"), ("circle", "blue")],
    "after": [("green", "circle")],
    "second": [("red", "heart"), ("blue", "circle")],
    "after second": [("red", "cross")],
    "two after second": [("red", "circle")],
    "same as after second": [],  # no other card is green
}


def first_word(found: tuple) -> str:
    return next(iter(found[0].values()))


@pytest.mark.parametrize("form", list(EXPECTED))
def test_forms_by_hand(form):
    found = sorted((first_word(each), each[2]) for each in FORMS[form].asked(REDS))
    assert found == sorted(EXPECTED[form])


def test_forms_with_a_mover_by_hand():
    assert list(FORMS["direction"].asked(WITH_MOVER)) == [({"shape": "diamond"}, (LEFT,), "left")]
    assert list(FORMS["after move"].asked(WITH_MOVER)) == [({"shape": "diamond"}, (LEFT, REDS[1]), "moon")]
    assert list(FORMS["after move"].asked((*REDS[:3], LEFT))) == []
    order = {words["other"]: (found, answer) for words, found, answer in FORMS["order"].asked(WITH_MOVER)}
    assert order["star"] == ((REDS[0], LEFT), "after")
    assert order["cross"] == ((LEFT, REDS[3]), "before")


def test_what_is_between_by_hand():
    found = {(w["shape"], w["other"]): (len(way), said) for w, way, said in FORMS["between"].asked(REDS)}
    assert found["star", "moon"] == (2, "0")
    assert found["heart", "star"] == (3, "1")
    assert found["star", "circle"] == (5, "3")
    assert len(found) == 5 * 4


def test_the_colour_of_the_card_after_the_second_by_hand():
    things = tuple(map(card, ["cyan star", "red moon", "red heart", "cyan cross", "blue circle"]))
    (found,) = FORMS["same as after second"].asked(things)
    assert found == ({"colour": "red"}, (things[1], things[2], things[3], things[0]), "star")
    hop = Hop(split="train", form="same as after second", things=things, wording="?", text="?",
              found=found[1], answer=found[2])  # fmt: skip
    assert hop.trace == "red moon, red heart, cyan cross, cyan star: star"
    assert (hop.hops, hop.question.task, hop.question.answer) == (4, "same as after second", "star")
    assert score(hop.question, conclusion(hop.trace))
    assert conclusion("star") == "star"


def seen_by_reading(hop: Hop) -> str:
    """The answer once more, from the question's sentence and the order of things alone."""
    text, cards = hop.text.lower(), [thing for thing in hop.things if isinstance(thing, Card)]
    words = re.findall(r"\w+", text)
    if hop.form in ("direction", "after move", "order"):
        at, mover = next((n, thing) for n, thing in enumerate(hop.things) if isinstance(thing, Mover))
        if hop.form == "direction":
            return mover.direction
        if hop.form == "after move":
            return hop.things[at + 1].content
        other = re.search(r"card with the (\w+)", text)[1]
        place = next(n for n, thing in enumerate(hop.things) if isinstance(thing, Card) and thing.content == other)
        return "before" if at < place else "after"
    if hop.form == "between":
        one, two = (word for word in words if word in SYMBOLS)
        places = sorted(n for n, own in enumerate(cards) if own.content in (one, two))
        return str(places[1] - places[0] - 1)
    if hop.form == "colour":
        return next(own.colour for own in cards if own.content in words)
    of_colour = [n for n, own in enumerate(cards) if own.colour in words]
    if hop.form in ("shape", "after"):
        return cards[of_colour[0] + (hop.form == "after")].content
    second = of_colour[1]
    if hop.form == "same as after second":
        following = cards[second + 1]
        return next(c.content for c in cards if c.colour == following.colour and c.content != following.content)
    return cards[second + {"second": 0, "after second": 1, "two after second": 2}[hop.form]].content


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("form", list(FORMS))
def test_answers_agree_with_the_sentence_read_again(form, split):
    rng = np.random.default_rng(3)
    for _ in range(5):
        hop = draw_hop(rng, split, form, 16)
        assert seen_by_reading(hop) == hop.answer
        assert hop.answer in FORMS[form].answers
        assert {thing.split for thing in hop.things} == {split}
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
        places = range(FORMS[form].earliest, count_cards(form, 16))
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
    assert Counter(forms)["two after second"] == Counter(forms)["same as after second"] == 3


def sentences(split: str) -> set[str]:
    colours, shapes = list(COLOURS), list(SYMBOLS)
    ways = list(DIRECTIONS)
    filled = set()
    for form in FORMS:
        for wording in WORDINGS[split][form]:
            for n in range(8):
                values = {"colour": colours[n], "shape": shapes[n], "other": shapes[n - 1], "way": ways[n % 4]}
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
    for form in ("two after second", "order"):
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
