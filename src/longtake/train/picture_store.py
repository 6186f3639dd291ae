"""Tokens of puzzles' pictures on disk: encoded once, shared by all runs and arms whose models see alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from longtake.outputs import replaced
from longtake.types import LongtakeError, VisualTokens

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
SIDE = 64  # of the picture by which models are told apart
TENSORS = ("features", "position", "seconds", "weight")


def sight_of(encode: Callable[[Pixels], VisualTokens]) -> str:
    """What tells models that see differently from each other, whatever their language models: 12 hexadecimal digits.

    encode: a picture ``(1, 3, height, width)`` to its tokens; it is given a fixed one.
    """
    picture = np.random.default_rng(0).integers(0, 256, (1, 3, SIDE, SIDE), dtype=np.uint8)
    features = encode(picture).features
    told = f"{features.dtype}{tuple(features.shape)}".encode()
    return hashlib.sha256(told + features.float().cpu().numpy().tobytes()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureStore:
    """Tokens by frame file and picture, a file each. folder: of one model's; it is made where there is none."""

    folder: Path

    def get(self, file: str, name: str) -> VisualTokens | None:
        """A picture's tokens, on the CPU; None if they are not there, or cannot be read."""
        try:
            with safe_open(self._file(file, name), "pt") as stored:
                tensors = {tensor: stored.get_tensor(tensor) for tensor in TENSORS}
                groups, rows, columns = json.loads(stored.metadata()["grid"])
        except (OSError, SafetensorError):
            return None
        return VisualTokens(**tensors, grid=(groups, rows, columns))

    def put(self, file: str, name: str, tokens: VisualTokens) -> None:
        """Keep a picture's tokens, whole or not at all; where nothing can be written they are encoded again later."""
        tensors: dict[str, torch.Tensor] = {tensor: getattr(tokens, tensor).contiguous() for tensor in TENSORS}
        try:
            with replaced(self._file(file, name), make_folder=True) as scratch:
                save_file(tensors, scratch, metadata={"grid": json.dumps(tokens.grid)})
        except LongtakeError:
            return

    def _file(self, file: str, name: str) -> Path:
        return self.folder / Path(file).stem / f"{Path(name).stem}.safetensors"
