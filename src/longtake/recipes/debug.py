"""All stages in seconds on a CPU: a tiny model on drawn scenes that the recipe makes itself. It learns next to nothing.

Run: longtake train debug
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2Config, SiglipVisionConfig

from longtake import video
from longtake.data.conversations.media import VariableSampling
from longtake.data.probe_world.haystack import drawn_clip
from longtake.data.probe_world.probe import make_video
from longtake.data.probe_world.questions import ask_all
from longtake.models.latent import LatentSettings, Thinking
from longtake.models.processor import VideoLLMProcessor
from longtake.models.video_llm import VideoLLM, VideoLLMConfig
from longtake.outputs import replaced
from longtake.recipes.recipe import DataFiles, Recipe
from longtake.train.align import AlignRecipe
from longtake.train.dialogues import Reading
from longtake.train.embedded.tokenizer import VIDEO, train_tokenizer
from longtake.train.latent_recipe import LatentRecipe
from longtake.train.recot import ReCoTRecipe
from longtake.train.run import Fit
from longtake.train.sft import SftRecipe
from longtake.types import LongtakeError

FRAMES = 8
SIZE = (64, 96)  # height and width of a scene


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnScenes:
    """A model of about 300,000 fresh weights, and ``videos`` scenes with a card and questions about it."""

    videos: int = 16
    held_videos: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("videos", 1), ("held_videos", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise LongtakeError(f"{name} is {getattr(self, name)}; it must be at least {least}")

    def model(self) -> tuple[VideoLLM, VideoLLMProcessor]:
        """32-pixel frames in 8-pixel patches, 4 tokens a group of 4 frames, a decoder of 3 layers."""
        tokenizer = train_tokenizer(512)
        vision = SiglipVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            vision_use_head=False,
        )
        text = Qwen2Config(
            vocab_size=-(-len(tokenizer) // 64) * 64,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        config = VideoLLMConfig(
            vision_config=vision,
            text_config=text,
            vision_norm=True,
            video_token_id=tokenizer.get_vocab()[VIDEO],
            scorer="faithful",
            scorer_dim=32,
        )
        torch.manual_seed(self.seed)
        model = VideoLLM(config)
        model.dts.start_as_mean()
        return model, VideoLLMProcessor.from_config(tokenizer, model.config)

    def other_family(self) -> None:
        """No model: this one is a ``VideoLLM``."""

    def data(self, folder: Path) -> DataFiles:
        """Scenes as H.264 files and single frames of them as PNG, with their questions; made once."""
        files = {"train": folder / "train.jsonl", "held": folder / "held.jsonl"}
        folder.mkdir(parents=True, exist_ok=True)
        for name, first, count in (("train", 0, self.videos), ("held", self.videos, self.held_videos)):
            if not files[name].exists():
                rows = [row for number in range(first, first + count) for row in self._rows(folder, number)]
                with replaced(files[name]) as scratch:
                    scratch.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return DataFiles(files=((files["train"], 1.0),), media=folder, held=files["held"])

    def _rows(self, folder: Path, number: int) -> Iterator[dict[str, Any]]:
        """Writes a scene and a frame of it; conversations about both."""
        clips = [drawn_clip(self.seed + n, 8.0) for n in range(3)]
        scene = make_video(
            self.seed + number, split="train", clips=clips, num_frames=FRAMES, num_cards=1, mover=False, size=SIZE
        )
        name = f"{number:03d}"
        video.write(folder / f"{name}.mp4", scene.frames(), 1.0)
        questions = ask_all(scene, np.random.default_rng(number), 6)
        said = []
        for turn, question in enumerate(questions):
            mark = "<video>\n" if turn == 0 else ""
            said += [{"from": "human", "value": mark + question.text}, {"from": "gpt", "value": question.answer}]
        yield {"id": f"video {name}", "video": f"{name}.mp4", "conversations": said}
        frame = next(scene.frames()).pixels[0].transpose(1, 2, 0)
        Image.fromarray(np.ascontiguousarray(frame)).save(folder / f"{name}.png")
        count = {"from": "human", "value": "<image>\nHow many frames are there?"}
        yield {"id": f"image {name}", "image": f"{name}.png", "conversations": [count, {"from": "gpt", "value": "1"}]}


def debug() -> Recipe:
    """Twenty steps of each stage."""
    fit = Fit(
        lr=3e-3, batch=8, micro_batch=4, steps=20, precision="fp32", log_every=5, eval_every=10, save_every=10
    )
    reading = Reading(sampling=VariableSampling(short_fps=(1.0,), max_frames=FRAMES), max_tokens=512)
    return Recipe(
        name="debug",
        start=DrawnScenes(),
        recot=ReCoTRecipe(fit=replace(fit, lr=1e-4), held_clips=16),
        align=AlignRecipe(fit=fit, reading=reading),
        sft=SftRecipe(fit=fit, reading=reading),
        latent=LatentRecipe(
            fit=fit, settings=LatentSettings(thinking=Thinking(latents=4), width=32, heads=2), reading=reading
        ),
    )
