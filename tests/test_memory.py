"""The saved form: what goes in comes out, and every bad file or full disk gives one line and no half file."""

import dataclasses
import errno
import json
import os
import stat
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import longtake.memory
from fakes import FakeBackbone, grey_frames
from longtake.memory import is_memory, load_memory, save_memory
from longtake.types import LongtakeError, Memory, Sampling
from longtake.watch import watch_frames


def make(num_frames: int = 10, level: int = 60, dtype: torch.dtype = torch.float32) -> Memory:
    memory = watch_frames(FakeBackbone(), [grey_frames([level] * num_frames)], Sampling(fps=1.0), video="a.mp4")
    tokens = dataclasses.replace(memory.tokens, features=memory.tokens.features.to(dtype))
    provenance = dataclasses.replace(memory.provenance, warnings=("2 frames lost at 3.0 s",), video_identity="9-ab")
    return dataclasses.replace(memory, tokens=tokens, provenance=provenance)


def assert_equal(one: Memory, other: Memory) -> None:
    for name in ("features", "position", "seconds", "weight"):
        mine, its = getattr(one.tokens, name), getattr(other.tokens, name)
        assert mine.dtype == its.dtype
        assert torch.equal(mine, its)
    assert one.tokens.grid == other.tokens.grid
    assert dataclasses.replace(one, tokens=None) == dataclasses.replace(other, tokens=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(tmp_path, dtype):
    memory = make(dtype=dtype)
    save_memory(memory, tmp_path / "m")
    assert_equal(load_memory(tmp_path / "m"), memory)


def test_round_trip_of_given_times(tmp_path):
    sampling = Sampling(at_seconds=(0.1, 1.0 / 3.0, 7e4), exact=True)
    memory = make()
    memory = dataclasses.replace(memory, provenance=dataclasses.replace(memory.provenance, sampling=sampling))
    save_memory(memory, tmp_path / "m")
    assert load_memory(tmp_path / "m").provenance.sampling == sampling


def test_file_is_plain_safetensors_with_a_readable_header(tmp_path):
    save_memory(make(), tmp_path / "m")
    assert set(load_file(tmp_path / "m")) == {"features", "position", "seconds", "weight"}
    with safe_open(tmp_path / "m", framework="pt") as file:
        header = json.loads(file.metadata()["header"])
    assert header["provenance"]["model"] == "fake-1"
    assert header["provenance"]["video_identity"] == "9-ab"
    assert header["provenance"]["sampling"]["fps"] == 1.0


def test_an_ordinary_file_alone_in_its_folder(tmp_path):
    umask = os.umask(0o022)
    try:
        save_memory(make(level=1), tmp_path / "m")
        save_memory(make(level=2), tmp_path / "m")
    finally:
        os.umask(umask)
    assert os.listdir(tmp_path) == ["m"]
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o644


def test_is_memory_knows_memories_from_everything_else(tmp_path):
    save_memory(make(), tmp_path / "m")
    (tmp_path / "empty").touch()
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(100))
    assert is_memory(tmp_path / "m")
    assert not any(is_memory(tmp_path / name) for name in ("empty", "film.mp4", "none", "."))


@pytest.mark.parametrize("left", [0.99, 0.5, 0.01])
def test_truncated_file(tmp_path, left):
    save_memory(make(), tmp_path / "m")
    data = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(data[: int(len(data) * left)])
    with pytest.raises(LongtakeError, match=r"m is not a whole memory file .*; watch the video again"):
        load_memory(tmp_path / "m")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(LongtakeError, match="none is not a file; write it first"):
        load_memory(tmp_path / "none")
    with pytest.raises(LongtakeError, match="is not a file"):
        load_memory(tmp_path)


def test_other_safetensors_files(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(LongtakeError, match=r"is a safetensors file but not a longtake.memory file"):
        load_memory(tmp_path / "model.safetensors")


@pytest.mark.parametrize("damage", ["no header", "no JSON", "no grid", "short grid", "no sampling", "bad sampling"])
def test_a_damaged_header_gives_one_line(tmp_path, damage):
    save_memory(make(), tmp_path / "m")
    with safe_open(tmp_path / "m", framework="pt") as file:
        metadata = file.metadata()
    header = json.loads(metadata["header"])
    if damage == "no header":
        del metadata["header"]
    elif damage == "no JSON":
        metadata["header"] = metadata["header"][:-1]
    elif damage == "no grid":
        metadata["header"] = json.dumps(header | {"grid": None})
    elif damage == "short grid":
        metadata["header"] = json.dumps(header | {"grid": [3]})
    else:
        provenance = header["provenance"] | {"sampling": [] if damage == "no sampling" else {"at_seconds": 3}}
        metadata["header"] = json.dumps(header | {"provenance": provenance})
    save_file(load_file(tmp_path / "m"), tmp_path / "m", metadata)
    with pytest.raises(LongtakeError, match="m has a damaged header .*; watch the video again"):
        load_memory(tmp_path / "m")


def test_another_version(tmp_path, monkeypatch):
    monkeypatch.setattr(longtake.memory, "VERSION", 2)
    save_memory(make(), tmp_path / "m")
    monkeypatch.undo()
    with pytest.raises(LongtakeError, match=r"layout version 2, this longtake reads version 1; watch"):
        load_memory(tmp_path / "m")


@pytest.mark.parametrize("step", ["save_file", "fsync", "replace"])
def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    old = make(level=10)
    save_memory(old, tmp_path / "m")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "save_file":  # as the writer itself fails: after a part of its file
        monkeypatch.setattr("safetensors.torch.save_file", lambda tensors, path, _: (path.write_bytes(b"half"), fail()))
    else:
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(LongtakeError, match="could not write .*m: No space left on device; free space or choose"):
        save_memory(make(level=20), tmp_path / "m")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["m"]
    assert_equal(load_memory(tmp_path / "m"), old)


LIMITED = """
import resource, signal, sys, torch
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from longtake.memory import write_tensors
from longtake.types import LongtakeError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_tensors(Path(sys.argv[1]), {"features": torch.zeros(10000)}, "longtake.memory", {})
except LongtakeError as error:
    print(error)
"""


def test_writer_that_is_really_cut_short(tmp_path):
    """The operating system refuses bytes after the first thousand: the writer's own failure, not a simulated one."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "m"), os.path.dirname(__file__)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"could not write {tmp_path / 'm'}: ")
    assert done.stdout.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_missing_folder_and_folder_as_target(tmp_path):
    with pytest.raises(LongtakeError, match=r"the folder .*none does not exist; make it first"):
        save_memory(make(), tmp_path / "none" / "m")
    with pytest.raises(LongtakeError, match="exists and is not a plain file; give another name"):
        save_memory(make(), tmp_path)


def test_a_file_that_is_no_memory_stays(tmp_path):
    film = tmp_path / "film.mp4"
    film.write_bytes(b"\0\0\0\x20ftypisom")
    with pytest.raises(LongtakeError, match=r"film.mp4 is there and is no memory; give another name"):
        save_memory(make(), film)
    assert film.read_bytes() == b"\0\0\0\x20ftypisom"


WRITER = """
import sys, torch
from pathlib import Path
from longtake.memory import write_tensors
value, path, enough = float(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
while not enough.exists():
    write_tensors(path, {"features": torch.full((20000,), value)}, "longtake.memory", {"value": value})
"""


@pytest.mark.slow
def test_two_processes_writing_one_target_leave_a_whole_file(tmp_path):
    folder, enough = tmp_path / "memories", tmp_path / "enough"
    folder.mkdir()
    target = folder / "m"
    commands = [[sys.executable, "-c", WRITER, value, str(target), str(enough)] for value in ("1", "2")]
    writers = [subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) for command in commands]
    seen: list[float] = []
    try:
        while len(seen) < 50 or set(seen) != {1.0, 2.0}:
            assert all(writer.poll() is None for writer in writers)
            if target.exists():
                tensors, header = longtake.memory.read_tensors(target, "longtake.memory")
                assert tensors["features"].unique().tolist() == [header["value"]]
                seen.append(header["value"])
    finally:
        enough.touch()
        codes = [writer.wait() for writer in writers]
    assert codes == [0, 0]
    assert os.listdir(folder) == ["m"]
