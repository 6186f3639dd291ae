"""How questions of several hops are worded. Train and test share no sentence; the test's words are all trained on."""

from __future__ import annotations

from longtake.data.probe_world.needles import Split

Sentences = dict[Split, tuple[str, ...]]


def _shape_on(card: str) -> Sentences:
    """What is on a card that is told by some words."""
    return {
        "train": (
            f"What shape is on {card}?",
            f"Which shape is on {card}?",
            f"Tell me which shape is on {card}.",
            f"What shape was on {card}?",
        ),
        "test": (f"Which shape was on {card}?", f"Tell me what shape is on {card}."),
    }


_FORMS: dict[str, Sentences] = {
    "shape": _shape_on("the {colour} card"),
    "direction": {
        "train": (
            "Which way did the {shape} move?",
            "In which direction did the {shape} move?",
            "Tell me which way the {shape} moves.",
            "In what direction does the {shape} move?",
        ),
        "test": ("In what direction did the {shape} move?", "Tell me in which direction the {shape} moves."),
    },
    "after": _shape_on("the card right after the {colour} card"),
    "before": _shape_on("the card right before the {colour} card"),
    "after move": _shape_on("the card right after the {shape} moved"),
    "two after": _shape_on("the card two after the {colour} card"),
    "between": {
        "train": (
            "How many cards are between the {colour} card and the {other} card?",
            "Tell me how many cards are between the {colour} card and the {other} card.",
            "How many cards are shown between the {colour} card and the {other} card?",
            "How many cards were there between the {colour} card and the {other} card?",
        ),
        "test": (
            "How many cards were between the {colour} card and the {other} card?",
            "Tell me how many cards are shown between the {colour} card and the {other} card.",
        ),
    },
    "order": {
        "train": (
            "Did the {shape} move {way} before or after the {colour} card?",
            "Tell me if the {shape} moved {way} before or after the {colour} card.",
            "Before or after the {colour} card, when did the {shape} move {way}?",
            "Was it before or after the {colour} card that the {shape} moved {way}?",
        ),
        "test": (
            "Tell me if it was before or after the {colour} card that the {shape} moved {way}.",
            "Did the {shape} move {way} after or before the {colour} card?",
        ),
    },
    "three after": _shape_on("the card three after the {colour} card"),
    "three before": _shape_on("the card three before the {colour} card"),
}
_SPLITS: tuple[Split, ...] = ("train", "test")
WORDINGS = {split: {form: sentences[split] for form, sentences in _FORMS.items()} for split in _SPLITS}
