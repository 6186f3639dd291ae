"""Lets the package be imported where PyAV is not installed; import it before anything of longtake.

For measurements on a bare machine that read no video: what the package imports of PyAV at its top is replaced for that
one moment, and only where it is missing.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from unittest.mock import MagicMock

AV = ("av", "av.container", "av.index", "av.packet", "av.stream", "av.video", "av.video.reformatter")


if find_spec("av") is None:
    sys.modules.update({name: MagicMock(name=name) for name in AV})
    importlib.import_module("longtake.video")
    for name in AV:
        del sys.modules[name]
