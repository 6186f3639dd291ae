"""The words of longtake: every value that crosses a folder is one of these.

Frozen, slotted, keyword-only; each checks its own shapes; units are in the names; seconds are the truth.
Nothing here imports torch: tensors are only named for the type checker, so reading video stays light.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


IGNORE = -100  # the label of what is not learned: PyTorch's and Hugging Face's own


class LongtakeError(ValueError):
    """Something the user can mend; its one line says the value, the rule and the remedy."""


class VideoError(LongtakeError):
    """A file that holds no readable video, or image where one is expected."""


def first_line(error: BaseException) -> str:
    """Of what another library's error says, to stand in ours."""
    return str(error).strip().split("\n")[0].rstrip(".")


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """What a container says of one video stream, before any frame is decoded.

    Width and height are those of a shown frame: after rotation and pixel aspect.
    """

    path: str
    duration_seconds: float  # best estimate; 0.0 when the container does not say and it cannot be derived
    fps: float  # average; 0.0 when unknown
    num_frames: int  # as declared or counted from the index; 0 when unknown
    width: int
    height: int
    codec: str
    audio: str | None = None  # codec of the best audio stream
    rotation_degrees: int = 0  # clockwise turn applied to stored frames: 0, 90, 180 or 270
    stream: int = 0  # index of the chosen video stream in the container
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.width <= 0 or self.height <= 0:
            size = f"{self.width}x{self.height}"
            raise VideoError(f"{self.path}: frame size {size} is not positive; is the file damaged?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """Shown frames and the times at which they are shown.

    pixels: uint8 ``(frames, 3, height, width)``, RGB; may be a non-contiguous view.
    seconds: float64 ``(frames,)``, non-decreasing: the true time of each frame, not the requested one.
    spans: float64 ``(frames, 2)``, or None where no more than ``seconds`` is known: from when on each frame stands for
        the video (its true time, or for a frame given again the time it was requested for; never before the span that
        was sampled) and until when it is shown.
    """

    pixels: NDArray[np.uint8]
    seconds: NDArray[np.float64]
    spans: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[1] != 3 or self.pixels.dtype != np.uint8:
            got = f"{self.pixels.dtype} {self.pixels.shape}"
            raise ValueError(f"pixels must be uint8 (frames, 3, height, width), got {got}")
        if self.seconds.shape != self.pixels.shape[:1] or self.seconds.dtype != np.float64:
            raise ValueError(
                f"seconds must be float64 ({self.pixels.shape[0]},), got {self.seconds.dtype} {self.seconds.shape}"
            )

        if self.spans is not None and (self.spans.shape != (len(self), 2) or self.spans.dtype != np.float64):
            raise ValueError(f"spans must be float64 ({len(self)}, 2), got {self.spans.dtype} {self.spans.shape}")

    def __len__(self) -> int:
        return int(self.pixels.shape[0])

    def __repr__(self) -> str:
        return f"Frames(pixels={self.pixels.shape}, seconds={self.seconds.shape})"


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualTokens:
    """Visual tokens of one video, in the order of time, then row, then column.

    features: ``(tokens, dim)`` in the language model's space (or the tower's, before compression).
    position: int64 ``(tokens, 3)`` = (time group, row, column) in the grid before compression.
    seconds: float64 ``(tokens,)``: the time of the first frame of the token's group.
    weight: float32 ``(tokens,)``: how many source patches the token stands for.
    grid: (time groups, rows, columns) before compression.
    """

    features: Tensor
    position: Tensor
    seconds: Tensor
    weight: Tensor
    grid: tuple[int, int, int]

    def __post_init__(self) -> None:
        n = self.features.shape[0]
        if self.features.ndim != 2:
            raise ValueError(f"features must be (tokens, dim), got {tuple(self.features.shape)}")
        if tuple(self.position.shape) != (n, 3):
            raise ValueError(f"position must be ({n}, 3), got {tuple(self.position.shape)}")
        if tuple(self.seconds.shape) != (n,) or tuple(self.weight.shape) != (n,):
            raise ValueError(
                f"seconds and weight must be ({n},), got {tuple(self.seconds.shape)} and {tuple(self.weight.shape)}"
            )
        if len(self.grid) != 3:
            raise ValueError(f"grid must be (groups, rows, columns), got {self.grid}")

    def __len__(self) -> int:
        return int(self.features.shape[0])

    def __getitem__(self, kept: Tensor) -> VisualTokens:
        """The tokens chosen by an index or boolean tensor ``(tokens,)``; the grid stays the original one."""
        return VisualTokens(
            features=self.features[kept],
            position=self.position[kept],
            seconds=self.seconds[kept],
            weight=self.weight[kept],
            grid=self.grid,
        )

    def cpu(self) -> VisualTokens:
        """The same tokens in the machine's own memory."""
        return VisualTokens(
            features=self.features.cpu(),
            position=self.position.cpu(),
            seconds=self.seconds.cpu(),
            weight=self.weight.cpu(),
            grid=self.grid,
        )

    def __repr__(self) -> str:
        return f"VisualTokens(features={tuple(self.features.shape)}, grid={self.grid})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A question, and its embeddings by encoder name, each ``(query tokens, dim)``."""

    text: str
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise LongtakeError("the question is empty; ask something, for example \"What is on the red card?\"")
        try:
            self.text.encode()
        except UnicodeEncodeError as error:  # bytes of the command line that are no text
            raise LongtakeError(f"the question is {self.text!r}, which is not UTF-8 text; write it in UTF-8") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Which moments of a video are read. Exactly one of fps, count and at_seconds is set.

    fps: frames a second of video; ``max_frames`` on top of it switches to uniform sampling above the cap.
    count: that many frames, uniform over the whole span.
    at_seconds: these times.
    start_seconds, stop_seconds: the half-open span ``[start, stop)`` to sample in; None means the video's own.
    exact: True gives the frame shown at each time; False any frame within ``tolerance_seconds`` of it.
    tolerance_seconds: None means a tenth of the interval by fps, half of it by count, 0.5 s for given times.
    """

    fps: float | None = None
    count: int | None = None
    at_seconds: tuple[float, ...] | None = None
    max_frames: int | None = None
    start_seconds: float | None = None
    stop_seconds: float | None = None
    exact: bool = False
    tolerance_seconds: float | None = None

    def __post_init__(self) -> None:
        chosen = [name for name in ("fps", "count", "at_seconds") if getattr(self, name) is not None]
        if len(chosen) != 1:
            raise LongtakeError(f"give exactly one of fps, count and at_seconds, not {chosen or 'none'}")
        if self.fps is not None and not (0 < self.fps < float("inf")):
            raise LongtakeError(f"fps is {self.fps}; it must be a positive number of frames a second, for example 1.0")
        if self.count is not None and self.count < 1:
            raise LongtakeError(f"count is {self.count}; it must be at least 1 frame")
        if self.max_frames is not None and self.max_frames < 1:
            raise LongtakeError(f"max_frames is {self.max_frames}; it must be at least 1 frame")
        if self.max_frames is not None and self.fps is None:
            raise LongtakeError("max_frames caps sampling by fps; with count or at_seconds leave it out")
        if self.start_seconds is not None and not 0 <= self.start_seconds < float("inf"):
            raise LongtakeError(f"start is {self.start_seconds} s; it must be a number and must not be negative")
        if self.stop_seconds is not None and not self.stop_seconds > (self.start_seconds or 0.0):
            raise LongtakeError(
                f"stop is {self.stop_seconds} s and start {self.start_seconds or 0.0} s; stop must come after start"
            )
        if self.tolerance_seconds is not None and not self.tolerance_seconds >= 0:
            raise LongtakeError(f"tolerance is {self.tolerance_seconds} s; it must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a memory comes from: enough to refuse a wrong model and to notice a replaced video."""

    model: str  # the backbone's identity: architecture and a hash of its weights
    video: str  # path as it was watched
    video_identity: str  # size in bytes and a hash of the first, middle and last MiB
    sampling: Sampling
    frames: int
    duration_seconds: float
    warnings: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)  # spent per stage: read, encode, compress


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Everything a model keeps of one watched video.

    tokens: unpruned, in the language model's space; positions are built when a question is asked.
    group_seconds: what one whole time group usually covers; start_seconds: where the first group begins.
    group_stops: where each group ends; None in memories kept before longtake told this.
    """

    tokens: VisualTokens
    group_seconds: float
    start_seconds: float
    provenance: Provenance
    group_stops: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.group_seconds > 0:
            raise ValueError(f"group_seconds is {self.group_seconds}; a group must cover a positive time")

    @property
    def stop_seconds(self) -> float:
        """Where the last group ends."""
        if self.group_stops:
            return self.group_stops[-1]
        last = float(self.tokens.seconds[-1]) if len(self.tokens) else self.start_seconds
        return last + self.group_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A half-open span ``[start_seconds, stop_seconds)`` that an answer relied on, and how much (0 to 1)."""

    start_seconds: float
    stop_seconds: float
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an answer cost.

    seconds: wall time by stage: read, encode, compress, select, prefill, think (in latents, if at all), generate.
    """

    frames: int
    visual_tokens: int
    prompt_tokens: int
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentLooks:
    """Where each latent between a question and its answer looked in the video.

    attended: float64 ``(latents, groups, rows, columns)``: the language model's attention in its evidence layers, each
        latent's share of what falls on the video, sum 1 (or all 0).
    reread: the same of the video read again by what makes the latents; None in a model that does not.
    openness: how much of what is read again gets in, -1 to 1; 0 in a model that does not.
    times: half-open spans in seconds, one a group.
    """

    attended: Tensor
    reread: Tensor | None
    openness: float
    times: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A question's answer with the moments it relied on, best first.

    latents: where they looked; None unless asked for.
    """

    text: str
    evidence: tuple[Evidence, ...]
    usage: Usage
    latents: LatentLooks | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled completion.

    ids: the generated token ids, the end token included when it was reached.
    logprobs: float32, one for each id, under the distribution that was sampled from.
    attention: float32 ``(prompt length,)`` mean over answer tokens, heads and evidence layers; None if not recorded.
    """

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool
    rewards: Mapping[str, float] = field(default_factory=dict)
    attention: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.logprobs):
            raise ValueError(f"{len(self.ids)} ids but {len(self.logprobs)} log-probabilities")
