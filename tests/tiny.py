"""Models small enough for a test: real classes, random weights, a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from longtake.models import VideoLLM, VideoLLMConfig
from longtake.models.processor import VideoLLMProcessor
from longtake.types import Frames

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
VOCABULARY = 256 + len(SPECIAL)
ID = {token: 256 + i for i, token in enumerate(SPECIAL)}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and Qwen's special tokens."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(bytes_)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def qwen_vl(seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL with 4-pixel patches (8 pixels a token), windows of 2x2 tokens, grouped keys, 2 + 2 layers."""
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": 4,
            "window_size": 16,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 4,
        },
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
            "bos_token_id": None,
            "eos_token_id": ID["<|im_end|>"],
        },
        image_token_id=ID["<|image_pad|>"],
        video_token_id=ID["<|video_pad|>"],
        vision_start_token_id=ID["<|vision_start|>"],
        vision_end_token_id=ID["<|vision_end|>"],
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    spread(model)
    model.generation_config.eos_token_id = [ID["<|im_end|>"], ID["<|endoftext|>"]]
    model.generation_config.pad_token_id = ID["<|endoftext|>"]
    return model


def save_qwen_vl(folder: Path, seed: int = 0) -> Path:
    """The tiny Qwen2.5-VL and its tokenizer in a folder."""
    qwen_vl(seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def video_llm(seed: int = 0, **changes: object) -> VideoLLM:
    """A VideoLLM with 32-pixel frames, 8-pixel patches, 4 tokens a group of 4 frames, a scorer on layer 1."""
    settings: dict[str, object] = {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "vision_use_head": False,
        },
        "text_config": {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "eos_token_id": ID["<|im_end|>"],
        },
        "video_token_id": ID["<|vision_pad|>"],
        "scorer": "faithful",
        "scorer_layer": 1,
        "scorer_dim": 16,
        "context_tokens": 512,
    }
    torch.manual_seed(seed)
    model = VideoLLM(VideoLLMConfig(**(settings | changes))).eval()
    spread(model)
    return model


def save_video_llm(folder: Path, seed: int = 0, **changes: object) -> Path:
    """The tiny VideoLLM and its processor in a folder."""
    model = video_llm(seed, **changes)
    model.save_pretrained(folder)
    VideoLLMProcessor.from_config(tokenizer(), model.config).save_pretrained(folder)
    return folder


def spread(model: torch.nn.Module) -> None:
    """Larger weights: with the usual 0.02 a random model's choices are near ties."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)


def frames(count: int, height: int, width: int, *, every_seconds: float = 1.0, seed: int = 0) -> Frames:
    """Random frames in smooth patches, from time 0."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 3, -(-height // 4), -(-width // 4)), dtype=np.uint8)
    pixels = coarse.repeat(4, axis=2).repeat(4, axis=3)[:, :, :height, :width]
    return Frames(pixels=pixels, seconds=np.arange(count) * every_seconds)
