"""Video language models behind one adapter; ``load_backbone`` picks the family from a checkpoint's config."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.types import LongtakeError, first_line

if TYPE_CHECKING:
    import torch

    from longtake.backbones.base import Backbone

__all__ = ["load_backbone"]

# model_type in config.json -> module and class; a new family is a file and a line here
FAMILIES = {
    "longtake_video_llm": ("longtake.backbones.own", "OwnVideoLLM"),
    "qwen2_5_vl": ("longtake.backbones.qwen_vl", "QwenVL"),
}


def load_backbone(path: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Backbone:
    """The backbone of a model's folder or hub id; ``dtype`` None keeps the checkpoint's own.

    Raises LongtakeError when there is no checkpoint, when it is of another architecture, or does not fit its config.
    """
    from safetensors import SafetensorError

    model_type = _model_type(path)
    if model_type not in FAMILIES:
        raise LongtakeError(
            f"{path}: the architecture is {model_type!r}, which longtake has no backbone for; "
            f"give a checkpoint of one of: {', '.join(FAMILIES)}"
        )
    module, family = FAMILIES[model_type]
    try:
        backbone: Backbone = getattr(importlib.import_module(module), family).load(path, device, dtype)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise LongtakeError(
            f"{path}: the checkpoint cannot be loaded ({first_line(error)}); copy or download it again"
        ) from error
    return backbone


def _model_type(path: str) -> str | None:
    """What config.json says of the architecture."""
    from transformers import PreTrainedConfig

    from longtake.backbones.place import check_source

    check_source(path)
    if Path(path).exists() and not (Path(path) / "config.json").is_file():
        raise LongtakeError(f"{path}: there is no config.json in it; give the folder that save_pretrained wrote")
    try:
        config: dict[str, Any] = PreTrainedConfig.get_config_dict(path)[0]
    except (OSError, ValueError) as error:
        raise LongtakeError(
            f"{path}: neither a readable model folder nor a hub id that can be reached ({first_line(error)}); "
            "check the path, or download the model first"
        ) from error
    return config.get("model_type")
