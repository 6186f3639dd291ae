"""The frames of one video on disk: each picture once, beside it how the pictures compare.

A file is an uncompressed zip that any tool opens: pictures under names that say nothing of their place, in the order
of time; ``embeddings.npy`` (int16, see ``likeness.py``), ``neighbours.npy`` (cosines of neighbouring frames) and
``index.json``. Equal frames in, equal bytes out: no entry has a date.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longtake.types import LongtakeError

FORMAT = "longtake frames 1"
INDEX, EMBEDDINGS, NEIGHBOURS = "index.json", "embeddings.npy", "neighbours.npy"
JPEG_QUALITY = 90

Encoding = Literal["jpeg", "png"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameIndex:
    """What a frame file holds. names, seconds: of each frame, in the order of time; fps: of the stream.

    settings: all that pictures and embeddings depend on beside the video.
    """

    identity: str
    fps: float
    names: tuple[str, ...]
    seconds: tuple[float, ...]
    settings: Mapping[str, Any]


class _Archive:
    """An open zip, closed at the end of a ``with``."""

    _zip: zipfile.ZipFile

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()


class FrameWriter(_Archive):
    """Adds pictures one after the other; ``finish`` writes the rest. Use it in a ``with``."""

    def __init__(self, file: Path, identity: str, encoding: Encoding) -> None:
        self._zip = zipfile.ZipFile(file, "w")  # stored, not compressed
        self._identity, self._encoding = identity, encoding
        self.names: list[str] = []

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """Add the next frame, uint8 ``(3, height, width)``."""
        word = f"{self._identity} {len(self.names)}".encode()
        name = f"{hashlib.blake2b(word, digest_size=8).hexdigest()}.{'jpg' if self._encoding == 'jpeg' else 'png'}"
        self._put(name, encoded(pixels, self._encoding))
        self.names.append(name)

    def finish(self, index: FrameIndex, embeddings: NDArray[np.int16], neighbours: NDArray[np.float64]) -> None:
        """Add what belongs to all pictures."""
        for name, array in ((EMBEDDINGS, embeddings), (NEIGHBOURS, neighbours)):
            sink = io.BytesIO()
            np.save(sink, array)
            self._put(name, sink.getvalue())
        rest = {"identity": index.identity, "fps": index.fps, "names": index.names, "seconds": index.seconds}
        self._put(INDEX, json.dumps({"format": FORMAT, "settings": dict(index.settings), **rest}).encode())

    def _put(self, name: str, data: bytes) -> None:
        self._zip.writestr(zipfile.ZipInfo(name), data)  # dated 1980, as every entry


def encoded(pixels: NDArray[np.uint8], encoding: Encoding) -> bytes:
    """uint8 ``(3, height, width)`` as a picture file, without any metadata."""
    sink = io.BytesIO()
    options: dict[str, Any] = {"quality": JPEG_QUALITY} if encoding == "jpeg" else {"compress_level": 6}
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(sink, encoding, **options)
    return sink.getvalue()


class FrameFile(_Archive):
    """A written frame file, opened for reading; close it, or use it in a ``with``.

    Raises LongtakeError when it is missing or damaged.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self._zip = zipfile.ZipFile(file)
            told = json.loads(self._zip.read(INDEX))
            known = told.pop("format") == FORMAT
            self.index = FrameIndex(**told | {name: tuple(told[name]) for name in ("names", "seconds")})
        except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError) as error:
            raise self._unreadable(error) from error
        if not known:
            raise LongtakeError(f"{file} holds no frames in this version's format; remove it and run again")

    def embeddings(self) -> NDArray[np.int16]:
        """int16 ``(frames, dim)``, unit vectors times ``likeness.SCALE``."""
        return np.asarray(self._array(EMBEDDINGS), np.int16)

    def neighbours(self) -> NDArray[np.float64]:
        """The cosines of frames and those about a base interval later, float64."""
        return np.asarray(self._array(NEIGHBOURS), np.float64)

    def picture_bytes(self, name: str) -> bytes:
        """A frame's picture file."""
        try:
            return self._zip.read(name)
        except (OSError, zipfile.BadZipFile, KeyError) as error:
            raise self._unreadable(error) from error

    def pictures(self, names: Sequence[str]) -> NDArray[np.uint8]:
        """Decoded frames, uint8 RGB ``(frames, 3, height, width)``."""
        shown = [np.asarray(Image.open(io.BytesIO(self.picture_bytes(name))).convert("RGB")) for name in names]
        return np.stack(shown).transpose(0, 3, 1, 2)

    def entry_dates(self) -> set[tuple[int, ...]]:
        """Which dates the entries have."""
        return {entry.date_time for entry in self._zip.infolist()}

    def _array(self, name: str) -> NDArray[Any]:
        try:
            return np.asarray(np.load(io.BytesIO(self._zip.read(name)), allow_pickle=False))
        except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> LongtakeError:
        return LongtakeError(f"{self.file} cannot be read ({error}); remove it and run the synthesis again")
