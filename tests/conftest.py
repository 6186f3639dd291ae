"""Fixtures that several files ask for by name."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """Small matrices are faster so, and sums the same on any machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
