"""The face that ``longtake.load`` returns: watch and ask on one backbone."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import longtake.ask
import longtake.watch
from longtake.types import Answer, LongtakeError, Memory, Sampling

if TYPE_CHECKING:
    import torch

    from longtake.backbones.base import Backbone
    from longtake.select import Selector

__all__ = ["Model", "load"]

EMBEDDED = Path(__file__).parent / "assets" / "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A backbone with the two verbs, and the language model's reading of the last few memories."""

    backbone: Backbone
    prefixes: longtake.ask.PrefixCache = field(default_factory=longtake.ask.PrefixCache)

    def watch(
        self,
        video: str | os.PathLike[str],
        *,
        fps: float | None = None,
        max_frames: int | None = None,
        start_seconds: float | None = None,
        stop_seconds: float | None = None,
        sampling: Sampling | None = None,
        target: str | os.PathLike[str] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Memory:
        """Read, encode and compress a video, once, in bounded memory.

        fps: frames a second of video, 1.0 when not given; max_frames: uniform sampling above that many.
        start_seconds, stop_seconds: the half-open span to watch.
        sampling: all of this in one value, for sampling by count or at given times; nothing else may then be given.
        target: a file to save the memory to; an interrupted watch continues when called again.
        progress: called with frames done and frames planned.

        Raises VideoError for a file or span without frames, LongtakeError for values out of range.
        """
        if sampling is None:
            sampling = Sampling(
                fps=1.0 if fps is None else fps,
                max_frames=max_frames,
                start_seconds=start_seconds,
                stop_seconds=stop_seconds,
            )
        elif any(value is not None for value in (fps, max_frames, start_seconds, stop_seconds)):
            raise LongtakeError("sampling is given, and fps, max_frames, start or stop too; put them into the sampling")
        return longtake.watch.watch(self.backbone, video, sampling, target=target, progress=progress)

    def ask(
        self,
        memory: Memory,
        question: str,
        *,
        selector: Selector | None = None,
        budget_tokens: int | None = None,
        max_new_tokens: int = 64,
        latents: int | None = None,
        show_latents: bool = False,
    ) -> Answer:
        """Answer a question about a watched video, with the moments that the answer relied on.

        selector, budget_tokens: how to choose among the visual tokens when not all fit, and how many to keep at most.
        latents: how many to think in before answering; None: as the model was trained, 0: none. show_latents: tell
        where they looked, in the answer's ``latents``.
        Raises LongtakeError for an empty or too long question and for another model's memory.
        """
        return longtake.ask.ask(
            self.backbone,
            memory,
            question,
            selector=selector,
            budget_tokens=budget_tokens,
            max_new_tokens=max_new_tokens,
            cache=self.prefixes,
            latents=latents,
            show_latents=show_latents,
        )

    def ask_all(
        self,
        memory: Memory,
        questions: Sequence[str],
        *,
        selector: Selector | None = None,
        budget_tokens: int | None = None,
        max_new_tokens: int = 64,
        latents: int | None = None,
        show_latents: bool = False,
    ) -> list[Answer]:
        """Answer several questions about a watched video, side by side where all see the same tokens: much faster.

        Each is answered as ``ask`` would alone, to rounding; its usage has an equal share of the seconds. Arguments and
        errors are those of ``ask``.
        """
        return longtake.ask.ask_all(
            self.backbone,
            memory,
            questions,
            selector=selector,
            budget_tokens=budget_tokens,
            max_new_tokens=max_new_tokens,
            cache=self.prefixes,
            latents=latents,
            show_latents=show_latents,
        )


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Model:
    """The model in the package, or another one by its folder or hub id.

    path: a model's folder or hub id (``owner/name``); None means the model in the package.
    device: None means the accelerator when there is one. dtype: None means bfloat16 there and float32 on a CPU.
    Raises LongtakeError for a path that holds no model, or one of an architecture that no backbone knows, and for a
    device that is not there.
    """
    import torch

    from longtake.backbones import load_backbone
    from longtake.backbones.place import place_of

    if path is None and not EMBEDDED.is_dir():
        raise LongtakeError(f"this copy of longtake has no model at {EMBEDDED}; give a model's folder or hub id")
    place = place_of(device)
    kind = dtype or (torch.float32 if place.type == "cpu" else torch.bfloat16)
    return Model(backbone=load_backbone(os.fspath(EMBEDDED if path is None else path), place, kind))
