"""Files to be written: checked before the work for them begins, and under another name until they are whole."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from longtake.types import LongtakeError

ABANDONED_SECONDS = 3600.0  # a part that nobody has written to for so long is of a writer that was killed. Ours


def scratch_beside(path: Path) -> Path:
    """A new name for what is to take the place of ``path``."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")


def remove_abandoned(path: Path, ending: str) -> None:
    """Remove what killed writers of ``path`` left under such names, and nothing that may still be written.

    ending: a pattern; the same goes for files of the path's name and such an ending.
    """
    part = re.compile(rf"\.{re.escape(path.name)}({ending})?\.[0-9a-f]{{12}}\.part")
    for file in path.parent.iterdir():
        with suppress(FileNotFoundError, PermissionError):  # just renamed by its writer, or another user's
            if part.fullmatch(file.name) and time.time() - file.lstat().st_mtime > ABANDONED_SECONDS:
                file.unlink()


def check_plain(path: Path) -> None:
    """Refuse the name of a folder or a device, which a rename would replace."""
    if path.exists() and not path.is_file():
        raise LongtakeError(f"{path} exists and is not a plain file; give another name to write to")


def check_output(path: Path, *, endings: Sequence[str] = (), reads: Collection[Path] = ()) -> None:
    """Refuse, before any work is done for it, a file that could not be written.

    endings: what its name may end in; whatever else is there stays so. reads: files it must not be, resolved.

    Raises LongtakeError; leaves nothing behind.
    """
    try:
        check_plain(path)
        if not path.parent.is_dir():
            raise LongtakeError(f"{path}: the folder {path.parent} does not exist; make it first")
        if endings and path.suffix not in endings:
            raise LongtakeError(f"{path} ends in {path.suffix!r}; give a name that ends in {' or '.join(endings)}")
        if path.resolve() in reads:
            raise LongtakeError(f"{path} is one of the files that are read, which stay as they are; give another name")
        scratch = scratch_beside(path)
        scratch.touch(exist_ok=False)
        scratch.unlink()
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: Exception) -> LongtakeError:
    """What to say of a file that could not be written."""
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    return LongtakeError(f"could not write {path}: {reason}; free space or choose another place")
