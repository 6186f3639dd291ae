"""Conversations with small pictures and videos in memory, as batches for a tiny VideoLLM."""

import zlib
from collections.abc import Sequence

import numpy as np
import torch

import tiny
from longtake.data.conversations.batches import Batch, collate
from longtake.data.conversations.conversations import Conversation, Media, Turn
from longtake.data.conversations.examples import Example, build_example
from longtake.models import VideoLLM
from longtake.models.processor import VideoLLMProcessor
from longtake.types import Frames


def processor(model: VideoLLM) -> VideoLLMProcessor:
    return VideoLLMProcessor.from_config(tiny.tokenizer(), model.config)


def example(made_by: VideoLLMProcessor, name: str, counts: Sequence[int], answer: str = "yes") -> Example:
    """One user turn with clips of so many frames, 1 an image; then the answer."""
    parts: list[str | Media] = []
    clips = []
    for number, count in enumerate(counts):
        kind = "image" if count == 1 else "video"
        parts.append(Media(kind=kind, path=f"{name}{number}"))
        frames = tiny.frames(count, 32, 32, every_seconds=7.0, seed=zlib.crc32(f"{name}{number}".encode()))
        clips.append(Frames(pixels=frames.pixels, seconds=np.zeros(1) if count == 1 else frames.seconds))
    turns = (Turn(role="user", parts=(*parts, "what?")), Turn(role="assistant", parts=(answer,)))
    return build_example(made_by, Conversation(name=name, turns=turns), clips)


def batch(model: VideoLLM, *rows: Sequence[int], answers: Sequence[str] = ()) -> Batch:
    """A row for each list of clips' frame counts."""
    made_by = processor(model)
    answers = answers or [f"answer {n}"[: 6 + n] for n in range(len(rows))]
    examples = [example(made_by, f"row{n}", row, answers[n]) for n, row in enumerate(rows)]
    return collate(examples, tiny.ID["<|endoftext|>"])


def pixels(batch_: Batch) -> list[torch.Tensor]:
    """Each clip as the processor would hand it to the model."""
    return [torch.from_numpy(np.ascontiguousarray(clip.pixels)).float() / 127.5 - 1 for clip in batch_.clips]
