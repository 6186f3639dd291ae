"""Converting: ``longtake convert``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path


class Layout(StrEnum):
    """Published checkpoint layouts that can be converted."""

    video_xl_pro = "video-xl-pro"


def convert(layout: Layout, source: Path, target: Path) -> None:
    """Turn a published checkpoint into a folder that --model takes."""
    from longtake.models.convert import convert as run

    run(source, target)
    print(f"{target}: converted from {layout.value}; ask with --model {target}")
