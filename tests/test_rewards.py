"""The puzzle's reward by hand, over all answers, and every known way to be paid without solving it."""

from itertools import permutations

import numpy as np
import pytest

from longtake.data.puzzles.puzzle import footrule, ordered_pairs, position_match, selection, tau_from_zero
from longtake.train.rewards import WEIGHTS, PuzzleReward, parse, repeats_itself, total
from longtake.types import LongtakeError

TRUTH, POOL = (5, 2, 7, 4), 8
REWARD = PuzzleReward()
NOTHING = dict.fromkeys(
    ("format", "repetition", "valid", "selection", "order", "exact", "pairs", "kendall"), 0.0
)
FORM_ONLY = NOTHING | {"format": 1.0}
ALL_RIGHT = dict.fromkeys(("valid", "selection", "order", "exact", "pairs", "kendall"), 1.0)


def answer(*numbers: int) -> str:
    return f"<answer>{', '.join(map(str, numbers))}</answer>"


@pytest.mark.parametrize(
    ("numbers", "selected", "order", "exact", "pairs", "tau"),
    [
        ((5, 2, 7, 4), 1, 1, 1, 1, 1),
        ((2, 5, 7, 4), 1, 5 / 6, 0, 1, 4 / 6),  # one adjacent swap: the runner-up
        ((5, 2, 7, 1), 3 / 4, 3 / 6, 0, 3 / 6, 3 / 6),
        ((4, 7, 2, 5), 1, 0, 0, 1, -1),  # right ones reversed
        ((1, 5, 3, 4), 2 / 4, 1 / 6, 0, 1 / 6, 1 / 6),
        ((1, 3, 6, 8), 0, 0, 0, 0, 0),
    ],
)
def test_parts_by_hand(numbers, selected, order, exact, pairs, tau):
    parts = REWARD.parts(answer(*numbers), TRUTH, POOL)
    expected = {"valid": 1, "selection": selected, "order": order, "exact": exact, "pairs": pairs, "kendall": tau}
    assert parts == FORM_ONLY | expected
    assert total(parts, WEIGHTS) == pytest.approx(0.1 + 0.45 * selected + 0.45 * order + 0.1 * exact)


def test_over_all_answers_of_four_from_eight():
    """The spec's figures of the reward without its form: 15 levels, mean 0.273, deviation 0.137, one best answer."""
    values = []
    for numbers in permutations(range(1, 9), 4):
        parts = REWARD.parts(answer(*numbers), TRUTH, POOL)
        values.append(round(total(parts, WEIGHTS) - 0.1, 9))
    assert len(values) == 1680
    assert len(set(values)) == 15
    assert sorted(values)[-2:] == [0.825, 1.0]
    assert np.mean(values) == pytest.approx(0.273, abs=5e-4)
    assert np.std(values) == pytest.approx(0.137, abs=5e-4)


def test_a_random_order_of_the_right_ones_gets_half_of_the_order():
    orders = [REWARD.parts(answer(*numbers), TRUTH, POOL)["order"] for numbers in permutations(TRUTH)]
    assert np.mean(orders) == pytest.approx(0.5)


def test_siblings_by_hand():
    assert position_match((2, 5, 7, 4), TRUTH) == 0.5
    assert footrule((2, 5, 7, 4), TRUTH) == 1 - 2 / 8
    assert footrule((4, 7, 2, 5), TRUTH) == 0.0  # 3 + 1 + 1 + 3 of at most 8
    assert footrule((5, 2, 7, 1), TRUTH) == 0.0
    assert tau_from_zero((2, 5, 7, 4), TRUTH) == 5 / 6  # tau = (5 - 1) / 6
    assert tau_from_zero((5, 2, 7, 1), TRUTH) == 0.0
    assert [rule((3,), (3,)) for rule in (position_match, footrule, tau_from_zero, ordered_pairs)] == [1.0] * 4
    assert [rule((1,), (3,)) for rule in (position_match, footrule, tau_from_zero, ordered_pairs)] == [0.0] * 4
    assert selection((1, 3), (3, 2)) == 0.5


def reference(numbers, truth, pool):
    """The parts by formulas of their own: sets, loops over the truth's pairs, and a matrix of places."""
    if len(numbers) != len(truth) or len(set(numbers)) != len(numbers) or not set(numbers) <= set(range(1, pool + 1)):
        return dict.fromkeys(("valid", "selection", "order", "exact", "pairs", "kendall"), 0.0)
    pairs = [(a, b) for at, a in enumerate(truth) for b in truth[at + 1 :]]
    right = sum(a in numbers and b in numbers and numbers.index(a) < numbers.index(b) for a, b in pairs)
    chosen = np.array([truth.index(number) for number in numbers if number in truth])
    apart = (chosen[None, :] - chosen[:, None])[np.triu_indices(len(chosen), 1)] if len(chosen) else chosen
    selected = sum(number in truth for number in numbers) / len(truth)
    return {
        "valid": 1.0,
        "selection": selected,
        "order": right / len(pairs) if pairs else selected,
        "exact": float(tuple(numbers) == tuple(truth)),
        "pairs": len(apart) / max(1, len(pairs)),
        "kendall": float(np.sign(apart).sum()) / max(1, len(pairs)),
    }


def test_parts_are_those_of_other_formulas_to_the_bit():
    rng = np.random.default_rng(0)
    valid = 0
    for _ in range(2000):
        pool = int(rng.integers(2, 11))
        truth = tuple((rng.permutation(pool)[: rng.integers(1, pool + 1)] + 1).tolist())
        drawn = rng.permutation(pool) if rng.random() < 0.8 else rng.integers(0, pool + 2, pool)
        numbers = tuple((drawn[: len(truth) + int(rng.random() < 0.1)] + 1).tolist())
        parts = REWARD.parts(answer(*numbers), truth, pool)
        assert list(parts.items())[2:] == list(reference(numbers, truth, pool).items())
        valid += int(parts["valid"])
    assert 1000 < valid < 1900


BY_ORDER = {"pairs": 5 / 6, "position": 0.5, "footrule": 0.75, "kendall": 5 / 6}


@pytest.mark.parametrize(("order", "value"), BY_ORDER.items())
def test_the_measure_of_order_is_an_option(order, value):
    assert PuzzleReward(order=order).parts(answer(2, 5, 7, 4), TRUTH, POOL)["order"] == value


HACKS = {
    "the whole pool": (answer(*range(1, 9)), FORM_ONLY),
    "one too many": (answer(*TRUTH, 1), FORM_ONLY),
    "one too few": (answer(5, 2, 7), FORM_ONLY),
    "one of them four times": (answer(5, 5, 5, 5), FORM_ONLY),
    "one twice": (answer(5, 2, 7, 7), FORM_ONLY),
    "outside the pool": (answer(5, 2, 7, 9), FORM_ONLY),
    "nothing": ("", NOTHING),
    "an empty answer": ("<answer></answer>", NOTHING),
    "a blank answer": ("<answer> </answer>", NOTHING),
    "commas": ("<answer>,,,</answer>", NOTHING),
    "zero": (answer(5, 2, 7, 0), NOTHING),
    "a or b": ("<answer>5, 2, 7, 4 or 2, 5, 7, 4</answer>", NOTHING),
    "two numbers at a place": ("<answer>5/2, 2, 7, 4</answer>", NOTHING),
    "a range": ("<answer>1-8</answer>", NOTHING),
    "two answers": (answer(5, 2, 7, 4) + answer(2, 5, 7, 4), NOTHING),
    "the same answer twice": (answer(*TRUTH) * 2, NOTHING),
    "an answer in an answer": ("<answer><answer>5, 2, 7, 4</answer></answer>", NOTHING),
    "an answer hidden in a thought": (f"<think>{answer(*TRUTH)}</think>{answer(2, 5, 7, 4)}", NOTHING),
    "an answer only in a thought": (f"<think>{answer(*TRUTH)}</think>", NOTHING),
    "an unclosed answer": ("<answer>5, 2, 7, 4", NOTHING),
    "an unopened answer": ("5, 2, 7, 4</answer>", NOTHING),
    "no tags": ("5, 2, 7, 4", NOTHING),
    "decimals": ("<answer>5.0, 2.0, 7.0, 4.0</answer>", NOTHING),
    "leading zeros": ("<answer>05, 2, 7, 4</answer>", NOTHING),
    "another script's digits": ("<answer>٥, ٢, ٧, ٤</answer>", NOTHING),
    "endless digits": (f"<answer>{'5' * 5000}, 2, 7, 4</answer>", NOTHING),
}


@pytest.mark.parametrize(("completion", "parts"), HACKS.values(), ids=HACKS)
def test_hacks_do_not_pay(completion, parts):
    assert REWARD.parts(completion, TRUTH, POOL) == parts
    blind = 0.1 + 0.273  # what a random valid answer earns
    assert total(REWARD.parts(completion, TRUTH, POOL), WEIGHTS) < blind


def test_words_around_one_answer_cost_the_form_only():
    parts = REWARD.parts(f"I think {answer(*TRUTH)}", TRUTH, POOL)
    assert parts == NOTHING | ALL_RIGHT


@pytest.mark.parametrize(
    ("form", "completion", "well_formed", "numbers"),
    [
        ("direct", " 3,1 ,\n2 ", True, (3, 1, 2)),
        ("direct", "3, 1, 2.", False, None),
        ("direct", "<answer>3</answer>", False, None),
        ("answer", "\n<answer> 3,1 </answer>\n", True, (3, 1)),
        ("answer", "<think>so</think><answer>3</answer>", False, (3,)),
        ("think", "<think>so\nit is</think>\n<answer>3</answer>", True, (3,)),
        ("think", "<think> </think><answer>3</answer>", False, (3,)),
        ("think", "<answer>3</answer>", False, (3,)),
        ("think", "<think>so</think> hence <answer>3</answer>", False, (3,)),
        ("think", "<answer>3</answer><think>so</think>", False, None),
    ],
)
def test_forms(form, completion, well_formed, numbers):
    found = parse(completion, form)
    assert (found.well_formed, found.numbers) == (well_formed, numbers)


def test_what_cannot_be_is_refused():
    with pytest.raises(LongtakeError, match="form is 'letters'; it must be one of direct, answer, think"):
        PuzzleReward(form="letters")
    with pytest.raises(LongtakeError, match="order is 'ndcg'; it must be one of pairs"):
        PuzzleReward(order="ndcg")
    with pytest.raises(ValueError, match="distinct numbers from 1 to 3"):
        REWARD.parts("", (1, 4), 3)
    with pytest.raises(LongtakeError, match="a weight is given to 'speed'"):
        total({"exact": 1.0}, {"speed": 1.0})


def test_repetition():
    line = "so the second comes before the third one\n"
    assert repeats_itself(line * 4)
    assert not repeats_itself(line * 3)
    assert not repeats_itself("too short\n" * 9)
    thought = PuzzleReward(form="think").parts(f"<think>{line * 4}</think>{answer(*TRUTH)}", TRUTH, POOL)
    assert thought == FORM_ONLY | ALL_RIGHT | {"repetition": 1}
    assert total(thought, WEIGHTS) == pytest.approx(1.1 - 0.5)
