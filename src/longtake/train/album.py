"""The pictures of a folder of puzzles as backbones see them: each encoded alone, once, and kept while there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from longtake.backbones.base import Backbone
from longtake.data.puzzles.framefile import FrameFile
from longtake.train.picture_store import PictureStore, Pixels, sight_of
from longtake.types import Frames, VisualTokens

Held = Tensor | VisualTokens
Key = tuple[str, str, bool]  # frame file, name, whether the parts behind the tower learn


@dataclass(slots=True, kw_only=True)
class Album:
    """Pictures by frame file and name. folder: of the synthesis. room_bytes: of what is in memory for each backbone.
    kept: a folder in which tokens stay for other runs, by what the model makes of pictures; None for none.

    What is in memory stands on the CPU: a picture's tokens, or while the parts behind the tower learn (a weight of
    theirs needs a gradient) its tower features, which then pass those parts each time. A picture is encoded by itself,
    so that its tokens depend on it alone: missing frames and distractors are made alike, and a run that goes on sees
    the same.
    """

    folder: Path
    room_bytes: int = 4 << 30
    kept: Path | None = None
    _shelves: WeakKeyDictionary[Backbone, Shelf] = field(default_factory=WeakKeyDictionary, init=False)

    def tokens(self, backbone: Backbone, file: str, names: Sequence[str]) -> list[VisualTokens]:
        """Each picture's tokens, a time group of its own; differentiable where the parts behind the tower learn."""
        if (shelf := self._shelves.get(backbone)) is None:
            weights = tuple(weight for part in backbone.video_parts for weight in part.parameters())
            shelf = self._shelves[backbone] = Shelf(room_bytes=self.room_bytes, weights=weights)
        learns = any(weight.requires_grad for weight in shelf.weights)
        wanted: dict[Key, Held | None] = {
            key: shelf.get(key) for key in ((file, name, learns) for name in names)
        }
        if missing := [key for key, held in wanted.items() if held is None]:
            made = self._made(backbone, shelf, file, missing)
            for key, held in made.items():
                shelf.put(key, held)
            wanted |= made
        found = [wanted[file, name, learns] for name in names]
        return [tokens_of(backbone, held) if isinstance(held, Tensor) else held for held in found if held is not None]

    def _made(self, backbone: Backbone, shelf: Shelf, file: str, keys: Sequence[Key]) -> dict[Key, Held]:
        """Pictures of one frame file that are not in memory: as they were kept, or encoded and kept."""
        learns = keys[0][2]
        if self.kept is not None and shelf.store is None and not learns:
            shelf.store = PictureStore(folder=self.kept / sight_of(partial(encoded_tokens, backbone)))
        store = None if learns else shelf.store
        made: dict[Key, Held] = {}
        for key in keys:
            if store is not None and (kept := store.get(file, key[1])) is not None:
                made[key] = kept
        if len(made) == len(keys):
            return made
        with FrameFile(self.folder / file) as frames:
            for key in keys:
                if key not in made:
                    made[key] = held = encoded(backbone, frames.pictures([key[1]]), learns)
                    if store is not None and isinstance(held, VisualTokens):
                        store.put(file, key[1], held)
        return made


@dataclass(slots=True, kw_only=True)
class Shelf:
    """A cache of pictures of at most ``room_bytes`` bytes; what was used longest ago makes room.

    weights: of the parts behind the tower. store: of their tokens on disk.
    """

    room_bytes: int
    weights: tuple[torch.nn.Parameter, ...] = ()
    store: PictureStore | None = None
    taken_bytes: int = field(default=0, init=False)
    held: OrderedDict[Key, Held] = field(default_factory=OrderedDict, init=False)

    def get(self, key: Key) -> Held | None:
        """The picture's tokens or features; None if it was never put there, or had to make room."""
        if key in self.held:
            self.held.move_to_end(key)
        return self.held.get(key)

    def put(self, key: Key, value: Held) -> None:
        """Keep a picture's tokens or features; what was used longest ago is dropped until they fit."""
        self.held[key] = value
        self.taken_bytes += _bytes(value)
        while self.taken_bytes > self.room_bytes:
            self.taken_bytes -= _bytes(self.held.popitem(last=False)[1])


@torch.no_grad()
def encoded(backbone: Backbone, pixels: Pixels, learns: bool) -> Held:
    """One picture ``(1, 3, height, width)``, on the CPU: its tokens, or its tower features where what follows learns.

    Without autocast, so that it is the same whoever asks first.
    """
    with torch.autocast(backbone.device.type, enabled=False):
        features = backbone.tower_features(Frames(pixels=pixels, seconds=np.zeros(1)))
        return features.cpu() if learns else tokens_of(backbone, features).cpu()


def encoded_tokens(backbone: Backbone, pixels: Pixels) -> VisualTokens:
    """One picture's tokens, on the CPU, whatever learns."""
    made = encoded(backbone, pixels, learns=False)
    assert isinstance(made, VisualTokens)
    return made


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


def _bytes(held: Held) -> int:
    features = held if isinstance(held, Tensor) else held.features
    return features.numel() * features.element_size()
