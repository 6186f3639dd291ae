"""Small sets of conversations on disk, and the stages on a tiny model, for tests in this process and in others."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import tiny
from longtake.data.clips import Clips
from longtake.data.conversations.conversations import read_conversations
from longtake.data.conversations.media import VariableSampling
from longtake.data.conversations.order import Source
from longtake.data.features import FeatureStore
from longtake.data.left_out import Broken
from longtake.models import VideoLLM
from longtake.models.preprocess import normalised_pixels
from longtake.models.processor import VideoLLMProcessor
from longtake.recipes.stages import group_store
from longtake.train.align import AlignRecipe, train_align
from longtake.train.dialogues import Material, Reading
from longtake.train.recot import ReCoTRecipe, train_recot
from longtake.train.run import Fit, end_processes
from longtake.train.sft import SftRecipe, train_sft
from longtake.types import Frames
from longtake.video.write import write

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 220)}


def write_set(folder: Path, rows: int = 10) -> Path:
    """Rows about pictures and videos of one colour, and some about nothing; the file that lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(rows):
        name, colour = list(COLOURS.items())[number % 3]
        rng = np.random.default_rng(number)
        noise = rng.integers(-30, 30, (5, 48, 48, 3))
        shown = np.clip(noise + colour, 0, 255).astype(np.uint8)
        row = {"id": f"row{number}", "conversations": []}
        mark = ""
        if number % 4 == 3:
            pass  # text alone
        elif number % 2:
            Image.fromarray(shown[0]).save(folder / f"{number}.png")
            row["image"], mark = f"{number}.png", "<image>\n"
        else:
            count = 2 + number % 4
            frames = Frames(pixels=shown[:count].transpose(0, 3, 1, 2), seconds=np.arange(count, dtype=np.float64))
            write(folder / f"{number}.mp4", [frames], 1.0)
            row["video"], mark = f"{number}.mp4", "<video>\n"
        row["conversations"] = [
            {"from": "human", "value": f"{mark}Which colour{'?' * (number % 3)}"},
            {"from": "gpt", "value": name if mark else f"nothing {number}"},
        ]
        lines.append(json.dumps(row))
    file = folder / "set.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


def sources(folder: Path) -> tuple[Source, ...]:
    return (Source(name="set", conversations=read_conversations(folder / "set.jsonl", folder)),)


def fit(**changes) -> Fit:
    """Six steps of four rows in float32, saved at every second."""
    few = Fit(lr=3e-3, batch=4, micro_batch=2, steps=6, precision="fp32", save_every=2, eval_every=3, log_every=100)
    return dataclasses.replace(few, **changes)


READING = Reading(sampling=VariableSampling(short_fps=(1.0,), max_frames=8))


def store(model, folder: Path) -> FeatureStore:
    """The tower's features, at the tower's own size."""
    side = model.config.vision_config.image_size

    def encode(frames):
        return model.encode_frames(normalised_pixels(torch.from_numpy(frames.pixels), (side, side)))

    return FeatureStore(folder, "tiny", encode, frame_size=(side, side))


def fresh_model(**changes: object) -> VideoLLM:
    """The tiny model with weights as small as a real one's: with larger ones rounding grows a thousandfold."""
    torch.manual_seed(0)
    return VideoLLM(tiny.video_llm(**changes).config)


def run_stage(
    stage: str, data: Path, output: Path, *, stored: bool = False, grouped: bool = False, held: bool = False, **changes
) -> None:
    """One stage on a fresh tiny model. changes: of the recipe, or of its fit where they are the fit's."""
    model = fresh_model()
    made_by = VideoLLMProcessor.from_config(tiny.tokenizer(), model.config)
    own = {name: changes.pop(name) for name in list(changes) if name in SftRecipe.__dataclass_fields__}
    own = {"reading": dataclasses.replace(READING, max_broken=changes.pop("max_broken", 0.01))} | own
    features = store(model, output.parent / "features") if stored else None
    (whole,) = sources(data)
    groups = group_store(model, output.parent / "groups", "fp32", torch.device("cpu")) if grouped else None
    material = Material(sources=(whole,), held=whole if held else None, store=features, groups=groups)
    if stage == "align":
        train_align(AlignRecipe(fit=fit(**changes), **own), model, made_by, material, output)
    else:
        train_sft(SftRecipe(fit=fit(**changes), **own), model, made_by, material, output)


class NoisyClips:
    """Clips whose frames drift from a random picture, three numbers a place; a fifth are images."""

    def __init__(self, dim: int = 32, frames: int = 4) -> None:
        self.dim, self.frames = dim, frames
        self.broken = Broken(count=1, share=0.0)

    def draw(self, rng: np.random.Generator, clips: int) -> Clips:
        is_image = rng.random(clips) < 0.2
        first = rng.standard_normal((clips, 1, 4, 4, 3))
        drift = rng.standard_normal((clips, 1, 4, 4, 3)) * np.arange(self.frames)[None, :, None, None, None]
        shown = first + 0.3 * drift * ~is_image[:, None, None, None, None]
        features = shown @ np.random.default_rng(0).standard_normal((3, self.dim))
        return Clips(features=torch.from_numpy(features).bfloat16(), is_image=torch.from_numpy(is_image))


def run_recot(output: Path, *, held: bool = False, **changes) -> None:
    """Pre-training on noisy clips. changes: of the recipe, or of its fit."""
    own = {name: changes.pop(name) for name in list(changes) if name in ReCoTRecipe.__dataclass_fields__}
    recipe = ReCoTRecipe(fit=fit(**changes), held_clips=8, **own)
    train_recot(recipe, fresh_model().config, NoisyClips(), output, held=NoisyClips() if held else None)


def logged(output: Path, name: str = "loss") -> dict[int, float]:
    """A figure by step."""
    rows = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row[name] for row in rows if name in row}


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    stage, output = arguments.pop("stage"), Path(arguments.pop("output"))
    if stage == "recot":
        run_recot(output, **arguments)
    elif stage == "grpo":
        from grpo_runs import run_grpo

        run_grpo(output, **arguments)
    elif stage == "latent":
        from latent_runs import run_latent

        run_latent(output, **arguments)
    elif stage == "imitate":
        from grpo_runs import run_imitation

        run_imitation(output, **arguments)
    else:
        run_stage(stage, Path(arguments.pop("data")), output, **arguments)
    end_processes()
