"""The ledger: linear layers on an early decoder layer's states, thrown away after training.

At each card they learn how many came before it and which colour the last one had: "after", "order" and "how many" are
answered from that. Where an answer begins they learn which colour was asked about: what is to be looked for in the next
layers. The answers alone teach both too slowly.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from longtake.data.bank import Mix
from longtake.data.needles import COLOURS
from longtake.data.probe import MAX_CARDS
from longtake.train.reading import IGNORE
from longtake.train.rows import Batch, Lesson, event_groups


class Ledger(nn.Module):
    """From states at a card's tokens: how many cards came before (0 to 6), and the last one's colour (8: none).

    ``asked``: from states where an answer's tokens are predicted, the colour in the question.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.count, self.colour = nn.Linear(hidden, MAX_CARDS + 1), nn.Linear(hidden, len(COLOURS) + 1)
        self.asked = nn.Linear(hidden, len(COLOURS))

    def loss(self, states: Tensor, targets: Tensor) -> Tensor:
        """states ``(tokens, hidden)``; targets int ``(tokens, 2)``, IGNORE where there is no card."""
        count = F.cross_entropy(self.count(states).float(), targets[:, 0], ignore_index=IGNORE)
        colour = F.cross_entropy(self.colour(states).float(), targets[:, 1], ignore_index=IGNORE)
        return count + colour


def ledger_targets(mix: Mix) -> NDArray[np.int64]:
    """``(groups, 2)``: cards before the one in the group, the last one's colour; IGNORE unless there is just one."""
    targets = np.full((len(mix.groups), 2), IGNORE)
    shown = np.zeros(len(mix.groups), np.int64)
    previous = len(COLOURS)
    for number, (card, event) in enumerate(mix.video.cards):
        span = event_groups(mix, event)
        targets[span] = (min(number, MAX_CARDS), previous)
        shown[span] += 1
        previous = list(COLOURS).index(card.colour)
    targets[shown != 1] = IGNORE
    return targets


def ledger_loss(ledger: Ledger, batch: Batch, states: Tensor, lessons: list[Lesson], per_group: int) -> Tensor:
    """The ledger's loss over all visual tokens of groups with one card; states ``(batch, columns, hidden)``."""
    targets = torch.from_numpy(np.stack([ledger_targets(mix) for mix, _ in lessons]))
    group = (batch.visual // per_group).clamp_min(0)
    spread = targets.gather(1, group[..., None].expand(-1, -1, 2))
    chosen = (batch.visual >= 0) & (spread[..., 0] != IGNORE)
    if not chosen.any():
        return states.sum() * 0
    return ledger.loss(states[chosen], spread[chosen])


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
    return F.cross_entropy(ledger.asked(states[chosen]).float(), targets[chosen])
