"""Low-rank weights beside a decoder's own: put there, switched off, merged. LoRA, arXiv 2106.09685, through peft."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from longtake.types import LongtakeError

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def add(module: nn.Module, rank: int, alpha: float) -> None:
    """Put trained float32 weights beside every linear layer of the decoder's blocks; its own no longer need a gradient.

    alpha: their scale over the rank. Raises LongtakeError where it is not above 0.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if alpha <= 0:
        raise LongtakeError(f"lora_alpha is {alpha}; it must be above 0, or LoRA learns nothing")
    scale: Any = alpha  # peft says int, and divides it by the rank
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=scale, target_modules=LAYERS), module)
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(torch.float32)


@contextmanager
def switched_off(module: nn.Module) -> Iterator[None]:
    """Switch LoRA off for a block: the module is then the reference policy of one that trains by LoRA."""
    layers = _layers(module).values()
    assert layers, "there is no LoRA to switch off"
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merge(module: nn.Module) -> None:
    """Add LoRA's weights to the decoder's, which is then as if it had none."""
    for name, layer in _layers(module).items():
        layer.merge()
        module.set_submodule(name, layer.get_base_layer())


def _layers(module: nn.Module) -> dict[str, Any]:
    """The layers that have low-rank weights beside their own, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}
