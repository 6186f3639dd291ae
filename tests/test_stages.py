"""The stages align and sft on a tiny model: what they train, what they leave, and that they go on after a stop."""

import errno
import json
import math
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import stage_runs
import tiny
from longtake.models import VideoLLM
from longtake.models.processor import VideoLLMProcessor
from longtake.train import checkpoint
from longtake.train.dialogues import loader
from longtake.train.run import Fit, Run, micro_batches, start_processes
from longtake.train.runlog import RunLog
from longtake.train.saving import load_model, replaced_folder
from longtake.train.sft import SftRecipe
from longtake.types import LongtakeError
from stage_runs import READING, fit, fresh_model, logged, run_stage, sources, write_set


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_set(folder)
    return folder


def changed(output) -> set[str]:
    """Which parts of the saved model are not those of the tiny one it began as."""
    model, _ = load_model(output / "model")
    fresh = fresh_model().state_dict()
    assert fresh.keys() == model.state_dict().keys()
    return {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, fresh[name])}


def test_align_trains_the_projector_alone(data, tmp_path):
    run_stage("align", data, tmp_path, steps=2)
    assert changed(tmp_path) == {"projector"}
    weights = checkpoint.read(tmp_path)["weights"]
    assert {name.split(".")[1] for name in weights} == {"projector"}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, {"dts", "projector", "scorer", "language_model"}),
        ({"train_tower": True}, {"vision_tower", "dts", "projector", "scorer", "language_model"}),
        ({"lora_rank": 2}, {"dts", "projector", "scorer", "language_model"}),
        ({"train_dts": False}, {"projector", "scorer", "language_model"}),
    ],
    ids=["all but the tower", "all", "lora", "nothing before the projector"],
)
def test_sft_trains_what_it_says(data, tmp_path, changes, parts):
    run_stage("sft", data, tmp_path, steps=2, **changes)
    assert changed(tmp_path) == parts


def test_lora_moves_the_decoder_s_linear_layers_by_low_rank_alone(data, tmp_path):
    run_stage("sft", data, tmp_path, steps=2, lora_rank=2)
    model, _ = load_model(tmp_path / "model")
    before = fresh_model().language_model.state_dict()
    for name, value in model.language_model.state_dict().items():
        move = value - before[name]
        if "_proj.weight" in name:
            assert torch.linalg.matrix_rank(move, atol=1e-5) <= 2, name
        else:
            assert (move == 0).all(), name


@pytest.mark.slow
def test_the_loss_falls(data, tmp_path):
    """Thirty steps on ten rows: from guessing among 264 tokens to knowing the rows."""
    run_stage("sft", data, tmp_path, steps=30, held=True, eval_every=15, lr=0.02)
    losses = logged(tmp_path)
    assert losses[30] < 0.5 * losses[1]
    held = logged(tmp_path, "held_loss")
    assert list(held) == [15, 30]
    assert held[30] < held[15]


def test_stored_features_are_trained_on(data, tmp_path):
    """In bfloat16, so losses are near those of frames, not equal."""
    run_stage("align", data, tmp_path / "frames", steps=2)
    run_stage("align", data, tmp_path / "stored", steps=2, stored=True)
    frames, stored = logged(tmp_path / "frames"), logged(tmp_path / "stored")
    assert stored[2] == pytest.approx(frames[2], abs=0.02)
    assert any((tmp_path / "features").rglob("*"))
    with pytest.raises(LongtakeError, match="a store needs a frozen tower"):
        run_stage("sft", data, tmp_path / "no", stored=True, train_tower=True)


@pytest.mark.parametrize(("stage", "changes"), [("align", {}), ("sft", {"train_dts": False})], ids=["align", "sft"])
def test_a_frozen_dts_runs_once_a_clip(data, tmp_path, stage, changes):
    """Its tokens are kept, so that of ten rows the eight that show something are compressed once each in six steps."""
    run_stage(stage, data, tmp_path / "anew", stored=True, held=True, **changes)
    run_stage(stage, data, tmp_path / "kept", stored=True, grouped=True, held=True, **changes)
    assert len(list((tmp_path / "groups").rglob("*.safetensors"))) == 8
    for name in ("loss", "norm", "held_loss"):
        anew, kept = logged(tmp_path / "anew", name), logged(tmp_path / "kept", name)
        assert list(kept.values()) == pytest.approx(list(anew.values()), rel=1e-4)
    run_stage(stage, data, tmp_path / "again", stored=True, grouped=True, held=True, **changes)
    assert logged(tmp_path / "again") == logged(tmp_path / "kept")


@pytest.mark.parametrize("changes", [{}, {"train_dts": False, "train_tower": True}], ids=["dts", "tower"])
def test_kept_groups_are_refused_where_something_before_them_learns(data, tmp_path, changes):
    with pytest.raises(LongtakeError, match="compressed tokens come from a store; set both to false"):
        run_stage("sft", data, tmp_path / "no", grouped=True, **changes)


def test_the_loss_is_weighted_by_tokens(data, tmp_path):
    """However a step is cut into micro-batches, its loss and gradient are the same."""
    for rows in (1, 3, 4):
        run_stage("sft", data, tmp_path / str(rows), steps=3, micro_batch=rows)
    one, three, four = (tmp_path / str(rows) for rows in (1, 3, 4))
    for name in ("loss", "norm"):
        whole = logged(four, name)
        assert list(logged(one, name).values()) == pytest.approx(list(whole.values()), rel=1e-4)
        assert list(logged(three, name).values()) == pytest.approx(list(whole.values()), rel=1e-4)


def test_checkpointing_learns_the_same(data, tmp_path):
    run_stage("sft", data, tmp_path / "off", steps=2, train_tower=True)
    run_stage("sft", data, tmp_path / "on", steps=2, train_tower=True, checkpointing=True)
    assert logged(tmp_path / "on") == logged(tmp_path / "off")


class Killed(BaseException):
    """As if the process were gone."""


def kill_at_save(monkeypatch: pytest.MonkeyPatch, step: int, *, before: bool) -> None:
    """The run ends when it is about to save a step, or has just done so."""
    write = checkpoint.write

    def killed(folder, at, state, *, keep):
        if at == step and before:
            raise Killed
        write(folder, at, state, keep=keep)
        if at == step:
            raise Killed

    monkeypatch.setattr(checkpoint, "write", killed)


def test_a_killed_run_goes_on_to_equal_losses(data, tmp_path):
    """Killed after the checkpoint of step 1, then before that of step 4, which is done again."""
    options = {"held": True, "lora_rank": 2, "eval_every": 2, "steps": 5, "save_every": 1}
    run_stage("sft", data, tmp_path / "whole", **options)
    for step, before in ((1, False), (4, True)):
        with pytest.MonkeyPatch.context() as patch:
            kill_at_save(patch, step, before=before)
            with pytest.raises(Killed):
                run_stage("sft", data, tmp_path / "parts", **options)
    assert checkpoint.last_step(tmp_path / "parts") == 3
    assert list(logged(tmp_path / "parts")) == [1, 2, 3, 4]
    run_stage("sft", data, tmp_path / "parts", **options)
    for name in ("loss", "norm", "rate", "learned", "held_loss"):
        assert logged(tmp_path / "parts", name) == logged(tmp_path / "whole", name), name
    whole, parts = (load_model(tmp_path / run / "model")[0].state_dict() for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_chance_goes_on_where_it_stopped(data, tmp_path):
    """With dropout, whose masks come from torch's own state."""
    text = tiny.video_llm().config.text_config.to_dict() | {"attention_dropout": 0.3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_runs, "fresh_model", lambda: fresh_model(text_config=text, attn_implementation="eager"))
        run_stage("sft", data, tmp_path / "whole", steps=4)
        with pytest.MonkeyPatch.context() as killing:
            kill_at_save(killing, 2, before=False)
            with pytest.raises(Killed):
                run_stage("sft", data, tmp_path / "parts", steps=4)
        run_stage("sft", data, tmp_path / "parts", steps=4)
    run_stage("sft", data, tmp_path / "plain", steps=4)
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    assert logged(tmp_path / "plain")[1] != logged(tmp_path / "whole")[1]


def test_finished_runs_are_left_as_they_are(data, tmp_path):
    run_stage("align", data, tmp_path, steps=2)
    before = (tmp_path / "log.jsonl").read_text()
    run_stage("align", data, tmp_path, steps=2)
    assert (tmp_path / "log.jsonl").read_text() == before


def test_a_half_written_row_is_dropped(data, tmp_path):
    run_stage("align", data, tmp_path, steps=2)
    with (tmp_path / "log.jsonl").open("a") as sink:
        sink.write('{"step": 2, "lo')
    run_stage("align", data, tmp_path, steps=2)
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2]


def test_the_saved_model_answers(data, tmp_path):
    run_stage("align", data, tmp_path, steps=1)
    model, made_by = load_model(tmp_path / "model")
    assert isinstance(model, VideoLLM)
    inputs = made_by(text="<|im_start|>user\n<|video|>\nhi", videos=[tiny.frames(4, 32, 32)])
    assert model(**inputs).logits.isfinite().all()


def test_tensorboard_reads_the_losses(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_stage("align", data, tmp_path, steps=3)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = {event.step: event.value for event in board.Scalars("loss")}
    assert shown == pytest.approx(logged(tmp_path))


def test_the_share_of_padding_is_logged(data, tmp_path, capsys):
    """Rows alone need none; four together are padded to the longest of them."""
    run_stage("align", data, tmp_path / "alone", steps=3, micro_batch=1)
    assert list(logged(tmp_path / "alone", "padding").values()) == [0.0] * 3
    run_stage("sft", data, tmp_path / "four", steps=3, micro_batch=4)
    shown = logged(tmp_path / "four", "padding")
    made_by = VideoLLMProcessor.from_config(tiny.tokenizer(), fresh_model().config)
    single = fit(micro_batch=1)
    read = loader(READING, single, made_by, sources(data), None, start_processes(single)).steps(0, 3)
    rows = [[batch.num_tokens for batch in micros] for micros in read]
    expected = [1 - sum(lengths) / (len(lengths) * max(lengths)) for lengths in rows]
    assert list(shown.values()) == pytest.approx(expected)
    assert max(expected) > 0
    assert f"padding {shown[3]:.4g}  tokens_per_second" in capsys.readouterr().err


def test_rates_by_hand():
    """Ten steps of which two warm up: a half, the whole, then down a cosine."""
    plan = fit(lr=2.0, warmup=0.2)
    rates = [plan.rate(step, 10) for step in (0, 1, 2, 6, 10)]
    assert rates == pytest.approx([1.0, 2.0, 2.0, 1.0, 0.0])


def test_the_second_beta_by_hand(tmp_path):
    """Gradients 1 and 2, second beta 1/2: means 1 and .29/.19, squares 1 and 2.25/.75, so steps of 1 and .881 rates."""
    plan = fit(lr=0.1, beta2=0.5, clip=math.inf, precision="fp32")
    weight = torch.nn.ParameterList([torch.zeros(1)])
    run = Run(plan, start_processes(plan), weight, tmp_path)
    found = []
    for gradient in (1.0, 2.0):
        run.update([gradient], lambda part: (part * weight[0]).sum(), 1, plan.lr)
        found.append(weight[0].item())
    assert found == pytest.approx([-0.1, -0.1 - 0.1 * (0.29 / 0.19) / 3**0.5])


def test_steps_of_all_epochs_by_hand():
    """Epochs run on into each other: two of five rows are ten rows, three steps of four."""
    assert Fit(lr=1.0, batch=4, epochs=2).steps_for(5) == 3
    assert Fit(lr=1.0, batch=4, epochs=2, steps=7).steps_for(5) == 7


def test_a_model_that_does_not_fit_leaves_the_one_before(tmp_path):
    def half(scratch):
        scratch.mkdir()
        raise OSError(errno.ENOSPC, "No space left on device")

    target = tmp_path / "new" / "model"
    for name in ("first", "second"):
        with replaced_folder(target) as scratch:
            scratch.mkdir()
            (scratch / name).touch()
    with pytest.raises(LongtakeError, match="the model does not fit"), replaced_folder(target) as scratch:
        half(scratch)
    assert [file.name for file in target.iterdir()] == ["second"]


def test_micro_batches_by_hand():
    plan = fit(batch=10, micro_batch=2)
    assert [micro_batches(plan, processes) for processes in (1, 2, 3, 5, 20)] == [5, 3, 2, 1, 1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch": 0}, "batch is 0; it must be at least 1"),
        ({"steps": 0}, "steps is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"clip": 0.0}, "clip is 0.0; it must be positive, or inf"),
        ({"clip": -1.0}, "clip is -1.0"),
        ({"beta2": 1.0}, "beta2 is 1.0; it must be at least 0 and below 1"),
        ({"seed": -1}, "seed is -1; it must not be negative"),
        ({"precision": "fp16"}, "precision is 'fp16'"),
        ({"offload": True}, "set shard=true too, or zero=true"),
        ({"shard": True, "zero": True}, "one of FSDP2 and ZeRO-2 must be false"),
    ],
)
def test_impossible_settings_are_refused(changes, said):
    with pytest.raises(LongtakeError, match=said):
        fit(**changes)


def test_deepspeed_through_accelerate_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(LongtakeError, match="it must be unset: start with torchrun and set zero=true"):
        run_stage("align", data, tmp_path)


@pytest.mark.parametrize(("found", "said"), [(None, "pip install deepspeed, or set shard=true"), (1, "needs torchrun")])
def test_zero_needs_deepspeed_and_torchrun(data, tmp_path, monkeypatch, found, said):
    monkeypatch.setattr("longtake.train.zero.find_spec", lambda name: found)
    with pytest.raises(LongtakeError, match=said):
        run_stage("align", data, tmp_path, zero=True)


def test_a_full_disk_stops_a_stage_in_one_line(data, tmp_path, monkeypatch):
    """Its last checkpoint is whole and the run goes on from it to equal losses."""
    run_stage("align", data, tmp_path / "whole")
    opened = Path.open

    def full(path, mode="r", *rest, **named):
        if path.name == "log.jsonl" and mode == "a" and path.read_text().count("\n") == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, mode, *rest, **named)

    with monkeypatch.context() as patch:
        (tmp_path / "parts").mkdir()
        (tmp_path / "parts" / "log.jsonl").touch()
        patch.setattr(Path, "open", full)
        with pytest.raises(LongtakeError, match="disk is full: the log .* checkpoint of step 4 is intact"):
            run_stage("align", data, tmp_path / "parts")
    run_stage("align", data, tmp_path / "parts")
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")


@pytest.mark.parametrize("verb", ["add", "close"])
def test_a_disk_that_tensorboard_fills_is_told_in_one_line(data, tmp_path, monkeypatch, verb):
    def full(board, *_):
        board._sink.close()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"longtake.train.board.Board.{verb}", full)
    with pytest.raises(LongtakeError, match="disk is full: the log does not fit"):
        run_stage("align", data, tmp_path, steps=1)
    with pytest.raises(KeyError, match="on its way"), RunLog(tmp_path, 1):
        raise KeyError("on its way")


def test_processes_meet_for_what_any_stage_needs(monkeypatch):
    """Gradients that wait on the CPU are summed there, beside what the GPUs sum."""
    asked = []

    def meet(**named):
        asked.extend(named["kwargs_handlers"])
        return Mock(num_processes=2)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.Accelerator", meet)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    start_processes(fit())
    assert asked == []
    start_processes(fit(), fit(shard=True, offload=True), fit())
    assert [handler.backend for handler in asked] == ["cpu:gloo,cuda:nccl"]


def test_sharding_needs_processes(data, tmp_path):
    with pytest.raises(LongtakeError, match="shard needs several processes"):
        run_stage("align", data, tmp_path, shard=True)
    with pytest.raises(LongtakeError, match="drop is"):
        SftRecipe(fit=Fit(lr=1.0, batch=1), drop=(0.5, 0.1))
