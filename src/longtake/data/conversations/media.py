"""The media of conversations, read with variable sampling: the same for the same (seed, epoch, conversation).

Paper: Video-XL-Pro, arXiv 2503.18478, section 3.3. Short videos are sampled at a random rate ("2 fps, 3 fps, etc."),
long ones at 1 fps, and never more than 360 frames are taken. Where short ends is not said there; 60 s is ours, as are
the two rates, and uniform sampling above the cap (said there of 240 frames, in the settings of fine-tuning).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import longtake.video
from longtake.data.conversations.conversations import Conversation, Media
from longtake.data.features import Features, FeatureStore
from longtake.data.files import read_chunks
from longtake.types import Frames, LongtakeError, Sampling, VideoError
from longtake.video.plan import fps_times

MediaClip = Frames | Features

CHUNK_FRAMES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class VariableSampling:
    """Rates by the length of the video, or of its span where a conversation is about one.

    short_seconds: below it a video is short. short_fps: one of these, by chance. max_frames: above it, that many
    frames uniformly over the whole.
    """

    short_seconds: float = 60.0
    short_fps: tuple[float, ...] = (2.0, 3.0)
    long_fps: float = 1.0
    max_frames: int = 360

    def __post_init__(self) -> None:
        if not self.short_fps:
            raise LongtakeError("short_fps is empty; give at least one rate, for example (2.0, 3.0)")

    def denser(self, times: int) -> VariableSampling:
        """This sampling with ``times`` as many frames."""
        return VariableSampling(
            short_seconds=self.short_seconds,
            short_fps=tuple(times * rate for rate in self.short_fps),
            long_fps=times * self.long_fps,
            max_frames=times * self.max_frames,
        )

    def fps(self, duration_seconds: float, rng: np.random.Generator) -> float:
        """The rate for a video of this length."""
        drawn = self.short_fps[int(rng.integers(len(self.short_fps)))]
        return drawn if duration_seconds < self.short_seconds else self.long_fps


class MediaReader:
    """Reads what conversations show.

    frame_size: (height, width) that frames are read at; None keeps the media's own. With a store it is the store's.
    store: where the tower's features of all media are; then clips are features, computed when they are not there yet.
    """

    def __init__(
        self,
        sampling: VariableSampling,
        *,
        seed: int,
        frame_size: tuple[int, int] | None = None,
        store: FeatureStore | None = None,
    ) -> None:
        self.sampling, self.seed, self.frame_size, self.store = sampling, seed, frame_size, store
        self._known: dict[Path, tuple[float, float]] = {}  # duration in seconds and rate of videos looked at before

    def read(self, conversation: Conversation, epoch: int) -> tuple[MediaClip, ...]:
        """All media in order: ``Frames``, or ``Features`` from the store. Raises VideoError where one is broken."""
        wanted = zip(conversation.media, self.samplings(conversation, epoch), strict=True)
        if self.store is not None:
            return tuple(self.store.get(media.path, sampling) for media, sampling in wanted)
        return tuple(self._frames(media.path, sampling) for media, sampling in wanted)

    def samplings(self, conversation: Conversation, epoch: int) -> list[Sampling | None]:
        """How each medium is read; None for an image. Looks into the videos, and decodes nothing but a first frame."""
        rng = media_rng(self.seed, epoch, conversation)
        return [self._sampling(media, rng) if media.kind == "video" else None for media in conversation.media]

    def num_frames(self, conversation: Conversation, epoch: int) -> list[int]:
        """How many frames each medium will be read as, to a frame or so, without reading it."""
        counts = []
        for media, sampling in zip(conversation.media, self.samplings(conversation, epoch), strict=True):
            if sampling is None:
                counts.append(1)
                continue
            assert sampling.fps is not None
            counts.append(min(self._frames_at(media, sampling.fps), self.sampling.max_frames))
        return counts

    def _sampling(self, media: Media, rng: np.random.Generator) -> Sampling:
        """How a video is read; no cap where it cuts nothing, so that a store finds the same frames by the same name."""
        start, stop = self._span(media)
        fps = self.sampling.fps(stop - start, rng)
        return Sampling(
            fps=fps,
            max_frames=self.sampling.max_frames if self._frames_at(media, fps) > self.sampling.max_frames else None,
            start_seconds=media.start_seconds,
            stop_seconds=media.stop_seconds,
        )

    def _frames_at(self, media: Media, fps: float) -> int:
        """How many frames of a video a rate means, uncapped."""
        _, own_fps = self._look(media.path)
        return len(fps_times(*self._span(media), min(fps, own_fps) if own_fps > 0 else fps))

    def _span(self, media: Media) -> tuple[float, float]:
        """The part ``[start, stop)`` of a video that counts."""
        duration, _ = self._look(media.path)
        start, stop = media.start_seconds or 0.0, media.stop_seconds
        if start >= duration:
            raise VideoError(
                f"{media.path}: the span starts at {start:g} s but the video ends at {duration:.2f} s; correct it"
            )
        return start, duration if stop is None else min(stop, duration)

    def _look(self, path: Path) -> tuple[float, float]:
        if path not in self._known:
            info = longtake.video.open(path)
            self._known[path] = info.duration_seconds, info.fps
        return self._known[path]

    def _frames(self, path: Path, sampling: Sampling | None) -> Frames:
        chunks = list(read_chunks(path, sampling, size=self.frame_size, chunk_frames=CHUNK_FRAMES))
        return Frames(
            pixels=np.concatenate([chunk.pixels for chunk in chunks]),
            seconds=np.concatenate([chunk.seconds for chunk in chunks]),
        )


def media_rng(seed: int, epoch: int, conversation: Conversation) -> np.random.Generator:
    """Chance that depends on (seed, epoch, the conversation's name) alone."""
    digest = hashlib.blake2b(conversation.name.encode(), digest_size=8).digest()
    return np.random.default_rng([seed, epoch, int.from_bytes(digest, "little")])
