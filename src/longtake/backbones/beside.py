"""Latents beside a Hugging Face model whose class is not ours: their settings in its config, their weights in a file.

The rest of the folder stays what transformers itself writes and reads.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from longtake.models.latent import LatentInjection, LatentSettings
from longtake.types import LongtakeError

FILE = "latent.safetensors"
PREFIX = "latent."


def save_beside(model: PreTrainedModel, folder: Path) -> None:
    """Write the model, and what makes its latents where it has that."""
    state = model.state_dict()
    own = {name.removeprefix(PREFIX): state.pop(name).contiguous() for name in list(state) if name.startswith(PREFIX)}
    model.save_pretrained(folder, state_dict=state)
    if own:
        save_file(own, folder / FILE, metadata={"format": "pt"})


def load_beside(model: PreTrainedModel, path: str) -> None:
    """Put back what ``save_beside`` left, on the model's device and in its floating-point type."""
    settings = getattr(model.config, "latent", None)
    if settings is None:
        return
    file = cached_file(path, FILE, _raise_exceptions_for_missing_entries=False)
    if file is None:
        raise LongtakeError(f"{path}: the config has latents, but {FILE} is not there; copy the whole folder again")
    table = model.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    module = LatentInjection(table.shape[1], LatentSettings.of(settings))
    module.load_state_dict(load_file(file))
    model.latent = module.to(model.device, model.dtype).eval()
