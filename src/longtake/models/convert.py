"""Published Video-XL-Pro checkpoints to longtake's own form.

Two generations were released. The second (plain Qwen2, time stamps, ``WindowTimeToTokenAttention``) is taken; the
first (activation beacons) is another architecture and is refused. Only the released code was seen, not the
published files themselves: whatever does not fit is listed, nothing is guessed or left at random.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Config, SiglipVisionConfig

from longtake.models.processor import VideoLLMProcessor, stamp_text
from longtake.models.video_llm import VideoLLM, VideoLLMConfig
from longtake.types import LongtakeError

VIDEO_TOKEN = "<|vision_pad|>"
MOST_NAMED = 10  # weights that do not fit
DTS_PARTS = ("spatial", "temporal", "conv")
RENAMES = (
    (r"model\.vision_tower\.vision_tower\.vision_model\.", "vision_tower."),
    (r"model\.sae\.temporal_encoding", "dts.temporal_encoding"),
    (r"model\.mm_projector\.", "projector."),
    (r"model\.text_mlp\.", "scorer.text_mlp."),
    (r"model\.WindowTimeToTokenAttention\.", "scorer."),
    (r"model\.(embed_tokens|layers|norm)\.", r"language_model.model.\1."),
    (r"lm_head\.", "language_model.lm_head."),
)
# In the published files but without effect there: a projection that is never used, and a buffer.
UNUSED = (r"model\.WindowTimeToTokenAttention\.v_proj\..*", r".*\.embeddings\.position_ids")
# What the released code builds in; its config files need not say so, but may not say otherwise.
BUILT_IN = {
    "mm_spatial_pool_stride": 2,
    "mm_spatial_pool_mode": "average",
    "mm_projector_type": "mlp2x_gelu",
}


def so400m() -> SiglipVisionConfig:
    """The tower named in the released code, siglip-so400m-patch14-384, less its head and its last layer."""
    return SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=26,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
        vision_use_head=False,
    )


def convert(source: str | Path, destination: str | Path, vision: SiglipVisionConfig | None = None) -> tuple[str, ...]:
    """Writes a published Video-XL-Pro folder as a ``VideoLLM`` with its processor; returns the names left out.

    vision: the tower, when it is not the released code's own. The destination appears whole or not at all.

    Raises LongtakeError for another generation or architecture, with the list of what does not fit.
    """
    source, destination = Path(source), Path(destination)
    if destination.exists():
        raise LongtakeError(f"{destination} exists already; name a folder that does not")
    if not (source / "config.json").is_file():
        raise LongtakeError(f"{source} holds no config.json; name the folder of a published checkpoint")
    published = json.loads((source / "config.json").read_text())
    weights = read_weights(source)
    check_generation(source, weights)
    tokenizer = AutoTokenizer.from_pretrained(source)
    config = converted_config(published, tokenizer, vision or so400m())
    with torch.device("meta"):
        model = VideoLLM(config)
    dropped = load_renamed(model, weights)
    processor = VideoLLMProcessor.from_config(tokenizer, config)
    if "<|im_end|>" in tokenizer.get_vocab():
        model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}.") as scratch:
        whole = Path(scratch) / "whole"
        model.save_pretrained(whole)
        processor.save_pretrained(whole)
        whole.rename(destination)
    return dropped


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder by name, from safetensors or, failing that, ``pytorch_model*.bin``."""
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    if not weights:
        for path in sorted(folder.glob("pytorch_model*.bin")):
            weights |= torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not weights:
        raise LongtakeError(
            f"{folder} holds no weights; config.json needs *.safetensors or pytorch_model*.bin beside it"
        )
    return weights


def check_generation(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Raises LongtakeError unless the names are those of the second released generation."""
    if any("beacon_" in name for name in weights):
        raise LongtakeError(
            f"{folder} is a first-generation checkpoint (beacon_ weights), another architecture; use the later release"
        )
    for part, what in (("model.sae.", "the DTS"), ("model.WindowTimeToTokenAttention.", "the released selector")):
        if not any(name.startswith(part) for name in weights):
            raise LongtakeError(f"{folder} has no {part}* weights ({what}); is it a Video-XL-Pro checkpoint?")


def converted_config(
    published: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, vision: SiglipVisionConfig
) -> VideoLLMConfig:
    """Our config of a published one; what the released code builds in is written out."""
    expected = BUILT_IN | {"mm_hidden_size": vision.hidden_size}
    other = [f"{k} is {published[k]!r}, not {v!r}" for k, v in expected.items() if published.get(k, v) != v]
    if other:
        raise LongtakeError(f"the checkpoint's config does not fit Video-XL-Pro: {'; '.join(other)}")
    if VIDEO_TOKEN not in tokenizer.get_vocab():
        raise LongtakeError(
            f"the checkpoint's tokenizer has no {VIDEO_TOKEN}; copy the published tokenizer files beside it"
        )
    known = {*Qwen2Config().to_dict(), "rope_theta"} - {"model_type", "architectures", "transformers_version", "dtype"}
    return VideoLLMConfig(
        vision_config=vision,
        text_config=Qwen2Config(**{k: v for k, v in published.items() if k in known}),
        dts_grid=24,
        dts_layout="legacy",
        pool_after_projector=True,
        stamp_style="legacy",
        video_token_id=tokenizer.get_vocab()[VIDEO_TOKEN],
        scorer="legacy",
        legacy_stamp_tokens=len(tokenizer(stamp_text(0.0, "legacy"), add_special_tokens=False)["input_ids"]),
    )


def load_renamed(model: VideoLLM, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Gives a model (on the meta device) the published weights, in their own dtype; returns the names left out.

    Raises LongtakeError with names that are unknown, missing or of another shape: of many the first ones.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    dropped = tuple(sorted(name for name in weights if any(re.fullmatch(pattern, name) for pattern in UNUSED)))
    renamed: dict[str, Tensor] = {}
    misfits: list[str] = []
    for name in sorted(set(weights) - set(dropped)):
        ours = renamed_key(name)
        tensor = weights[name]
        if ours not in wanted:
            misfits.append(f"{name} is unknown")
            continue
        if ours.startswith("dts.") and not ours.endswith("conv.weight") and tensor.ndim > 2:
            tensor = tensor.flatten(1)  # a convolution over one place is a linear map
        if tuple(tensor.shape) != wanted[ours]:
            misfits.append(f"{name} has shape {tuple(tensor.shape)}, not {wanted[ours]}")
        renamed[ours] = tensor
    head, embedding = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
    if model.config.tie_word_embeddings and embedding in renamed:
        if not torch.equal(renamed.setdefault(head, renamed[embedding]), renamed[embedding]):
            misfits.append("lm_head.weight differs from the embedding it is tied to")
    misfits += [f"{name} is missing" for name in sorted(set(wanted) - set(renamed))]
    if misfits:
        more = f"; and {len(misfits) - MOST_NAMED} more" if len(misfits) > MOST_NAMED else ""
        raise LongtakeError(f"{len(misfits)} weights do not fit: {'; '.join(misfits[:MOST_NAMED])}{more}")
    model.load_state_dict(renamed, assign=True)
    model.tie_weights()
    model.config.dtype = model.dtype
    return dropped


def renamed_key(name: str) -> str:
    """Our name of a published weight; a name that is not known stays as it is."""
    part = re.fullmatch(r"model\.sae\.encoder\.(\d+)\.(?:conv\.)?(.+)", name)
    if part:
        place = int(part[1])
        return f"dts.stages.{place // 3}.{DTS_PARTS[place % 3]}.{part[2]}"
    for pattern, replacement in RENAMES:
        if re.match(pattern, name):
            return re.sub(rf"^{pattern}", replacement, name)
    return name
