"""Hugging Face's Qwen2.5-VL as it is: its vision encoder on our frames, its decoder behind the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from longtake.backbones.base import Prompt
from longtake.backbones.beside import load_beside, save_beside
from longtake.backbones.language import DecoderBackbone, load_weights, no_scorer, pixels_of
from longtake.backbones.layout import Layout
from longtake.backbones.qwen_pixels import patches, smart_size
from longtake.types import Frames, Query, VisualTokens

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"
VIDEO_TYPE = 2  # transformers' mark of a video's columns in mm_token_type_ids


class QwenVL(DecoderBackbone):
    """A Qwen2.5-VL. Two frames (the encoder's temporal patch) become one group of ``rows x columns`` tokens.

    min_tokens, max_tokens: bounds of tokens a group, by which frames are resized; the defaults are the family's for
        video (128 to 768 places of 28x28 pixels).

    A VLM that also hands features to deeper layers would put those levels behind the first along the feature axis;
    Qwen2.5-VL has one level.
    """

    model: Qwen2_5_VLForConditionalGeneration

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        *,
        min_tokens: int = 128,
        max_tokens: int = 768,
    ) -> None:
        config = model.config
        text: Any = config.text_config  # typed by transformers as maybe a dict; it never is after loading
        super().__init__(
            model,
            model.model.language_model,
            model.lm_head,
            tokenizer,
            banned=[
                config.image_token_id,
                config.video_token_id,
                config.vision_start_token_id,
                config.vision_end_token_id,
            ],
            query_layer=text.num_hidden_layers // 2,
        )
        self._vision: Any = config.vision_config
        self._context_tokens = int(text.max_position_embeddings)
        self.min_tokens = min_tokens
        self.max_tokens = max_tokens

    @classmethod
    def load(cls, path: str, device: str | torch.device, dtype: torch.dtype | None) -> QwenVL:
        """From a folder or hub id, ready to answer."""
        model = load_weights(Qwen2_5_VLForConditionalGeneration, path, device, dtype)
        load_beside(model, path)
        return cls(model, AutoTokenizer.from_pretrained(path))

    @property
    def frames_per_group(self) -> int:
        return int(self._vision.temporal_patch_size)

    @property
    def frame_size(self) -> None:
        return None

    @property
    def context_tokens(self) -> int:
        return self._context_tokens

    @property
    def scorer(self) -> None:
        return None

    def score(self, tokens: VisualTokens, query: Query) -> Tensor:
        """Always refuses: nothing was trained for it."""
        raise no_scorer(self.name)

    def encode(self, frames: Frames) -> VisualTokens:
        """Frames to the merger's output, ``(groups x rows x columns, dim)``; differentiable."""
        vision = self._vision
        merge, side = vision.spatial_merge_size, vision.patch_size * vision.spatial_merge_size
        height, width = smart_size(
            *frames.pixels.shape[2:], side=side, min_tokens=self.min_tokens, max_tokens=self.max_tokens
        )
        flat = patches(
            pixels_of(frames, self.device),
            (height, width),
            frames=self.frames_per_group,
            patch=vision.patch_size,
            merge=merge,
        )
        grid = (-(-len(frames) // self.frames_per_group), height // side, width // side)
        features = self.model.model.get_video_features(flat, self._patch_grid(grid)).pooler_output[0]
        return self._tokens(features, torch.tensor(frames.seconds[:: self.frames_per_group], device=self.device), grid)

    def encode_features(self, features: Tensor, seconds: Tensor) -> VisualTokens:
        """Each frame is a group, as in ``tower_features``: twice the tokens of ``encode``, which joins two frames."""
        frames, rows, columns, _ = features.shape
        flat = features.flatten(0, 2).to(self.device, self.model.dtype)
        return self._tokens(flat, seconds.to(self.device), (frames, rows, columns))

    @property
    def video_parts(self) -> tuple[torch.nn.Module, ...]:
        """None: the merger is behind the stored features."""
        return ()

    def save(self, folder: Path) -> None:
        """Model and tokenizer; latents in a file of their own, so that transformers loads the rest as ever."""
        save_beside(self.model, folder)
        self.tokenizer.save_pretrained(folder)

    def _tokens(self, features: Tensor, starts: Tensor, grid: tuple[int, int, int]) -> VisualTokens:
        position = torch.cartesian_prod(*(torch.arange(n, device=self.device) for n in grid))
        weight = float(self.frames_per_group * self._vision.spatial_merge_size**2)
        return VisualTokens(
            features=features,
            position=position,
            seconds=starts[position[:, 0]],
            weight=torch.full((len(position),), weight, device=self.device),
            grid=grid,
        )

    def tower_features(self, frames: Frames) -> Tensor:
        """The merger's output of each frame as a group of its own: the frame fills the encoder's temporal patch."""
        times = self.frames_per_group
        alone = Frames(pixels=frames.pixels.repeat(times, axis=0), seconds=frames.seconds.repeat(times))
        tokens = self.encode(alone)
        return tokens.features.reshape(*tokens.grid, -1)

    def layout(self, prompt: Prompt) -> Layout:
        """The family's chat template around the video. Positions are those of the prompt with nothing dropped.

        The answer goes on from the last column, as in transformers' ``generate``.
        """
        tokens, after = prompt.tokens, self.text_ids(prompt.question.strip() + ASSISTANT)
        if tokens is None:
            ids = torch.cat([self.text_ids(SYSTEM), after])
            places = torch.arange(len(ids), device=self.device)
            return Layout(
                ids=ids,
                source=torch.full_like(ids, -1),
                positions=places.expand(3, -1),
                features=None,
                prefix=len(ids) - len(after),
                next_position=len(ids),
            )
        before = self.text_ids(SYSTEM + "<|vision_start|>")
        after = torch.cat([self.text_ids("<|vision_end|>"), after])
        positions = self._positions(before, tokens, after)
        strides = torch.tensor([tokens.grid[1] * tokens.grid[2], tokens.grid[2], 1], device=self.device)
        kept = (tokens.position.to(self.device) * strides).sum(dim=1)  # CUDA has no product of integer matrices
        first, last = len(before), positions.shape[1] - len(after)
        text = torch.full_like(before, -1), torch.full_like(after, -1)
        return Layout(
            ids=torch.cat([before, torch.full_like(kept, self.model.config.video_token_id), after]),
            source=torch.cat([text[0], torch.arange(len(kept), device=self.device), text[1]]),
            positions=torch.cat([positions[:, :first], positions[:, first + kept], positions[:, last:]], dim=1),
            features=tokens.features,
            prefix=first + len(kept) + 1,
            next_position=int(positions[0, -1]) + 1,
        )

    def _positions(self, before: Tensor, tokens: VisualTokens, after: Tensor) -> Tensor:
        """transformers' own (t, h, w) of the prompt with nothing dropped, int64 ``(3, columns)``.

        Asking transformers, and not restating its rule, keeps us equal to it where the rule changes with its version.
        """
        groups, rows, columns = tokens.grid
        types = torch.zeros(len(before) + groups * rows * columns + len(after), dtype=torch.int64, device=self.device)
        types[len(before) : len(types) - len(after)] = VIDEO_TYPE
        positions: Tensor
        positions, _ = self.model.model.get_rope_index(
            types[None],  # only the number of ids counts
            mm_token_type_ids=types[None],
            video_grid_thw=self._patch_grid(tokens.grid),
            second_per_grid_ts=torch.tensor([seconds_per_group(tokens)], device=self.device),
        )
        return positions[:, 0]

    def _patch_grid(self, grid: tuple[int, int, int]) -> Tensor:
        merge = self._vision.spatial_merge_size
        return torch.tensor([[grid[0], grid[1] * merge, grid[2] * merge]], device=self.device)


def seconds_per_group(tokens: VisualTokens) -> float:
    """The mean time from group to group, from the first and last group that kept a token.

    With tokens of one group only there is no time between groups to tell, and transformers' default of 1 s is used.
    """
    groups = tokens.position[:, 0]
    if not len(tokens) or groups[0] == groups[-1]:
        return 1.0
    return float((tokens.seconds[-1] - tokens.seconds[0]) / (groups[-1] - groups[0]))
