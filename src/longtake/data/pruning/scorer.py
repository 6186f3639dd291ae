"""One video to its redundancy score, the same whichever process computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import longtake.video
from longtake.data.pruning.redundancy import FRAMES, Feature, Pairs, similarity
from longtake.data.threads import one_thread
from longtake.types import Frames, Sampling, VideoError

Key = tuple[str, float | None, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoPart:
    """A video that a data set names, or a span of one. name: its path as seen from the media folder."""

    name: str
    path: Path
    start_seconds: float | None = None
    stop_seconds: float | None = None

    @property
    def key(self) -> Key:
        """What tells the parts of a data set apart."""
        return self.name, self.start_seconds, self.stop_seconds

    def file_state(self) -> tuple[int, int] | None:
        """Bytes and time of the last change (ns), by which a replaced file is noticed; None where there is no file."""
        if not self.path.is_file():
            return None
        found = self.path.stat()
        return found.st_size, found.st_mtime_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A part's score, or the problem for which it has none; file_state as it was when the file was read.

    warning: what is odd about a file whose frames could all be read, such as a header that promises more of them.
    """

    part: VideoPart
    file_state: tuple[int, int] | None
    score: float | None = None
    problem: str | None = None
    warning: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Frames through a frozen tower to a score.

    encode: frames to features ``(frames, rows, columns, dim)``. size: (height, width) to read frames at; None: their
    own. settings: by name all that scores depend on, as strings and numbers: the "model", its "device", the choices.
    """

    encode: Callable[[Frames], Tensor]
    size: tuple[int, int] | None
    pairs: Pairs
    feature: Feature
    settings: Mapping[str, Any]

    def score(self, part: VideoPart) -> Scored:
        """Score a part, on one thread, so that no score depends on how many processes share the machine.

        A file that is missing, no video, or damaged where it is looked at has a problem instead.
        """
        state = part.file_state()
        try:
            frames, warnings = read_frames(part, FRAMES, self.size)
        except VideoError as error:
            return Scored(part=part, file_state=state, problem=" ".join(str(error).split()))
        with one_thread():
            features = distinct_features(frames, self.encode)
        score = similarity(features, self.pairs, self.feature)
        return Scored(part=part, file_state=state, score=score, warning="; ".join(warnings) or None)


def read_frames(part: VideoPart, count: int, size: tuple[int, int] | None) -> tuple[Frames, tuple[str, ...]]:
    """``count`` uniform frames, exactly those shown then (a video of fewer repeats some), and the reader's warnings.

    Raises VideoError for a file that is missing, no video, or damaged where these frames are.
    """
    start, stop = part.start_seconds, part.stop_seconds
    sampling = Sampling(count=count, exact=True, start_seconds=start, stop_seconds=stop)
    reading = longtake.video.read(part.path, sampling, size=size, threads=1)
    with closing(reading):
        chunks = list(reading)
    if reading.losses:
        raise VideoError(f"{part.path}: {'; '.join(reading.losses)}; mend the file or take it out of the data")
    pixels = np.concatenate([chunk.pixels for chunk in chunks])
    return Frames(pixels=pixels, seconds=np.concatenate([chunk.seconds for chunk in chunks])), reading.warnings


def distinct_features(frames: Frames, encode: Callable[[Frames], Tensor]) -> NDArray[np.float32]:
    """Features ``(frames, places, dim)``. Equal frames are encoded once, so that their features are equal to the bit.

    (In one batch they need not be: a kernel may treat the last rows of a batch otherwise than the first.)
    """
    numbers: dict[bytes, int] = {}
    rows = [numbers.setdefault(picture.tobytes(), len(numbers)) for picture in frames.pixels]
    first = [rows.index(number) for number in range(len(numbers))]
    with torch.no_grad():
        features = encode(Frames(pixels=frames.pixels[first], seconds=frames.seconds[first]))
    found: NDArray[np.float32] = features.flatten(1, -2).float().cpu().numpy()[rows]
    return found
