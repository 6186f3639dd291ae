"""Fine-tune a model that is already trained: the one in the package, or any folder of a ``VideoLLM``.

Run: longtake train embedded --data FILE --media DIR --output DIR [--set start.folder=FOLDER]
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from longtake.backbones import load_backbone
from longtake.backbones.base import Backbone
from longtake.data.conversations.media import VariableSampling
from longtake.model import EMBEDDED
from longtake.models.processor import VideoLLMProcessor
from longtake.models.video_llm import VideoLLM, VideoLLMConfig
from longtake.recipes.recipe import DataFiles, Recipe
from longtake.train.align import AlignRecipe
from longtake.train.dialogues import Reading
from longtake.train.recot import ReCoTRecipe
from longtake.train.run import Fit
from longtake.train.saving import load_model
from longtake.train.sft import SftRecipe
from longtake.types import LongtakeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A saved model. folder: of a ``VideoLLM`` and its processor; empty: the model in the package."""

    folder: str = ""

    def folder_and_type(self) -> tuple[Path, str]:
        """The model's folder, and the type that its config has. Raises LongtakeError where there is no config."""
        folder = Path(self.folder) if self.folder else EMBEDDED
        if not (folder / "config.json").is_file():
            raise LongtakeError(f"start.folder is {folder}; it must be a saved model's folder, with a config.json")
        return folder, json.loads((folder / "config.json").read_text()).get("model_type")

    def model(self) -> tuple[VideoLLM, VideoLLMProcessor]:
        """The saved model in float32, and its processor."""
        folder, kind = self.folder_and_type()
        if kind != VideoLLMConfig.model_type:
            raise LongtakeError(
                f"start.folder holds a model of type {kind}; recot, align and sft train a {VideoLLMConfig.model_type}"
            )
        return load_model(folder)

    def other_family(self) -> Backbone | None:
        """The model in the folder where it is no ``VideoLLM``."""
        folder, kind = self.folder_and_type()
        return None if kind == VideoLLMConfig.model_type else load_backbone(str(folder), dtype=torch.float32)

    def data(self, folder: Path) -> DataFiles | None:
        """No data: the user brings them."""
        del folder
        return None


def embedded() -> Recipe:
    """Fine-tuning alone, unless other stages are named; "recot" goes on with the compressor. All rates are ours."""
    fit = Fit(lr=1e-4, batch=16, micro_batch=4)
    reading = Reading(sampling=VariableSampling(), max_tokens=8192)
    return Recipe(
        name="embedded",
        start=Saved(),
        recot=ReCoTRecipe(fit=Fit(lr=2e-4, batch=64, micro_batch=16, steps=2000)),
        align=AlignRecipe(fit=fit, reading=reading),
        sft=SftRecipe(fit=fit, reading=reading),
        stages=("sft",),
    )
