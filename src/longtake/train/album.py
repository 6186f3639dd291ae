"""The pictures of a folder of puzzles as backbones see them: each encoded alone, once, and kept while there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from longtake.backbones.base import Backbone
from longtake.data.puzzles.framefile import FrameFile
from longtake.types import Frames, VisualTokens

Key = tuple[str, str, bool]  # frame file, name, whether the parts behind the tower learn


@dataclass(slots=True, kw_only=True)
class Album:
    """Pictures by frame file and name. folder: of the synthesis. room_bytes: of what is kept for each backbone.

    What is kept stands on the CPU: a picture's tokens, or while the parts behind the tower learn (a weight of theirs
    needs a gradient) its tower features, which then pass those parts each time. A picture is encoded by itself, so that
    its tokens depend on it alone: missing frames and distractors are made alike, and a run that goes on sees the same.
    """

    folder: Path
    room_bytes: int = 4 << 30
    _shelves: WeakKeyDictionary[Backbone, Shelf] = field(default_factory=WeakKeyDictionary, init=False)

    def tokens(self, backbone: Backbone, file: str, names: Sequence[str]) -> list[VisualTokens]:
        """Each picture's tokens, a time group of its own; differentiable where the parts behind the tower learn."""
        if (shelf := self._shelves.get(backbone)) is None:
            weights = tuple(weight for part in backbone.video_parts for weight in part.parameters())
            shelf = self._shelves[backbone] = Shelf(room_bytes=self.room_bytes, weights=weights)
        learns = any(weight.requires_grad for weight in shelf.weights)
        wanted: dict[Key, Tensor | VisualTokens | None] = {
            key: shelf.get(key) for key in ((file, name, learns) for name in names)
        }
        if missing := [key for key, held in wanted.items() if held is None]:
            with FrameFile(self.folder / file) as frames:
                made = {key: encoded(backbone, frames.pictures([key[1]]), learns) for key in missing}
            for key, held in made.items():
                shelf.put(key, held)
            wanted |= made
        found = [wanted[file, name, learns] for name in names]
        return [tokens_of(backbone, held) if isinstance(held, Tensor) else held for held in found if held is not None]


@dataclass(slots=True, kw_only=True)
class Shelf:
    """A cache of pictures of at most ``room_bytes`` bytes; what was used longest ago makes room.

    weights: of the parts behind the tower.
    """

    room_bytes: int
    weights: tuple[torch.nn.Parameter, ...] = ()
    taken_bytes: int = field(default=0, init=False)
    held: OrderedDict[Key, Tensor | VisualTokens] = field(default_factory=OrderedDict, init=False)

    def get(self, key: Key) -> Tensor | VisualTokens | None:
        """The picture's tokens or features; None if it was never put there, or had to make room."""
        if key in self.held:
            self.held.move_to_end(key)
        return self.held.get(key)

    def put(self, key: Key, value: Tensor | VisualTokens) -> None:
        """Keep a picture's tokens or features; what was used longest ago is dropped until they fit."""
        self.held[key] = value
        self.taken_bytes += _bytes(value)
        while self.taken_bytes > self.room_bytes:
            self.taken_bytes -= _bytes(self.held.popitem(last=False)[1])


@torch.no_grad()
def encoded(backbone: Backbone, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], learns: bool) -> (
    Tensor | VisualTokens
):
    """One picture ``(1, 3, height, width)``, on the CPU: its tokens, or its tower features where what follows learns.

    Without autocast, so that it is the same whoever asks first.
    """
    with torch.autocast(backbone.device.type, enabled=False):
        features = backbone.tower_features(Frames(pixels=pixels, seconds=np.zeros(1)))
        if learns:
            return features.cpu()
        return tokens_of(backbone, features).cpu()


def tokens_of(backbone: Backbone, features: Tensor) -> VisualTokens:
    """A picture's tokens from its tower features, at time 0, which nobody is told."""
    return backbone.encode_features(features, torch.zeros(1, dtype=torch.float64))


def one_video(pictures: Sequence[VisualTokens], seconds: Sequence[float]) -> VisualTokens:
    """Pictures of equal grid as the groups of one video that begin at these times."""
    _, rows, columns = pictures[0].grid
    counts = torch.tensor([len(picture) for picture in pictures])
    groups = torch.arange(len(pictures)).repeat_interleave(counts).to(pictures[0].position.device)
    position = torch.cat([picture.position for picture in pictures])
    return VisualTokens(
        features=torch.cat([picture.features for picture in pictures]),
        position=torch.cat([groups[:, None], position[:, 1:]], dim=1),
        seconds=torch.tensor(seconds, dtype=torch.float64)[groups.cpu()].to(position.device),
        weight=torch.cat([picture.weight for picture in pictures]),
        grid=(len(pictures), rows, columns),
    )


def _bytes(held: Tensor | VisualTokens) -> int:
    features = held if isinstance(held, Tensor) else held.features
    return features.numel() * features.element_size()
