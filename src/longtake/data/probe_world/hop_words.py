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
        "colour": (
            "What colour is the card with the {shape}?",
            "Which colour is the card with the {shape}?",
            "Tell me which colour the card with the {shape} is.",
            "What colour was the card with the {shape}?",
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
        "second": (
            "What shape is on the second {colour} card?",
            "Which shape is on the second {colour} card?",
            "Tell me which shape is on the second {colour} card.",
            "What shape was on the second {colour} card?",
        ),
        "after move": (
            "What shape is on the card right after the {shape} moved?",
            "Which shape is on the card right after the {shape} moved?",
            "Tell me which shape is on the card right after the {shape} moved.",
            "What shape was on the card right after the {shape} moved?",
        ),
        "after second": (
            "What shape is on the card right after the second {colour} card?",
            "Which shape is on the card right after the second {colour} card?",
            "Tell me which shape is on the card right after the second {colour} card.",
            "What shape was on the card right after the second {colour} card?",
        ),
        "between": (
            "How many cards are between the {shape} and the {other}?",
            "Tell me how many cards are between the {shape} and the {other}.",
            "How many cards are shown between the {shape} and the {other}?",
            "How many cards were there between the {shape} and the {other}?",
        ),
        "order": (
            "Did the {shape} move {way} before or after the card with the {other}?",
            "Tell me if the {shape} moved {way} before or after the card with the {other}.",
            "Before or after the card with the {other}, when did the {shape} move {way}?",
            "Was it before or after the card with the {other} that the {shape} moved {way}?",
        ),
        "two after second": (
            "What shape is on the second card after the second {colour} card?",
            "Which shape is on the second card after the second {colour} card?",
            "Tell me which shape is on the second card after the second {colour} card.",
            "What shape was on the second card after the second {colour} card?",
        ),
        "same as after second": (
            "What shape is on the other card in the colour of the card right after the second {colour} card?",
            "Which shape is on the other card in the colour of the card right after the second {colour} card?",
            "Which shape is on the other card that is in the colour of the card right after the second {colour} card?",
            "What shape was on the other card in the colour of the card right after the second {colour} card?",
        ),
    },
    "test": {
        "shape": ("Which shape was on the {colour} card?", "Tell me what shape is on the {colour} card."),
        "colour": ("Which colour was the card with the {shape}?", "Tell me what colour the card with the {shape} is."),
        "direction": ("In what direction did the {shape} move?", "Tell me in which direction the {shape} moves."),
        "after": (
            "Which shape was on the card right after the {colour} card?",
            "Tell me what shape is on the card right after the {colour} card.",
        ),
        "second": (
            "Which shape was on the second {colour} card?",
            "Tell me what shape is on the second {colour} card.",
        ),
        "after move": (
            "Which shape was on the card right after the {shape} moved?",
            "Tell me what shape is on the card right after the {shape} moved.",
        ),
        "after second": (
            "Which shape was on the card right after the second {colour} card?",
            "Tell me what shape is on the card right after the second {colour} card.",
        ),
        "between": (
            "How many cards were between the {shape} and the {other}?",
            "Tell me how many cards are shown between the {shape} and the {other}.",
        ),
        "order": (
            "Tell me if it was before or after the card with the {other} that the {shape} moved {way}.",
            "Did the {shape} move {way} after or before the card with the {other}?",
        ),
        "two after second": (
            "Which shape was on the second card after the second {colour} card?",
            "Tell me what shape is on the second card after the second {colour} card.",
        ),
        "same as after second": (
            "Which shape was on the other card in the colour of the card right after the second {colour} card?",
            "Tell me what shape is on the other card in the colour of the card right after the second {colour} card.",
        ),
    },
}
