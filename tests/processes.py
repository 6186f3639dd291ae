"""Several processes on this machine that find each other, as torchrun starts them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

RUNNER = Path(__file__).with_name("stage_runs.py")
PATIENCE_SECONDS = 900  # a busy machine is no failure


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    source = str(RUNNER.parents[1] / "src")
    return os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"} | more


def command(**arguments: object) -> list[str]:
    return [sys.executable, str(RUNNER), json.dumps(arguments, default=str)]


def run_alone(**arguments: object) -> None:
    """One process, by itself."""
    subprocess.run(command(**arguments), env=environment(), check=True, timeout=PATIENCE_SECONDS)


def run_together(count: int, **arguments: object) -> None:
    """``count`` processes; all must end well."""
    port = free_port()
    running = [
        subprocess.Popen(
            command(**arguments),
            env=environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(count),
                LOCAL_WORLD_SIZE=str(count),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            ),
        )
        for rank in range(count)
    ]
    try:
        codes = [process.wait(timeout=PATIENCE_SECONDS) for process in running]
    finally:
        for process in running:
            process.kill()
    assert codes == [0] * count


def run_until_killed(output: Path, rows: int, **arguments: object) -> None:
    """SIGKILL as soon as the log has so many rows of training steps."""
    process = subprocess.Popen(command(output=output, **arguments), env=environment())
    log, until = output / "log.jsonl", time.monotonic() + PATIENCE_SECONDS
    try:
        while not (log.exists() and log.read_text().count('"norm"') >= rows):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < until
            time.sleep(0.002)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
