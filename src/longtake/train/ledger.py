"""The ledger: linear layers on an early decoder layer's states, thrown away after training.

At each card they learn how many came before it and which colour the last one had ("after", "order" and "how many" are
answered from that) and what is on it ("what", "which way"); at every visual token the time of its group ("when"), and
one layer before at the stamp's last token, from where it has to come; and where an answer begins which colour was
asked about: what is to be looked for in the next layers. The answers alone teach all this too slowly.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from longtake.data.bank import GROUP, Mix
from longtake.data.needles import COLOURS, Card
from longtake.data.probe import MAX_CARDS
from longtake.train.reading import ATTRIBUTES, IGNORE, labels
from longtake.train.rows import Batch, Lesson, event_groups

READ = ("kind", "tens", "units", "letter", "symbol", "colour", "direction", "onset")
CLOCK_DIGITS = 5


class Ledger(nn.Module):
    """One linear layer on normalised states ``(tokens, hidden)`` for each thing to be noted.

    count, colour: at a card, how many cards came before (0 to 6), and the last one's colour (8: none).
    asked: where an answer's tokens are predicted, the colour in the question.
    read: at a needle, its attributes, as the reading heads have them. clock: the digits of a group's time, units first.
    stamp: the same at the last token of a group's stamp, one layer before.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.count, self.colour = nn.Linear(hidden, MAX_CARDS + 1), nn.Linear(hidden, len(COLOURS) + 1)
        self.asked = nn.Linear(hidden, len(COLOURS))
        self.read = nn.ModuleDict({name: nn.Linear(hidden, ATTRIBUTES[name]) for name in READ})
        self.clock = nn.ModuleList(nn.Linear(hidden, 11) for _ in range(CLOCK_DIGITS))
        self.stamp = nn.ModuleList(nn.Linear(hidden, 11) for _ in range(CLOCK_DIGITS))

    def forward(self, states: Tensor, targets: Tensor) -> Tensor:
        """Sum of the cross-entropies, each over the tokens that have a target.

        states: ``(tokens, hidden)``; targets: int ``(tokens, columns)`` of ``ledger_targets``, IGNORE for none.
        """
        states = normalised(states)
        return _cross_entropies([self.count, self.colour, *self.read.values(), *self.clock], states, targets)


def _cross_entropies(heads: Iterable[nn.Module], states: Tensor, targets: Tensor) -> Tensor:
    """Sum over heads; a column of ``targets`` ``(tokens, heads)`` belongs to each, with IGNORE for none."""
    total = states.sum() * 0
    for head, wanted in zip(heads, targets.T, strict=True):
        if (wanted != IGNORE).any():
            total = total + F.cross_entropy(head(states), wanted, ignore_index=IGNORE)
    return total


def normalised(states: Tensor) -> Tensor:
    """States ``(..., hidden)`` at root mean square 1, float32: a residual stream grows while it is trained."""
    return F.rms_norm(states.float(), states.shape[-1:])


def ledger_targets(mix: Mix) -> NDArray[np.int64]:
    """``(groups, columns)``: cards before the one in the group, the last one's colour, what is in it, and its time.

    All but the time are IGNORE unless there is just one card or mover in the group.
    """
    groups = len(mix.groups)
    noted, read = np.full((groups, 2), IGNORE), np.full((groups, len(READ)), IGNORE)
    shown = np.zeros(groups, np.int64)
    places = [list(ATTRIBUTES).index(name) for name in READ]
    number, previous = 0, len(COLOURS)
    for event in mix.video.events:
        if event.what is None:
            continue
        span = event_groups(mix, event)
        shown[span] += 1
        read[span] = np.take(labels(event.what, onset=GROUP, moving=True), places)
        read[span.start] = np.take(labels(event.what, onset=mix.frames_of(event)[0] % GROUP, moving=True), places)
        if isinstance(event.what, Card):
            noted[span] = (min(number, MAX_CARDS), previous)
            number, previous = number + 1, list(COLOURS).index(event.what.colour)
    noted[shown != 1] = read[shown != 1] = IGNORE
    return np.concatenate([noted, read, clock_digits(mix)], axis=1)


def clock_digits(mix: Mix) -> NDArray[np.int64]:
    """``(groups, CLOCK_DIGITS)``: the digits of each group's stamp, units first; 10 where it has none."""
    seconds = mix.group_seconds.astype(np.int64)[:, None]
    power = 10 ** np.arange(CLOCK_DIGITS)
    return np.where((seconds >= power) | (power == 1), seconds // power % 10, 10)


def ledger_loss(ledger: Ledger, batch: Batch, states: Tensor, lessons: list[Lesson], per_group: int) -> Tensor:
    """The ledger's loss over all visual tokens; states ``(batch, columns, hidden)``."""
    targets = torch.from_numpy(np.stack([ledger_targets(mix) for mix, _ in lessons]))
    group = (batch.visual // per_group).clamp_min(0)
    spread = targets.gather(1, group[..., None].expand(-1, -1, targets.shape[2]))
    chosen = batch.visual >= 0
    loss: Tensor = ledger(states[chosen], spread[chosen])
    return loss


def stamp_loss(ledger: Ledger, batch: Batch, states: Tensor, lessons: list[Lesson], per_group: int) -> Tensor:
    """Cross-entropies of a group's time at the last token of its stamp; states ``(batch, columns, hidden)``."""
    following = batch.visual[:, 1:]
    ends = (batch.visual[:, :-1] < 0) & (following >= 0)
    clocks = torch.from_numpy(np.stack([clock_digits(mix) for mix, _ in lessons]))
    targets = clocks[ends.nonzero()[:, 0], following[ends] // per_group]
    return _cross_entropies(ledger.stamp, normalised(states[:, :-1][ends]), targets)


def asked_loss(ledger: Ledger, batch: Batch, states: Tensor, lessons: list[Lesson]) -> Tensor:
    """Cross-entropy of the colour asked about, at the columns that predict answers.

    states: ``(batch, columns, hidden)``. Questions that name no colour count nothing.
    """
    targets = torch.full_like(batch.turn, IGNORE)
    for place, (_, questions) in enumerate(lessons):
        for number, question in enumerate(questions, start=1):
            colour = next((i for i, name in enumerate(COLOURS) if f" {name} " in question.text), IGNORE)
            predicts = (batch.turn[place, 1:] == number) & (batch.labels[place, 1:] != IGNORE)
            targets[place, :-1][predicts] = colour
    chosen = targets != IGNORE
    if not chosen.any():
        return states.sum() * 0
    return F.cross_entropy(ledger.asked(normalised(states[chosen])), targets[chosen])
