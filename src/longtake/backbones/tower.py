"""A vision tower for comparing frames: by itself, as ``train/embedded/eyes.py`` leaves it, or with random weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from transformers import SiglipVisionModel

from longtake.backbones.identity import weights_hash
from longtake.backbones.language import Model, load_weights, pixels_of
from longtake.backbones.place import place_of
from longtake.models.preprocess import normalised_pixels
from longtake.types import Frames, LongtakeError, first_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """A SigLIP tower; its verb is ``features``. name: architecture and a hash of the weights, for provenance.

    A tower that was trained to compare frames by so many places a side has ``places`` in its config, and gives each
    frame as one vector of these.
    """

    model: SiglipVisionModel
    name: str = field(init=False)

    def __post_init__(self) -> None:
        suffix = f"-by-{self.places}" if self.places else ""
        object.__setattr__(self, "name", f"{self.model.config.model_type}-{weights_hash(self.model)}{suffix}")

    @classmethod
    def load(cls, folder: Path, device: str | None = None) -> Tower:
        """The tower in the folder that ``save_pretrained`` wrote, in float32.

        device: None means the accelerator if there is one. Raises LongtakeError for a folder that holds no such tower.
        """
        place = place_of(device)
        if not (folder / "config.json").is_file():
            raise LongtakeError(f"{folder}: there is no config.json in it; give the folder that a tower was saved in")
        try:
            return cls(model=load_weights(SiglipVisionModel, str(folder), place, torch.float32))
        except (OSError, RuntimeError, SafetensorError) as error:
            told = first_line(error)
            raise LongtakeError(f"{folder}: the tower cannot be loaded ({told}); copy or train it again") from error

    @property
    def side(self) -> int:
        """Height and width of a picture, pixels."""
        return cast(int, self.model.config.image_size)

    @property
    def places(self) -> int:
        """How many places a side its vectors have; 0: it has no places of its own."""
        return int(getattr(self.model.config, "places", 0))

    @torch.no_grad()
    def features(self, frames: Frames) -> Tensor:
        """Each frame alone: ``(frames, rows, columns, dim)``, or ``(frames, 1, 1, places x places x dim)``."""
        pixels = normalised_pixels(pixels_of(frames, self.model.device), (self.side, self.side))
        grid = on_grid(self.model, pixels)
        return by_places(grid, self.places)[:, None, None] if self.places else grid


def on_grid(model: SiglipVisionModel, pixels: Tensor) -> Tensor:
    """Normalised frames ``(frames, 3, side, side)`` to ``(frames, rows, columns, dim)``; differentiable."""
    patches = cast(int, model.config.image_size) // cast(int, model.config.patch_size)
    states: Tensor = model(pixels).last_hidden_state
    grid: Tensor = states.unflatten(1, (patches, patches))
    return grid


def by_places(features: Tensor, places: int) -> Tensor:
    """``(frames, rows, columns, dim)`` as means of ``places`` by ``places``, end to end: ``(frames, dim)``."""
    return F.adaptive_avg_pool2d(features.permute(0, 3, 1, 2), places).flatten(1)


def lower_part(model: SiglipVisionModel, layers: int) -> SiglipVisionModel:
    """A copy of the first ``layers`` of a tower, in eval mode; with all of them the tower itself.

    The norm at the end was trained for the last layer, so that a part's has no weights yet: it scales and no more.
    Raises LongtakeError where the tower has no such part.
    """
    count = model.config.num_hidden_layers
    if not 0 < layers <= count:
        raise LongtakeError(f"layers is {layers}; it must be from 1 to {count}, which the tower has")
    if layers == count:
        return model
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    part: Any = SiglipVisionModel(config)
    part.to(model.device, model.dtype)
    kept = {name for name in part.state_dict() if not name.startswith("post_layernorm")}
    part.load_state_dict({name: own for name, own in model.state_dict().items() if name in kept}, strict=False)
    return cast(SiglipVisionModel, part.eval())


def redrawn(model: Model, seed: int) -> Model:
    """A model of the same architecture with random weights; its language model, which no tower needs, has one layer."""
    config = copy.deepcopy(model.config)
    config.get_text_config().num_hidden_layers = 1  # there may be billions of weights
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh: Any = type(model)(config)
    return cast(Model, fresh.to(model.device, model.dtype).eval())
