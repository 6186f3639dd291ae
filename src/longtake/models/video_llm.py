"""longtake's own video language model: SigLIP tower, DTS, pool, projector, Qwen2-class decoder.

Every part is a Hugging Face class built from its own config, so that the same code is 3B on a GPU and 10M on a
laptop. A video costs ``rows / pool x columns / pool`` tokens a group of ``frames_per_group`` frames. An image is
a video of one frame: it fills a group of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    Cache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from longtake.models.dts import DynamicTokenSynthesizer, RelativePosition, ZeroLinear
from longtake.models.latent import LatentInjection, LatentSettings
from longtake.models.scorer import LegacySelector, QueryScorer
from longtake.types import LongtakeError

CHOICES: dict[str, tuple[str | None, ...]] = {
    "dts_layout": ("correct", "legacy"),
    "stamp_style": ("compact", "legacy"),
    "scorer": ("faithful", "legacy", None),
    "scorer_reduce": ("mean", "max"),
}
FRAMES_PER_PASS = 64  # frames encoded at a time when no gradient is wanted: bounds memory, changes no value


class VideoLLMConfig(PreTrainedConfig):
    """Sizes and choices of a ``VideoLLM``. Values for published checkpoints are written by ``longtake convert``.

    frames_per_group: frames that the DTS turns into one; a power of two.
    dts_grid: rows and columns that tower features are resized to (bilinear) before the DTS; None keeps the tower's.
    dts_layout: "legacy" for weights trained with the released channel scrambling.
    pool: side of the average pool over places, after the DTS.
    pool_after_projector: True in published checkpoints; the projector is not linear, so the order matters.
    vision_norm: whether the tower's last LayerNorm is applied; published checkpoints use the states before it.
    stamp_style: "compact" (``12:``) or "legacy" (``Time 0012.0s:``), the text in front of every group.
    video_token_id: the id that stands for a visual token in ``input_ids``.
    scorer: the query-aware selector's weights: "faithful", "legacy" (published code) or None.
    scorer_layer: decoder layer after which question states are read; 0 is the embedding table.
    scorer_dim: width in which question and visual tokens are compared by the faithful scorer.
    scorer_reduce: "mean" or "max" over question tokens.
    legacy_stamp_tokens: tokens of the first group's stamp, where the legacy scorer's block begins.
    evidence_layers: decoder layers whose attention to the video is read as evidence.
    evidence_threshold: share of the best group's attention above which a group counts as evidence.
    context_tokens: positions the decoder was trained for; None means the decoder's own declaration.
    latent: the settings of latents between question and answer (``LatentSettings.as_config``); None: there are none.
    """

    model_type = "longtake_video_llm"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "vision_config": SiglipVisionConfig,
        "text_config": Qwen2Config,
    }

    vision_config: Any = None  # a dict or a SiglipVisionConfig when given, always the latter afterwards
    text_config: Any = None  # a dict or a Qwen2Config when given, always the latter afterwards
    frames_per_group: int = 4
    dts_grid: int | None = None
    dts_layout: Literal["correct", "legacy"] = "correct"
    pool: int = 2
    pool_after_projector: bool = False
    vision_norm: bool = False
    stamp_style: Literal["compact", "legacy"] = "compact"
    video_token_id: int = 0
    scorer: Literal["faithful", "legacy"] | None = None
    scorer_layer: int = 0
    scorer_dim: int = 128
    scorer_reduce: Literal["mean", "max"] = "mean"
    legacy_stamp_tokens: int = 10
    evidence_layers: list[int] | None = None
    evidence_threshold: float = 0.5
    context_tokens: int | None = None
    latent: dict[str, Any] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        if self.context_tokens is None:
            self.context_tokens = self.text_config.max_position_embeddings
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise LongtakeError(f"{name} is {getattr(self, name)!r}; it must be one of {allowed}")
        rows, columns = self.grid
        if rows % self.pool or columns % self.pool:
            raise LongtakeError(
                f"the grid is {rows}x{columns} and pool is {self.pool}; pool must divide it: set dts_grid to a multiple"
            )

    @property
    def tower_grid(self) -> tuple[int, int]:
        """(rows, columns) of the tower's patches."""
        side = self.vision_config.image_size // self.vision_config.patch_size
        return side, side

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) in and after the DTS."""
        return self.tower_grid if self.dts_grid is None else (self.dts_grid, self.dts_grid)

    @property
    def token_grid(self) -> tuple[int, int]:
        """(rows, columns) of a group's tokens in the prompt."""
        rows, columns = self.grid
        return rows // self.pool, columns // self.pool

    @property
    def tokens_per_group(self) -> int:
        """Visual tokens that stand for one group of frames."""
        rows, columns = self.token_grid
        return rows * columns


class VideoLLM(PreTrainedModel, GenerationMixin):
    """A video language model; ``forward`` and ``generate`` are Hugging Face's, on ``pixel_values_videos``."""

    config: VideoLLMConfig
    config_class = VideoLLMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["video", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["SiglipEncoderLayer", "DTSStage", "Qwen2DecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]

    def __init__(self, config: VideoLLMConfig) -> None:
        super().__init__(config)
        seen, hidden = config.vision_config.hidden_size, config.text_config.hidden_size
        self.vision_tower = SiglipVisionModel._from_config(config.vision_config)
        self.dts = DynamicTokenSynthesizer(seen, config.frames_per_group, config.dts_layout)
        self.projector = nn.Sequential(nn.Linear(seen, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.language_model = Qwen2ForCausalLM._from_config(config.text_config)
        self.scorer: QueryScorer | LegacySelector | None = None
        if config.scorer == "faithful":
            self.scorer = QueryScorer(hidden, config.scorer_dim, config.scorer_reduce)
        elif config.scorer == "legacy":
            self.scorer = LegacySelector(hidden)
        self.latent: LatentInjection | None = None
        if config.latent is not None:
            self.latent = LatentInjection(hidden, LatentSettings.of(config.latent))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """DTS and latents start as they say, everything else as Hugging Face does. Sees only modules with weights."""
        if isinstance(module, LatentInjection | DynamicTokenSynthesizer | RelativePosition | ZeroLinear | nn.Conv3d):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        """The decoder's token embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the decoder's token embedding."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The decoder's head, tied to the embedding where its config says so."""
        return self.language_model.get_output_embeddings()

    def encode_frames(self, pixel_values: Tensor) -> Tensor:
        """Normalised frames ``(frames, 3, height, width)`` to tower features ``(frames, rows, columns, dim)``."""
        embedded = self.vision_tower.embeddings(pixel_values)
        states = self.vision_tower.encoder(inputs_embeds=embedded).last_hidden_state
        if self.config.vision_norm:
            states = self.vision_tower.post_layernorm(states)
        return states.unflatten(1, self.config.tower_grid)

    def split_groups(self, features: Tensor) -> Tensor:
        """Features ``(frames, rows, columns, dim)`` to ``(groups, frames_per_group, rows, columns, dim)``, one video's.

        The last frame is repeated to fill an incomplete last group; one frame, an image, fills a group alone.
        """
        missing = -features.shape[0] % self.config.frames_per_group
        if missing:
            features = torch.cat([features, features[-1:].expand(missing, -1, -1, -1)])
        return self.on_grid(features).unflatten(0, (-1, self.config.frames_per_group))

    def on_grid(self, features: Tensor) -> Tensor:
        """Tower features ``(frames, rows, columns, dim)`` resized to the DTS's grid."""
        return resized(features, self.config.grid)

    def group_tokens(self, features: Tensor) -> Tensor:
        """Tower features ``(frames, rows, columns, dim)`` to DTS tokens ``(groups, rows, columns, dim)``."""
        return self.dts(self.split_groups(features))

    def project(self, groups: Tensor) -> Tensor:
        """DTS tokens ``(groups, rows, columns, dim)`` to ``(groups, rows / pool, columns / pool, hidden)``."""
        return self.projected(self.before_projector(groups))

    def before_projector(self, groups: Tensor) -> Tensor:
        """DTS tokens ``(groups, rows, columns, dim)`` as the projector takes them: pooled, or not yet."""
        return groups if self.config.pool_after_projector else average_pool(groups, self.config.pool)

    def projected(self, tokens: Tensor) -> Tensor:
        """What ``before_projector`` gives to ``(groups, rows / pool, columns / pool, hidden)``."""
        projected = self.projector(tokens)
        return average_pool(projected, self.config.pool) if self.config.pool_after_projector else projected

    def video_tokens(self, pixel_values: Tensor) -> Tensor:
        """One video's normalised frames ``(frames, 3, height, width)`` to ``(tokens, hidden)``, groups in order."""
        passes = [pixel_values] if torch.is_grad_enabled() else pixel_values.split(self._frames_per_pass())
        tokens = [self.project(self.group_tokens(self.encode_frames(frames))) for frames in passes]
        return torch.cat(tokens).flatten(0, 2)

    def _frames_per_pass(self) -> int:
        return max(FRAMES_PER_PASS // self.config.frames_per_group, 1) * self.config.frames_per_group

    def embed(
        self,
        input_ids: Tensor,
        pixel_values_videos: Tensor | Sequence[Tensor] | None = None,
        frame_counts: Tensor | Sequence[int] | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Token embeddings ``(batch, length, hidden)``, with visual tokens where ``input_ids`` has placeholders.

        pixel_values_videos: every video's frames joined, ``(all frames, 3, height, width)``, or one tensor a video.
        frame_counts: frames of each joined video or image, in the order of their placeholders; None means one video.
        attention_mask: ``(batch, length)``, 0 on padding; only the legacy selector looks at it.

        Raises LongtakeError when placeholders and visual tokens differ in number.
        """
        embeddings = self.get_input_embeddings()(input_ids)
        placeholders = input_ids == self.config.video_token_id
        if pixel_values_videos is None:
            if placeholders.any():
                raise LongtakeError("the prompt holds a video but no frames were given; pass pixel_values_videos")
            return embeddings
        videos = split_videos(pixel_values_videos, frame_counts)
        tokens = torch.cat([self.video_tokens(video) for video in videos])
        if len(tokens) != int(placeholders.sum()):
            raise LongtakeError(
                f"the prompt has {int(placeholders.sum())} places for visual tokens but the frames give {len(tokens)}; "
                "build both with the same processor"
            )
        embeddings = embeddings.masked_scatter(placeholders[..., None], tokens.to(embeddings.dtype))
        return self.embed_as_released(embeddings, placeholders, attention_mask)

    def embed_as_released(self, embeddings: Tensor, placeholders: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Embeddings as the released code's legacy selector would change them before the decoder.

        One video a row; nothing is dropped (the released code drops 1 to 30% at random at every call). placeholders:
        bool ``(batch, length)``, where visual tokens stand. Without a legacy selector nothing changes.
        """
        if not isinstance(self.scorer, LegacySelector):
            return embeddings
        rows = []
        real = torch.ones_like(placeholders) if attention_mask is None else attention_mask.bool()
        for row, is_visual, is_text in zip(embeddings, placeholders, real & ~placeholders, strict=True):
            places = is_visual.nonzero().flatten()
            if len(places):
                start, stop = int(places[0]) - self.config.legacy_stamp_tokens, int(places[-1]) + 1
                is_text[start:stop] = False  # the stamps belong to the block
                block, _ = self.scorer(row[start:stop], is_visual[start:stop], row[is_text])
                row = torch.cat([row[:start], block, row[stop:]])
            rows.append(row)
        return torch.stack(rows)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values_videos: Tensor | Sequence[Tensor] | None = None,
        frame_counts: Tensor | Sequence[int] | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (and the loss, with ``labels``) as ``Qwen2ForCausalLM`` gives them; see ``embed`` for the videos.

        Every argument that ``generate`` looks for in the signature is named, so that it is passed.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if input_ids is not None:
            inputs_embeds = self.embed(input_ids, pixel_values_videos, frame_counts, attention_mask)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def prepare_inputs_for_generation(  # type: ignore[override]  # the library's own models narrow it likewise
        self,
        input_ids: Any,
        pixel_values_videos: Tensor | Sequence[Tensor] | None = None,
        frame_counts: Tensor | Sequence[int] | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The frames go in with the prompt only: later steps read them from the cache."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(  # type: ignore[misc]  # self is a model
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs |= {"pixel_values_videos": pixel_values_videos, "frame_counts": frame_counts}
        return inputs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Several rollouts or beams a prompt: a row's videos are repeated as one run, in the order of the rows."""
        pixels, counts = kwargs.pop("pixel_values_videos", None), kwargs.pop("frame_counts", None)
        videos = None if pixels is None else split_videos(pixels, counts)
        if videos is not None and expand_size > 1:
            places: Tensor = input_ids == self.config.video_token_id
            rows = split_rows([len(video) for video in videos], places.sum(dim=1), self.config)
            videos = [videos[i] for row in rows for _ in range(expand_size) for i in row]
        input_ids, kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc]  # self is a model
            expand_size, is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        return input_ids, kwargs | {"pixel_values_videos": videos}


def resized(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Features ``(frames, rows, columns, dim)`` on another grid of places, bilinear; as they are on their own."""
    if tuple(features.shape[1:3]) == grid:
        return features
    channels_first = F.interpolate(
        features.permute(0, 3, 1, 2).float(), size=grid, mode="bilinear", align_corners=False
    )
    return channels_first.permute(0, 2, 3, 1).to(features.dtype)


def average_pool(tokens: Tensor, pool: int) -> Tensor:
    """Mean over ``pool x pool`` places of ``(groups, rows, columns, dim)``."""
    if pool == 1:
        return tokens
    return tokens.unflatten(2, (-1, pool)).unflatten(1, (-1, pool)).mean(dim=(2, 4))


def split_videos(
    pixel_values_videos: Tensor | Sequence[Tensor], frame_counts: Tensor | Sequence[int] | None
) -> list[Tensor]:
    """Joined frames, a padded-free ``(videos, frames, ...)`` tensor or a list of videos to a list of videos."""
    if not isinstance(pixel_values_videos, Tensor) or pixel_values_videos.ndim == 5:
        return list(pixel_values_videos)
    if frame_counts is None:
        return [pixel_values_videos]
    counts = [int(count) for count in frame_counts]
    if sum(counts) != len(pixel_values_videos):
        raise LongtakeError(f"frame_counts sum to {sum(counts)} but {len(pixel_values_videos)} frames were given")
    return list(pixel_values_videos.split(counts))


def split_rows(frame_counts: Sequence[int], row_tokens: Tensor, config: VideoLLMConfig) -> list[list[int]]:
    """Which videos stand in which row of a batch, from the visual tokens that each row has places for."""
    rows: list[list[int]] = []
    video = 0
    for wanted in row_tokens.tolist():
        row: list[int] = []
        while wanted > 0 and video < len(frame_counts):
            wanted -= -(-frame_counts[video] // config.frames_per_group) * config.tokens_per_group
            row.append(video)
            video += 1
        rows.append(row)
    return rows
