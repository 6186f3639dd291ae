"""The benchmark of the real size, at a size of no use: its model is the recipe's, and a failure is a row too."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

import without
from longtake.backbones import language
from longtake.recipes.video_xl_pro import video_xl_pro_3b

FOLDER = Path(__file__).parents[1] / "benchmarks"


def load() -> ModuleType:
    """The script, which is in no package; what it imports lies beside it."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    spec = importlib.util.spec_from_file_location("benchmark_full_size", FOLDER / "full_size.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_full_size"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


full_size = load()
PLAN = full_size.small("cpu")


@pytest.fixture(autouse=True)
def whole_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script reads small prompts in small pieces; afterwards nobody else does."""
    monkeypatch.setattr(language, "PREFILL_COLUMNS", language.PREFILL_COLUMNS)


def test_the_real_size_is_the_recipes():
    ours = full_size.model_config("3b")
    recipes = video_xl_pro_3b().start.config(ours.vision_config, ours.text_config, ours.video_token_id)
    assert ours.to_dict() == recipes.to_dict()
    assert (ours.tokens_per_group, ours.vision_config.hidden_size) == (144, 1152)


def test_the_lengths_asked_for_and_the_keys_and_values_worked_by_hand():
    assert full_size.Plan(size="3b", device="cuda").asked == (256, 1024, 4096, 8192, 16384)
    assert full_size.kv_bytes(full_size.model_config("3b"), 1) == 36 * 1024


@pytest.mark.slow
def test_tower_and_compressor_have_their_rates():
    expected = {"tower": ["product", "tower", "tower"], "compressor": ["compressor", "compressor", "watch"]}
    for part, whats in expected.items():
        rows = list(full_size.MEASURES[part](PLAN))
        assert [row["what"] for row in rows] == whats
        assert all(row["frames_per_second"] > 0 for row in rows if "frames" in row)


@pytest.mark.slow
def test_asking_has_every_length_and_at_the_last_one_a_chosen_prompt_too():
    _, *rows = full_size.ask_rows(PLAN)
    assert [(row["frames"], row["context"]) for row in rows] == [(16, None), (64, PLAN.context), (64, None)]
    assert [row["visual_tokens"] for row in rows if row["context"] is None] == [16, 64]
    chosen, whole = rows[1:]
    assert chosen["positions"] <= PLAN.context < whole["positions"]
    for row in rows:
        # measured one by one, so at milliseconds the whole may come out a little under its parts
        assert row["first_token_seconds"] > 0.5 * (row["language_seconds"] + row["prompt_seconds"])
        assert row["second_first_token_seconds"] > 0
    assert whole["estimate_gb"] > whole["kv_gb"] == pytest.approx(whole["positions"] * 2 * 2 * 2 * 8 * 4 / 1e9)


@pytest.mark.slow
def test_what_would_not_end_in_time_is_left_out():
    rows = list(full_size.ask_rows(replace(PLAN, deadline=0.0)))
    whole = [row for row in rows if row["what"] == "ask" and row["context"] is None]
    assert all("left_out" in row for row in whole)
    assert "were left |" in full_size.markdown(results(whole))


@pytest.mark.slow
def test_training_has_its_steps():
    _, recot, *rows = full_size.train_rows(PLAN)
    assert recot["clips_per_second"] == pytest.approx(PLAN.clips[0] / recot["step_seconds"])
    assert [(row["frames"], row["tower"]) for row in rows] == [
        (4, "stored features"),
        (8, "stored features"),
        (4, "learns"),
    ]
    for row in rows:
        assert row["step_seconds"] == pytest.approx(row["row_seconds_each"] + row["optimiser_seconds"])
        assert row["estimate_gb"] > 0


def results(rows: list[dict]) -> dict:
    return {"command": "python it", "about": {"device": "none"}, "rows": rows, "seconds": 1.0, "finished": True}


@pytest.mark.slow
def test_failures_become_rows_and_the_table_names_them(tmp_path: Path):
    def fails(error: Exception) -> dict:
        raise error

    rows = [
        full_size.guarded("cpu", {"what": "ask", "frames": n, "context": None}, measure)
        for n, measure in (
            (256, lambda: {"positions": 9468, "first_token_seconds": 0.25}),
            (1024, lambda: fails(torch.OutOfMemoryError("CUDA out of memory. Tried"))),
            (4096, lambda: fails(RuntimeError("no kernel\nmore"))),
        )
    ]
    assert rows[1]["out_of_memory"] == "CUDA out of memory. Tried"
    assert rows[2]["error"] == "RuntimeError: no kernel"
    full_size.write_results(results(rows), tmp_path / "deep" / "found.json")
    assert json.loads((tmp_path / "deep" / "found.json").read_text())["rows"] == rows
    text = (tmp_path / "deep" / "found.md").read_text()
    assert "| 256 | 9,468 | all | 0.25 |  |" in text
    assert "| 1,024 |  | all |  | out of memory |" in text
    assert "- ask, 4096 frames: RuntimeError: no kernel" in text
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["found.json", "found.md"]


@pytest.mark.slow
def test_whole_command_and_a_part_that_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "found.json"
    full_size.main(["--small", "--only", "ask,tower", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["finished"]
    assert {row["part"] for row in found["rows"]} == {"tower", "ask"}
    assert found["about"]["torch"] == torch.__version__
    assert "## Time to first token" in out.with_suffix(".md").read_text()
    monkeypatch.setitem(full_size.LIMIT_SECONDS, "tower", 0.01)
    full_size.main(["--small", "--only", "tower", "--out", str(out)])
    (row,) = json.loads(out.read_text())["rows"]
    assert "stopped at its time limit" in row["error"]


@pytest.mark.slow
def test_a_bare_machine_imports_what_is_measured():
    measured = "import full_size, longtake.train.dialogues, longtake.train.recot, longtake.train.run\n"
    missing = "from importlib.util import find_spec; assert find_spec('av') is None and 'av' not in sys.modules"
    done = without.run_code(("av", "accelerate", "peft", "tensorboard"), measured + missing, FOLDER)
    assert (done.returncode, done.stderr) == (0, "")
