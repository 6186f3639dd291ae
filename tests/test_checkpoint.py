"""Checkpoints: whole or not at all, the last few kept, a full disk and a damaged file survived."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from longtake.train import checkpoint
from longtake.train.embedded.optimiser import Optimiser
from longtake.types import LongtakeError


def parts(seed: int = 0) -> tuple[dict[str, nn.Module], Optimiser]:
    torch.manual_seed(seed)
    modules: dict[str, nn.Module] = {"layer": nn.Linear(3, 2)}
    return modules, Optimiser(modules, 0.1, 0.1, 0.0)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def full_disk(monkeypatch: pytest.MonkeyPatch, room_bytes: int) -> None:
    """Every file opened for writing from now on holds ``room_bytes``."""
    opened = Path.open

    def open_small(path: Path, mode: str = "r", *rest, **named):
        file = opened(path, mode, *rest, **named)
        if "w" in mode:
            real, left = file.write, [room_bytes]

            def write(data):
                left[0] -= len(data)
                if left[0] < 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(data)

            return Narrow(file, write)
        return file

    monkeypatch.setattr(Path, "open", open_small)


class Narrow:
    """A file whose write is another function."""

    def __init__(self, file, write) -> None:
        self.file, self.write = file, write

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_the_last_few_are_kept(tmp_path):
    modules, optimiser = parts()
    for step in (5, 10, 100, 1000):
        checkpoint.save(tmp_path, step, modules, optimiser)
    assert names(tmp_path) == ["checkpoint-00000100.pt", "checkpoint-00001000.pt"]
    checkpoint.save(tmp_path, 1001, modules, optimiser, keep=1)
    assert names(tmp_path) == ["checkpoint-00001001.pt"]
    assert checkpoint.last_step(tmp_path) == 1001


def test_resume_puts_weights_optimiser_and_chance_back(tmp_path):
    modules, optimiser = parts()
    optimiser.update(modules["layer"](torch.ones(1, 3)).square().sum(), 1.0)
    checkpoint.save(tmp_path, 7, modules, optimiser)
    expected = torch.rand(3)
    others, other_optimiser = parts(seed=1)
    assert checkpoint.resume(tmp_path, others, other_optimiser) == 7
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(others["layer"].weight, modules["layer"].weight)
    for both in ((modules, optimiser), (others, other_optimiser)):
        both[1].update(both[0]["layer"](torch.ones(1, 3)).square().sum(), 0.5)
    assert torch.equal(others["layer"].weight, modules["layer"].weight)


def test_without_a_checkpoint_a_run_begins(tmp_path):
    modules, optimiser = parts()
    assert checkpoint.resume(tmp_path, modules, optimiser) == 0
    assert checkpoint.last_step(tmp_path / "nowhere") == 0
    with pytest.raises(LongtakeError, match="school holds no checkpoint; run the stage school first"):
        checkpoint.modules_of(tmp_path / "school")


@pytest.mark.parametrize("room_bytes", [0, 700, 3000])  # the headers alone do not fit; the weights; the end
def test_a_full_disk_leaves_the_last_one_intact(tmp_path, monkeypatch, room_bytes):
    modules, optimiser = parts()
    checkpoint.save(tmp_path, 1, modules, optimiser)
    before = (tmp_path / "checkpoint-00000001.pt").read_bytes()
    assert len(before) > 3000
    with monkeypatch.context() as patch:
        full_disk(patch, room_bytes)
        with pytest.raises(LongtakeError, match="disk is full: the checkpoint of step 2 .* of step 1 is intact"):
            checkpoint.save(tmp_path, 2, modules, optimiser)
    assert names(tmp_path) == ["checkpoint-00000001.pt"]
    assert (tmp_path / "checkpoint-00000001.pt").read_bytes() == before
    assert checkpoint.resume(tmp_path, modules, optimiser) == 1


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "no"), OSError(errno.EDQUOT, "no"), SafetensorError("I/O error: no room (os error 28)")],
)
def test_a_full_disk_is_known_by_any_name(tmp_path, error):
    with pytest.raises(LongtakeError, match="the log does not fit in .*; there is no checkpoint: make room"):
        with checkpoint.room_in(tmp_path, "the log"):
            raise error
    with pytest.raises(SafetensorError), checkpoint.room_in(tmp_path, "the log"):
        raise SafetensorError("a header")


def test_other_failures_are_not_called_a_full_disk(tmp_path, monkeypatch):
    modules, optimiser = parts()

    def refuse(*_):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(LongtakeError, match="could not write .*checkpoint-00000002.pt: Permission denied"):
        checkpoint.save(tmp_path, 2, modules, optimiser)
    assert names(tmp_path) == []


def test_a_disk_that_is_full_at_the_end_is_told_the_same(tmp_path, monkeypatch):
    modules, optimiser = parts()

    def full(_):
        raise OSError(errno.ENOSPC, "no")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LongtakeError, match="disk is full: the checkpoint of step 2 does not fit"):
        checkpoint.save(tmp_path, 2, modules, optimiser)
    assert names(tmp_path) == []


def test_what_a_killed_run_left_is_removed_when_it_is_old(tmp_path):
    modules, optimiser = parts()
    old, fresh = (tmp_path / f".checkpoint-00000001.pt.{letter * 12}.part" for letter in "ab")
    for file in (old, fresh):
        file.touch()
    os.utime(old, (0, 0))
    checkpoint.save(tmp_path, 2, modules, optimiser)
    assert names(tmp_path) == [fresh.name, "checkpoint-00000002.pt"]


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda _: b"", lambda _: b"not a checkpoint"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage):
    modules, optimiser = parts()
    checkpoint.save(tmp_path, 1, modules, optimiser)
    checkpoint.save(tmp_path, 2, modules, optimiser)
    newest = tmp_path / "checkpoint-00000002.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(UserWarning, match="checkpoint-00000002.pt is damaged"):
        assert checkpoint.resume(tmp_path, modules, optimiser) == 1
    (tmp_path / "checkpoint-00000001.pt").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(LongtakeError, match="none of the 2 checkpoints in .* delete them"),
    ):
        checkpoint.last_step(tmp_path)
