"""The ledger: linear layers on early decoder layers' states, thrown away after training.

The answers alone teach too slowly what the layers before the grounded one have to work out, so it is told, layer by
layer. Into the second layer: at the last token of a stamp, its digits. Into the last one before the grounded layer:
which colours the cards so far had, at a card and where an answer begins. Into the grounded layer: how many that makes
(a sum of eight bits takes one layer more); at a card which colour the one before had ("after" and "order" are answered
from that) and what is on it ("what", "which way"); at every visual token the time of its group ("when"); and where an
answer begins which colour was asked about, that is what is to be looked for.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from longtake.data.probe_world.bank import Mix
from longtake.data.probe_world.needles import COLOURS, Card
from longtake.data.probe_world.probe import MAX_CARDS
from longtake.train.embedded.reading import ATTRIBUTES, labels, tokens_at
from longtake.train.embedded.rows import Batch, Lesson, event_groups
from longtake.types import IGNORE

READ = ("kind", "tens", "units", "letter", "symbol", "colour", "direction", "onset")
CLOCK = ("seconds", "tens of seconds", "hundreds", "thousands", "ten thousands")
NOTED = {"before": len(COLOURS) + 1, **{name: ATTRIBUTES[name] for name in READ}, **dict.fromkeys(CLOCK, 11)}

Figures = dict[str, float]


class Ledger(nn.Module):
    """Linear layers on normalised states ``(tokens, hidden)``, by where they are read.

    stamp: the digits of a group's time at the last token of its stamp; 10 is no digit.
    seen, count: which colours the cards had so far (one logit each), and how many there were (0 to 6).
    noted: at a visual token the colour of the card before (8: none), attributes of what is there, and the clock.
    asked: the colour in a question.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.stamp = nn.ModuleDict({name: nn.Linear(hidden, 11) for name in CLOCK})
        self.seen, self.count = nn.Linear(hidden, len(COLOURS)), nn.Linear(hidden, MAX_CARDS + 1)
        self.noted = nn.ModuleDict({name: nn.Linear(hidden, classes) for name, classes in NOTED.items()})
        self.asked = nn.Linear(hidden, len(COLOURS))


def ledger_loss(
    ledger: Ledger, batch: Batch, into: list[Tensor], lessons: list[Lesson], per_group: int
) -> tuple[Tensor, Figures]:
    """The sum of the ledger's losses; each loss, and shares of what is told right, by name.

    into: what goes into the second layer, the one before the grounded one and that, ``(batch, columns, hidden)`` each.
    """
    second, before, grounded = into
    stamp = stamp_loss(ledger, batch, second, lessons, per_group)
    seen, counted = seen_loss(ledger, batch, before, grounded, lessons, per_group)
    noted, right = noted_loss(ledger, batch, grounded, lessons, per_group)
    asked = asked_loss(ledger, batch, grounded, lessons)
    figures = {"stamp": stamp.item(), "seen": seen.item(), "noted": noted.item(), "asked": asked.item()}
    return stamp + seen + noted + asked, figures | {f"noted_{k}": v for k, v in (counted | right).items()}


def read_heads(heads: nn.ModuleDict, states: Tensor, targets: Tensor) -> tuple[Tensor, Figures]:
    """Sum over heads of the mean cross-entropy of the rows that have a target, and each head's share of right ones.

    states: ``(rows, hidden)``. targets: int ``(rows, heads)``, IGNORE for none.
    """
    states = normalised(states)
    total, right = states.sum() * 0, {}
    for (name, head), wanted in zip(heads.items(), targets.T, strict=True):
        rows = wanted != IGNORE
        if rows.any():
            logits, own = head(states[rows]), wanted[rows].to(states.device)
            total = total + F.cross_entropy(logits, own)
            right[name] = float((logits.argmax(1) == own).float().mean())
    return total, right


def normalised(states: Tensor) -> Tensor:
    """States ``(..., hidden)`` at root mean square 1, float32: a residual stream grows while it is trained."""
    return F.rms_norm(states.float(), states.shape[-1:])


def noted_targets(mix: Mix, per_group: int) -> NDArray[np.int64]:
    """Labels of what each visual token notes, ``(groups, per_group, columns)`` in the order of ``NOTED``.

    Where a group shows one card or mover, all of its tokens tell it; of more than one, each is told by the tokens in
    which it has its middle, where they are its alone. All tokens of a group that shows none tell that.
    """
    groups, side, size = len(mix.groups), math.isqrt(per_group), mix.frames_per_group
    told = np.full((groups, per_group, 1 + len(READ)), IGNORE)
    things = [thing for thing in mix.placed if thing.what]
    spans = [range(thing.first // size, (thing.stop - 1) // size + 1) for thing in things]
    shown = Counter(group for span in spans for group in span)
    told[[group for group in range(groups) if not shown[group]], :, 1 + READ.index("kind")] = 0
    taken = np.zeros((groups, per_group), np.bool_)
    columns = [list(ATTRIBUTES).index(name) for name in READ]
    before = len(COLOURS)
    for thing, span in zip(things, spans, strict=True):
        is_card = isinstance(thing.what, Card)
        for group in span:
            begin = group * size
            own = range(per_group) if shown[group] == 1 else tokens_at(thing.centres_in(begin, size), side)
            attributes = np.take(labels(thing.what, onset=thing.onset_in(begin, size), moving=size > 1), columns)
            told[group, own] = [before if is_card else IGNORE, *attributes]
            told[group, [token for token in own if taken[group, token]]] = IGNORE
            taken[group, own] = True
        if isinstance(thing.what, Card):
            before = list(COLOURS).index(thing.what.colour)
    clock = np.broadcast_to(clock_digits(mix)[:, None], (groups, per_group, len(CLOCK)))
    return np.concatenate([told, clock], axis=2)


def clock_digits(mix: Mix) -> NDArray[np.int64]:
    """The digits of each group's stamp, ``(groups, digits)``, units first; 10 where it has none."""
    seconds = mix.group_seconds.astype(np.int64)[:, None]
    power = 10 ** np.arange(len(CLOCK))
    return np.where((seconds >= power) | (power == 1), seconds // power % 10, 10)


def noted_loss(
    ledger: Ledger, batch: Batch, states: Tensor, lessons: list[Lesson], per_group: int
) -> tuple[Tensor, Figures]:
    """Loss of what visual tokens note, with shares of right ones; states ``(batch, columns, hidden)``."""
    targets = torch.from_numpy(np.stack([noted_targets(mix, per_group) for mix, _ in lessons])).flatten(1, 2)
    place, column = (batch.visual >= 0).nonzero(as_tuple=True)
    return read_heads(ledger.noted, states[place, column], targets[place, batch.visual[place, column]])


def seen_colours(mix: Mix) -> NDArray[np.bool_]:
    """Colours of the cards so far, bool ``(groups + 1, colours)``: at groups with a card; none elsewhere; last, all."""
    table = np.zeros((len(mix.groups) + 1, len(COLOURS)), np.bool_)
    colours: list[int] = []
    for card, event in mix.video.cards:
        colours.append(list(COLOURS).index(card.colour))
        table[event_groups(mix, event), colours] = True
    table[-1, colours] = True
    return table


def seen_loss(
    ledger: Ledger, batch: Batch, before: Tensor, grounded: Tensor, lessons: list[Lesson], per_group: int
) -> tuple[Tensor, Figures]:
    """Loss of the cards' colours and number so far: at cards and, of the whole video, where answers are predicted.

    before, grounded: what goes into the layer before the grounded one and into that, ``(batch, columns, hidden)`` each.
    Rows without their video count nothing. The share of right counts is told for cards and for answers.
    """
    tables = torch.from_numpy(np.stack([seen_colours(mix) for mix, _ in lessons]))
    group = torch.where(batch.visual >= 0, batch.visual // per_group, tables.shape[1] - 1)
    wanted = tables.gather(1, group[..., None].expand(-1, -1, tables.shape[2]))
    cards = (batch.visual >= 0) & wanted.any(-1)
    answers = F.pad(batch.labels[:, 1:] != IGNORE, (0, 1)) & (batch.visual >= 0).any(1, keepdim=True)
    total, right = grounded.sum() * 0, {}
    for name, chosen in (("count", cards), ("answers_count", answers)):
        if chosen.any():
            colours = wanted[chosen].to(grounded.device)
            bits, count = ledger.seen(normalised(before[chosen])), ledger.count(normalised(grounded[chosen]))
            total = total + len(COLOURS) * F.binary_cross_entropy_with_logits(bits, colours.float())
            total = total + F.cross_entropy(count, colours.sum(-1))
            right[name] = float((count.argmax(1) == colours.sum(-1)).float().mean())
    return total, right


def stamp_loss(ledger: Ledger, batch: Batch, states: Tensor, lessons: list[Lesson], per_group: int) -> Tensor:
    """Cross-entropies of a group's time at the last token of its stamp; states ``(batch, columns, hidden)``."""
    following = batch.visual[:, 1:]
    ends = (batch.visual[:, :-1] < 0) & (following >= 0)
    clocks = torch.from_numpy(np.stack([clock_digits(mix) for mix, _ in lessons]))
    targets = clocks[ends.nonzero()[:, 0], following[ends] // per_group]
    return read_heads(ledger.stamp, states[:, :-1][ends], targets)[0]


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
    return F.cross_entropy(ledger.asked(normalised(states[chosen])), targets[chosen].to(states.device))
