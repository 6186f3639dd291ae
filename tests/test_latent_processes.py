"""Latent self-forcing in processes of its own: killed ones, and two that learn as one."""

import pytest
import torch

from latent_runs import run_latent
from longtake.backbones import load_backbone
from longtake.train import checkpoint
from processes import run_alone, run_together, run_until_killed
from stage_runs import logged

pytestmark = pytest.mark.slow


def test_killed_and_bit_equal(tmp_path):
    arguments: dict[str, object] = {"stage": "latent", "steps": 12, "save_every": 3, "held": True, "eval_every": 5}
    run_alone(output=tmp_path / "whole", **arguments)
    run_until_killed(tmp_path / "parts", 5, **arguments)
    assert 3 <= checkpoint.last_step(tmp_path / "parts") < 12
    run_alone(output=tmp_path / "parts", **arguments)
    for name in ("loss", "norm", "across", "gate", "held_exact", "held_lost"):
        assert logged(tmp_path / "parts", name) == logged(tmp_path / "whole", name), name


WAYS = {
    "parallel": {},
    "one by one": {"mode": "autoregressive"},
    "lora": {"lora_rank": 2, "checkpointing": True},
    "qwen": {"family": "qwen", "micro_batch": 1},
    "dense": {"teacher": "dense"},
    "together": {"together": 2, "each": 3, "micro_batch": 2, "teacher": "dense"},
}


@pytest.mark.parametrize("arguments", WAYS.values(), ids=WAYS)
def test_two_processes_learn_as_one(tmp_path, arguments):
    run_latent(tmp_path / "one", held=True, **arguments)
    run_together(2, stage="latent", output=tmp_path / "two", held=True, **arguments)
    for name in ("loss", "answer", "align", "within", "across", "rank", "gate", "norm", "held_exact", "held_pairs"):
        one, two = (list(logged(tmp_path / run, name).values()) for run in ("one", "two"))
        assert two == pytest.approx(one, rel=1e-4, abs=1e-5), name
    one, two = (load_backbone(str(tmp_path / run / "model")).model.state_dict() for run in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)
