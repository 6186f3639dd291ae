"""Which weights of a model learn, and whether its layers are computed again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from transformers import PreTrainedModel

from longtake.backbones.base import Backbone
from longtake.models.video_llm import VideoLLM
from longtake.train import lora


def train_only(model: VideoLLM, parts: Sequence[str]) -> None:
    """Make every weight of these parts need a gradient, and no other.

    The tower's last norm is left out where the model reads the states before it.
    """
    model.requires_grad_(False)
    for part in parts:
        model.get_submodule(part).requires_grad_(True)
    if not model.config.vision_norm:
        model.vision_tower.post_layernorm.requires_grad_(False)


def train_language_model(backbone: Backbone, lora_rank: int, lora_alpha: float, *, checkpointing: bool) -> None:
    """Make only the language model's weights need a gradient; at a rank above 0 low-rank ones beside them instead.

    checkpointing: as in ``Fit``.
    """
    backbone.model.requires_grad_(False)
    if lora_rank:
        lora.add(backbone.decoder, lora_rank, lora_alpha)
    else:
        backbone.decoder.requires_grad_(True)
        backbone.head.requires_grad_(True)
    if checkpointing:
        recompute_layers(backbone.model)


def train_video_parts(backbone: Backbone) -> None:
    """Make the parts between tower and language model need a gradient too."""
    for part in backbone.video_parts:
        part.requires_grad_(True)


def recompute_layers(model: PreTrainedModel) -> None:
    """Have layers computed again in the backward pass; frozen parts stay without one."""
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()


def idle(parts: Iterable[nn.Module]) -> Tensor | int:
    """A zero to be added to a loss: every trained weight of these parts then has a gradient, used or not."""
    return sum(p.sum() * 0.0 for part in parts for p in part.parameters() if p.requires_grad)
