"""What is kept in a work folder: under a name made of settings, and written whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def named(prefix: str, settings: dict[str, Any]) -> str:
    """A folder's name made of settings: other settings, another folder."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return f"{prefix}-{hashlib.blake2b(text.encode(), digest_size=5).hexdigest()}"


def kept(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(file.name + ".tmp")
    write(scratch)
    scratch.replace(file)


def kept_json(file: Path, value: object) -> None:
    """The same of a value as JSON."""
    kept(file, lambda scratch: scratch.write_text(json.dumps(value)))
