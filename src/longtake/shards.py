"""Numbered files beside a memory to be, so that an interrupted watch continues where it was."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from longtake.memory import damage_in_one_line, read_tensors, token_tensors, tokens_of, write_tensors
from longtake.outputs import check_output, remove_abandoned
from longtake.types import LongtakeError, VisualTokens

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "longtake.shard"
SHARD = r"\.shard-\d{5}"  # what stands behind the target's name


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The tokens of consecutive whole groups, and their frames' spans, float64 ``(frames, 2)``, as in ``Frames``."""

    tokens: VisualTokens
    frame_spans: Tensor


@dataclass(slots=True, kw_only=True)
class Shards:
    """The shards of one watch: ``TARGET.shard-00000`` and so on, each naming the watch that it belongs to.

    watch: what shards must agree in to be continued: model, video identity and sampling, as one line of text.
    """

    target: Path
    watch: str
    count: int = field(default=0, init=False)

    def check(self) -> None:
        """Refuse names, which are longer than the target's, that cannot be written."""
        check_output(self._path(0))

    def resume(self) -> Iterator[Shard]:
        """The whole shards of this same watch, in order, each read when it is asked for."""
        while (path := self._path(self.count)).exists() and (shard := self._read(path)) is not None:
            self.count += 1
            yield shard

    def remove_rest(self) -> bool:
        """Remove the files behind those resumed, which are of another watch or broken; whether there were any."""
        rest = [path for path in self._files() if path >= self._path(self.count)]
        for path in rest:
            path.unlink(missing_ok=True)
        return bool(rest)

    def write(self, shard: Shard) -> None:
        """Write the next shard, whole or not at all. Raises LongtakeError when it cannot be written."""
        tensors = token_tensors(shard.tokens) | {"frame_spans": shard.frame_spans}
        header = {"watch": self.watch, "grid": shard.tokens.grid}
        write_tensors(self._path(self.count), tensors, FORMAT, header)
        self.count += 1

    def remove(self) -> None:
        """Remove every shard beside the target, and what killed writers of it and of them left."""
        for path in self._files():
            path.unlink(missing_ok=True)
        remove_abandoned(self.target, SHARD)

    def _path(self, index: int) -> Path:
        return self.target.with_name(f"{self.target.name}.shard-{index:05d}")

    def _files(self) -> list[Path]:
        own = re.compile(re.escape(self.target.name) + SHARD)
        folder = self.target.parent
        return sorted(folder / name for name in os.listdir(folder) if own.fullmatch(name))

    def _read(self, path: Path) -> Shard | None:
        try:
            tensors, header = read_tensors(path, FORMAT)
            with damage_in_one_line(path):
                if header["watch"] != self.watch:
                    return None
                return Shard(tokens=tokens_of(tensors, header["grid"]), frame_spans=tensors["frame_spans"])
        except LongtakeError:  # broken or of another version, or without spans: watched again
            return None
