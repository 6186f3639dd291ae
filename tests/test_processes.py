"""Stages in processes of their own: killed ones, several with the whole model each (DDP), shares (FSDP2, ZeRO-2)."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from longtake.train import checkpoint
from longtake.train.saving import load_model
from processes import PATIENCE_SECONDS, environment, run_alone, run_together, run_until_killed
from stage_runs import logged, run_recot, run_stage, write_set

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_set(folder)
    return folder


@pytest.mark.parametrize("stage", ["sft", "recot"])
def test_killed_twice_and_bit_equal(data, tmp_path, stage):
    arguments: dict[str, object] = {"stage": stage, "steps": 40, "save_every": 3, "held": True, "eval_every": 5}
    arguments |= {"data": data} if stage == "sft" else {}
    run_alone(output=tmp_path / "whole", **arguments)
    steps = []
    for rows in (5, 17):
        run_until_killed(tmp_path / "parts", rows, **arguments)
        steps.append(checkpoint.last_step(tmp_path / "parts"))
    assert 3 <= steps[0] < steps[1] < 40
    run_alone(output=tmp_path / "parts", **arguments)
    for name in ("loss", "norm", "rate", "held_loss"):
        whole = logged(tmp_path / "whole", name)
        assert logged(tmp_path / "parts", name) == whole, name
    assert list(logged(tmp_path / "parts")) == list(range(1, 41))


SFT: dict[str, object] = {"stage": "sft"}
IDLE = SFT | {"batch": 3, "micro_batch": 1}  # one of two processes has nothing to do in every second micro-batch
LORA = SFT | {"lora_rank": 2, "stored": True}
TOWER = SFT | {"train_tower": True, "checkpointing": True}
DDP: dict[str, object] = {}
FSDP2: dict[str, object] = {"shard": True}
OFFLOADED: dict[str, object] = {"shard": True, "offload": True}
ZERO: dict[str, object] = {"zero": True}
ZERO_OFFLOADED: dict[str, object] = {"zero": True, "offload": True}
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")


def same_curve(one: Path, other: Path) -> None:
    """Losses to five digits."""
    a, b = logged(one), logged(other)
    assert list(a) == list(b)
    assert list(a.values()) == pytest.approx(list(b.values()), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "spread"),
    [
        pytest.param(SFT, DDP, id="sft, ddp"),
        pytest.param(SFT, FSDP2, id="sft, fsdp2"),
        pytest.param(SFT, OFFLOADED, id="sft, fsdp2 offloaded"),
        pytest.param(IDLE, DDP, id="idle processes, ddp"),
        pytest.param(IDLE, FSDP2, id="idle processes, fsdp2"),
        pytest.param(LORA, FSDP2, id="lora and store, fsdp2"),
        pytest.param(TOWER, DDP, id="tower and checkpointing, ddp"),
        pytest.param(TOWER, FSDP2, id="tower and checkpointing, fsdp2"),
        pytest.param({"stage": "align"}, FSDP2, id="align, fsdp2"),
        pytest.param(SFT, ZERO, id="sft, zero", marks=needs_deepspeed),
        pytest.param(SFT, ZERO_OFFLOADED, id="sft, zero offloaded", marks=needs_deepspeed),
        pytest.param(IDLE, ZERO_OFFLOADED, id="idle processes, zero offloaded", marks=needs_deepspeed),
        pytest.param(LORA, ZERO, id="lora and store, zero", marks=needs_deepspeed),
        pytest.param(TOWER, ZERO_OFFLOADED, id="tower and checkpointing, zero offloaded", marks=needs_deepspeed),
    ],
)
def test_two_processes_learn_as_one(data, tmp_path, arguments, spread):
    run_stage(data=data, output=tmp_path / "one" / "run", held=True, **arguments)
    run_together(2, data=data, output=tmp_path / "two" / "run", held=True, **arguments, **spread)
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    same_curve(one, two)
    assert logged(two, "held_loss") == pytest.approx(logged(one, "held_loss"), rel=1e-5)
    whole, spread_out = (load_model(output / "model")[0].state_dict() for output in (one, two))
    for name, value in whole.items():
        torch.testing.assert_close(spread_out[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "spread",
    [DDP, FSDP2, pytest.param(ZERO, marks=needs_deepspeed)],
    ids=["ddp", "fsdp2", "zero"],
)
def test_two_processes_pre_train_as_one(tmp_path, spread):
    run_recot(tmp_path / "one", held=True)
    run_together(2, stage="recot", output=tmp_path / "two", held=True, **spread)
    same_curve(tmp_path / "one", tmp_path / "two")
    assert logged(tmp_path / "two", "held_loss") == pytest.approx(logged(tmp_path / "one", "held_loss"), rel=1e-5)


@pytest.mark.parametrize(
    "spread",
    [FSDP2, pytest.param(ZERO, marks=needs_deepspeed), pytest.param(ZERO_OFFLOADED, marks=needs_deepspeed)],
    ids=["fsdp2", "zero", "zero offloaded"],
)
def test_a_sharded_run_is_gone_on_with_by_one_process_and_back(data, tmp_path, spread):
    run_stage("sft", data, tmp_path / "whole")
    run_together(2, stage="sft", data=data, output=tmp_path / "parts", **spread)
    for step, go_on in ((4, "alone"), (4, "sharded")):
        (tmp_path / "parts" / "checkpoint-00000006.pt").unlink()
        assert checkpoint.last_step(tmp_path / "parts") == step
        if go_on == "alone":
            run_alone(stage="sft", data=data, output=tmp_path / "parts")
        else:
            run_together(2, stage="sft", data=data, output=tmp_path / "parts", **spread)
        same_curve(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("spread", [FSDP2, pytest.param(ZERO, marks=needs_deepspeed)], ids=["fsdp2", "zero"])
def test_bf16_computes_in_bf16(data, tmp_path, spread):
    """Near float32's losses, not equal to them; weights and checkpoints stay float32. Alone, and sharded."""
    run_alone(stage="sft", data=data, output=tmp_path / "fp32")
    run_alone(stage="sft", data=data, output=tmp_path / "bf16", precision="bf16")
    run_together(2, stage="sft", data=data, output=tmp_path / "two", precision="bf16", **spread)
    exact, near, two = (list(logged(tmp_path / run).values()) for run in ("fp32", "bf16", "two"))
    assert near == pytest.approx(exact, rel=0.02)
    assert near != pytest.approx(exact, rel=1e-5)
    assert two == pytest.approx(near, rel=0.02)
    assert all(value.dtype == torch.float32 for value in checkpoint.read(tmp_path / "bf16")["weights"].values())


def test_torchrun_trains_the_debug_recipe(tmp_path):
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += ["-m", "longtake.cli", "train", "debug", "--output", str(tmp_path)]
    for setting in ("start.videos=4", "start.held_videos=2"):
        words += ["--set", setting]
    for stage in ("recot", "align", "sft"):
        words += ["--set", f"{stage}.fit.steps=2", "--set", f"{stage}.fit.shard=true"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done; a trained model answers") == 1
    assert "on 2 x this CPU" in done.stdout
    assert load_model(tmp_path / "sft" / "model")[0].config.model_type == "longtake_video_llm"
    assert os.listdir(tmp_path / "data")
