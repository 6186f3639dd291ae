"""Conversations to batches, and batches to what the model takes: what align and sft share."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from longtake.data.conversations.batches import Batch, Loader
from longtake.data.conversations.examples import ExampleMaker
from longtake.data.conversations.media import MediaReader, VariableSampling
from longtake.data.conversations.order import Order, Source
from longtake.data.features import FeatureStore
from longtake.data.groups import GroupStore
from longtake.models.processor import VideoLLMProcessor, stamp_text
from longtake.train.columns import Columns, columns_of, draw_kept
from longtake.train.run import Fit, Run
from longtake.types import LongtakeError

if TYPE_CHECKING:
    from accelerate import Accelerator

Inputs = tuple[Batch, Columns, Tensor | None]  # what ``AnswerLoss`` takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How conversations are read.

    sampling: frames of videos. max_tokens: of a row; longer videos lose frames. max_broken: share of conversations with
    broken media above which the run stops. threads: conversations read at a time on each process.
    """

    sampling: VariableSampling = field(default_factory=VariableSampling)
    max_tokens: int | None = None
    max_broken: float = 0.01
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("threads", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise LongtakeError(f"{name} is {value}; it must be at least 1")
        if not 0 <= self.max_broken <= 1:
            raise LongtakeError(f"max_broken is {self.max_broken}; it is a share, from 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """The conversations that a stage learns from and is measured on.

    sources: conversations by weight. held: those it is measured on; None: it is not measured. store: where a frozen
    tower's features are; None: frames are encoded whenever they are met. groups: where what a frozen DTS makes of those
    is; None: it is made at every step.
    """

    sources: tuple[Source, ...]
    held: Source | None = None
    store: FeatureStore | None = None
    groups: GroupStore | None = None


def loader(
    reading: Reading,
    fit: Fit,
    processor: VideoLLMProcessor,
    sources: Sequence[Source],
    store: FeatureStore | None,
    accelerator: Accelerator,
) -> Loader:
    """A loader of this process's part of every step's rows."""
    size = (processor.frame_height, processor.frame_width)
    reader = MediaReader(reading.sampling, seed=fit.seed, frame_size=None if store else size, store=store)
    maker = ExampleMaker(processor=processor, reader=reader, max_tokens=reading.max_tokens)
    return Loader(
        Order(sources, maker.length, rows=fit.batch, seed=fit.seed),
        maker,
        pad_id=processor.tokenizer.pad_token_id or 0,
        micro_rows=fit.micro_batch,
        rank=accelerator.process_index,
        ranks=accelerator.num_processes,
        threads=reading.threads,
        max_broken=reading.max_broken,
    )


class Desk:
    """Turns batches into what ``AnswerLoss`` takes, for one model and its processor."""

    def __init__(self, processor: VideoLLMProcessor) -> None:
        self.processor = processor
        self._stamp_tokens = functools.cache(lambda text: len(processor.text_ids(text)))

    def whole(self, batch: Batch) -> Inputs:
        """A batch as ``AnswerLoss`` takes it, with all visual tokens."""
        made_by = self.processor
        return batch, columns_of(
            batch,
            made_by.video_token_id,
            made_by.frames_per_group,
            made_by.tokens_per_group,
            lambda seconds: self._stamp_tokens(stamp_text(seconds, made_by.stamp_style)),
        ), None

    def thinned(self, batch: Batch, share: tuple[float, float], seed: Sequence[int]) -> Inputs:
        """A batch as ``AnswerLoss`` takes it, with some of each video's tokens dropped; see ``draw_kept``."""
        _, columns, _ = self.whole(batch)
        kept = draw_kept(batch.names, batch.clips, columns, self.processor.tokens_per_group, share, seed)
        return batch, columns, kept


def learn(run: Run, micros: Sequence[Batch], parts: Sequence[Inputs], rate: float) -> dict[str, float]:
    """One optimiser step on this process's micro-batches; figures for the log. Every process must call it.

    parts: the micro-batches as ``AnswerLoss`` takes them. "padding" is its share in all columns of the step, over all
    processes, before any token is dropped.
    """
    learned = sum(batch.num_learned for batch in micros)
    done = run.update(parts, lambda part: run.module(*part), learned, rate)
    counts = (sum(batch.num_tokens for batch in micros), sum(batch.num_padding for batch in micros))
    tokens, padding = run.total(*counts)
    return {
        "tokens": tokens,
        "loss": done.loss,
        "norm": done.norm,
        "rate": rate,
        "learned": done.counted,
        "padding": padding / max(1.0, tokens + padding),
    }


def held_loss(run: Run, desk: Desk, held: Loader) -> float:
    """Mean loss of a learned token over all held conversations, nothing dropped. Every process must call it."""
    steps = held.order.steps_per_epoch
    with closing(held.steps(0, steps)) as data:
        parts = (desk.whole(batch) for micros in data for batch in micros)
        return run.mean(parts, lambda part: run.module(*part), lambda part: part[0].num_learned)
