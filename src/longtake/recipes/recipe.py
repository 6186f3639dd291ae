"""What a recipe is: a start model and the stages' hyper-parameters, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from longtake.backbones.base import Backbone
from longtake.models.processor import VideoLLMProcessor
from longtake.models.video_llm import VideoLLM
from longtake.train.align import AlignRecipe
from longtake.train.latent_recipe import LatentRecipe
from longtake.train.recot import ReCoTRecipe
from longtake.train.run import Fit
from longtake.train.sft import SftRecipe

STAGES = ("recot", "align", "sft", "latent")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFiles:
    """Conversations on disk. files: each with its weight. media: what their paths count from. held: to measure on."""

    files: tuple[tuple[Path, float], ...]
    media: Path
    held: Path | None = None


class Start(Protocol):
    """Where training begins: a frozen dataclass whose fields are settings."""

    def model(self) -> tuple[VideoLLM, VideoLLMProcessor]:
        """The model before any stage, in float32, and its processor."""

    def other_family(self) -> Backbone | None:
        """A model that is no ``VideoLLM``, in float32: it can learn to think in latents and nothing else here."""

    def data(self, folder: Path) -> DataFiles | None:
        """Data that the recipe makes itself into a folder; None where the user brings them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A whole training: pre-training of the compressor, then the projector, then everything; and thinking in latents.

    latent: its rates are ours. stages: those that run when none are named.
    """

    name: str
    start: Start
    recot: ReCoTRecipe
    align: AlignRecipe
    sft: SftRecipe
    latent: LatentRecipe = field(default_factory=lambda: LatentRecipe(fit=Fit(lr=1e-5, batch=16, weight_decay=0.01)))
    stages: tuple[str, ...] = ("recot", "align", "sft")
