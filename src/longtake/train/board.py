"""Figures in a file that TensorBoard reads, each written where it is noted.

torch's ``SummaryWriter`` writes in a thread, which prints a traceback of its own when the disk is full and tells the
training only later.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


class Board:
    """A new file in ``folder``; figures of earlier files from ``purge_step`` on are hidden. Raises OSError."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        seconds, rest = divmod(time.time_ns(), 10**9)  # files are read in the order of their names
        file = folder / f"events.out.tfevents.{seconds:010d}.{rest:09d}"
        self._sink = RecordWriter(file.open("xb", buffering=0))
        self._write(file_version="brain.Event:2")
        self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, name: str, value: float, step: int) -> None:
        """Write one figure."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)]))

    def close(self) -> None:
        """Close the file."""
        self._sink.close()

    def _write(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._sink.write(Event(wall_time=time.time(), **event).SerializeToString())
