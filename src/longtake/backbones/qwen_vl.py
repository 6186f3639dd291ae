"""Hugging Face's Qwen2.5-VL as it is: its vision encoder on our frames, its decoder behind the adapter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from longtake.backbones.base import Part, Prompt, no_scorer
from longtake.backbones.beside import load_beside, save_beside
from longtake.backbones.language import DecoderBackbone, load_weights, pixels_of
from longtake.backbones.layout import Layout, Piece, features_of, in_a_row
from longtake.backbones.qwen_pixels import patches, smart_size
from longtake.backbones.tower import redrawn
from longtake.types import Frames, Query, VisualTokens

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"
IMAGE_TYPE, VIDEO_TYPE = 1, 2  # transformers' marks of their columns in mm_token_type_ids


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
        """The model of a folder or hub id, ready to answer."""
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
        """Empty: the stored features are the merger's output, which goes to the language model as it is."""
        return ()

    def save(self, folder: Path) -> None:
        """Write model and tokenizer; latents in a file of their own, so that transformers loads the rest as ever."""
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

    def random_tower(self, seed: int) -> Callable[[Frames], Tensor]:
        """``tower_features`` of the same architecture with random weights."""
        bounds = {"min_tokens": self.min_tokens, "max_tokens": self.max_tokens}
        return QwenVL(redrawn(self.model, seed), self.tokenizer, **bounds).tower_features

    def layout(self, prompt: Prompt) -> Layout:
        """The family's chat template around videos and pictures. Positions are those with nothing dropped.

        The answer goes on from the last column, as in transformers' ``generate``.
        """
        text, pieces, prefix = SYSTEM, list[Piece](), len(self.text_ids(SYSTEM))
        for part in prompt.shown:
            text += part.text
            if part.tokens is None:
                continue
            pieces += [Piece(ids=self.text_ids(text + "<|vision_start|>")), self._block(part)]
            pieces.append(Piece(ids=self.text_ids("<|vision_end|>")))
            text, prefix = "", sum(len(piece.ids) for piece in pieces)
        question = self.text_ids(prompt.question.strip() + ASSISTANT)
        pieces += [Piece(ids=self.text_ids(text)), Piece(ids=question)] if text else [Piece(ids=question)]
        ids, source = in_a_row(pieces)
        visible = [(part, part.tokens) for part in prompt.shown if part.tokens is not None]
        positions = self._positions(pieces, visible)
        return Layout(
            ids=ids,
            source=source,
            positions=positions,
            features=features_of(prompt.visuals),
            prefix=prefix,
            next_position=int(positions[0, -1]) + 1,
        )

    def _block(self, part: Part) -> Piece:
        """The columns of a video or a picture."""
        assert part.tokens is not None
        config, kept = self.model.config, torch.arange(len(part.tokens), device=self.device)
        mark = config.video_token_id if part.timed else config.image_token_id
        return Piece(ids=torch.full_like(kept, mark), source=kept, tokens=len(kept))

    def _positions(self, pieces: Sequence[Piece], visible: Sequence[tuple[Part, VisualTokens]]) -> Tensor:
        """transformers' own (t, h, w) of the columns, where they would be with nothing dropped, int64 ``(3, columns)``.

        Asking transformers, and not restating its rule, keeps us equal to it where the rule changes with its version.
        """
        types, columns, waiting = list[Tensor](), list[Tensor](), iter(visible)
        begin = 0
        for piece in pieces:
            kept, whole, kind = torch.arange(len(piece.ids), device=self.device), len(piece.ids), 0
            if piece.source is not None:
                part, tokens = next(waiting)
                _, height, width = tokens.grid
                strides = torch.tensor([height * width, width, 1], device=self.device)
                kept = (tokens.position.to(self.device) * strides).sum(dim=1)  # CUDA has no product of int matrices
                whole, kind = math.prod(tokens.grid), VIDEO_TYPE if part.timed else IMAGE_TYPE
            types.append(torch.full((whole,), kind, dtype=torch.int64, device=self.device))
            columns.append(begin + kept)
            begin += whole
        row = torch.cat(types)[None]
        grids: dict[bool, list[Tensor]] = {True: [], False: []}
        seconds = []
        for part, tokens in visible:
            grids[part.timed].append(self._patch_grid(tokens.grid))
            seconds += [seconds_per_group(tokens)] if part.timed else []
        positions: Tensor
        positions, _ = self.model.model.get_rope_index(
            row,  # only the number of ids counts
            mm_token_type_ids=row,
            image_grid_thw=torch.cat(grids[False]) if grids[False] else None,
            video_grid_thw=torch.cat(grids[True]) if grids[True] else None,
            second_per_grid_ts=torch.tensor(seconds, device=self.device),
        )
        return positions[:, 0, torch.cat(columns)]

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
