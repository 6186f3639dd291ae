"""How a puzzle's pictures are shown as tokens, so that comparing them can be learned and none can be learned by heart.

Ours; of MVP, arXiv 2601.03781, nothing of the kind is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.types import LongtakeError, VisualTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """What is done to the pictures of one puzzle, in this order. Context and candidates are always treated alike.

    side: a picture has so many tokens a side, means of its cells; 0: as the model makes them.
    relative: what all of them have in common is taken out of each cell, as frames of one video are much alike.
    turned: the share of showings in training in which the tokens are turned by a rotation drawn anew: which pictures
        are alike stays, and what they look like never comes back.
    """

    side: int = 0
    relative: bool = False
    turned: float = 0.0

    def __post_init__(self) -> None:
        if self.side < 0 or not 0 <= self.turned <= 1:
            raise LongtakeError(f"side is {self.side}, turned {self.turned}; side must be 0 or more, turned 0 to 1")

    def of(self, pictures: Sequence[VisualTokens], turn: int | None = None) -> list[VisualTokens]:
        """The pictures as they are shown; differentiable.

        pictures: tokens ``(rows x columns, dim)`` of one frame each, none left out. turn: the rotation's seed, or none.
        Raises LongtakeError where ``side`` is more than a picture has.
        """
        shown = [coarser(picture, self.side) for picture in pictures] if self.side else list(pictures)
        shown = without_mean(shown) if self.relative else shown
        return shown if turn is None else rotated(shown, turn)

    def drawn_turn(self, seed: Sequence[int]) -> int | None:
        """The rotation of one showing, by its seed; None for none."""
        rng = np.random.default_rng([*seed, 1])
        return int(rng.integers(1 << 62)) if rng.random() < self.turned else None


def coarser(picture: VisualTokens, side: int) -> VisualTokens:
    """A picture ``(rows x columns, dim)`` as ``(side x side, dim)``: means of its tokens by place.

    Raises LongtakeError for a picture of fewer tokens a side.
    """
    _, rows, columns = picture.grid
    if side > min(rows, columns):
        raise LongtakeError(f"side is {side}, but pictures have {rows} by {columns} tokens; give a smaller one, or 0")
    cells = picture.features.T.unflatten(1, (rows, columns))
    position = torch.cartesian_prod(torch.zeros(1, dtype=torch.int64), torch.arange(side), torch.arange(side))
    return VisualTokens(
        features=F.adaptive_avg_pool2d(cells, side).flatten(1).T,
        position=position.to(picture.position),
        seconds=picture.seconds[:1].expand(side * side),
        weight=(picture.weight.sum() / side**2).expand(side * side),
        grid=(1, side, side),
    )


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


def rotated(pictures: Sequence[VisualTokens], seed: int) -> list[VisualTokens]:
    """All tokens turned by one rotation or reflection ``(dim, dim)``, uniform over all there are: products stay."""
    if not pictures:
        return []
    like = pictures[0].features
    drawn = torch.randn(like.shape[1], like.shape[1], generator=torch.Generator().manual_seed(seed))
    basis, scale = torch.linalg.qr(drawn)
    turn = (basis * scale.diagonal().sign()).to(like)
    return [replace(picture, features=picture.features @ turn) for picture in pictures]


def _rms(features: Sequence[Tensor]) -> Tensor:
    return torch.cat([own.flatten() for own in features]).square().mean().sqrt()
