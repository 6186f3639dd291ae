"""longtake's own ``VideoLLM`` behind the adapter: stamps and visual tokens in time order, consecutive positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtake.backbones.base import Part, Prompt, no_scorer
from longtake.backbones.language import DecoderBackbone, load_weights, pixels_of
from longtake.backbones.layout import Layout, Piece, features_of, in_a_row
from longtake.backbones.tower import redrawn
from longtake.models import VideoLLM
from longtake.models.preprocess import normalised_pixels
from longtake.models.processor import VIDEO_MARK, VideoLLMProcessor, stamp_text
from longtake.models.scorer import LegacySelector, QueryScorer
from longtake.types import Frames, LongtakeError, Query, VisualTokens

BLOCKS_KEPT = 4  # of columns that were just made: a question is laid out twice, and others about its video follow


class OwnVideoLLM(DecoderBackbone):
    """A ``VideoLLM`` and its processor."""

    model: VideoLLM

    def __init__(self, model: VideoLLM, processor: VideoLLMProcessor) -> None:
        decoder = model.language_model
        super().__init__(
            model,
            decoder.model,
            decoder.lm_head,
            processor.tokenizer,
            banned=[model.config.video_token_id],
            query_layer=model.config.scorer_layer,
            evidence_layers=model.config.evidence_layers,
            evidence_threshold=model.config.evidence_threshold,
        )
        self.processor = processor
        self._recent: tuple[tuple[Tensor, Tensor, bool, Piece], ...] = ()  # blocks by where and when their tokens stand

    @classmethod
    def load(cls, path: str, device: str | torch.device, dtype: torch.dtype | None) -> OwnVideoLLM:
        """The model of a folder or hub id, ready to answer."""
        return cls(load_weights(VideoLLM, path, device, dtype), VideoLLMProcessor.from_pretrained(path))

    @property
    def frames_per_group(self) -> int:
        return int(self.model.config.frames_per_group)

    @property
    def context_tokens(self) -> int:
        return int(self.model.config.context_tokens or self.decoder.config.max_position_embeddings)

    @property
    def frame_size(self) -> tuple[int, int]:
        return self.processor.frame_height, self.processor.frame_width

    @property
    def scorer(self) -> str | None:
        return self.query_name if isinstance(self.model.scorer, QueryScorer) else None

    def score(self, tokens: VisualTokens, query: Query) -> Tensor:
        """The trained scorer's relevance of each token to the question, ``(tokens,)``; differentiable."""
        if not isinstance(self.model.scorer, QueryScorer):
            raise no_scorer(self.name)
        if self.query_name not in query.embeddings:
            raise LongtakeError(
                f"the question has embeddings {sorted(query.embeddings)} but the scorer wants {self.query_name}; "
                "make it with this backbone's encode_query"
            )
        states = query.embeddings[self.query_name]
        scores: Tensor = self.model.scorer(tokens.features.to(states), states)
        return scores

    def encode(self, frames: Frames) -> VisualTokens:
        """Frames through tower, DTS, pool and projector, ``(tokens, hidden)``; differentiable."""
        seconds = torch.tensor(frames.seconds, device=self.device)
        return self._tokens(self.model.video_tokens(self._pixel_values(frames)), seconds)

    def encode_features(self, features: Tensor, seconds: Tensor) -> VisualTokens:
        """What ``encode`` makes of the frames whose ``tower_features`` these are."""
        groups = self.model.group_tokens(features.to(self.device, self.model.dtype))
        return self._tokens(self.model.project(groups).flatten(0, 2), seconds.to(self.device))

    @property
    def video_parts(self) -> tuple[torch.nn.Module, ...]:
        """DTS and projector."""
        return self.model.dts, self.model.projector

    def save(self, folder: Path) -> None:
        """Write model and processor."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def _tokens(self, features: Tensor, seconds: Tensor) -> VisualTokens:
        config = self.model.config
        starts = seconds[:: self.frames_per_group]
        rows, columns = config.token_grid
        position = torch.cartesian_prod(*(torch.arange(n, device=self.device) for n in (len(starts), rows, columns)))
        patches = self.frames_per_group * config.tower_grid[0] * config.tower_grid[1] / config.tokens_per_group
        return VisualTokens(
            features=features,
            position=position,
            seconds=starts[position[:, 0]],
            weight=torch.full((len(position),), patches, device=self.device),
            grid=(len(starts), rows, columns),
        )

    def tower_features(self, frames: Frames) -> Tensor:
        """The SigLIP tower's patches of each frame, ``(frames, rows, columns, dim)``, as the DTS takes them."""
        return self.model.encode_frames(self._pixel_values(frames))

    def random_tower(self, seed: int) -> Callable[[Frames], Tensor]:
        """``tower_features`` of the same architecture with random weights."""
        return OwnVideoLLM(redrawn(self.model, seed), self.processor).tower_features

    def _pixel_values(self, frames: Frames) -> Tensor:
        return normalised_pixels(pixels_of(frames, self.device), self.frame_size).to(self.model.dtype)

    def layout(self, prompt: Prompt) -> Layout:
        """The processor's chat text around videos and pictures; a group that lost all its tokens has no stamp."""
        first, *rest = [Piece(ids=self.text_ids(text)) for text in self._texts(prompt)]
        visible = [part for part in prompt.shown if part.tokens is not None]
        pieces, prefix = [first], 0
        for part, after in zip(visible, rest, strict=True):
            block = self._block(part)
            begin = sum(len(piece.ids) for piece in pieces)
            prefix = begin + len(block.ids)
            pieces += [block, after]
        ids, source = in_a_row(pieces)
        layout = Layout(
            ids=ids,
            source=source,
            positions=torch.arange(len(ids), device=self.device),
            features=features_of(prompt.visuals),
            prefix=prefix,
            next_position=len(ids),
        )
        if not isinstance(self.model.scorer, LegacySelector) or not any(map(len, prompt.visuals)):
            return layout
        return replace(
            layout, prefix=begin, finish=self._legacy_finish(prompt, slice(begin, prefix), source[begin:prefix] >= 0)
        )

    def _texts(self, prompt: Prompt) -> list[str]:
        """The chat text, cut where videos and pictures stand; a mark within the question is text."""
        content = []
        for part in prompt.shown:
            assert VIDEO_MARK not in part.text, f"a part's text holds {VIDEO_MARK}"
            content += [{"type": "text", "text": part.text}] if part.text else []
            content += [{"type": "video"}] if part.tokens is not None else []
        content.append({"type": "text", "text": prompt.question.strip()})
        messages: Any = [{"role": "user", "content": content}]  # transformers types the content as plain text
        chat = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return str(chat).split(VIDEO_MARK, len(prompt.visuals))

    def _legacy_finish(self, prompt: Prompt, block: slice, is_visual: Tensor) -> Callable[[Tensor], Tensor]:
        """What a published checkpoint's selector does to the video's columns: it turns them and adds their scores.

        It sees all text of the prompt, so that no part of the video can be read before the question is known.

        Raises LongtakeError for several videos or pictures, and when a group kept some of its tokens only: the selector
        is defined on one video's whole groups.
        """
        scorer = self.model.scorer
        assert isinstance(scorer, LegacySelector)
        if len(prompt.visuals) > 1:
            raise LongtakeError(
                f"the prompt shows {len(prompt.visuals)} videos and pictures, but a published checkpoint's selector "
                "knows one video only; give a model without one"
            )
        whole = self.model.config.tokens_per_group
        if bool((prompt.visuals[0].position[:, 0].bincount() % whole).any()):
            raise LongtakeError(
                f"a group of {whole} tokens lost some, but a published checkpoint's selector scores whole groups; "
                "use uniform selection with a budget of at least a group, or watch at a lower fps"
            )

        def finish(embedded: Tensor) -> Tensor:
            before, video, after = embedded[: block.start], embedded[block], embedded[block.stop :]
            turned, _ = scorer(video, is_visual, torch.cat([before, after]))
            return torch.cat([before, turned, after])

        return finish

    def _block(self, part: Part) -> Piece:
        """Columns of a video: for each group that kept a token its stamp, then its tokens; a picture has no stamp."""
        tokens = part.tokens
        if tokens is None or not len(tokens):
            return Piece(ids=(empty := torch.zeros(0, dtype=torch.int64, device=self.device)), source=empty)
        for position, seconds, timed, block in self._recent:
            same_time = seconds is tokens.seconds or not timed  # a picture without a stamp stands at any
            same_kind = timed == part.timed and block.ids.device == self.device
            if position is tokens.position and same_time and same_kind:
                return block
        block = self._new_block(tokens, part.timed)
        self._recent = ((tokens.position, tokens.seconds, part.timed, block), *self._recent)[:BLOCKS_KEPT]
        return block

    def _new_block(self, tokens: VisualTokens, timed: bool) -> Piece:
        _, counts = torch.unique_consecutive(tokens.position[:, 0], return_counts=True)
        ends = counts.cumsum(0)
        style = self.model.config.stamp_style
        stamps = [stamp_text(t, style) if timed else "" for t in tokens.seconds[ends - counts].tolist()]
        ids: list[int] = []
        source: list[int] = []
        stamp_ids = self.tokenizer(stamps, add_special_tokens=False)["input_ids"]
        for stamp, count, end in zip(stamp_ids, counts.tolist(), ends.tolist(), strict=True):
            ids += [*stamp, *[self.model.config.video_token_id] * count]
            source += [*[-1] * len(stamp), *range(end - count, end)]
        made = (torch.tensor(values, device=self.device) for values in (ids, source))
        return Piece(ids=next(made), source=next(made), tokens=len(tokens))
