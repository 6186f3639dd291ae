"""Files appear whole or not at all, whoever writes them and whatever happens meanwhile."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from full_disk import full_disk
from longtake.outputs import replaced, write_json
from longtake.tables.token_files import write_tokens
from longtake.types import LongtakeError, VisualTokens


def save_tokens(file: Path) -> None:
    position = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), torch.arange(4), indexing="ij"), -1)
    made = VisualTokens(
        features=torch.zeros(64, 500), position=position.view(64, 3), seconds=torch.zeros(64, dtype=torch.float64),
        weight=torch.ones(64), grid=(4, 4, 4),
    )  # fmt: skip
    write_tokens([made], file)


def save_tensors(file: Path) -> None:
    with replaced(file) as scratch:
        save_file({"a": torch.zeros(10_000)}, scratch)


@pytest.mark.parametrize("write", [save_tokens, save_tensors, lambda file: write_json(file, "x" * 10_000)])
def test_a_full_disk_leaves_the_old_file_alone_in_its_folder(tmp_path, write):
    file = tmp_path / "a"
    file.write_text("old")
    with full_disk(9000), pytest.raises(LongtakeError, match="^could not write .*/a: File too large; free space"):
        write(file)
    assert os.listdir(tmp_path) == ["a"]
    assert file.read_text() == "old"
    write(file)
    assert os.listdir(tmp_path) == ["a"]
    assert file.stat().st_size > 9000


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("CUDA"), SafetensorError("a header")])
def test_a_failure_in_the_middle_stays_what_it_is(tmp_path, error):
    file = tmp_path / "a"
    file.write_text("old")

    def fail(scratch: Path) -> None:
        scratch.write_text("half")
        raise error

    with pytest.raises(type(error)) as caught, replaced(file) as scratch:
        fail(scratch)
    assert caught.value is error
    assert os.listdir(tmp_path) == ["a"]
    assert file.read_text() == "old"


def test_of_two_writers_at_once_each_writes_a_whole_file(tmp_path):
    file, both_are_half_way = tmp_path / "a", threading.Barrier(2, timeout=10)

    def write(letter: str) -> None:
        with replaced(file) as scratch, scratch.open("w") as sink:
            sink.write(letter * 10)
            sink.flush()
            both_are_half_way.wait()
            sink.write(letter * 10)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, "xy"))
    assert os.listdir(tmp_path) == ["a"]
    assert file.read_text() in ("x" * 20, "y" * 20)


def test_json_makes_its_folder_and_ends_its_line_when_it_is_indented(tmp_path):
    write_json(tmp_path / "no" / "where" / "a.json", [1, "ä"])
    assert (tmp_path / "no" / "where" / "a.json").read_bytes() == b'[1, "\\u00e4"]'
    write_json(tmp_path / "a.json", [1], indent=1)
    assert (tmp_path / "a.json").read_bytes() == b"[\n 1\n]\n"


def test_a_folder_below_a_file_cannot_be_made(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(LongtakeError, match="could not write .*b.json: Not a directory"):
        write_json(tmp_path / "a" / "no" / "b.json", 1)
