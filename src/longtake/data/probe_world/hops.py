"""Questions of the probe world that take one to four hops, each with its answer and an exact trace of how it is found.

A hop finds one thing of the video, mostly from what the one before gave; counting and comparing count as one. The
answer is drawn first, uniformly among all of the form, with the place of the card that it stands on, and then a video
that has both: whoever does not see the video can do no better than one in so many, save for which colours a shape has
on its split's cards, and whoever names the card at one place, such as the last, no better than one in so many places.
Cards are asked for by their colour, which no two of a video share. Ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from longtake.data.probe_world.haystack import Clip, random_shot
from longtake.data.probe_world.hop_words import WORDINGS
from longtake.data.probe_world.needles import (
    COLOURS,
    DIRECTIONS,
    OUTLINES,
    SYMBOLS,
    Card,
    Mover,
    Split,
    draw_mover_choice,
)
from longtake.data.probe_world.probe import SIZES, Event, ProbeVideo
from longtake.data.probe_world.questions import Question
from longtake.types import LongtakeError

CARD_FRAMES, MOVER_FRAMES = 1, 6
PER_CARD = CARD_FRAMES + 1  # frames, with a gap behind it
MOST_CARDS = 7  # one shape at least is on none
FEWEST_FRAMES = 5 * PER_CARD  # with fewer cards the four-hop answer is always on the last one
FEWEST_FOR_FOUR = MOVER_FRAMES + 4 * PER_CARD  # frames, so that four hops have four cards beside what moves
TRIES = 3000  # for the second video of a pair, before its first is drawn anew with the same answer

Thing = Card | Mover
Words = dict[str, str]
Found = tuple[Words, tuple[Thing, ...], str]  # a question's words, what is found on the way, and the answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A kind of question.

    asked: all such questions about things in the order of their appearance. earliest: where among the cards the one
    that the answer is read from can be first, with ``behind`` cards after it at least; None where it is read from no
    single card. moves: a shape moves in the video.
    """

    hops: int
    answers: tuple[str, ...]
    asked: Callable[[Sequence[Thing]], Iterator[Found]]
    earliest: int | None = None
    behind: int = 0
    moves: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """A question about things that appear in this order, and what is found on the way to its answer."""

    split: Split
    form: str
    things: tuple[Thing, ...]
    wording: str
    text: str
    found: tuple[Thing, ...]
    answer: str

    @property
    def hops(self) -> int:
        """How many hops the question takes, 1 to 4."""
        return FORMS[self.form].hops

    @property
    def trace(self) -> str:
        """The exact chain of thought, the answer behind a colon: ``the pink card, the blue card: heart``.

        It names what is found on the way, not what the question names already, save where the answer lies between
        such things; a single hop has none.
        """
        if self.hops == 1:
            return self.answer
        return ", ".join(map(name_of, self.way)) + ": " + self.answer

    @property
    def way(self) -> tuple[Thing, ...]:
        """What a trace names; nothing for a single hop."""
        if self.hops == 1:
            return ()
        return self.found if self.place is None else self.found[1:]

    @property
    def place(self) -> int | None:
        """The place among the cards of the one that the answer is read from; None where there is none."""
        read = self.found[-1]
        return None if FORMS[self.form].earliest is None or isinstance(read, Mover) else self.cards.index(read)

    @property
    def cards(self) -> list[Card]:
        """The cards, in the order of their appearance."""
        return _cards(self.things)

    @property
    def question(self) -> Question:
        """The question as the probe world's others are; its task is the form."""
        return Question(task=self.form, text=self.text, answer=self.answer)


def name_of(thing: Thing) -> str:
    """What a trace calls a thing: ``the red card``, and ``the star`` that moves."""
    return f"the {thing.colour} card" if isinstance(thing, Card) else f"the {thing.shape}"


def word_of(thing: Thing) -> str:
    """The one word that tells a thing from the others: a card's colour, the shape that moves."""
    return thing.colour if isinstance(thing, Card) else thing.shape


def conclusion(said: str) -> str:
    """The answer in a text that may think first: what is behind the last colon."""
    return said.rpartition(":")[2].strip()


def _cards(things: Sequence[Thing]) -> list[Card]:
    return [thing for thing in things if isinstance(thing, Card)]


def _on(things: Sequence[Thing], steps: int) -> Iterator[Found]:
    """What is on the card so many places after each card; with fewer than 0, before it."""
    cards = _cards(things)
    way = 1 if steps >= 0 else -1
    for place, card in enumerate(cards):
        if 0 <= place + steps < len(cards):
            found = tuple(cards[at] for at in range(place, place + steps + way, way))
            yield {"colour": card.colour}, found, found[-1].content


def _direction(things: Sequence[Thing]) -> Iterator[Found]:
    for thing in things:
        if isinstance(thing, Mover):
            yield {"shape": thing.shape}, (thing,), thing.direction


def _after_move(things: Sequence[Thing]) -> Iterator[Found]:
    for thing, following in zip(things, things[1:], strict=False):
        if isinstance(thing, Mover) and isinstance(following, Card):
            yield {"shape": thing.shape}, (thing, following), following.content


def _between(things: Sequence[Thing]) -> Iterator[Found]:
    cards = _cards(things)
    for first in range(len(cards)):
        for last in range(first + 1, len(cards)):
            ends = cards[first].colour, cards[last].colour
            for colour, other in (ends, ends[::-1]):
                yield {"colour": colour, "other": other}, tuple(cards[first : last + 1]), str(last - first - 1)


def _order(things: Sequence[Thing]) -> Iterator[Found]:
    for place, mover in enumerate(things):
        if isinstance(mover, Mover):
            for other, card in enumerate(things):
                if isinstance(card, Card):
                    words = {"shape": mover.shape, "way": mover.direction, "colour": card.colour}
                    found = (mover, card) if place < other else (card, mover)
                    yield words, found, "before" if place < other else "after"


FORMS: dict[str, Form] = {
    "shape": Form(hops=1, answers=SYMBOLS, asked=partial(_on, steps=0), earliest=0),
    "direction": Form(hops=1, answers=DIRECTIONS, asked=_direction, moves=True),
    "after": Form(hops=2, answers=SYMBOLS, asked=partial(_on, steps=1), earliest=1),
    "before": Form(hops=2, answers=SYMBOLS, asked=partial(_on, steps=-1), earliest=0, behind=1),
    "after move": Form(hops=2, answers=SYMBOLS, asked=_after_move, earliest=0, moves=True),
    "two after": Form(hops=3, answers=SYMBOLS, asked=partial(_on, steps=2), earliest=2),
    "between": Form(hops=3, answers=("0", "1", "2"), asked=_between),
    "order": Form(hops=3, answers=("before", "after"), asked=_order, moves=True),
    "three after": Form(hops=4, answers=SYMBOLS, asked=partial(_on, steps=3), earliest=3),
    "three before": Form(hops=4, answers=SYMBOLS, asked=partial(_on, steps=-3), earliest=0, behind=3),
}
MOST_HOPS = 4
LONGEST_TRACE = 48  # tokens of the model in the package, its end included


def form_of(number: int) -> str:
    """The form of a set's question ``number``: hops one to four in turn, and the forms of each in turn."""
    own = [name for name, form in FORMS.items() if form.hops == 1 + number % MOST_HOPS]
    return own[number // MOST_HOPS % len(own)]


def draw_hop(rng: np.random.Generator, split: Split, form: str, frames: int) -> Hop:
    """A question of a form about a video of ``frames`` frames; its answer is uniform among the form's, and so is the
    place of the card it is read from."""
    answers = FORMS[form].answers
    return _with_answer(rng, split, form, frames, answers[int(rng.integers(len(answers)))])


def draw_hops(rng: np.random.Generator, split: Split, number: int, frames: int) -> tuple[Hop, ...]:
    """Questions of one to four hops about one video, a set's number ``number``.

    The video is drawn for a question of ``form_of(number)``, as ``draw_hop`` does. The others are any about what is
    there; where something moves, of the forms that ask for that, if there are any of so many hops.

    Raises LongtakeError for too few frames.
    """
    if frames < FEWEST_FOR_FOUR:
        raise LongtakeError(f"frames is {frames}; four questions about one video need at least {FEWEST_FOR_FOUR}")
    first = draw_hop(rng, split, form_of(number), frames)
    found = {first.hops: first}
    for hops in set(range(1, MOST_HOPS + 1)) - {first.hops}:
        own = [name for name, form in FORMS.items() if form.hops == hops]
        fitting = [name for name in own if FORMS[name].moves == FORMS[first.form].moves] or own
        every: list[Hop] = []
        while not every:  # what moves may be the last thing
            form = fitting[int(rng.integers(len(fitting)))]
            every = _asked(split, form, first.things, int(rng.integers(len(WORDINGS[split][form]))))
            fitting = [name for name in fitting if name != form] or own
        found[hops] = every[int(rng.integers(len(every)))]
    return tuple(found[hops] for hops in sorted(found))


def draw_pair(rng: np.random.Generator, split: Split, form: str, frames: int) -> tuple[Hop, Hop]:
    """One question about two videos, to which the answers differ; that of the first is uniform."""
    first = draw_hop(rng, split, form, frames)
    while True:
        wording, place = WORDINGS[split][form].index(first.wording), _place(rng, form, frames)
        for _ in range(TRIES):
            for hop in _drawn(rng, split, form, frames, wording):
                if hop.text == first.text and hop.answer != first.answer and hop.place == place:
                    return first, hop
        first = _with_answer(rng, split, form, frames, first.answer)


def _with_answer(rng: np.random.Generator, split: Split, form: str, frames: int, answer: str) -> Hop:
    wording, place = int(rng.integers(len(WORDINGS[split][form]))), _place(rng, form, frames)
    while True:
        for hop in _drawn(rng, split, form, frames, wording):
            if hop.answer == answer and hop.place == place:
                return hop


def _place(rng: np.random.Generator, form: str, frames: int) -> int | None:
    """The place among the cards that is drawn for the one an answer is read from; None where the form has none."""
    own = FORMS[form]
    return None if own.earliest is None else int(rng.integers(own.earliest, count_cards(form, frames) - own.behind))


def _drawn(rng: np.random.Generator, split: Split, form: str, frames: int, wording: int) -> list[Hop]:
    """Questions about things drawn at random, in random order: all of a form that have an answer of the form's."""
    things = draw_things(rng, split, count_cards(form, frames), moves=FORMS[form].moves)
    every = _asked(split, form, things, wording)
    return [every[place] for place in rng.permutation(len(every))]


def _asked(split: Split, form: str, things: tuple[Thing, ...], wording: int) -> list[Hop]:
    """All questions of a form about some things that have an answer of the form's."""
    sentence = WORDINGS[split][form][wording]
    return [
        Hop(
            split=split, form=form, things=things, wording=sentence, text=sentence.format(**words), found=found,
            answer=answer,
        )
        for words, found, answer in FORMS[form].asked(things)
        if answer in FORMS[form].answers
    ]  # fmt: skip


def count_cards(form: str, frames: int) -> int:
    """How many cards a video has: as many as fit, at most ``MOST_CARDS``; what moves takes the place of some.

    Raises LongtakeError for too few frames.
    """
    if frames < FEWEST_FRAMES:
        raise LongtakeError(f"frames is {frames}; questions of four hops need at least {FEWEST_FRAMES}")
    room = frames - (MOVER_FRAMES if FORMS[form].moves else 0)
    return min(MOST_CARDS, room // PER_CARD)


def draw_things(rng: np.random.Generator, split: Split, count: int, *, moves: bool) -> tuple[Thing, ...]:
    """So many cards, no two of one shape or colour; among them a mover in a colour of its own, if something moves."""
    while True:
        mover = draw_mover_choice(rng, split) if moves else None
        cards = _draw_cards(rng, split, count, without=mover.colour if mover else None)
        if len(cards) == count:
            at = int(rng.integers(count + 1))
            return (*cards[:at], *((mover,) if mover else ()), *cards[at:])


def _draw_cards(rng: np.random.Generator, split: Split, count: int, without: str | None) -> list[Card]:
    """Cards of different shapes and colours, fewer than ``count`` where the split's cards end."""
    deck = cards_by_shape(split)
    free = set(COLOURS) - {without}
    cards: list[Card] = []
    for shape in rng.permutation(len(SYMBOLS))[:count]:
        fitting = [card for card in deck[shape] if card.colour in free]
        if not fitting:
            break
        cards.append(fitting[int(rng.integers(len(fitting)))])
        free.remove(cards[-1].colour)
    return cards


@lru_cache
def cards_by_shape(split: Split) -> tuple[tuple[Card, ...], ...]:
    """The cards of a split with each of the shapes."""
    every = [Card(content=s, colour=c, outline=o) for s in SYMBOLS for c in COLOURS for o in OUTLINES]
    return tuple(tuple(card for card in every if card.content == s and card.split == split) for s in SYMBOLS)


def hop_video(hop: Hop, clips: list[Clip], frames: int, seed: int) -> ProbeVideo:
    """The video that a question is about, at a frame a second: its things at random places over footage.

    A card shows on one frame, a mover on six, with one or more between things.
    """
    rng = np.random.default_rng([seed, 51])
    lengths = [MOVER_FRAMES if isinstance(thing, Mover) else CARD_FRAMES for thing in hop.things]
    room = frames - sum(lengths) - (len(lengths) - 1)
    at = np.sort(rng.integers(0, room + 1, len(lengths)))
    events = []
    for number, (thing, length) in enumerate(zip(hop.things, lengths, strict=True)):
        first = int(at[number]) + sum(lengths[:number]) + number
        seconds = (first - 0.5, first + length - 0.5)
        place = int(rng.integers(2**31))
        events.append(Event(what=thing, start_seconds=seconds[0], stop_seconds=seconds[1], seed=place))
    cut = float(rng.uniform(2, frames - 2))
    return ProbeVideo(
        seed=seed,
        split=hop.split,
        fps=1.0,
        num_frames=frames,
        size=SIZES[int(rng.integers(len(SIZES)))],
        shots=(random_shot(rng, clips, 0.0), random_shot(rng, clips, cut)),
        events=tuple(events),
        foreign=tuple(random_shot(rng, clips, event.start_seconds) for event in events),
    )
