"""Policy losses against hand-worked numbers, closed forms, autograd of plain policy gradients, and TRL's figures."""

import dataclasses
import math

import pytest
import torch

import policy_numbers as numbers
from longtake.train.advantages import decoupled_advantages, group_advantages
from longtake.train.distill import disagreement, kept_by_tvdf, teacher_advantages
from longtake.train.losses import Objective, count, k3, policy_loss, ratios
from longtake.types import LongtakeError

# TRL 1.16.0; printed by test_trl.py
TRL_LOSSES = {
    "grpo": -0.182979,
    "grpo and kl": -0.182221,
    "dr_grpo": -0.2811213,
    "dapo": -0.5307661,
    "gspo": -0.20015,
    "cispo": 0.6469466,
    "rloo": -0.2638453,
}
TRL_ADVANTAGES = {
    "group": [0.865875, -0.865875, -0.865875, 0.865875, -0.707057, -0.707057, 1.414114, 0.0],
    "batch": [0.482999, -0.482999, -0.482999, 0.482999, -0.965998, -0.965998, 1.931997, 0.0],
    "gdpo": [0.384409, -0.146422, -0.939713, 0.701726, -0.290351, -1.024268, 1.971928, -0.657309],
    "rloo": [0.666667, -0.666667, -0.666667, 0.666667, -1.333333, -1.333333, 2.666667, 0.0],
}


def loss_of(new, objective, *, old=numbers.OLD, advantages=numbers.ADVANTAGES, mask=numbers.MASK):
    reference = numbers.REFERENCE if objective.kl else None
    return policy_loss(new, old, advantages, mask, objective, longest=numbers.LONGEST, reference=reference)


@pytest.mark.parametrize("name", TRL_LOSSES)
def test_losses_are_trl_s(name):
    objective = numbers.OBJECTIVES[name]
    mean = loss_of(numbers.NEW, objective).loss / count(numbers.MASK, objective.average, numbers.LONGEST)
    assert float(mean) == pytest.approx(TRL_LOSSES[name], rel=1e-5)


def test_advantages_are_trl_s():
    ours = {
        "group": group_advantages(numbers.REWARDS),
        "batch": group_advantages(numbers.REWARDS, scale="batch"),
        "gdpo": decoupled_advantages(numbers.PARTS, numbers.WEIGHTS),
        "rloo": group_advantages(numbers.REWARDS, baseline="leave_one_out", scale="none"),
    }
    for name, expected in TRL_ADVANTAGES.items():
        assert ours[name].flatten().tolist() == pytest.approx(expected, abs=1e-5)


def one(ratio: float, advantage: float, objective: Objective) -> tuple[float, float, float]:
    """Loss, its gradient and the clipped count of a single token of a given ratio."""
    new = torch.tensor([[math.log(ratio)]], requires_grad=True)
    found = loss_of(
        new,
        objective,
        old=torch.zeros(1, 1),
        advantages=torch.tensor([advantage]),
        mask=torch.ones(1, 1, dtype=torch.bool),
    )
    found.loss.backward()
    return float(found.loss.detach()), float(new.grad), float(found.clipped)


DAPO = Objective(clip_low=0.2, clip_high=0.28, average="token")
CISPO = Objective(surrogate="weight", clip_high=0.28)


@pytest.mark.parametrize(
    ("objective", "ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (DAPO, 1.0, 2.0, -2.0, -2.0, 0),
        (DAPO, 1.25, 2.0, -2.5, -2.5, 0),  # GRPO would have clipped it: clip-higher
        (Objective(), 1.25, 2.0, -2.4, 0.0, 1),
        (DAPO, 1.5, 2.0, -2.56, 0.0, 1),
        (DAPO, 0.5, 2.0, -1.0, -1.0, 0),
        (DAPO, 0.5, -2.0, 1.6, 0.0, 1),
        (DAPO, 1.5, -2.0, 3.0, 3.0, 0),
        (CISPO, 1.5, 2.0, -1.28 * 2 * math.log(1.5), -2.56, 1),  # the weight is cut, the gradient stays
        (CISPO, 0.5, 2.0, -0.5 * 2 * math.log(0.5), -1.0, 0),
    ],
)
def test_one_token_by_hand(objective, ratio, advantage, loss, gradient, clipped):
    assert one(ratio, advantage, objective) == pytest.approx((loss, gradient, clipped), abs=1e-6)


def test_averages_by_hand():
    """Ratios of 1: a row's loss is -A a token. Rows of 5, 2, 4 and 0 tokens."""
    old, mask = numbers.OLD, numbers.MASK
    a, b, c, _ = numbers.ADVANTAGES.tolist()
    for average, expected in {
        "sequence": -(a + b + c) / 4,
        "token": -(5 * a + 2 * b + 4 * c) / 11,
        "constant": -(5 * a + 2 * b + 4 * c) / (4 * 5),
    }.items():
        found = loss_of(old, Objective(average=average)).loss / count(mask, average, 5)
        assert float(found) == pytest.approx(expected)


def test_gspo_s_ratio_by_hand():
    """Row 0: gaps 0.5, -0.05, 0.3, -0.5, 0, mean 0.05. Its padding counts nothing."""
    found = ratios(numbers.NEW, numbers.OLD, numbers.MASK, "sequence")
    assert found[:, 0].tolist() == pytest.approx([math.exp(0.05), 1.0, math.exp(0.05 / 4), 1.0])
    whole = ratios(numbers.NEW, numbers.OLD, numbers.MASK, "product")
    assert whole[:, 0].tolist() == pytest.approx([math.exp(0.25), 1.0, math.exp(0.05), 1.0])


@pytest.mark.parametrize("name", numbers.OBJECTIVES)
def test_on_policy_all_are_a_policy_gradient(name):
    """At ratio 1 the gradient is -A at each token, over what the average says; only then they are the same method."""
    objective = numbers.OBJECTIVES[name]
    new = numbers.OLD.clone().requires_grad_()
    loss_of(new, dataclasses.replace(objective, kl=0.0)).loss.backward()
    expected = -numbers.ADVANTAGES[:, None] * numbers.MASK
    if objective.average == "sequence" and objective.ratio != "product":
        expected = expected / numbers.MASK.sum(1).clamp(min=1)[:, None]
    torch.testing.assert_close(new.grad, expected)


def test_padding_changes_nothing():
    """Not even where it holds infinities: neither the loss nor the gradient."""
    for objective in numbers.OBJECTIVES.values():
        plain = numbers.NEW.clone().requires_grad_()
        filled = numbers.NEW.masked_fill(~numbers.MASK, float("-inf")).requires_grad_()
        for new in (plain, filled):
            loss_of(new, objective).loss.backward()
        assert torch.equal(plain.grad, filled.grad)


def test_advantages_by_token():
    by_row = loss_of(numbers.NEW, DAPO).loss
    by_token = loss_of(numbers.NEW, DAPO, advantages=numbers.ADVANTAGES[:, None].expand(-1, 5)).loss
    assert torch.equal(by_row, by_token)


def test_k3_by_hand_and_unbiased():
    assert k3(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, -2.0])).tolist() == pytest.approx([0.0, math.exp(-1)])
    logits, other = torch.randn(2, 9, generator=torch.Generator().manual_seed(0)).log_softmax(dim=1)
    exact = float((logits.exp() * (logits - other)).sum())
    assert float((logits.exp() * k3(logits, other)).sum()) == pytest.approx(exact, rel=1e-5)
    found = loss_of(numbers.NEW, numbers.OBJECTIVES["grpo and kl"])
    assert float(found.kl) == pytest.approx(float(k3(numbers.NEW, numbers.REFERENCE)[numbers.MASK].sum()))


def test_what_is_logged():
    found = loss_of(numbers.NEW, DAPO)
    assert int(found.tokens) == 11
    assert float(found.surprise) == pytest.approx(-float(numbers.NEW[numbers.MASK].sum()))
    assert float(found.clipped) == 4  # ratios 1.65 and 1.35 at 1.2; 0.74 at -0.7; 1.49 at 0.3


def reverse_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(student || teacher) from logits ``(vocabulary,)``, the whole sum that a sample stands for."""
    ours, theirs = student.log_softmax(dim=0), teacher.log_softmax(dim=0)
    return (ours.exp() * (ours - theirs)).sum()


def test_teacher_advantages_are_the_reverse_kl_s_gradient():
    """Over all tokens, weighed by the student: closed form of one position with a vocabulary of seven."""
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(7, generator=generator, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(7, generator=generator, dtype=torch.float64)
    reverse_kl(student, teacher).backward()
    ours = student.detach().clone().requires_grad_()
    logprobs = ours.log_softmax(dim=0)
    every = torch.ones(7, dtype=torch.bool)
    gain = teacher_advantages(teacher.log_softmax(dim=0), logprobs, every)
    (-(logprobs.detach().exp() * gain * logprobs).sum()).backward()
    torch.testing.assert_close(ours.grad, student.grad.to(ours.dtype), atol=1e-6, rtol=1e-5)


def test_reverse_kl_by_hand():
    half, skew = torch.tensor([0.0, 0.0]), torch.tensor([math.log(3.0), 0.0])
    assert float(reverse_kl(half, skew)) == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))


def test_teacher_advantages_by_hand():
    teacher, student = torch.tensor([[-1.0, -2.0, float("-inf")]]), torch.tensor([[-1.5, -0.5, -1.0]])
    mask = torch.tensor([[True, True, True]])
    assert teacher_advantages(teacher, student, mask).tolist() == [[0.5, -1.5, -10.0]]
    assert teacher_advantages(teacher, student, ~mask).tolist() == [[0.0, 0.0, 0.0]]
    assert disagreement(torch.tensor([[0.5, -1.5, 9.0]]), torch.tensor([[True, True, False]])).tolist() == [1.0]


def test_tvdf_by_hand():
    """Three of five have a reliable teacher; half of them, rounded up, disagree most."""
    reliability, apart = torch.tensor([0.9, 0.2, 0.5, 0.7, 0.4]), torch.tensor([0.1, 9.0, 0.3, 0.2, 8.0])
    assert kept_by_tvdf(reliability, apart).tolist() == [False, False, True, True, False]
    assert kept_by_tvdf(reliability, apart, share=0.1).tolist() == [False, False, True, False, False]
    assert not kept_by_tvdf(torch.zeros(3), torch.ones(3)).any()
    with pytest.raises(LongtakeError, match="share is 0"):
        kept_by_tvdf(reliability, apart, share=0)


def test_what_cannot_be_is_refused():
    with pytest.raises(LongtakeError, match="clip_low is 2"):
        Objective(clip_low=2)
    with pytest.raises(LongtakeError, match="kl is -1"):
        Objective(kl=-1)
    with pytest.raises(ValueError, match="no log-probabilities of a reference"):
        policy_loss(numbers.NEW, numbers.OLD, numbers.ADVANTAGES, numbers.MASK, Objective(kl=1), longest=5)
