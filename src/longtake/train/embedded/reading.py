"""Reading heads: what the embedded tower and compressor are taught to see, as labels, heads and one loss.

A head pools a set of tokens with one learned query and predicts each attribute of a needle: its kind, digits,
letter, symbol, colour, outline, direction of motion, and its onset and places within a group. Heads are thrown away
after training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtake.data.probe_world.needles import COLOURS, DIRECTIONS, LETTERS, OUTLINES, SYMBOLS, Card, Mover
from longtake.types import IGNORE

PLACES = 8  # parts of a frame's width or height
# attribute -> number of classes
ATTRIBUTES: dict[str, int] = {
    "kind": 5,  # nothing, number, letter, symbol on a card; a mover
    "tens": 11,  # 10: a single digit
    "units": 10,
    "letter": len(LETTERS),
    "symbol": len(SYMBOLS),
    "colour": len(COLOURS),
    "outline": len(OUTLINES),
    "direction": len(DIRECTIONS),
    "onset": 5,  # the frame of the group it first shows in; 4: it was on before
    "from_x": PLACES,  # where its middle is when the group first shows it
    "from_y": PLACES,
    "to_x": PLACES,  # and when it last does
    "to_y": PLACES,
}
KINDS = {"number": 1, "letter": 2, "shape": 3}


def labels(
    what: Card | Mover | None,
    *,
    onset: int | None = None,
    moving: bool = False,
    centres: Sequence[tuple[float, float]] = (),
) -> list[int]:
    """Class numbers in the order of ``ATTRIBUTES``; ``IGNORE`` where an attribute does not apply.

    centres: where it is on each frame, (x, y) as shares of the frame's width and height.
    """
    row = dict.fromkeys(ATTRIBUTES, IGNORE)
    row["kind"] = 0
    if what is None:
        return list(row.values())
    row["colour"] = list(COLOURS).index(what.colour)
    if onset is not None:
        row["onset"] = onset
    if centres:
        places = zip(("from_x", "from_y", "to_x", "to_y"), (*centres[0], *centres[-1]), strict=True)
        row |= {name: int(place * PLACES) for name, place in places}
    if isinstance(what, Mover):
        row["kind"], row["symbol"] = 4, SYMBOLS.index(what.shape)
        if moving:
            row["direction"] = DIRECTIONS.index(what.direction)
        return list(row.values())
    row["kind"], row["outline"] = KINDS[what.kind], OUTLINES.index(what.outline)
    if what.kind == "number":
        row["tens"] = int(what.content[0]) if len(what.content) == 2 else 10
        row["units"] = int(what.content[-1])
    elif what.kind == "letter":
        row["letter"] = LETTERS.index(what.content)
    else:
        row["symbol"] = SYMBOLS.index(what.content)
    return list(row.values())


def tokens_at(places: Sequence[tuple[float, float]], side: int) -> list[int]:
    """The tokens of a ``side x side`` grid, row by row, that hold places given as shares of width and height."""
    return sorted({int(y * side) * side + int(x * side) for x, y in places})


class AttributeHeads(nn.Module):
    """A hidden layer, then a linear layer for each attribute: ``(rows, dim)`` to logits by attribute."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU())
        self.heads = nn.ModuleDict({name: nn.Linear(2 * dim, size) for name, size in ATTRIBUTES.items()})

    def forward(self, states: Tensor) -> dict[str, Tensor]:
        """Logits by attribute, ``(rows, classes)``."""
        hidden = self.mlp(states)
        return {name: head(hidden) for name, head in self.heads.items()}


class ReadingHead(nn.Module):
    """One learned query over tokens ``(batch, tokens, dim)``, then the attributes."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pool = nn.MultiheadAttention(dim, 4, batch_first=True)
        self.query = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.attributes = AttributeHeads(dim)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Logits by attribute, ``(batch, classes)``."""
        query = self.query.expand(len(tokens), -1, -1)
        logits: dict[str, Tensor] = self.attributes(self.pool(query, tokens, tokens, need_weights=False)[0][:, 0])
        return logits


def reading_loss(logits: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    """Sum of the attributes' cross-entropies, each averaged over the batch; 0 for an empty one.

    targets: ``(batch, attributes)``.
    """
    total = torch.zeros((), device=targets.device)
    for column, values in enumerate(logits.values()):
        loss = F.cross_entropy(values.float(), targets[:, column], ignore_index=IGNORE, reduction="sum")
        total = total + loss / max(1, len(targets))
    return total


def reading_accuracy(logits: Mapping[str, Tensor], targets: Tensor) -> dict[str, float]:
    """Accuracy by attribute, over the rows where it applies."""
    right = {}
    for column, (name, values) in enumerate(logits.items()):
        valid = targets[:, column] != IGNORE
        if valid.any():
            right[name] = float((values.argmax(1) == targets[:, column])[valid].float().mean())
    return right
