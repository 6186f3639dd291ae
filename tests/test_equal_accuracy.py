"""When two arms are equally often right: crossings, levels and ratios worked by hand."""

import math

import pytest

from longtake.eval.equal_accuracy import Curve, equal_accuracy, mean_curve, times


def curve(*right: float, every: int = 10) -> Curve:
    return Curve(steps=tuple(range(0, every * len(right), every)), right=right)


@pytest.mark.parametrize(
    ("level", "steps"),
    # 0.3 is a quarter of the way to 0.6 at 10 steps; 0.7 three quarters of the way from 0.4 at 20 to 0.8 at 30
    [(0.1, 0), (0.2, 0), (0.3, 2.5), (0.6, 10), (0.7, 27.5), (0.8, 30), (0.81, None)],
)
def test_a_curve_reaches_a_level_by_hand(level, steps):
    found = Curve(steps=(0, 10, 20, 30, 40), right=(0.2, 0.6, 0.4, 0.8, 0.5)).reaches(level)
    assert found == (None if steps is None else pytest.approx(steps))


def test_what_is_reached_first_counts():
    assert curve(0.0, 0.5, 0.1, 0.9).reaches(0.3) == pytest.approx(6)


def test_rounding_keeps_nobody_from_a_level():
    ends = [0.8, 0.4]
    assert sum(ends) / 2 > 0.6  # in binary
    found = equal_accuracy([curve(0.2, 0.6), curve(0.2, 0.6)], [curve(0.2, end) for end in ends])
    assert found[-1].by_seed[0] == pytest.approx((10, 20 / 3))
    assert Curve(steps=(0, 10), right=(0.2, 0.6)).reaches(sum(ends) / 2) == pytest.approx(10)


def test_curves_are_checked():
    with pytest.raises(ValueError, match="2 shares at 3 steps"):
        Curve(steps=(0, 1, 2), right=(0.1, 0.2))
    with pytest.raises(ValueError, match="must ascend"):
        Curve(steps=(0, 2, 2), right=(0.1, 0.2, 0.3))
    with pytest.raises(ValueError, match="must be at the same steps"):
        mean_curve([curve(0.1, 0.2), curve(0.1, 0.2, 0.3)])
    with pytest.raises(ValueError, match="must be paired"):
        equal_accuracy([curve(0.1, 0.2)], [curve(0.1, 0.2)] * 2)


def test_ratios_by_hand():
    assert times(10, 30, 1.0) == 3
    assert times(10, 30, 0.5) == 1.5
    assert times(None, 30, 1.0) is None
    assert times(10, None, 1.0) is None
    assert times(0.0, 30, 1.0) is None


def test_two_arms_by_hand():
    # means: the arm 0.2, 0.6, 1.0 and the other 0.1, 0.3, 0.5, 0.6; from 0.2 to 0.6: 0.3, 0.4, 0.5, 0.6
    arm = [curve(0.1, 0.6, 1.0), curve(0.3, 0.6, 1.0)]
    other = [curve(0.1, 0.4, 0.5, 0.5), curve(0.1, 0.2, 0.5, 0.7)]
    found = equal_accuracy(arm, other)
    assert [each.share for each in found] == [0.25, 0.5, 0.75, 1.0]
    assert [each.level for each in found] == pytest.approx([0.3, 0.4, 0.5, 0.6])
    assert [each.arm for each in found] == pytest.approx([2.5, 5, 7.5, 10])
    assert [each.other for each in found] == pytest.approx([10, 15, 20, 30])
    half, last = found[1], found[-1]
    # at 0.4, by seed: 0.3 of 0.5 and 0.1 of 0.3 of ten steps; all ten, and twenty less a third of ten
    assert half.by_seed[0] == pytest.approx((6, 10))
    assert half.by_seed[1] == pytest.approx((10 / 3, 10 + 20 / 3))
    assert half.times(1.0) == pytest.approx(3)
    assert half.times(0.5) == pytest.approx(1.5)  # steps of the other take half of the arm's
    assert half.times_by_seed(1.0) == pytest.approx([10 / 6, 5])
    spread = half.spread(0.5)
    assert math.exp(spread.mean) == pytest.approx(math.sqrt(10 / 6 * 5) / 2)
    # two values a distance d apart have the standard error d / 2; t with one degree is 12.706
    assert spread.high - spread.mean == pytest.approx(12.7062 * math.log(3) / 2, rel=1e-4)
    assert last.by_seed[0] == (pytest.approx(10), None)  # the first seed's other never has 0.6
    assert last.times_by_seed(1.0) == [None, pytest.approx(2.5)]
    assert last.spread(1.0) is None
    assert last.times(1.0) == pytest.approx(3)


def test_a_seed_that_begins_above_a_level_has_no_ratio():
    found = equal_accuracy([curve(0.4, 0.9), curve(0.0, 0.9)], [curve(0.0, 0.9)] * 2)[0]
    assert found.level == pytest.approx(0.375)
    assert found.by_seed[0][0] == 0
    assert found.times_by_seed(1.0)[0] is None
    assert found.times_by_seed(1.0)[1] == pytest.approx(1)


@pytest.mark.parametrize("end", [0.3, 0.29, 0.1])
def test_nothing_is_said_where_an_arm_gains_nothing(end):
    assert equal_accuracy([curve(0.3, 0.8)], [curve(0.2, end)]) == []
