"""Policy optimisation in processes of its own: killed ones, and two that learn as one."""

import pytest
import torch

from grpo_runs import run_grpo
from longtake.backbones import load_backbone
from longtake.train import checkpoint, viewer
from processes import run_alone, run_together, run_until_killed
from stage_runs import logged

pytestmark = pytest.mark.slow


def test_killed_twice_and_bit_equal(tmp_path):
    arguments: dict[str, object] = {"stage": "grpo", "steps": 16, "save_every": 3, "held": True, "eval_every": 5}
    run_alone(output=tmp_path / "whole", **arguments)
    steps = []
    for rows in (4, 9):
        run_until_killed(tmp_path / "parts", rows, **arguments)
        steps.append(checkpoint.last_step(tmp_path / "parts"))
    assert 3 <= steps[0] < steps[1] < 16
    run_alone(output=tmp_path / "parts", **arguments)
    for name in ("loss", "norm", "reward", "entropy", "p_easy", "p_hard", "held_reward"):
        assert logged(tmp_path / "parts", name) == logged(tmp_path / "whole", name), name
    kept = [(tmp_path / run / viewer.FILE).read_text() for run in ("whole", "parts")]
    assert kept[0] == kept[1]


WAYS = {
    "grpo": {},
    "uneven": {"batch": 3},  # one of two processes has one group where the other has two
    "lora and kl": {"lora_rank": 2, "kl": 0.04, "updates": 2},
    "dapo": {"method": "dapo"},  # flat groups are dropped, on one process more than on the other
    "gdpo": {"method": "gdpo"},  # normalised over the batch, so over processes
    "opd": {"method": "opd"},
    "features": {"featured": True, "train_video": True},
}


@pytest.mark.parametrize("arguments", WAYS.values(), ids=WAYS)
def test_two_processes_learn_as_one(tmp_path, arguments):
    run_grpo(tmp_path / "one", held=True, **arguments)
    run_together(2, stage="grpo", output=tmp_path / "two", held=True, **arguments)
    for name in ("reward", "flat", "learned", "held_reward", "p_easy"):
        assert logged(tmp_path / "two", name) == pytest.approx(logged(tmp_path / "one", name), rel=1e-5), name
    for name in ("loss", "norm"):
        one, two = (list(logged(tmp_path / run, name).values()) for run in ("one", "two"))
        assert two == pytest.approx(one, rel=1e-5, abs=1e-6)
    one, two = (load_backbone(str(tmp_path / run / "model")).model.state_dict() for run in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)
