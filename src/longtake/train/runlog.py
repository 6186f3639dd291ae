"""A stage's log: the terminal, a JSONL file and TensorBoard. Figures in files are exact, on the terminal rounded."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from pathlib import Path
from types import TracebackType

from longtake.outputs import replaced
from longtake.train.board import Board
from longtake.train.checkpoint import room_in
from longtake.types import LongtakeError

RECENT = 20  # steps over which speed is taken


class RunLog:
    """Rows of named figures by step; does nothing where ``writes`` is False, as on all processes but one.

    Rows behind ``start``, which a killed run wrote after its last checkpoint, are dropped: they come again.
    A full disk raises LongtakeError, but for none in the place of an error that is already on its way.
    """

    def __init__(self, folder: Path, steps: int, start: int = 0, *, every: int = 1, writes: bool = True) -> None:
        """every: steps between two lines on the terminal; the files get every step."""
        self._steps, self._every, self._writes = steps, every, writes
        self._recent: deque[tuple[float, float]] = deque([(time.monotonic(), 0.0)], maxlen=RECENT + 1)
        self._tokens = 0.0
        if not writes:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "log.jsonl"
        with room_in(folder, "the log"):
            keep_until(self._file, start)
            self._board = Board(folder / "tensorboard", start + 1)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._writes:
            return
        try:
            with room_in(self._file.parent, "the log"):
                self._board.close()
        except LongtakeError:
            if error is None:
                raise

    def step(self, step: int, *, tokens: float = 0.0, **figures: float) -> None:
        """Log one step's figures. tokens: how many it took, over all processes, for the speed."""
        self._tokens += tokens
        self._recent.append((time.monotonic(), self._tokens))
        (first, before), (last, after) = self._recent[0], self._recent[-1]
        seconds = (last - first) / (len(self._recent) - 1)
        speed = {"tokens_per_second": (after - before) / max(last - first, 1e-9)} if self._tokens else {}
        self.note(step, **figures, **speed)
        if self._writes and (step % self._every == 0 or step == self._steps):
            left = _clock((self._steps - step) * seconds)
            print(f"{step}/{self._steps}  {left} left  {_shown(figures | speed)}", file=sys.stderr, flush=True)

    def note(self, step: int, **figures: float) -> None:
        """Write figures into the files only."""
        if not self._writes:
            return
        with room_in(self._file.parent, "the log"):
            with self._file.open("a") as sink:
                sink.write(json.dumps({"step": step, **figures}) + "\n")
            for name, value in figures.items():
                self._board.add(name, value, step)

    def tell(self, step: int, **figures: float) -> None:
        """Write figures into the files and onto the terminal: those of an evaluation."""
        self.note(step, **figures)
        if self._writes:
            print(f"{step}/{self._steps}  {_shown(figures)}", file=sys.stderr, flush=True)


def keep_until(file: Path, start: int) -> None:
    """Drop the rows of steps behind ``start``, and a last row that was not written to its end."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines(keepends=True):
        if line.endswith("\n") and json.loads(line)["step"] <= start:
            kept.append(line)
    with replaced(file) as scratch:
        scratch.write_text("".join(kept))


def _shown(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
