"""What a command's user did wrong is told in one line: by recipes and tables as by ``longtake``."""

import re
import sys
from pathlib import Path

import pytest

import without
from longtake import cli
from longtake.recipes import make_embedded
from longtake.recipes.one_line import errors_in_one_line
from longtake.tables.latent import __main__ as latent
from longtake.tables.mvp import __main__ as mvp
from longtake.types import LongtakeError

INSTALL = "pip install -e '.[train]' in longtake's checkout"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (LongtakeError("fps is 0;\n give 1"), 1, "error: fps is 0; give 1"),
        (PermissionError(13, "Permission denied", "a.mp4"), 1, "error: a.mp4: Permission denied; check the path, "),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_is_told_and_the_exit_code(error, code, line, capsys):
    with pytest.raises(SystemExit) as left, errors_in_one_line():
        raise error
    told = capsys.readouterr()
    assert (left.value.code, told.out, told.err.count("\n")) == (code, "", 1)
    assert told.err.startswith(line)


@pytest.mark.parametrize("error", [ValueError("ours"), OSError("of no path")])
def test_what_is_ours_keeps_its_traceback(error):
    with pytest.raises(type(error), match=str(error)), errors_in_one_line():
        raise error


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        ("tower", "school holds no checkpoint; run the stage school first"),
        ("sharpen", "tower/config.json does not exist; run the stage tower first"),
        ("bank", "tower/config.json does not exist; run the stage tower first"),
        ("compressor", "bank/videos.jsonl does not exist; run the stage bank first"),
        ("polish", "dts.pt does not exist; run the stage compressor first"),
        ("follow", "dts.pt does not exist; run the stage compressor first"),
        ("tokens", "dts.pt does not exist; run the stage compressor first"),
        ("decoder", "tokens.pt does not exist; run the stage tokens first"),
        ("export", "decoder holds no checkpoint; run the stage decoder first"),
    ],
)
def test_a_stage_out_of_order_names_the_one_before_and_leaves_nothing(stage, told, tmp_path, monkeypatch, capsys):
    work = tmp_path / "work"
    monkeypatch.setattr(sys, "argv", ["make_embedded", stage, "--work", str(work), "--threads", "1"])
    with pytest.raises(SystemExit) as left:
        make_embedded.main()
    assert (left.value.code, capsys.readouterr().err) == (1, f"error: {work}/{told}\n")
    assert not work.exists()


TRAININGS = {
    "longtake.cli": (cli.main, ["train", "debug", "--output"]),
    "longtake.tables.latent": (latent.main, ["worth", "--work"]),
    "longtake.tables.mvp": (mvp.main, ["held", "--puzzles", "nowhere", "--work"]),
}


@pytest.mark.parametrize("module", TRAININGS)
def test_training_says_which_packages_it_lacks(module, tmp_path, monkeypatch, capsys):
    main, words = TRAININGS[module]
    monkeypatch.setattr(sys, "argv", [module, *words, str(tmp_path / "new")])
    for package in ("accelerate", "peft"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as left:
        main()
    told = capsys.readouterr()
    assert (left.value.code, told.out) == (1, "")
    assert told.err == f"error: training needs accelerate, peft: {INSTALL}\n"
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("module", TRAININGS)
def test_a_plain_installation_says_so_too(module, tmp_path: Path):
    hidden = ("accelerate", "peft", "tensorboard")
    done = without.run_module(hidden, module, *TRAININGS[module][1], str(tmp_path / "new"))
    assert done.returncode == 1
    assert re.fullmatch(f"error: training needs {', '.join(hidden)}: {re.escape(INSTALL)}\n", done.stderr)
