"""The processor of ``VideoLLM``: chat text, ``Frames`` and images to ``input_ids`` and pixel values."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from longtake.models.preprocess import normalised_pixels
from longtake.models.video_llm import VideoLLMConfig
from longtake.types import Frames, LongtakeError

StampStyle = Literal["compact", "legacy"]

VIDEO_MARK = "<|video|>"
IMAGE_MARK = "<|image|>"

CHAT_TEMPLATE = """\
{%- if messages[0].role != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'text' -%}
{{ part.text }}
{%- else -%}
{{ '<|' + part.type + '|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""


def stamp_text(seconds: float, style: StampStyle) -> str:
    """The text in front of a group's visual tokens: the time of its first frame.

    "compact" is ours: the nearest whole second and one separator, ``12:``. "legacy" is the published checkpoints':
    ``Time 0012.0s:``, which simply grows by a digit from 10,000 s on.
    """
    if style == "legacy":
        return f"Time {seconds:06.1f}s:"
    return f"{math.floor(seconds + 0.5)}:"


class VideoLLMProcessor(ProcessorMixin):
    """Text with video and image marks, and the frames, to what ``VideoLLM.forward`` and ``generate`` take.

    frame_height, frame_width: what frames are resized to, whatever their shape.
    frames_per_group, tokens_per_group, stamp_style: as in ``VideoLLMConfig``; ``from_config`` copies them.
    video_token: the text of the token that stands for a visual token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        frame_height: int = 384,
        frame_width: int = 384,
        frames_per_group: int = 4,
        tokens_per_group: int = 144,
        stamp_style: StampStyle = "compact",
        video_token: str = "<|vision_pad|>",
        chat_template: str | None = None,
    ) -> None:
        super().__init__(tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        self.frame_height = frame_height
        self.frame_width = frame_width
        self.frames_per_group = frames_per_group
        self.tokens_per_group = tokens_per_group
        self.stamp_style = stamp_style
        self.video_token = video_token
        if video_token not in tokenizer.get_vocab():
            raise LongtakeError(f"the tokenizer has no token {video_token!r}; add it or name another")

        self.video_token_id: int = tokenizer.get_vocab()[video_token]

    @classmethod
    def from_config(
        cls, tokenizer: PreTrainedTokenizerBase, config: VideoLLMConfig, chat_template: str | None = None
    ) -> VideoLLMProcessor:
        """The processor that fits a model's config."""
        side = config.vision_config.image_size
        return cls(
            tokenizer,
            frame_height=side,
            frame_width=side,
            frames_per_group=config.frames_per_group,
            tokens_per_group=config.tokens_per_group,
            stamp_style=config.stamp_style,
            video_token=str(tokenizer.convert_ids_to_tokens(config.video_token_id)),
            chat_template=chat_template,
        )

    @property
    def model_input_names(self) -> list[str]:
        """The names of what a call returns."""
        return ["input_ids", "attention_mask", "pixel_values_videos", "frame_counts"]

    def __call__(
        self,
        text: str | Sequence[str],
        images: Any = None,
        videos: Any = None,
        return_tensors: str = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Tensors of a batch, padded on the left: ``input_ids``, ``attention_mask``, ``pixel_values_videos``,
        ``frame_counts``.

        text: prompts with a mark for each video and image, as ``apply_chat_template`` writes them.
        videos: ``Frames``, one or (nested) lists of them, in the order of the marks.
        images: PIL images or uint8 ``(height, width, 3)`` arrays, likewise.

        Raises LongtakeError when marks and videos or images differ in number.
        """
        if return_tensors != "pt":
            raise LongtakeError(f"return_tensors is {return_tensors!r}; the processor makes PyTorch tensors: use 'pt'")
        texts = [text] if isinstance(text, str) else list(text)
        given = {VIDEO_MARK: list(flatten(videos)), IMAGE_MARK: [image_frames(image) for image in flatten(images)]}
        for mark, items in given.items():
            marked = sum(prompt.count(mark) for prompt in texts)
            if marked != len(items):
                raise LongtakeError(
                    f"the text has {marked} of {mark} but {len(items)} were given; put one content part for each"
                )
        waiting = {mark: iter(items) for mark, items in given.items()}
        clips: list[Frames] = []
        rows = [self._row_ids(prompt, waiting, clips) for prompt in texts]
        batch: dict[str, Tensor] = pad_left(rows, self.tokenizer.pad_token_id or 0)
        if clips:
            batch["pixel_values_videos"] = torch.cat([self.pixel_values(clip) for clip in clips])
            batch["frame_counts"] = torch.tensor([len(clip) for clip in clips])
        return BatchFeature(batch)

    def _row_ids(self, prompt: str, waiting: dict[str, Iterator[Frames]], clips: list[Frames]) -> list[int]:
        """One prompt's ids; its pieces are tokenised apart, so that a stamp reads the same wherever it stands."""
        ids: list[int] = []
        for piece in re.split(f"({re.escape(VIDEO_MARK)}|{re.escape(IMAGE_MARK)})", prompt):
            if piece not in waiting:
                ids += self.text_ids(piece)
                continue
            clip = next(waiting[piece])
            if not isinstance(clip, Frames):
                raise LongtakeError(f"a video is given as {type(clip).__name__}; read it into longtake.Frames first")
            clips.append(clip)
            ids += self.video_ids(clip.seconds[:: self.frames_per_group])
        return ids

    def text_ids(self, text: str) -> list[int]:
        """Ids of a piece of text, nothing added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def video_ids(self, group_seconds: Iterable[float]) -> list[int]:
        """Ids of a video whose groups begin at these times: for each its stamp, then its places for visual tokens."""
        ids: list[int] = []
        for seconds in group_seconds:
            ids += self.text_ids(stamp_text(float(seconds), self.stamp_style))
            ids.extend([self.video_token_id] * self.tokens_per_group)
        return ids

    def pixel_values(self, frames: Frames) -> Tensor:
        """Normalised frames, float32 ``(frames, 3, frame_height, frame_width)``."""
        return normalised_pixels(torch.from_numpy(frames.pixels), (self.frame_height, self.frame_width))


def flatten(items: Any) -> Iterator[Any]:
    """The leaves of nested lists; nothing for None."""
    if isinstance(items, list | tuple):
        for item in items:
            yield from flatten(item)
    elif items is not None:
        yield items


def image_frames(image: Any) -> Frames:
    """A PIL image or a uint8 ``(height, width, 3)`` array as one frame at 0 s."""
    if isinstance(image, Image.Image):
        image = image.convert("RGB")
    pixels = np.array(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise LongtakeError(
            f"an image has shape {pixels.shape} and type {pixels.dtype}; give a PIL image or uint8 (height, width, 3)"
        )
    return Frames(pixels=pixels.transpose(2, 0, 1)[None], seconds=np.zeros(1))


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """Rows of ids to ``input_ids`` and ``attention_mask``, int64 ``(batch, longest)``."""
    longest = max(len(row) for row in rows)
    ids = [[pad_id] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
