"""How a puzzle's pictures are shown as tokens, so that comparing them can be learned and none can be learned by heart.

Ours; of MVP, arXiv 2601.03781, nothing of the kind is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.types import LongtakeError, VisualTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """What is done to the pictures of one puzzle, in this order. Context and candidates are always treated alike.

    side: a picture has so many tokens a side, means of its cells; 0: as the model makes them.
    relative: what all of them have in common is taken out of each cell, as frames of one video are much alike. A
        token's size then tells how far it is from that mean, and so which candidates lie near the context: ``size``.
    dims: all tokens lie in so many first dimensions, by axes of their own: products stay as far as these hold them. An
        attention head sees no more than its width of a token, and so can take whole products; 0: as they are.
    turned: the share of showings in training in which the tokens are turned by a rotation drawn anew: which pictures
        are alike stays, and what they look like never comes back.
    size: of every token (root mean square), so that pictures can only be compared, not weighed; 0: as they are.
    """

    side: int = 0
    relative: bool = False
    dims: int = 0
    turned: float = 0.0
    size: float = 0.0

    def __post_init__(self) -> None:
        if min(self.side, self.dims, self.size) < 0 or not 0 <= self.turned <= 1:
            given = f"side is {self.side}, dims {self.dims}, size {self.size:g}, turned {self.turned:g}"
            raise LongtakeError(f"{given}; side, dims and size must be 0 or more, turned 0 to 1")

    def of(self, pictures: Sequence[VisualTokens], turn: int | None = None) -> list[VisualTokens]:
        """The pictures as they are shown; differentiable.

        pictures: tokens ``(rows x columns, dim)`` of one frame each, none left out. turn: the rotation's seed, or none.
        Raises LongtakeError where ``side`` or ``dims`` is more than a picture has.
        """
        if not pictures:
            return []
        shown = coarser(pictures, self.side) if self.side else list(pictures)
        shown = without_mean(shown) if self.relative else shown
        shown = on_own_axes(shown, self.dims) if self.dims else shown
        shown = shown if turn is None else rotated(shown, turn)
        shown = widened(shown, pictures[0].features.shape[1]) if self.dims else shown
        return of_one_size(shown, self.size) if self.size else shown

    def drawn_turn(self, seed: Sequence[int]) -> int | None:
        """The rotation of one showing, by its seed; None for none."""
        rng = np.random.default_rng([*seed, 1])
        return int(rng.integers(1 << 62)) if rng.random() < self.turned else None


def coarser(pictures: Sequence[VisualTokens], side: int) -> list[VisualTokens]:
    """Pictures ``(rows x columns, dim)`` as ``(side x side, dim)``: means of their tokens by place.

    Raises LongtakeError for a picture of fewer tokens a side.
    """
    means: dict[tuple[int, int, int], Iterator[Tensor]] = {}
    for grid in {picture.grid for picture in pictures}:
        _, rows, columns = grid
        if side > min(rows, columns):
            own = f"{rows} by {columns}"
            raise LongtakeError(f"side is {side}, but pictures have {own} tokens; give a smaller one, or 0")
        features = torch.stack([picture.features for picture in pictures if picture.grid == grid])
        cells = F.adaptive_avg_pool2d(features.transpose(1, 2).unflatten(2, (rows, columns)), side)
        means[grid] = iter(cells.flatten(2).transpose(1, 2).unbind())
    return [
        VisualTokens(
            features=next(means[picture.grid]),
            position=places(side).to(picture.position),
            seconds=picture.seconds[:1].expand(side * side),
            weight=(picture.weight.sum() / side**2).expand(side * side),
            grid=(1, side, side),
        )
        for picture in pictures
    ]


@lru_cache(maxsize=8)
def places(side: int) -> Tensor:
    """Positions of a picture's tokens, the same tensor for all: whoever lays pictures out knows them again."""
    return torch.cartesian_prod(torch.zeros(1, dtype=torch.int64), torch.arange(side), torch.arange(side))


def without_mean(pictures: Sequence[VisualTokens]) -> list[VisualTokens]:
    """Each cell less its mean over all pictures of that grid, and all at the size that they had (root mean square).

    Pictures that are all the same become 0.
    """
    means: dict[tuple[int, int, int], Tensor] = {}
    for grid in {picture.grid for picture in pictures}:
        means[grid] = torch.stack([picture.features for picture in pictures if picture.grid == grid]).mean(dim=0)
    rest = [picture.features - means[picture.grid] for picture in pictures]
    size = _rms([picture.features for picture in pictures]) / _rms(rest).clamp_min(1e-6)
    return [replace(picture, features=own * size) for picture, own in zip(pictures, rest, strict=True)]


def on_own_axes(pictures: Sequence[VisualTokens], dims: int) -> list[VisualTokens]:
    """All tokens by their principal axes ``(rows x columns, dims)``: products stay where there are enough axes."""
    tokens = torch.cat([picture.features for picture in pictures])
    axes = torch.linalg.svd(tokens.detach().float(), full_matrices=False).Vh[:dims]
    return _with_features(pictures, F.pad(tokens @ axes.T.to(tokens), (0, dims - len(axes))))


def widened(pictures: Sequence[VisualTokens], width: int) -> list[VisualTokens]:
    """Tokens ``(rows x columns, width)``, 0 beyond the dimensions that they have.

    Raises LongtakeError where these are more.
    """
    if (dims := max(one.features.shape[1] for one in pictures)) > width:
        raise LongtakeError(f"dims is {dims}, but a token has {width}; give a smaller one, or 0")
    return [replace(one, features=F.pad(one.features, (0, width - one.features.shape[1]))) for one in pictures]


def of_one_size(pictures: Sequence[VisualTokens], size: float) -> list[VisualTokens]:
    """Every token at this size (root mean square); a token of 0 stays 0."""
    own = [picture.features.square().mean(dim=-1, keepdim=True).sqrt().clamp_min(1e-6) for picture in pictures]
    return [replace(one, features=one.features * (size / each)) for one, each in zip(pictures, own, strict=True)]


def rotated(pictures: Sequence[VisualTokens], seed: int) -> list[VisualTokens]:
    """All tokens turned by one rotation or reflection ``(dim, dim)``, uniform over all there are: products stay.

    Only what becomes of the plane of the tokens is drawn, a random frame in its place: a puzzle has fewer than ``dim``.
    """
    tokens = torch.cat([picture.features for picture in pictures])
    small = len(tokens) < tokens.shape[1] and not tokens.requires_grad  # else by the whole matrix, for its gradient
    within = torch.linalg.qr(tokens.float().T).R.T if small else tokens
    drawn = torch.randn(tokens.shape[1], within.shape[1], generator=torch.Generator().manual_seed(seed))
    basis, scale = torch.linalg.qr(drawn)
    return _with_features(pictures, (within @ (basis * scale.diagonal().sign()).T.to(within)).to(tokens))


def _with_features(pictures: Sequence[VisualTokens], features: Tensor) -> list[VisualTokens]:
    """The pictures with other features ``(all their tokens, dim)``, picture after picture."""
    own = features.split([len(picture) for picture in pictures])
    return [replace(picture, features=each) for picture, each in zip(pictures, own, strict=True)]


def _rms(features: Sequence[Tensor]) -> Tensor:
    return torch.cat([own.flatten() for own in features]).square().mean().sqrt()
