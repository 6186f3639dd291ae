"""Lets the package be imported where PyAV or TensorBoard is not installed; import it before anything of longtake.

For measurements on a bare machine that read no video and write no log: what the package imports of the two at its top
is replaced for that one moment, and only where it is missing.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from unittest.mock import MagicMock

AV = ("av", "av.container", "av.index", "av.packet", "av.stream", "av.video", "av.video.reformatter")
BOARD = ("torch.utils.tensorboard",)


def import_without(module: str, *absent: str) -> None:
    """Import a module with nothing behind the names ``absent``, which are as missing afterwards as before."""
    sys.modules.update({name: MagicMock(name=name) for name in absent})
    try:
        importlib.import_module(module)
    finally:
        for name in absent:
            del sys.modules[name]


if find_spec("av") is None:
    import_without("longtake.video", *AV)
if find_spec("tensorboard") is None:
    import_without("longtake.train.runlog", *BOARD)
