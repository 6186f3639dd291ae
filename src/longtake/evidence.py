"""Which moments an answer relied on: attention to shares of places, and these to spans of time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from longtake.types import Evidence

if TYPE_CHECKING:
    from torch import Tensor

    from longtake.types import Memory, VisualTokens


def group_scores(attention: Tensor, source: Tensor, tokens: VisualTokens) -> Tensor:
    """Each time group's share of the attention that falls on visual tokens, float64 ``(groups,)``, sum 1 (or all 0).

    attention: ``(prompt length,)``; source: int64 ``(prompt length,)``, the visual token in each column or -1.
    """
    return place_scores(attention[None], source, tokens)[0].sum(dim=(1, 2))


def place_scores(attention: Tensor, source: Tensor, tokens: VisualTokens) -> Tensor:
    """Each place's share of the attention that falls on visual tokens, by row: float64 ``(rows, *grid)``.

    attention: ``(rows, prompt length)``; source as in ``group_scores``. A row's sum is 1, or 0 where none falls on any.
    """
    columns = (source >= 0).nonzero()[:, 0]
    place = tokens.position.to(source.device)[source[columns]].cpu()
    _, height, width = tokens.grid
    flat = (place[:, 0] * height + place[:, 1]) * width + place[:, 2]
    scores = torch.zeros(len(attention), math.prod(tokens.grid), dtype=torch.float64)
    scores.index_add_(1, flat, attention[:, columns.to(attention.device)].double().cpu())
    whole = scores.sum(dim=1, keepdim=True)
    shares = scores / torch.where(whole > 0, whole, 1.0)
    return shares.view(-1, *tokens.grid)


def evidence_spans(scores: Tensor, memory: Memory, threshold: float = 0.5) -> tuple[Evidence, ...]:
    """Neighbouring groups with at least ``threshold`` of the best group's score, merged into spans, best first.

    scores: ``(groups,)`` from ``group_scores``. A span's score is the sum of its groups', so at most 1.
    """
    best = float(scores.max())
    if best <= 0:
        return ()
    starts, stops = group_times(memory)
    spans = []
    for run in _runs((scores >= threshold * best).nonzero()[:, 0].tolist()):
        score = min(1.0, float(scores[run.start : run.stop].sum()))
        spans.append(Evidence(start_seconds=starts[run.start], stop_seconds=stops[run.stop - 1], score=score))
    return tuple(sorted(spans, key=lambda span: (-span.score, span.start_seconds)))


def group_times(memory: Memory) -> tuple[list[float], list[float]]:
    """Start and stop of every group.

    Where a memory does not tell the stops: the next start, ``group_seconds`` later, or the end of what was watched,
    whichever is first.
    """
    groups = memory.tokens.position[:, 0].cpu().contiguous()
    first = torch.searchsorted(groups, torch.arange(memory.tokens.grid[0]))
    starts = memory.tokens.seconds.cpu()[first].tolist()
    if memory.group_stops is not None:
        return starts, list(memory.group_stops)
    end = min(memory.provenance.duration_seconds, memory.provenance.sampling.stop_seconds or math.inf)
    end = end if end > starts[-1] else math.inf  # a container may say less than it holds
    stops = [min(start + memory.group_seconds, stop) for start, stop in zip(starts, [*starts[1:], end], strict=True)]
    return starts, stops


def _runs(indices: list[int]) -> list[range]:
    """Ascending indices as ranges of consecutive ones: 1 2 5 gives [1, 3) and [5, 6)."""
    runs: list[range] = []
    for index in indices:
        if runs and runs[-1].stop == index:
            runs[-1] = range(runs[-1].start, index + 1)
        else:
            runs.append(range(index, index + 1))
    return runs
