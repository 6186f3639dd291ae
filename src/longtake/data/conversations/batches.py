"""Steps of training batches: read ahead in order, the same number on every rank, and nothing lost silently.

Every rank takes its part of each global batch and cuts it into micro-batches. What cannot be read is counted and named,
and its row is simply missing; where that leaves a micro-batch without rows it becomes an idle one, a single column with
nothing to learn, so that every rank runs as many forwards and backwards as the others at every step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.data.conversations.examples import Example, ExampleMaker, TooLong
from longtake.data.conversations.media import MediaClip
from longtake.data.conversations.order import Order, Pick, part
from longtake.data.left_out import Broken, LeftOut
from longtake.types import IGNORE, VideoError


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Examples as rows, padded on the right: a causal decoder never looks at what comes after.

    names: of the rows; empty for an idle batch, which has one row of one column.
    ids, labels, mask, positions: int64 ``(rows, length)``; labels are not shifted, and IGNORE where nothing is learned;
        mask is 1 on what is no padding; positions count from 0 in every row.
    clips: of all rows, in the order of their places. clip_rows: int64 ``(clips,)``, the row that each stands in.
    question_ids: int64 ``(tokens,)`` for each row.
    """

    names: tuple[str, ...]
    ids: Tensor
    labels: Tensor
    mask: Tensor
    positions: Tensor
    clips: tuple[MediaClip, ...]
    clip_rows: Tensor
    question_ids: tuple[Tensor, ...]

    @property
    def num_tokens(self) -> int:
        """Columns that are no padding."""
        return int(self.mask.sum())

    @property
    def num_padding(self) -> int:
        """Columns that are padding."""
        return self.mask.numel() - self.num_tokens

    @property
    def num_learned(self) -> int:
        """Labels that a loss sums over once it has shifted them by one."""
        return int((self.labels[:, 1:] != IGNORE).sum())


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """Examples to a batch; none to an idle one, whose loss is a sum over nothing."""
    ids = [example.ids for example in examples] or [torch.tensor([pad_id])]
    labels = [example.labels for example in examples] or [torch.tensor([IGNORE])]
    length = max(map(len, ids))
    mask = [torch.ones_like(row) for row in ids]

    def pad(rows: Sequence[Tensor], value: int) -> Tensor:
        return torch.stack([F.pad(row, (0, length - len(row)), value=value) for row in rows])

    rows = [row for row, example in enumerate(examples) for _ in example.clips]
    return Batch(
        names=tuple(example.name for example in examples),
        ids=pad(ids, pad_id),
        labels=pad(labels, IGNORE),
        mask=pad(mask, 0),
        positions=torch.arange(length).expand(len(ids), -1),
        clips=tuple(clip for example in examples for clip in example.clips),
        clip_rows=torch.tensor(rows, dtype=torch.int64),
        question_ids=tuple(example.question_ids for example in examples),
    )


class Loader:
    """A rank's micro-batches, step by step.

    micro_rows: most rows of a micro-batch. ahead: steps read before they are asked for. threads: conversations read at
    a time. max_broken: see ``Broken``, which whoever takes the steps must check. Order and content depend on none of
    ``threads`` and ``ahead``.
    """

    def __init__(
        self,
        order: Order,
        maker: ExampleMaker,
        *,
        pad_id: int,
        micro_rows: int,
        rank: int = 0,
        ranks: int = 1,
        threads: int = 1,
        ahead: int = 2,
        max_broken: float = 0.01,
    ) -> None:
        if micro_rows < 1 or threads < 1 or ahead < 0 or not 0 <= rank < ranks:
            raise ValueError(f"micro_rows {micro_rows}, threads {threads}, ahead {ahead}, rank {rank} of {ranks}")
        self.order, self.maker, self.pad_id, self.micro_rows = order, maker, pad_id, micro_rows
        self.rank, self.ranks, self.threads, self.ahead = rank, ranks, threads, ahead
        self.broken = Broken(count=order.num_conversations, share=max_broken)

    def steps(self, start: int, stop: int) -> Generator[tuple[Batch, ...]]:
        """The micro-batches of each step in ``[start, stop)``; as many on every rank. Close it when leaving early.

        What is broken or too long is added to ``broken``; any other error of reading passes through.
        """
        planner = ThreadPoolExecutor(1, thread_name_prefix="longtake-plan")
        readers = ThreadPoolExecutor(self.threads, thread_name_prefix="longtake-read")
        waiting: deque[tuple[int, list[Future[Example | LeftOut]]]] = deque()
        try:
            for picks in self._plans(planner, start, stop):
                mine = part(picks, self.rank, self.ranks)
                waiting.append((len(picks), [readers.submit(self._read, pick) for pick in mine]))
                if len(waiting) > self.ahead:
                    yield self._finish(*waiting.popleft())
            while waiting:
                yield self._finish(*waiting.popleft())
        finally:
            planner.shutdown(cancel_futures=True)
            readers.shutdown(cancel_futures=True)

    def _plans(self, planner: ThreadPoolExecutor, start: int, stop: int) -> Iterator[tuple[Pick, ...]]:
        """Global batches in order, a window ahead: to sort one by length its videos are looked into."""
        waiting: deque[Future[tuple[Pick, ...]]] = deque()
        for step in range(start, stop):
            waiting.append(planner.submit(self.order.batch, step))
            if len(waiting) > self.order.window_steps:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _read(self, pick: Pick) -> Example | LeftOut:
        try:
            return self.maker.make(pick.conversation, pick.epoch)
        except (VideoError, TooLong) as error:
            name = f"{pick.source}/{pick.conversation.name}"
            return LeftOut(name=name, reason=str(error), too_long=isinstance(error, TooLong))

    def _finish(self, global_rows: int, reading: list[Future[Example | LeftOut]]) -> tuple[Batch, ...]:
        """The micro-batches of a step whose global batch has ``global_rows`` rows, broken ones included."""
        examples = []
        for result in (future.result() for future in reading):
            if isinstance(result, Example):
                examples.append(result)
            else:
                self.broken.add(result)
        most_rows = -(-global_rows // self.ranks)  # of any rank
        starts = range(0, most_rows, self.micro_rows)
        return tuple(collate(examples[a : a + self.micro_rows], self.pad_id) for a in starts)
