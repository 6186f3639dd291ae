"""Converting: ``longtake convert``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Layout(StrEnum):
    """Published checkpoint layouts that can be converted."""

    video_xl_pro = "video-xl-pro"


def convert(
    layout: Annotated[Layout, typer.Argument(help="Whose keys the checkpoint has.")],
    source: Annotated[Path, typer.Argument(help="The checkpoint's folder.")],
    target: Annotated[Path, typer.Argument(help="The new folder.")],
) -> None:
    """Turn a published checkpoint into a folder that --model takes."""
    from longtake.models.convert import convert as run

    run(source, target)
    print(f"{target}: converted from {layout.value}; ask with --model {target}")
