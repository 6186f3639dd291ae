"""Ask questions of hours of video.

``import longtake`` stays light: a name's module, and torch with it, is imported when the name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from longtake.memory import load_memory
    from longtake.model import Model, load
    from longtake.types import (
        Answer,
        Evidence,
        Frames,
        LongtakeError,
        Memory,
        Query,
        Sampling,
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
    "Query",
    "Sampling",
    "VideoError",
    "VideoInfo",
    "VisualTokens",
    "load",
    "load_memory",
]

_HOME = {"Model": "longtake.model", "load": "longtake.model", "load_memory": "longtake.memory"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'longtake' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME.get(name, "longtake.types")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
