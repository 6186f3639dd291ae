"""Fixtures that several files ask for by name."""

import ctypes
import os
import sys
from collections.abc import Iterator

import pytest
import torch


def pytest_configure() -> None:
    """Where several processes test side by side (pytest-xdist), each and what it starts has its share of the cores."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if processes > 1:
        threads = max(1, (os.cpu_count() or 1) // processes)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)


@pytest.fixture
def one_thread():
    """Small matrices are faster so, and sums the same on any machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def permissions() -> Iterator[None]:
    """Makes permissions hold, for this test, even for root, who may otherwise read and write anything (Linux only)."""
    if os.geteuid() != 0:
        yield
        return
    if not sys.platform.startswith("linux"):
        pytest.skip("root may do anything here")
    libc = ctypes.CDLL(None, use_errno=True)
    version, kept = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(version, kept) == 0
    fewer = (ctypes.c_uint32 * 6)(*kept)
    fewer[0] &= ~0b110  # effective: neither CAP_DAC_OVERRIDE nor CAP_DAC_READ_SEARCH
    assert libc.capset(version, fewer) == 0
    try:
        yield
    finally:
        assert libc.capset(version, kept) == 0
