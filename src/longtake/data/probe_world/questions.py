"""Questions about a video of the probe world, with their answers, in plain English; and how answers are scored.

Train and test share no sentence: the test's wordings are new sentences made of words seen in training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longtake.data.probe_world.needles import COLOURS, Split
from longtake.data.probe_world.probe import Event, ProbeVideo

TASKS = ("what", "is_there", "order", "count", "when", "after", "direction")
WHEN_TOLERANCE_SECONDS = 2.0

WORDINGS: dict[Split, dict[str, tuple[str, ...]]] = {
    "train": {
        "what": (
            "What is on the {colour} card?",
            "What does the {colour} card show?",
            "Which {kind} is on the {colour} card?",
            "Which {kind} does the {colour} card show?",
            "Tell me which {kind} is on the {colour} card.",
            "There is a {colour} card. What is on it?",
            "What was shown on the {colour} card?",
            "Read the {colour} card.",
            "What is shown on the {colour} card?",
            "Tell me what the {colour} card shows.",
            "Which {kind} was on the {colour} card?",
            "What was on the {colour} card in the video?",
            "There was a {colour} card. Which {kind} is on it?",
            "Tell me which {kind} the {colour} card shows.",
        ),
        "is_there": (
            "Is there a {colour} card?",
            "Is there a {colour} card in the video?",
            "Does a {colour} card appear?",
            "Was a {colour} card shown?",
            "Tell me if a {colour} card is shown.",
            "Is a {colour} card shown in the video?",
            "Does a {colour} card appear in the video?",
            "Was there a {colour} card?",
            "Was a {colour} card in the video?",
            "Tell me if there is a {colour} card.",
            "Tell me if the video shows a {colour} card.",
            "Does it show a {colour} card?",
            "Tell me if there was a {colour} card in the video.",
        ),
        "order": (
            "In what order do the cards appear?",
            "In which order are the cards shown?",
            "Tell me the order of the cards.",
            "What is the order of the cards in the video?",
            "In what order were the cards in the video shown?",
            "In which order did the cards appear?",
            "Tell me in what order the cards are shown.",
            "What order do the cards appear in?",
        ),
        "count": (
            "How many cards are there?",
            "How many cards appear in the video?",
            "Tell me how many cards are shown.",
            "How many cards were there?",
            "How many cards were shown?",
            "How many cards are shown in the video?",
            "Tell me how many cards appear.",
            "How many cards does it show?",
            "Tell me how many cards were in the video.",
            "Tell me how many cards the video shows.",
            "How many cards did the video show?",
            "How many cards did it show?",
            "How many cards are in the video?",
        ),
        "when": (
            "When does the {colour} card appear?",
            "At what time is the {colour} card shown?",
            "Tell me when the {colour} card appears.",
            "When was the {colour} card shown?",
            "When is the {colour} card shown?",
            "Tell me at what time the {colour} card is shown.",
            "At what time was the {colour} card shown?",
            "When did the {colour} card appear?",
        ),
        "after": (
            "What came right after the {colour} card?",
            "Which card came right after the {colour} card?",
            "Tell me which card appears right after the {colour} card.",
            "What is shown right after the {colour} card?",
            "Which card appears right after the {colour} card?",
            "What was shown right after the {colour} card?",
            "Tell me which card came right after the {colour} card.",
            "Which card was shown right after the {colour} card?",
        ),
        "direction": (
            "Which way did the {colour} {shape} move?",
            "In which direction did the {colour} {shape} move?",
            "Tell me which way the {colour} {shape} moves.",
            "In what direction does the {colour} {shape} move?",
            "Tell me in what direction the {colour} {shape} moves.",
            "In which direction does the {colour} {shape} move?",
        ),
    },
    "test": {
        "what": ("Tell me what is on the {colour} card.", "Which {kind} was shown on the {colour} card?"),
        "is_there": ("Does the video show a {colour} card?", "Was there a {colour} card in the video?"),
        "order": ("In what order were the cards shown?", "Tell me in which order the cards appear."),
        "count": ("How many cards does the video show?", "Tell me how many cards there are."),
        "when": ("At what time does the {colour} card appear?", "Tell me when the {colour} card is shown."),
        "after": ("Which card is shown right after the {colour} card?", "What appears right after the {colour} card?"),
        "direction": (
            "Which way does the {colour} {shape} move?",
            "Tell me in which direction the {colour} {shape} moves.",
        ),
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question about a probe video. ``event``: what it asks about; None when that is the whole, or is not there."""

    task: str
    text: str
    answer: str
    event: Event | None = None


def ask_all(video: ProbeVideo, rng: np.random.Generator, limit: int = 20) -> list[Question]:
    """Up to ``limit`` questions about a video in random order; "is there" is balanced between yes and no."""
    questions: list[Question] = []
    cards = video.cards
    present = [card.colour for card, _ in cards]
    absent = [str(c) for c in rng.permutation([c for c in COLOURS if c not in present])]
    for place, (card, event) in enumerate(cards):
        words = {"colour": card.colour, "kind": card.kind}
        questions.append(_word("what", video.split, rng, card.content, event, **words))
        questions.append(_word("when", video.split, rng, f"{onset(video, event)} s", event, **words))
        following = f"the {cards[place + 1][0].colour} card" if place + 1 < len(cards) else "nothing"
        questions.append(_word("after", video.split, rng, following, event, **words))
    pairs = min(len(present), len(absent))
    for place in rng.permutation(len(present))[:pairs]:
        questions.append(_word("is_there", video.split, rng, "yes", cards[place][1], colour=present[place]))
    questions += [_word("is_there", video.split, rng, "no", None, colour=colour) for colour in absent[:pairs]]
    if len(cards) > 1:
        questions.append(_word("order", video.split, rng, ", ".join(present), None))
    questions.append(_word("count", video.split, rng, str(len(cards)), None))
    for mover, event in video.movers:
        words = {"colour": mover.colour, "shape": mover.shape}
        questions.append(_word("direction", video.split, rng, mover.direction, event, **words))
    return [questions[i] for i in rng.permutation(len(questions))[:limit]]


def onset(video: ProbeVideo, event: Event) -> int:
    """The whole second in which an event is first to be seen on a frame of the video."""
    return int(np.ceil(event.start_seconds * video.fps - 1e-9) / video.fps)


def _word(
    task: str, split: Split, rng: np.random.Generator, answer: str, event: Event | None, **words: str
) -> Question:
    """A question in one of its split's wordings."""
    choice = WORDINGS[split][task]
    text = choice[int(rng.integers(len(choice)))].format(**words)
    return Question(task=task, text=text, answer=answer, event=event)


def score(question: Question, answer: str) -> bool:
    """Whether an answer is right: the same words, or for "when" a time within 2 seconds."""
    if question.task != "when":
        return normal(answer) == normal(question.answer)
    said = re.search(r"\d+(\.\d+)?", answer)
    truth = float(question.answer.removesuffix(" s"))
    return said is not None and abs(float(said[0]) - truth) <= WHEN_TOLERANCE_SECONDS


def best_constant(questions: Sequence[Question]) -> float:
    """The most of some questions of one task, as a share, that always giving the same answer gets right.

    Of times within a tolerance none is better than the earliest that one of the questions allows: the tolerance
    before its own, or 0.
    """
    answers = {question.answer for question in questions}
    if questions[0].task == "when":
        onsets = {round(float(answer.removesuffix(" s"))) for answer in answers}
        answers = {f"{max(0, onset - round(WHEN_TOLERANCE_SECONDS))} s" for onset in onsets}
    return max(sum(score(question, answer) for question in questions) for answer in answers) / len(questions)


def normal(answer: str) -> str:
    """An answer in lower case without edge punctuation, for comparing."""
    return " ".join(answer.lower().strip().strip(".!").split())


def vocabulary_text() -> list[str]:
    """Sentences that hold every word of the probe world, for training a tokenizer."""
    sentences = [w for split in WORDINGS.values() for task in split.values() for w in task]
    sentences += [f"the {colour} card" for colour in COLOURS]
    return [*sentences, ", ".join(COLOURS), *COLOURS, "yes", "no", "nothing", "left", "right", "up", "down"]

