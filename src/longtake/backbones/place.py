"""Where a model is put, and where it comes from."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from longtake.types import LongtakeError

HUB_ID = re.compile(r"([\w-][\w.-]*)/[\w-][\w.-]*")


def place_of(device: str | torch.device | None) -> torch.device:
    """A device by name; None means CUDA where there is some. Raises LongtakeError for one that is not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise LongtakeError(f"device is {device!r}; torch knows none of that name, give cpu or cuda") from error
    there = {"cpu": 1}
    if torch.accelerator.is_available() and (found := torch.accelerator.current_accelerator()) is not None:
        there[found.type] = torch.accelerator.device_count()
    told = ", ".join(f"{count} {kind}" for kind, count in there.items())
    if (place.index or 0) >= there.get(place.type, 0):
        raise LongtakeError(f"device is {str(device)!r}, but torch finds here only {told}; give one of these")
    return place


def check_source(path: str) -> None:
    """Refuse, without asking the hub, a name that is no folder here and can be no hub id.

    ``owner/name`` can be one, unless there is a folder ``owner`` here.
    """
    if path and Path(path).exists():
        return
    named = HUB_ID.fullmatch(path)
    if named is None or Path(named[1]).is_dir():
        raise LongtakeError(f"{path!r} is no folder; give a model's folder or hub id (owner/name)")
