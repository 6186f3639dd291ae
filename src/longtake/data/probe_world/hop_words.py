"""How questions of several hops are worded. Train and test share no sentence; the test's words are all trained on."""

from __future__ import annotations

from longtake.data.probe_world.needles import Split

WORDINGS: dict[Split, dict[str, tuple[str, ...]]] = {
    "train": {
        "shape": (
            "What shape is on the {colour} card?",
            "Which shape is on the {colour} card?",
            "Tell me which shape is on the {colour} card.",
            "What shape was on the {colour} card?",
        ),
        "direction": (
            "Which way did the {shape} move?",
            "In which direction did the {shape} move?",
            "Tell me which way the {shape} moves.",
            "In what direction does the {shape} move?",
        ),
        "after": (
            "What shape is on the card right after the {colour} card?",
            "Which shape is on the card right after the {colour} card?",
            "Tell me which shape is on the card right after the {colour} card.",
            "What shape was on the card right after the {colour} card?",
        ),
        "before": (
            "What shape is on the card right before the {colour} card?",
            "Which shape is on the card right before the {colour} card?",
            "Tell me which shape is on the card right before the {colour} card.",
            "What shape was on the card right before the {colour} card?",
        ),
        "after move": (
            "What shape is on the card right after the {shape} moved?",
            "Which shape is on the card right after the {shape} moved?",
            "Tell me which shape is on the card right after the {shape} moved.",
            "What shape was on the card right after the {shape} moved?",
        ),
        "two after": (
            "What shape is on the card two after the {colour} card?",
            "Which shape is on the card two after the {colour} card?",
            "Tell me which shape is on the card two after the {colour} card.",
            "What shape was on the card two after the {colour} card?",
        ),
        "between": (
            "How many cards are between the {colour} card and the {other} card?",
            "Tell me how many cards are between the {colour} card and the {other} card.",
            "How many cards are shown between the {colour} card and the {other} card?",
            "How many cards were there between the {colour} card and the {other} card?",
        ),
        "order": (
            "Did the {shape} move {way} before or after the {colour} card?",
            "Tell me if the {shape} moved {way} before or after the {colour} card.",
            "Before or after the {colour} card, when did the {shape} move {way}?",
            "Was it before or after the {colour} card that the {shape} moved {way}?",
        ),
        "three after": (
            "What shape is on the card three after the {colour} card?",
            "Which shape is on the card three after the {colour} card?",
            "Tell me which shape is on the card three after the {colour} card.",
            "What shape was on the card three after the {colour} card?",
        ),
        "three before": (
            "What shape is on the card three before the {colour} card?",
            "Which shape is on the card three before the {colour} card?",
            "Tell me which shape is on the card three before the {colour} card.",
            "What shape was on the card three before the {colour} card?",
        ),
    },
    "test": {
        "shape": ("Which shape was on the {colour} card?", "Tell me what shape is on the {colour} card."),
        "direction": ("In what direction did the {shape} move?", "Tell me in which direction the {shape} moves."),
        "after": (
            "Which shape was on the card right after the {colour} card?",
            "Tell me what shape is on the card right after the {colour} card.",
        ),
        "before": (
            "Which shape was on the card right before the {colour} card?",
            "Tell me what shape is on the card right before the {colour} card.",
        ),
        "after move": (
            "Which shape was on the card right after the {shape} moved?",
            "Tell me what shape is on the card right after the {shape} moved.",
        ),
        "two after": (
            "Which shape was on the card two after the {colour} card?",
            "Tell me what shape is on the card two after the {colour} card.",
        ),
        "between": (
            "How many cards were between the {colour} card and the {other} card?",
            "Tell me how many cards are shown between the {colour} card and the {other} card.",
        ),
        "order": (
            "Tell me if it was before or after the {colour} card that the {shape} moved {way}.",
            "Did the {shape} move {way} after or before the {colour} card?",
        ),
        "three after": (
            "Which shape was on the card three after the {colour} card?",
            "Tell me what shape is on the card three after the {colour} card.",
        ),
        "three before": (
            "Which shape was on the card three before the {colour} card?",
            "Tell me what shape is on the card three before the {colour} card.",
        ),
    },
}
