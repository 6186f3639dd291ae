"""One prompt as columns, and many of them as a padded batch: the tensor half of ``prepare``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from longtake.backbones.base import Inputs
from longtake.types import IGNORE, VisualTokens

TEXTS_KEPT = 1024  # texts whose token ids are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The columns of one prompt.

    ids, source: int64 ``(columns,)``, as in ``Inputs``.
    positions: int64 ``(columns,)`` or ``(3, columns)``.
    features: the visual tokens that ``source`` points into, ``(tokens, dim)``; None in a blind prompt.
    prefix: leading columns that do not depend on the question.
    next_position: where the first generated token stands.
    learned: how many columns at the end are an answer to be learned.
    finish: a last change of the embeddings ``(columns, dim)``, the answer's left out; None for none.
    """

    ids: Tensor
    source: Tensor
    positions: Tensor
    features: Tensor | None
    prefix: int
    next_position: int
    learned: int = 0
    finish: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some of a prompt's columns. ids: int64 ``(columns,)``.

    source: which of the piece's own visual tokens stands in each column, -1 for text; None where all is text.
    tokens: how many visual tokens it has.
    """

    ids: Tensor
    source: Tensor | None = None
    tokens: int = 0


def ids_of(tokenizer: PreTrainedTokenizerBase) -> Callable[[str, int], tuple[int, ...]]:
    """What makes token ids of a text, given how many tokens are known; kept, as the words around pictures return."""

    @lru_cache(TEXTS_KEPT)
    def ids(text: str, known: int) -> tuple[int, ...]:
        del known
        return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    return ids


def in_a_row(pieces: Sequence[Piece]) -> tuple[Tensor, Tensor]:
    """Ids and sources of pieces one after the other; the visual tokens of later ones are counted on."""
    sources, seen = [], 0
    for piece in pieces:
        own = torch.full_like(piece.ids, -1) if piece.source is None else piece.source
        sources.append(own if not seen else torch.where(own >= 0, own + seen, own))
        seen += piece.tokens
    return torch.cat([piece.ids for piece in pieces]), torch.cat(sources)


def features_of(visuals: Sequence[VisualTokens]) -> Tensor | None:
    """What the sources of a prompt point into: the features of all its visual tokens; None without any."""
    if len(visuals) < 2:
        return visuals[0].features if visuals else None
    return torch.cat([tokens.features for tokens in visuals])


def with_answer(layout: Layout, ids: Sequence[int]) -> Layout:
    """The layout followed by an answer to be learned, standing where it would have been generated."""
    answer = torch.tensor(ids, device=layout.ids.device)
    places = torch.arange(len(ids), device=layout.ids.device) + layout.next_position
    return replace(
        layout,
        ids=torch.cat([layout.ids, answer]),
        source=torch.cat([layout.source, torch.full_like(answer, -1)]),
        positions=torch.cat([layout.positions, places.expand(*layout.positions.shape[:-1], -1)], dim=-1),
        next_position=layout.next_position + len(ids),
        learned=len(ids),
    )


def collate(layouts: Sequence[Layout], embed: Callable[[Tensor], Tensor], *, shared: bool = False) -> Inputs:
    """Layouts to a batch; ``embed`` maps ids to embeddings. Gradients reach both.

    It is padded on the left, or with ``shared`` between the columns that do not depend on the question and the others,
    so that questions about one video have these in common; of videos of unequal length the shorter are padded on the
    left, too.
    """
    shares = [layout.prefix if shared or len(layouts) == 1 else 0 for layout in layouts]
    before = max(shares)
    behind = max(len(layout.ids) - share for layout, share in zip(layouts, shares, strict=True))

    def padded(row: Tensor, share: int, filler: int, dim: int = -1) -> Tensor:
        first, rest = row.tensor_split([share], dim=dim)
        return torch.cat([on_left(first, before, filler, dim), on_left(rest, behind, filler, dim)], dim=dim)

    def stacked(rows: Sequence[Tensor], filler: int) -> Tensor:
        """Rows ``(..., columns)`` padded and stacked before the last axis."""
        return torch.stack([padded(row, share, filler) for row, share in zip(rows, shares, strict=True)], dim=-2)

    labels = [
        torch.where(_is_learned(layout), layout.ids, torch.full_like(layout.ids, IGNORE)) for layout in layouts
    ]
    embeddings = [_embeddings(layout, embed) for layout in layouts]
    return Inputs(
        embeddings=torch.stack([padded(row, share, 0, dim=0) for row, share in zip(embeddings, shares, strict=True)]),
        positions=stacked([layout.positions for layout in layouts], 0),
        mask=stacked([torch.ones_like(layout.ids, dtype=torch.bool) for layout in layouts], False),
        source=stacked([layout.source for layout in layouts], -1),
        ids=stacked([layout.ids for layout in layouts], 0),
        labels=stacked(labels, IGNORE) if any(layout.learned for layout in layouts) else None,
        prefix=before,
        next_position=torch.tensor([layout.next_position for layout in layouts], device=layouts[0].ids.device),
    )


def on_left(row: Tensor, length: int, filler: int, dim: int) -> Tensor:
    """A row made ``length`` long along ``dim``, by a filler on its left."""
    gap = list(row.shape)
    gap[dim] = length - row.shape[dim]
    return torch.cat([row.new_full(gap, filler), row], dim=dim)


def some_rows(inputs: Inputs, rows: slice) -> Inputs:
    """Some rows of a batch without labels."""
    return replace(
        inputs,
        embeddings=inputs.embeddings[rows],
        positions=inputs.positions[..., rows, :],
        mask=inputs.mask[rows],
        source=inputs.source[rows],
        ids=inputs.ids[rows],
        next_position=inputs.next_position[rows],
    )


def _is_learned(layout: Layout) -> Tensor:
    columns = torch.arange(len(layout.ids), device=layout.ids.device)
    return columns >= len(layout.ids) - layout.learned


def _embeddings(layout: Layout, embed: Callable[[Tensor], Tensor]) -> Tensor:
    embedded = embed(layout.ids)
    if layout.features is not None:
        columns = torch.nonzero(layout.source >= 0).squeeze(1)
        places = layout.source[columns].to(layout.features.device)  # a memory's tokens stand on the CPU
        chosen = layout.features[places].to(embedded)
        embedded = embedded.index_copy(0, columns, chosen)
    if layout.finish is not None:
        asked = len(layout.ids) - layout.learned
        embedded = torch.cat([layout.finish(embedded[:asked]), embedded[asked:]])
    return embedded
