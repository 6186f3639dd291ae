"""Where latents looked in a video, as plain values and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from longtake.model import Model
    from longtake.types import LatentLooks

BEST_TIMES, BEST_CELLS = 3, 5  # told of each latent


def check_latents(model: Model, latents: int | None, picture: Path | None) -> None:
    """Refuse latents that the model does not have, before a video is watched for them."""
    from longtake.ask import thinking_for

    thinking_for(model.backbone, latents, picture is not None)


def looks_fields(looks: LatentLooks) -> dict[str, Any]:
    """The times and the cells of the grid that each latent looked at most, best first, JSON-ready."""
    kinds = {"attended": looks.attended} | ({} if looks.reread is None else {"reread": looks.reread})
    each = [
        {name: _best(shares[number], looks.times) for name, shares in kinds.items()}
        for number in range(len(looks.attended))
    ]
    return {"openness": looks.openness, "each": each}


def _best(shares: Tensor, times: tuple[tuple[float, float], ...]) -> dict[str, list[dict[str, float]]]:
    """The times and the cells that a latent looked at most, best first; those without any share are left out.

    shares: ``(groups, rows, columns)``.
    """
    _, rows, columns = shares.shape

    def moment(group: int) -> dict[str, float]:
        return {"start_seconds": times[group][0], "stop_seconds": times[group][1]}

    by_time = shares.sum(dim=(1, 2))
    cells = []
    for place in shares.flatten().argsort(descending=True, stable=True)[:BEST_CELLS].tolist():
        group, rest = divmod(place, rows * columns)
        row, column = divmod(rest, columns)
        cell = {**moment(group), "row": row, "column": column, "share": float(shares[group, row, column])}
        cells.append(cell)
    order = by_time.argsort(descending=True, stable=True)[:BEST_TIMES].tolist()
    moments = [{**moment(group), "share": float(by_time[group])} for group in order]
    return {name: [one for one in found if one["share"]] for name, found in (("times", moments), ("cells", cells))}
