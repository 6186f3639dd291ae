"""Ask questions of hours of video.

``import longtake`` stays light: a name's module, and torch with it, is imported when the name is first used. So are the
modules ``longtake.video`` (reading files to ``Frames``) and ``longtake.select`` (choosing tokens for a question).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from longtake import select as select
    from longtake import video as video
    from longtake.memory import load_memory, save_memory
    from longtake.model import Model, load
    from longtake.types import (
        Answer,
        Evidence,
        Frames,
        LongtakeError,
        Memory,
        Sampling,
        Usage,
        VideoError,
        VideoInfo,
        VisualTokens,
    )

__all__ = [
    "Answer",
    "Evidence",
    "Frames",
    "LongtakeError",
    "Memory",
    "Model",
    "Sampling",
    "Usage",
    "VideoError",
    "VideoInfo",
    "VisualTokens",
    "load",
    "load_memory",
    "save_memory",
]

_HOME = {
    "Model": "longtake.model",
    "load": "longtake.model",
    "load_memory": "longtake.memory",
    "save_memory": "longtake.memory",
}
_MODULES = ("select", "video")


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"longtake.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'longtake' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME.get(name, "longtake.types")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
