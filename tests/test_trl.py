"""Our losses and advantages beside TRL's own code; skipped where TRL is not installed (it is no dependency).

Run: pip install trl datasets, then pytest tests/test_trl.py
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

import policy_numbers as numbers
from longtake.train.advantages import decoupled_advantages, group_advantages
from longtake.train.losses import count, policy_loss

pytest.importorskip("trl", exc_type=ImportError)

# name -> loss_type, level of the ratio, epsilon, epsilon_high, beta; TRL's bound for CISPO is 1 + ours
SETTINGS = {
    "grpo": ("grpo", "token", 0.2, 0.2, 0.0),
    "grpo and kl": ("grpo", "token", 0.2, 0.2, 0.04),
    "dr_grpo": ("dr_grpo", "token", 0.2, 0.2, 0.0),
    "dapo": ("dapo", "token", 0.2, 0.28, 0.0),
    "gspo": ("grpo", "sequence", 3e-4, 4e-4, 0.0),
    "cispo": ("cispo", "token", 0.2, 1.1, 0.0),
    "rloo": ("rloo", "", 0.2, 0.2, 0.0),
}


def trl_loss(name: str) -> tuple[float, torch.Tensor]:
    """TRL's loss and its gradient at the log-probabilities, by its own method on a trainer that is none."""
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.rloo_trainer import RLOOTrainer

    kind, level, low, high, beta = SETTINGS[name]
    new = numbers.NEW.clone().requires_grad_()
    mask = numbers.MASK.long()
    alone = SimpleNamespace(
        gather=lambda x: x, reduce=lambda x, reduction=None: x, num_processes=1, sync_gradients=False
    )
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (new, torch.zeros_like(new), None),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        loss_type=kind,
        epsilon_low=low,
        epsilon_high=high,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        accelerator=alone,
        max_completion_length=numbers.LONGEST,
        model=SimpleNamespace(training=True),
        _entropy_bonus_enabled=False,
        aux_loss_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    inputs = {
        "prompt_ids": torch.zeros(4, 1, dtype=torch.int64),
        "prompt_mask": torch.ones(4, 1, dtype=torch.int64),
        "completion_ids": torch.zeros(4, 5, dtype=torch.int64),
        "completion_mask": mask,
        "advantages": numbers.ADVANTAGES,
        "old_per_token_logps": numbers.OLD,
        "old_logps": (numbers.OLD * mask).sum(1),
        "ref_per_token_logps": numbers.REFERENCE,
        "num_items_in_batch": mask.sum(),
    }
    loss = (RLOOTrainer if kind == "rloo" else GRPOTrainer)._compute_loss(trainer, trainer.model, inputs)
    loss.backward()
    empty = float(numbers.ADVANTAGES[3]) / 4 if kind == "rloo" else 0.0  # there a row of no tokens has a ratio of 1
    return float(loss) + empty, new.grad


@pytest.mark.parametrize("name", SETTINGS)
def test_losses_and_gradients_are_trl_s(name):
    expected, gradient = trl_loss(name)
    ours = numbers.NEW.clone().requires_grad_()
    objective = numbers.OBJECTIVES[name]
    found = policy_loss(
        ours,
        numbers.OLD,
        numbers.ADVANTAGES,
        numbers.MASK,
        objective,
        longest=numbers.LONGEST,
        reference=numbers.REFERENCE if objective.kl else None,
    )
    mean = found.loss / count(numbers.MASK, objective.average, numbers.LONGEST)
    mean.backward()
    assert float(mean) == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(ours.grad, gradient, atol=1e-7, rtol=1e-5)
    print(f'"{name}": {expected!r},')  # what test_losses.py keeps


def trl_advantages() -> dict[str, torch.Tensor]:
    """The formulas of ``_generate_and_score_completions``, which cannot be called alone, on TRL's own deviation."""
    from trl.trainer.utils import nanstd

    rewards, group = numbers.REWARDS.flatten(), numbers.REWARDS.shape[1]
    mean = torch.nanmean(numbers.REWARDS, dim=1).repeat_interleave(group)
    std = nanstd(numbers.REWARDS, dim=1).repeat_interleave(group)
    parts = numbers.PARTS
    each = (parts - torch.nanmean(parts, dim=1, keepdim=True)) / (nanstd(parts, dim=1, keepdim=True) + 1e-4)
    summed = (each.view(-1, 2) * numbers.WEIGHTS).nansum(dim=1)
    others = (numbers.REWARDS.sum(dim=1, keepdim=True) - numbers.REWARDS) / (group - 1)
    return {
        "group": (rewards - mean) / (std + 1e-4),
        "batch": (rewards - mean) / (nanstd(rewards) + 1e-4),
        "gdpo": (summed - torch.nanmean(summed)) / (nanstd(summed) + 1e-4),
        "rloo": rewards - others.flatten(),
    }


def test_advantages_are_trl_s():
    ours = {
        "group": group_advantages(numbers.REWARDS),
        "batch": group_advantages(numbers.REWARDS, scale="batch"),
        "gdpo": decoupled_advantages(numbers.PARTS, numbers.WEIGHTS),
        "rloo": group_advantages(numbers.REWARDS, baseline="leave_one_out", scale="none"),
    }
    for name, expected in trl_advantages().items():
        torch.testing.assert_close(ours[name].flatten(), expected)
        print(f'"{name}": {[round(value, 6) for value in expected.tolist()]},')
