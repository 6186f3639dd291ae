"""The file that video scores are kept in as they come, so that an interrupted scoring goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from longtake.data.pruning.scorer import Key, Scored, VideoPart
from longtake.types import LongtakeError

FORMAT = "longtake video scores 1"


class ScoreFile:
    """A first line with the settings, then a line a part, each written out before the next video is begun.

    Opened again it is added to; a half-written last line is dropped. Close it, or use it in a ``with``.

    Raises LongtakeError when the file is of other settings, is no file of scores, or cannot be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        header = {"format": FORMAT, **settings}
        if not path.parent.is_dir():
            raise LongtakeError(f"{path}: the folder {path.parent} does not exist; make it first")
        try:
            self._rows = self._read(header) if path.exists() else []
            self._file = FileIO(path, "a")
        except OSError as error:
            raise self._unwritable(error) from error
        if not self._rows:
            self._write(header)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def done(self, parts: Iterable[VideoPart]) -> dict[Key, Scored]:
        """The scores that the file held when it was opened and that are still true: of files not replaced since."""
        by_key = {part.key: part for part in parts}
        found = {}
        for row in self._rows[1:]:
            part = by_key.get((row["video"], row["start_seconds"], row["stop_seconds"]))
            if part is not None and (state := part.file_state()) is not None and list(state) == row["file_state"]:
                told = {name: row[name] for name in ("score", "problem", "warning")}
                found[part.key] = Scored(part=part, file_state=state, **told)
        return found

    def add(self, scored: Scored) -> None:
        """Write one score. Of a missing file nothing is kept, so that it is looked for again the next time."""
        if scored.file_state is None:
            return
        name, start, stop = scored.part.key
        row = {"video": name, "start_seconds": start, "stop_seconds": stop, "file_state": scored.file_state}
        self._write(row | {"score": scored.score, "problem": scored.problem, "warning": scored.warning})

    def _read(self, header: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The whole lines; what follows the last of them is cut off."""
        held = self.path.read_bytes()
        whole = held[: held.rfind(b"\n") + 1]
        try:
            rows = [json.loads(line) for line in whole.splitlines()]
            known = rows[0]["format"] == FORMAT if rows else json.dumps(header).encode().startswith(held)
        except (ValueError, TypeError, KeyError):
            known = False
        if not known:
            raise LongtakeError(f"{self.path} is there and holds no scores; give another output, or remove it")
        if rows:
            self._check(rows[0], header)
        os.truncate(self.path, len(whole))
        return rows

    def _check(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        for name, value in wanted.items():
            if found.get(name) != value:
                raise LongtakeError(
                    f"{self.path} holds scores with {name} {found.get(name)}, but now it is {value}; "
                    "give the former, another output, or remove that file"
                )

    def _write(self, row: Mapping[str, Any]) -> None:
        line = json.dumps(row).encode() + b"\n"
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> LongtakeError:
        reason = os.strerror(error.errno) if error.errno else str(error)
        return LongtakeError(f"could not write {self.path}: {reason}; free space or choose another output")
