"""A work folder keeps what was made under a name made of its settings."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def named(prefix: str, settings: dict[str, Any]) -> str:
    """A folder's name made of settings: other settings, another folder."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return f"{prefix}-{hashlib.blake2b(text.encode(), digest_size=5).hexdigest()}"
