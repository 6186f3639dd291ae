"""Teach a trained model to think in latents: the one in the package, or the folder of one of any family.

Run: longtake train latent [--data FILE --media DIR] [--output DIR] [--set start.folder=FOLDER]

Without data it draws a few scenes and learns from questions about them, in seconds on a CPU, to see that it runs; what
latents are worth cannot be told from that. All rates and sizes are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from longtake.backbones.base import Backbone
from longtake.data.conversations.media import VariableSampling
from longtake.models.latent import LatentSettings, Thinking
from longtake.models.processor import VideoLLMProcessor
from longtake.models.video_llm import VideoLLM
from longtake.recipes.debug import FRAMES, DrawnScenes
from longtake.recipes.embedded import Saved, embedded
from longtake.recipes.recipe import DataFiles, Recipe
from longtake.train.dialogues import Reading
from longtake.train.latent_recipe import LatentRecipe
from longtake.train.run import Fit


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedOnScenes:
    """A saved model (``folder``, empty: the one in the package), and drawn scenes where no data are given.

    A model that is no ``VideoLLM`` has the stage "latent" alone.
    """

    folder: str = ""
    videos: int = 12
    held_videos: int = 6
    seed: int = 0

    def model(self) -> tuple[VideoLLM, VideoLLMProcessor]:
        """The saved model in float32, and its processor."""
        return Saved(folder=self.folder).model()

    def other_family(self) -> Backbone | None:
        """The saved model where it is no ``VideoLLM``."""
        return Saved(folder=self.folder).other_family()

    def data(self, folder: Path) -> DataFiles:
        """Scenes of one card each and questions about them; made once."""
        return DrawnScenes(videos=self.videos, held_videos=self.held_videos, seed=self.seed).data(folder)


def latent() -> Recipe:
    """Latents alone, unless other stages are named: twenty steps of eight questions."""
    base = embedded()
    return Recipe(
        name="latent",
        start=SavedOnScenes(),
        recot=base.recot,
        align=base.align,
        sft=base.sft,
        latent=LatentRecipe(
            fit=Fit(
                lr=1e-4, batch=8, micro_batch=4, steps=20, weight_decay=0.01, precision="fp32",
                log_every=5, eval_every=20, save_every=10,
            ),  # fmt: skip
            settings=LatentSettings(thinking=Thinking(latents=8, passes=2), width=128, heads=4),
            reading=Reading(sampling=VariableSampling(short_fps=(1.0,), max_frames=FRAMES)),
        ),
        stages=("latent",),
    )
