"""A frozen tower's features on disk: computed once, shared by every epoch, run and process.

One file holds the features of one video under one sampling, or of one image. It is a safetensors file (tensors
``features`` and ``seconds``) whose header has room left, so that features are written as they come and an hour of video
never stands in memory. A file is written beside its place under a lock and renamed when whole; the lock is the
operating system's and ends with its process, so a killed process leaves nothing to clear up.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import longtake.video
from longtake.data.files import read_chunks
from longtake.types import Frames, LongtakeError, Sampling, VideoError

FORMAT = "longtake.features"
VERSION = "1"
HEADER_ROOM_BYTES = 512  # for shapes and offsets, which are known when all is written


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """A tower's features of frames, and when those are shown.

    features: bfloat16 ``(frames, rows, columns, dim)``; a view of a file where it comes from a store.
    seconds: float64 ``(frames,)``.
    name: tells them from all others of any store; "" where they come from none.
    """

    features: Tensor
    seconds: NDArray[np.float64]
    name: str = ""

    def __post_init__(self) -> None:
        if self.features.ndim != 4 or self.features.dtype != torch.bfloat16:
            got = f"{self.features.dtype} {tuple(self.features.shape)}"
            raise ValueError(f"features must be bfloat16 (frames, rows, columns, dim), got {got}")
        if self.seconds.shape != (len(self.features),) or self.seconds.dtype != np.float64:
            got = f"{self.seconds.dtype} {self.seconds.shape}"
            raise ValueError(f"seconds must be float64 ({len(self.features)},), got {got}")

    def __len__(self) -> int:
        return int(self.features.shape[0])

    def __repr__(self) -> str:
        return f"Features(features={tuple(self.features.shape)})"


class FeatureStore:
    """Tower features by file identity, sampling, tower and frame size.

    folder: where they are kept, in a folder for each tower.
    tower: what tells the tower from others, for example ``backbones.identity.weights_hash``.
    encode: frames to features ``(frames, rows, columns, dim)`` of any floating-point type. Called without gradients, by
        one thread at a time.
    frame_size: (height, width) that frames are read at; None keeps the video's.
    """

    def __init__(
        self,
        folder: Path,
        tower: str,
        encode: Callable[[Frames], Tensor],
        *,
        frame_size: tuple[int, int] | None = None,
        chunk_frames: int = 32,
    ) -> None:
        if Path(tower).name != tower:
            raise ValueError(f"tower is {tower!r}; it must serve as a folder's name")
        self.folder = folder / tower
        self.tower, self.frame_size, self.chunk_frames = tower, frame_size, chunk_frames
        self._encode = encode
        self._one_encodes = threading.Lock()
        self._identities: dict[tuple[str, int, int], str] = {}

    def get(self, path: Path, sampling: Sampling | None) -> Features:
        """The features of a video under a sampling, or with None those of an image; computed if they are not there.

        Whoever else wants the same features waits; other features are computed at the same time.

        Raises VideoError for media that cannot be read, LongtakeError when the store cannot be written.
        """
        key = self._key(path, sampling)
        file = self._file(key)
        part = file.with_name(f".{file.name}.part")
        while True:
            if (found := load(file, key)) is not None:
                return found
            with _locked(part) as sink:
                if sink is not None and load(file, key) is None:
                    self._write(sink, path, sampling, key)
                    os.replace(part, file)

    def prefill(
        self, items: Iterable[tuple[Path, Sampling | None]], progress: Callable[[int], None] | None = None
    ) -> dict[str, str]:
        """Compute what is not there yet, a chunk of frames in memory at a time.

        progress: called with the number of items done. Returns the broken media's paths, each with the reason.
        """
        broken: dict[str, str] = {}
        for done, (path, sampling) in enumerate(items, start=1):
            try:
                self.get(path, sampling)
            except VideoError as error:
                broken[str(path)] = str(error)
            if progress is not None:
                progress(done)
        return broken

    def _file(self, key: str) -> Path:
        name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def _key(self, path: Path, sampling: Sampling | None) -> str:
        parts = {
            "media": self._identity(path),
            "sampling": "image" if sampling is None else dataclasses.asdict(sampling),
            "tower": self.tower,
            "frame_size": self.frame_size,
        }
        return json.dumps(parts, sort_keys=True)

    def _identity(self, path: Path) -> str:
        """``longtake.video.identity``, asked again only when the file's size or time of change is another."""
        try:
            status = path.stat()
            seen = (str(path), status.st_size, status.st_mtime_ns)
            if seen not in self._identities:
                self._identities[seen] = longtake.video.identity(path)
        except OSError as error:
            raise VideoError(f"{path}: could not be read ({error.strerror}); check the path") from error
        return self._identities[seen]

    @torch.no_grad()
    def _write(self, sink: FileIO, path: Path, sampling: Sampling | None, key: str) -> None:
        """Write all features as they come, then the times, then the header in the room left for it."""
        metadata = {"format": FORMAT, "version": VERSION, "key": key}
        room = -(-(len(json.dumps(metadata)) + HEADER_ROOM_BYTES) // 8) * 8
        shape: list[int] = []
        seconds: list[float] = []
        sink.seek(8 + room)
        for frames in read_chunks(path, sampling, size=self.frame_size, chunk_frames=self.chunk_frames):
            with self._one_encodes:
                chunk = self._encode(frames).to("cpu", torch.bfloat16).contiguous()
            shape = shape or list(chunk.shape[1:])
            if chunk.ndim != 4 or len(chunk) != len(frames) or list(chunk.shape[1:]) != shape:
                raise ValueError(f"{len(frames)} frames were encoded as {tuple(chunk.shape)}; other frames as {shape}")
            seconds += frames.seconds.tolist()
            with _writing(path):
                _write_all(sink, chunk.view(torch.int16).numpy().tobytes())
        split = 2 * len(seconds) * math.prod(shape)
        stop = split + 8 * len(seconds)
        header = {
            "__metadata__": metadata,
            "features": {"dtype": "BF16", "shape": [len(seconds), *shape], "data_offsets": [0, split]},
            "seconds": {"dtype": "F64", "shape": [len(seconds)], "data_offsets": [split, stop]},
        }
        with _writing(path):
            _write_all(sink, np.array(seconds, np.float64).tobytes())
            sink.seek(0)
            _write_all(sink, room.to_bytes(8, "little") + json.dumps(header).encode().ljust(room))
            os.fsync(sink.fileno())


def load(file: Path, key: str) -> Features | None:
    """What a store's file holds, memory-mapped; None if it is absent, truncated, foreign or of another key.

    The mapping is copy-on-write: writing to the tensor never reaches the file.
    """
    try:
        with file.open("rb") as source:
            header, start = _header(source)
            if header.get("__metadata__") != {"format": FORMAT, "version": VERSION, "key": key}:
                return None
            split, stop = header["seconds"]["data_offsets"]
            if os.fstat(source.fileno()).st_size != start + stop:
                return None
            shape = tuple(header["features"]["shape"])
            source.seek(start + split)
            seconds = np.frombuffer(source.read(stop - split), np.float64).copy()
    except FileNotFoundError:
        return None
    # unlike numpy's, this mapping keeps no file open, so that there may be thousands
    mapped = torch.from_file(str(file), shared=False, size=(start + split) // 2, dtype=torch.bfloat16)
    return Features(features=mapped[start // 2 :].view(shape), seconds=seconds, name=file.stem)


def _header(source: BinaryIO) -> tuple[dict[str, Any], int]:
    """A safetensors file's header and where its data begin; an empty header for anything else."""
    size = int.from_bytes(source.read(8), "little")
    if size > os.fstat(source.fileno()).st_size:
        return {}, 0
    try:
        header = json.loads(source.read(size))
    except ValueError:
        return {}, 0
    return (header if isinstance(header, dict) else {}), 8 + size


@contextmanager
def _locked(part: Path) -> Iterator[FileIO | None]:
    """An empty file to write, ours alone; None if whoever had it moved it away while we waited.

    It is removed afterwards where it has not been renamed.
    """
    with _writing(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
    with os.fdopen(descriptor, "r+b", buffering=0) as sink:  # with a buffer, closing could fail once more
        fcntl.flock(sink, fcntl.LOCK_EX)
        if not _names(part, sink):
            yield None
            return
        try:
            sink.truncate()
            yield sink
        finally:
            if _names(part, sink):
                part.unlink()


def _names(path: Path, opened: FileIO) -> bool:
    """Whether a path still names an opened file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(opened.fileno()))
    except FileNotFoundError:
        return False


def _write_all(sink: FileIO, data: bytes) -> None:
    """Write all bytes: an unbuffered write may take only a part."""
    left = memoryview(data)
    while len(left):
        left = left[sink.write(left) :]


@contextmanager
def _writing(what: Path) -> Iterator[None]:
    """Tell a failure to write as one line for the user."""
    try:
        yield
    except OSError as error:
        raise LongtakeError(
            f"could not store the features of {what}: {error.strerror}; free space or choose another folder"
        ) from error
