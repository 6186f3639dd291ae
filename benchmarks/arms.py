"""What the benchmarks of speed share: models of several sizes with random weights, and their two arms.

The ``compressed`` arm is the model as it is. The ``plain`` arm is the same weights without the compressor: every
frame's tokens go through the same pool and projector to the decoder, behind the same stamps (one for each group of
frames), so that the visual tokens are all that differs.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen2Config, SiglipVisionConfig

from longtake.backbones.own import OwnVideoLLM
from longtake.model import EMBEDDED
from longtake.models import VideoLLM, VideoLLMConfig
from longtake.models.convert import so400m
from longtake.models.processor import VideoLLMProcessor
from longtake.models.video_llm import FRAMES_PER_PASS
from longtake.types import Frames

Arm = Literal["compressed", "plain"]
ARMS: tuple[Arm, ...] = ("compressed", "plain")
MEGABYTE = 1 << 20
GIGABYTE = 1e9


def tiny() -> VideoLLMConfig:
    """For tests."""
    return VideoLLMConfig(vision_config=_vision(32, 2, 32, 8), text_config=_text(32, 2, 4, 2, 512), video_token_id=3)


def embedded() -> VideoLLMConfig:
    """The sizes of the model in the package."""
    config = VideoLLMConfig.from_pretrained(EMBEDDED)
    config.scorer = None
    return config


def middle() -> VideoLLMConfig:
    """A tower of 12 layers (ViT-S) before a decoder of 12: for each frame the tower computes about three times as much
    as the decoder, as at real size; the compressor's share is larger than there."""
    text = _text(768, 12, 12, 4, 512)
    return VideoLLMConfig(vision_config=_vision(384, 12, 128, 16), text_config=text, video_token_id=3)


def three_billion() -> VideoLLMConfig:
    """The paper's sizes: SigLIP-so400m, DTS 1152, Qwen2.5-3B's shape, 144 tokens for 4 frames."""
    return VideoLLMConfig(
        vision_config=so400m(),
        text_config=_text(2048, 36, 16, 2, 151936, intermediate=11008),
        dts_grid=24,
        pool_after_projector=True,
        stamp_style="legacy",
        video_token_id=3,
    )


SIZES = {"tiny": tiny, "embedded": embedded, "middle": middle, "3b": three_billion}


def _vision(hidden: int, layers: int, image: int, patch: int) -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(hidden // 64, 1),
        image_size=image,
        patch_size=patch,
        vision_use_head=False,
    )


def _text(hidden: int, layers: int, heads: int, key_heads: int, vocabulary: int, intermediate: int = 0) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate or 8 * hidden // 3 // 32 * 32,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )


class EveryFrame(nn.Module):
    """In the DTS's place: every frame's tokens as they are."""

    def forward(self, features: Tensor) -> Tensor:
        """``(groups, frames_per_group, rows, columns, dim)`` to ``(groups x frames_per_group, rows, columns, dim)``."""
        return features.flatten(0, 1)


@contextmanager
def in_arm(model: VideoLLM, arm: Arm) -> Iterator[None]:
    """The model as one of its arms."""
    compressor = model.dts
    if arm == "plain":
        model.dts = EveryFrame()
    try:
        yield
    finally:
        model.dts = compressor


def group_tokens(config: VideoLLMConfig, arm: Arm) -> int:
    """Visual tokens of a group of frames."""
    return config.tokens_per_group * (1 if arm == "compressed" else config.frames_per_group)


def formula_config(size: str, arm: Arm) -> VideoLLMConfig:
    """The arm for ``longtake.train.estimate``: the plain one has groups of one frame. Its stamps count as text."""
    config = SIZES[size]()
    config.frames_per_group = config.frames_per_group if arm == "compressed" else 1
    return config


def build_model(size: str, device: str, dtype: torch.dtype) -> VideoLLM:
    """Random weights, the same every time."""
    torch.manual_seed(0)
    with torch.device(device):
        return VideoLLM._from_config(SIZES[size](), dtype=dtype)


def build_backbone(size: str, device: str, dtype: torch.dtype) -> OwnVideoLLM:
    """The model behind its adapter, with the package's tokenizer; it never ends an answer by itself."""
    model = build_model(size, device, dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED, tokenizer_file=str(EMBEDDED / "tokenizer.json"))
    backbone = OwnVideoLLM(model, VideoLLMProcessor.from_config(tokenizer, model.config))
    with torch.no_grad():
        backbone.head.weight[backbone.end_id] = 0  # of random logits zero is never the largest
    return backbone


def chunks(config: VideoLLMConfig, num_frames: int) -> Iterator[Frames]:
    """Random frames of the model's own size, 1 a second, ``FRAMES_PER_PASS`` at a time."""
    side = config.vision_config.image_size
    shape = (min(FRAMES_PER_PASS, num_frames), 3, side, side)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for first in range(0, num_frames, FRAMES_PER_PASS):
        stop = min(first + FRAMES_PER_PASS, num_frames)
        yield Frames(pixels=pixels[: stop - first], seconds=np.arange(first, stop, dtype=np.float64))


@dataclass(slots=True)
class Clock:
    """Wall seconds by name; on an accelerator a lap ends when its work has ended."""

    device: str
    laps: dict[str, float] = field(default_factory=dict)
    _last: float = 0.0

    def start(self) -> None:
        """Begin a lap."""
        self._wait()
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a lap, add it to others of its name, and begin the next."""
        self._wait()
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now

    def _wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()


def seconds_now(device: str) -> float:
    """Processor seconds of this process, so that other work on the machine counts little; on an accelerator wall
    seconds, once its work has ended."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peaks() -> dict[str, float]:
    """The process's peak memory, and the device's since it was last reset, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    device = torch.cuda.max_memory_allocated() / MEGABYTE if torch.cuda.is_available() else 0.0
    return {"peak_mb": peak / (MEGABYTE if sys.platform == "darwin" else 1024), "device_peak_mb": device}


def limit_device(budget_gigabytes: float | None) -> None:
    """Keep to a share of the accelerator's memory, as if it had no more."""
    if budget_gigabytes is not None:
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, budget_gigabytes * GIGABYTE / whole))


def surroundings(device: str) -> dict[str, str]:
    """Device and versions, for a table that is to be kept."""
    name = torch.cuda.get_device_name() if device != "cpu" else f"{platform.machine()} CPU"
    return {
        "device": name,
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def in_own_process(script: str, *options: object) -> dict[str, Any]:
    """What a script prints as JSON: a process of its own, as peak memory never goes back."""
    command = [sys.executable, script, *map(str, options)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def run(
    options: argparse.Namespace,
    one: Callable[[argparse.Namespace], Any],
    measure: Callable[[argparse.Namespace, int], dict[str, Any]],
    show: Callable[[dict[str, Any]], None],
) -> None:
    """What a benchmark does with its options: print what ``--one`` asks of this process alone, or measure each length
    and print it, as JSON with ``--json``."""
    torch.set_num_threads(options.threads)
    limit_device(options.budget_gb)
    if options.one is not None:
        print(json.dumps(one(options)))
        return
    print(json.dumps(surroundings(options.device)))
    for num_frames in options.frames:
        found = measure(options, num_frames)
        print(json.dumps(found), flush=True) if options.json else show(found)


def add_options(parser: argparse.ArgumentParser, arms: Sequence[str] = ARMS) -> None:
    """What the benchmarks of arms are told."""
    parser.add_argument("--size", choices=SIZES, default="embedded")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--frames", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget-gb", type=float, help="stay below this on the accelerator")
    parser.add_argument("--json", action="store_true", help="print JSON objects")
    parser.add_argument("--one", choices=[*arms, "both"], help=argparse.SUPPRESS)  # measure in this process
