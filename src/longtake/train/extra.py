"""The optional packages that training needs."""

from __future__ import annotations

from importlib.util import find_spec

from longtake.types import LongtakeError

PACKAGES = ("accelerate", "peft", "tensorboard")  # the extra "train"


def require_extra() -> None:
    """Raises LongtakeError that names the optional packages that are not installed."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise LongtakeError(f"training needs {', '.join(missing)}: pip install -e '.[train]' in longtake's checkout")
