"""Clips of tower features for pre-training the compressor: a few frames in a row of a video, or an image repeated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtake.data.features import FeatureStore
from longtake.data.left_out import Broken, LeftOut
from longtake.data.probe_world.bank import Placed, read_events
from longtake.types import LongtakeError, Sampling, VideoError

Part = Literal["train", "held_out"]

HELD_OUT = 0.1  # share of a bank's videos, the last ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Clips:
    """A batch of clips as tower features.

    features: ``(clips, frames, rows, columns, dim)``, bf16 as on disk. is_image: bool ``(clips,)``, True where all
    frames are one image repeated. oracle: bool ``(clips, frames, rows, columns)``, True where a needle is; None where
    nobody knows.
    """

    features: Tensor
    is_image: Tensor
    oracle: Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.features.shape)
        if len(shape) != 5:
            raise ValueError(f"features must be (clips, frames, rows, columns, dim), got {shape}")
        if tuple(self.is_image.shape) != shape[:1] or self.is_image.dtype != torch.bool:
            raise ValueError(
                f"is_image must be bool ({shape[0]},), got {self.is_image.dtype} {tuple(self.is_image.shape)}"
            )
        if self.oracle is not None and (tuple(self.oracle.shape) != shape[:4] or self.oracle.dtype != torch.bool):
            raise ValueError(f"oracle must be bool {shape[:4]}, got {self.oracle.dtype} {tuple(self.oracle.shape)}")

    def __len__(self) -> int:
        return int(self.features.shape[0])

    def __repr__(self) -> str:
        return f"Clips(features={tuple(self.features.shape)})"


class ClipSource(Protocol):
    """Anything that batches are drawn from."""

    def draw(self, rng: np.random.Generator, clips: int) -> Clips:
        """A batch of ``clips``; depends on the state of ``rng`` alone."""


class CountedClips(ClipSource, Protocol):
    """A ``ClipSource`` of files that may be broken."""

    broken: Broken


class BankClips:
    """Windows of a bank's videos (``probe_world/bank.py``), and single frames of them as images; needles are known.

    The bank records where the middle of a card or a moving shape is, not its size: the oracle marks the patch with the
    middle and its neighbours, 3x3. Cards are mostly larger, moving shapes about that size.

    folder: the bank's. grid: (rows, columns) of a frame's features. dim: their width. frames: of a clip.
    image_share: how many of the clips are images. part: "held_out" is the last tenth of the videos, "train" the rest.
    """

    def __init__(
        self,
        folder: Path,
        *,
        grid: tuple[int, int],
        dim: int,
        frames_per_video: int,
        frames: int = 4,
        image_share: float = 0.25,
        part: Part = "train",
    ) -> None:
        events = [placed for _, placed in read_events(folder)]
        shape = (len(events), frames_per_video, *grid, dim)
        raw = np.memmap(folder / "features.bin", np.int16, "r")
        if not 1 <= frames <= frames_per_video:
            raise LongtakeError(f"a clip has {frames} frames; give at least 1 and at most a video's {frames_per_video}")
        if raw.size < math.prod(shape):
            raise LongtakeError(
                f"{folder}: features.bin holds {raw.size} values, fewer than {shape} = {math.prod(shape)}; "
                "give the grid, dim and frames_per_video that the bank was built with"
            )
        first_held_out = int(len(events) * (1 - HELD_OUT))
        videos = slice(0, first_held_out) if part == "train" else slice(first_held_out, None)
        self.events = events[videos]
        if not self.events:
            raise LongtakeError(f"{folder}: no video of {len(events)} is left for the part {part!r}; build more")
        self.features = raw[: math.prod(shape)].reshape(shape)[videos]
        self.grid, self.frames, self.image_share = grid, frames, image_share

    def draw(self, rng: np.random.Generator, clips: int) -> Clips:
        """Windows that begin anywhere in any video."""
        is_image = rng.random(clips) < self.image_share
        videos = rng.integers(len(self.events), size=clips)
        begins = rng.integers(self.features.shape[1] - self.frames + 1, size=clips)
        steps = np.where(is_image[:, None], 0, np.arange(self.frames))
        shown = begins[:, None] + steps
        oracle = [needle_patches(self.events[v], at, self.grid) for v, at in zip(videos, shown, strict=True)]
        return Clips(
            features=torch.from_numpy(self.features[videos[:, None], shown]).view(torch.bfloat16),
            is_image=torch.from_numpy(is_image),
            oracle=torch.from_numpy(np.stack(oracle)),
        )


def needle_patches(events: Sequence[Placed], frames: NDArray[np.int64], grid: tuple[int, int]) -> NDArray[np.bool_]:
    """Bool ``(frames, rows, columns)``: the patch with a needle's middle and its neighbours, on these frames."""
    rows, columns = grid
    patches = np.zeros((len(frames), rows, columns), np.bool_)
    for event in events:
        for place, frame in enumerate(frames):
            if event.what is not None and event.first <= frame < event.stop:
                x, y = event.centres[frame - event.first]
                row, column = int(y * rows), int(x * columns)
                patches[place, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = True
    return patches


class StoreClips:
    """Windows of videos in a feature store, and images repeated.

    A video shorter than a clip is filled with its last frame, as the model does. Broken media are left out and
    another file is drawn in their place: ``broken`` has their paths and the reasons.

    videos, images: files, each as likely as another of its kind. sampling: the videos'. frames: of a clip.
    image_share: how many of the clips are images. max_broken: share of all files above which drawing raises
    LongtakeError, as it does where all of a kind are broken.
    """

    def __init__(
        self,
        store: FeatureStore,
        videos: Sequence[Path],
        images: Sequence[Path] = (),
        *,
        sampling: Sampling,
        frames: int = 4,
        image_share: float = 0.25,
        max_broken: float = 0.01,
    ) -> None:
        for name, files, used in (("videos", videos, image_share < 1), ("images", images, image_share > 0)):
            if used and not files:
                other = 0 if name == "images" else 1
                raise LongtakeError(
                    f"there are no {name}, but image_share is {image_share}; give some, or set image_share={other}"
                )
        self.store, self.sampling = store, sampling
        self.videos, self.images = list(videos), list(images)
        self.frames, self.image_share = frames, image_share
        count = len(self.videos) + len(self.images)
        self.broken = Broken(count=count, share=max_broken, what="files are broken or missing")

    def draw(self, rng: np.random.Generator, clips: int) -> Clips:
        """Windows that begin anywhere in a video."""
        is_image = rng.random(clips) < self.image_share
        return Clips(
            features=torch.stack([self._one(rng, bool(image)) for image in is_image]),
            is_image=torch.from_numpy(is_image),
        )

    def _one(self, rng: np.random.Generator, image: bool) -> Tensor:
        """One clip, ``(frames, rows, columns, dim)``, of the first file drawn that is not broken."""
        files, sampling = (self.images, None) if image else (self.videos, self.sampling)
        while True:
            path = files[int(rng.integers(len(files)))]
            try:
                features = self.store.get(path, sampling).features
            except VideoError as error:
                self._note(path, error, files)
                continue
            begin = int(rng.integers(max(1, len(features) - self.frames + 1)))
            return features[(begin + torch.arange(self.frames)).clamp_max(len(features) - 1)]

    def _note(self, path: Path, error: VideoError, kind: list[Path]) -> None:
        """Count a broken file. Raises LongtakeError when they are too many, or all of a kind."""
        self.broken.add(LeftOut(name=str(path), reason=str(error)))
        self.broken.check()
        if all(str(file) in self.broken.names for file in kind):
            raise LongtakeError(
                f"all {len(kind)} {'images' if kind is self.images else 'videos'} are broken or missing "
                f"(the last: {error}); mend or remove them"
            ) from error
