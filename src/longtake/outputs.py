"""Files to be written: checked before the work for them begins, and under another name until they are whole."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from longtake.types import LongtakeError

ABANDONED_SECONDS = 3600.0  # a part that nobody has written to for so long is of a writer that was killed. Ours


@contextmanager
def replaced(path: Path, *, make_folder: bool = False, sync: bool = False) -> Iterator[Path]:
    """An empty file beside ``path``, which takes its place when the block ends, and is removed when it fails.

    make_folder: where there is none. sync: its bytes are on the disk first, as a loss of power may leave half a file.

    Raises LongtakeError, with ``path`` as it was, when it cannot be written.
    """
    try:
        check_plain(path)
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        scratch = scratch_beside(path)
        scratch.touch(exist_ok=False)
        try:
            mode = scratch.stat().st_mode
            yield scratch
            if scratch.stat().st_mode != mode:  # safetensors puts a file of its own there, which nobody else may read
                scratch.chmod(mode)
            if sync:
                with scratch.open("rb+") as file:
                    os.fsync(file.fileno())
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        if (cause := system_error(error)) is None:
            raise
        raise unwritable(path, cause) from error


def write_json(path: Path, value: object, *, indent: int | None = None) -> None:
    """A value as JSON, by ``replaced``, in a folder that is made; indented, it ends in a new line."""
    with replaced(path, make_folder=True) as scratch:
        scratch.write_text(json.dumps(value, indent=indent) + ("" if indent is None else "\n"))


def system_error(error: BaseException | None) -> OSError | None:
    """The system's error behind a library's own: torch raises that in its place, safetensors names it in the text."""
    while error is not None and not isinstance(error, OSError):
        if isinstance(error, SafetensorError) and (number := re.search(r"\(os error (\d+)\)", str(error))):
            return OSError(int(number[1]), os.strerror(int(number[1])))
        error = error.__context__
    return error


def scratch_beside(path: Path) -> Path:
    """A new name for what is to take the place of ``path``; hidden, and no ending of a result's."""
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


def unwritable(path: Path, error: OSError) -> LongtakeError:
    """What to say of a file that could not be written."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return LongtakeError(f"could not write {path}: {reason}; free space or choose another place")
