"""Tiny models that think, for tests."""

import torch

import tiny
from longtake.backbones.language import DecoderBackbone
from longtake.backbones.own import OwnVideoLLM
from longtake.backbones.qwen_vl import QwenVL
from longtake.backbones.thinking import add_latents
from longtake.models.latent import LatentSettings, Mode, Thinking
from longtake.models.processor import VideoLLMProcessor

FAMILIES = ("own", "qwen")


def plain(family: str) -> DecoderBackbone:
    if family == "own":
        model = tiny.video_llm()
        return OwnVideoLLM(model, VideoLLMProcessor.from_config(tiny.tokenizer(), model.config))
    return QwenVL(tiny.qwen_vl(), tiny.tokenizer(), min_tokens=4, max_tokens=24)


def open_gate(backbone: DecoderBackbone, value: float = 0.7) -> None:
    """As if it had been trained: the video is read again."""
    assert backbone.latent is not None
    backbone.latent.gate.data.fill_(value)


def thinker(family: str, latents: int = 4, passes: int = 2, mode: Mode = "parallel") -> DecoderBackbone:
    backbone = plain(family)
    thinking = Thinking(latents=latents, passes=passes, mode=mode)
    add_latents(backbone, LatentSettings(thinking=thinking, width=16, heads=2), seed=1)
    open_gate(backbone)
    with torch.no_grad():
        for parameter in backbone.latent.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    return backbone
