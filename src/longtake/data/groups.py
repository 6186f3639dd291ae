"""What a frozen compressor makes of stored features, on disk: computed once, shared by every epoch, run and process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from longtake.data.features import Features
from longtake.outputs import replaced


class GroupStore:
    """Compressed tokens of clips of a ``FeatureStore``, by the clip's name and the compressor.

    folder: where they are kept, in a folder for each compressor.
    compressor: what tells it, and all that it is given beside a clip, from others.
    compress: a clip's features ``(frames, rows, columns, dim)`` to tokens ``(groups, rows', columns', dim')``. Called
        without gradients; tokens are kept in the type that it gives, so that stored ones are those it would give again.
    """

    def __init__(self, folder: Path, compressor: str, compress: Callable[[Tensor], Tensor]) -> None:
        self.folder = folder / compressor
        self._compress = compress

    @torch.no_grad()
    def get(self, clip: Features) -> Tensor:
        """A clip's tokens, on the CPU; computed if they are not there, or cannot be read.

        Raises ValueError for features that no store has named, LongtakeError when tokens cannot be written.
        """
        if not clip.name:
            raise ValueError("these features have no name: they come from no store")
        file = self.folder / clip.name[:2] / f"{clip.name}.safetensors"
        try:
            with safe_open(file, "pt") as stored:
                tokens: Tensor = stored.get_tensor("tokens")
        except (FileNotFoundError, SafetensorError):
            tokens = self._compress(clip.features).cpu().contiguous()
            with replaced(file, make_folder=True) as scratch:
                save_file({"tokens": tokens}, scratch)
        return tokens
