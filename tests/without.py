"""Runs code where some packages seem not to be installed."""

import subprocess
import sys
from pathlib import Path

import processes

HIDE = """
import sys
from importlib.machinery import PathFinder
found = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.partition(".")[0] in {hidden} else found(name, *rest)
"""
RUN = "import runpy; sys.argv = {words}; runpy.run_module({words}[0], run_name='__main__')"


def run_code(hidden: tuple[str, ...], code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    """paths: searched for modules, beside the package's."""
    source = [processes.environment()["PYTHONPATH"], *map(str, paths)]
    command = [sys.executable, "-c", HIDE.format(hidden=hidden) + code]
    told = processes.environment(PYTHONPATH=":".join(source))
    return subprocess.run(command, env=told, capture_output=True, text=True, timeout=processes.PATIENCE_SECONDS)


def run_module(hidden: tuple[str, ...], *words: str) -> subprocess.CompletedProcess[str]:
    """``python -m`` with these words."""
    return run_code(hidden, RUN.format(words=list(words)))
