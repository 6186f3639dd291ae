"""Latent self-forcing on tiny models and clips of one colour, for tests in this process and in others."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import tiny
from grpo_runs import own, qwen
from longtake.backbones.base import Backbone
from longtake.backbones.own import OwnVideoLLM
from longtake.models.latent import LatentSettings, Mode, Thinking
from longtake.models.processor import VideoLLMProcessor
from longtake.train.latent import train_latent
from longtake.train.latent_recipe import LatentRecipe
from longtake.train.puzzles import QuestionPuzzle
from longtake.types import Frames
from stage_runs import COLOURS, fit, fresh_model

LARGER = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}


def made(family: str) -> Backbone:
    """Fresh small weights: "own", "larger" or "qwen"."""
    if family == "qwen":
        return qwen()
    if family == "own":
        return own()
    text = dict(tiny.video_llm().config.text_config.to_dict()) | LARGER
    text.pop("layer_types")
    model = fresh_model(scorer=None, text_config=text)
    return OwnVideoLLM(model.eval(), VideoLLMProcessor.from_config(tiny.tokenizer(), model.config))


def coloured(number: int, count: int = 4) -> Frames:
    colour = list(COLOURS.values())[number % len(COLOURS)]
    noise = np.random.default_rng(number).integers(-30, 30, (count, 32, 32, 3))
    shown = np.clip(noise + colour, 0, 255).astype(np.uint8)
    return Frames(pixels=shown.transpose(0, 3, 1, 2), seconds=np.arange(count, dtype=np.float64))


def questions(backbone: Backbone, count: int = 6, first: int = 0) -> list[QuestionPuzzle]:
    """Which colour a clip has; every seventh is asked about nothing."""
    found = []
    for number in range(first, first + count):
        with torch.no_grad():
            tokens = None if number % 7 == 6 else backbone.encode(coloured(number))
        answer = "nothing" if tokens is None else list(COLOURS)[number % len(COLOURS)]
        found.append(QuestionPuzzle(name=f"clip{number}", question="Which?", answers=(answer,), tokens=tokens))
    return found


def settings(mode: Mode = "parallel", latents: int = 3, passes: int = 2, reread: bool = True) -> LatentSettings:
    thinking = Thinking(latents=latents, passes=passes, mode=mode)
    return LatentSettings(thinking=thinking, width=16, heads=2, reread=reread)


def recipe(**changes: object) -> LatentRecipe:
    """Six steps of four questions, saved at every second. changes: of the recipe, its fit, or its settings."""
    names = LatentRecipe.__dataclass_fields__
    own_changes = {name: changes.pop(name) for name in list(changes) if name in names}
    shape = {name: changes.pop(name) for name in ("mode", "latents", "passes", "reread") if name in changes}
    if shape.get("mode") == "autoregressive":
        own_changes = {"teacher": "video"} | own_changes
    if shape.get("mode") == "pause":
        own_changes = {"align": 0.0, "diverse": 0.0} | own_changes
    given: dict[str, object] = {"settings": settings(**shape), "bottleneck": 0.34, "times": 3.0}
    return LatentRecipe(fit=fit(**changes), **(given | own_changes))


def run_latent(
    output: Path, *, family: str = "own", held: bool = False, each: int = 1, **changes: object
) -> Backbone:
    """each: how many questions are asked about a video, one after the other."""
    backbone = made(family)
    asked = [replace(one, name=f"{one.name}-{n}", question="Which?" + " Say." * n)
             for one in questions(backbone, 8) for n in range(each)]  # fmt: skip
    chosen = recipe(**changes)
    dense = None
    if chosen.teacher == "dense":
        with torch.no_grad():
            dense = {puzzle.name: backbone.encode(coloured(n, 8)) for n, puzzle in enumerate(asked)}
    train_latent(
        chosen, backbone, asked, output, held=questions(backbone, 4, first=20) if held else (), dense=dense
    )
    return backbone
