"""Which conversations a training step is made of: a function of (seed, step) and the data, whatever has run before.

A source's weight says how often an epoch sees each of its conversations: 1 is once, 0.5 half of them, 2 each twice.
From epoch to epoch a source goes on through its conversations, each pass in a new order: none comes again before
all the others came. The examples of an epoch are shuffled and cut into windows; within a window they are sorted by
length and cut into global batches, so that little is padded, and the batches are shuffled again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtake.data.conversations.conversations import Conversation
from longtake.types import LongtakeError, VideoError

Length = Callable[[Conversation, int], int]  # of a conversation in an epoch, about


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Conversations, and how often an epoch sees each of them, on average."""

    name: str
    conversations: Sequence[Conversation]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.conversations:
            raise LongtakeError(f"the source {self.name} has no conversations; leave it out or give another file")
        if not 0 < self.weight < math.inf:
            raise LongtakeError(f"the source {self.name} has weight {self.weight}; it must be a positive number")

    @property
    def rows_per_epoch(self) -> int:
        """How many of its conversations an epoch sees, repeated ones counted again."""
        return round(self.weight * len(self.conversations))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """A conversation that a step is to learn from."""

    conversation: Conversation
    source: str
    epoch: int


class Order:
    """Global batches of ``rows`` conversations by step; an epoch's last one may be smaller.

    length: asked for the conversations of one window at a time. Where it raises VideoError the conversation counts as
        short; that its media are broken is found out, and told, by who reads them.
    window_steps: steps whose examples are sorted together; 1 leaves lengths mixed.
    """

    def __init__(
        self, sources: Sequence[Source], length: Length, *, rows: int, seed: int, window_steps: int = 16
    ) -> None:
        if rows < 1 or window_steps < 1:
            raise LongtakeError(f"rows is {rows} and window_steps {window_steps}; both must be at least 1")
        if not sources or len({source.name for source in sources}) < len(sources):
            raise LongtakeError(f"the sources are {[s.name for s in sources]}; name at least one, each differently")
        self.sources, self.length = tuple(sources), length
        self.rows, self.seed, self.window_steps = rows, seed, window_steps
        self.num_conversations = sum(len(source.conversations) for source in sources)
        self.shares = [source.rows_per_epoch for source in sources]
        if not all(self.shares):
            source = sources[self.shares.index(0)]
            raise LongtakeError(
                f"the source {source.name} has {len(source.conversations)} conversations and weight {source.weight:g}, "
                "so an epoch sees none of it; raise the weight or leave it out"
            )
        self._epoch: tuple[int, NDArray[np.int64]] | None = None
        self._window: tuple[int, int, list[tuple[Pick, ...]]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Steps that see every source by its weight."""
        return -(-sum(self.shares) // self.rows)

    def batch(self, step: int) -> tuple[Pick, ...]:
        """The global batch of a step, counted from 0 over all epochs, its longest example last."""
        epoch, step = divmod(step, self.steps_per_epoch)
        window, step = divmod(step, self.window_steps)
        kept = self._window  # read once: several threads may ask
        if kept is None or kept[:2] != (epoch, window):
            kept = self._window = epoch, window, self._make_window(epoch, window)
        return kept[2][step]

    def _make_window(self, epoch: int, window: int) -> list[tuple[Pick, ...]]:
        """Global batches of one window in their order."""
        size = self.window_steps * self.rows
        chosen = self._chosen(epoch)[window * size : (window + 1) * size]
        picks = []
        for source, index in chosen.tolist():
            own = self.sources[source]
            picks.append(Pick(conversation=own.conversations[index], source=own.name, epoch=epoch))
        lengths = [self._length(pick) for pick in picks]
        order = np.argsort(lengths, kind="stable").tolist() if self.window_steps > 1 else range(len(picks))
        batches = [tuple(picks[i] for i in order[a : a + self.rows]) for a in range(0, len(picks), self.rows)]
        rng = np.random.default_rng([self.seed, epoch, window, 2])
        return [batches[i] for i in rng.permutation(len(batches))]

    def _length(self, pick: Pick) -> int:
        try:
            return self.length(pick.conversation, pick.epoch)
        except VideoError:
            return 0

    def _chosen(self, epoch: int) -> NDArray[np.int64]:
        """An epoch's examples in shuffled order: ``(examples, 2)``, the source's and the conversation's number."""
        kept = self._epoch
        if kept is None or kept[0] != epoch:
            rows = [
                np.stack([np.full(share, number), self._run(number, epoch * share, share)], axis=1)
                for number, share in enumerate(self.shares)
            ]
            rng = np.random.default_rng([self.seed, epoch, 1])
            kept = self._epoch = epoch, rng.permutation(np.concatenate(rows))
        return kept[1]

    def _run(self, number: int, start: int, count: int) -> NDArray[np.int64]:
        """Conversations ``[start, start + count)`` of a source's endless run of passes."""
        size = len(self.sources[number].conversations)
        first, last = start // size, -(-(start + count) // size)
        passes = [np.random.default_rng([self.seed, number, n, 3]).permutation(size) for n in range(first, last)]
        return np.concatenate(passes)[start - first * size :][:count]


def part(picks: Sequence[Pick], rank: int, ranks: int) -> tuple[Pick, ...]:
    """What one of ``ranks`` takes of a global batch: every so manyth, so that all have about the same lengths."""
    return tuple(picks[rank::ranks])
