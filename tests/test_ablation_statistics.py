"""Statistics of ablations: quantiles against tables, estimates by hand, error rates and power on simulated arms."""

import math

import numpy as np
import pytest

from longtake.eval.ablation import (
    Estimate,
    difference,
    estimate,
    figure,
    standing,
    student_quantile,
)
from longtake.eval.measures import auroc, overlap


@pytest.mark.parametrize(
    ("share", "degrees", "wanted"),  # from printed tables
    [(0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 10, 2.228), (0.95, 5, 2.015), (0.8, 2, 1.061), (0.975, 1e9, 1.960),
     (0.975, math.inf, 1.960), (0.99, 30, 2.457)],
)  # fmt: skip
def test_student_quantiles(share, degrees, wanted):
    assert student_quantile(share, degrees) == pytest.approx(wanted, abs=6e-4)


def test_one_seed_by_hand():
    """Two videos, one all right and one all wrong: the mean is 0, 1/2 or 1 with odds 1:2:1, so its variance is 1/8."""
    found = estimate(np.array([[1.0, 1.0, 0.0, 0.0]]), np.array([3, 3, 8, 8]))
    assert (found.mean, found.by_seed, found.degrees) == (0.5, (0.5,), 1)
    assert found.standard_error**2 == pytest.approx(1 / 8, rel=0.1)
    assert found.verdict == "exploratory"


def test_videos_and_not_questions_are_resampled():
    once = estimate(np.array([[1.0, 0.0] * 10]), np.arange(20))
    tenfold = estimate(np.repeat([[1.0, 0.0] * 10], 10, axis=1), np.repeat(np.arange(20), 10))
    assert tenfold.standard_error == pytest.approx(once.standard_error)


def test_three_seeds_without_noise_in_videos_are_students_interval():
    arm = np.repeat([[0.5], [0.6], [0.7]], 8, axis=1)
    found = difference(arm, np.full((3, 8), 0.1), np.arange(8))
    assert found.mean == pytest.approx(0.5)
    assert found.by_seed == pytest.approx((0.4, 0.5, 0.6))
    assert found.degrees == pytest.approx(2)
    reach = 4.303 * 0.1 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((0.5 - reach, 0.5 + reach), abs=1e-4)
    assert found.detectable == pytest.approx((4.303 + 1.061) * 0.1 / math.sqrt(3), abs=1e-4)
    assert found.verdict == "holds"


def test_verdicts_by_hand():
    def verdict(*by_seed: float, error: float) -> str:
        mean = sum(by_seed) / len(by_seed)
        return Estimate(mean=mean, by_seed=by_seed, standard_error=error, degrees=math.inf).verdict

    assert verdict(0.1, 0.2, 0.3, error=0.05) == verdict(-0.1, -0.2, -0.3, error=0.05) == "holds"
    assert verdict(0.1, 0.2, 0.3, error=0.2) == "undetermined"  # the interval holds 0
    assert verdict(-0.1, 0.4, 0.4, error=0.01) == "undetermined"  # one seed says otherwise
    assert verdict(0.0, 0.4, 0.4, error=0.01) == "undetermined"  # and one that says nothing
    assert verdict(0.2, 0.3, error=0.01) == verdict(0.3, error=0.01) == "exploratory"
    assert verdict(0.2, 0.2, 0.2, error=0.0) == "undetermined"  # nothing is known of the error


def test_two_of_three_hundred_clips_do_not_hold_though_seeds_agree():
    """The means' case: arms without anything random, probed on the same clips with every seed."""
    one, other = np.zeros((3, 300)), np.zeros((3, 300))
    one[:, :2] = 1
    found = difference(one, other, np.arange(300))
    assert found.by_seed == pytest.approx((2 / 300,) * 3)
    assert found.low < 0 < found.high
    assert found.verdict == "undetermined"
    assert 0.01 < found.detectable < 0.02  # 2.8 times sqrt(2) / 300
    same = difference(one, one, np.arange(300))
    assert (same.verdict, same.detectable) == ("undetermined", math.inf)


def test_one_figure_of_one_seed_says_nothing_of_its_error():
    found = figure(np.array([0.3]))
    assert (found.mean, found.low, found.high) == (0.3, -math.inf, math.inf)
    assert found.verdict == "exploratory"


def test_unpaired_arms_are_refused():
    with pytest.raises(ValueError, match="must be paired"):
        difference(np.zeros((3, 4)), np.zeros((2, 4)), np.arange(4))
    with pytest.raises(ValueError, match=r"must be \(seeds, questions\)"):
        estimate(np.zeros((3, 4)), np.arange(3))


def simulated(rng: np.random.Generator, effect: float, by_seed: float, by_video: float, noise: float) -> Estimate:
    """Differences of three seeds over 40 videos with 5 questions each."""
    seeds = rng.normal(0, by_seed, (3, 1, 1))
    videos = rng.normal(0, by_video, (1, 40, 1))
    values = effect + seeds + videos + rng.normal(0, noise, (3, 40, 5))
    return estimate(values.reshape(3, 200), np.repeat(np.arange(40), 5), int(rng.integers(1 << 30)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by_seed", "by_video", "noise", "false"),
    [(0.05, 0.0, 0.1, 0.08), (0.0, 0.3, 0.3, 0.05), (0.03, 0.1, 0.5, 0.05), (0.0, 0.0, 0.6, 0.05)],
)
def test_intervals_hold_the_truth_and_little_is_found_where_nothing_is(by_seed, by_video, noise, false):
    """Where seeds alone differ intervals are a little narrow, and 7 of 100 differences that are none hold."""
    rng = np.random.default_rng(1)
    runs = [simulated(rng, 0.0, by_seed, by_video, noise) for _ in range(400)]
    assert np.mean([run.low <= 0 <= run.high for run in runs]) >= 0.92
    assert np.mean([run.verdict == "holds" for run in runs]) <= false


@pytest.mark.slow
def test_a_detectable_difference_is_found_four_times_in_five():
    """The effect is what runs of this noise say could be detected; the sign rule costs little where seeds agree."""
    rng = np.random.default_rng(2)
    effect = float(np.mean([simulated(rng, 0.0, 0.0, 0.3, 0.2).detectable for _ in range(100)]))
    runs = [simulated(rng, effect, 0.0, 0.3, 0.2) for _ in range(400)]
    assert 0.72 <= np.mean([run.low > 0 for run in runs]) <= 0.9
    assert np.mean([run.verdict == "holds" for run in runs]) >= 0.72


def test_where_arms_may_be_compared():
    assert standing(0.60, 0.50, 0.2) == "open"  # just ten points above, though 0.6 - 0.5 is a little less than 0.1
    assert standing(0.59, 0.50, 0.2) == standing(0.59, 0.2, 0.50) == "floor"
    assert standing(0.8999, 0.5, 0.5) == "open"
    assert standing(0.90, 0.1, 0.1) == standing(0.95, 0.94, 0.1) == "ceiling"


def test_overlaps_by_hand():
    assert overlap((0, 4), (2, 6)) == pytest.approx(2 / 6)
    assert overlap((0, 4), (0, 4)) == 1
    assert overlap((0, 4), (1, 2)) == 0.25
    assert overlap((0, 4), (4, 8)) == overlap((0, 4), (9, 10)) == overlap(None, (0, 4)) == 0


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, wanted = rng.integers(0, 6, 30).astype(np.float32), rng.random(30) < 0.4
        pairs = [(a, b) for a in scores[wanted] for b in scores[~wanted]]
        by_hand = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs])
        assert auroc(scores, wanted) == pytest.approx(by_hand)
    assert auroc(np.array([1.0, 2.0]), np.array([False, True])) == 1
    assert math.isnan(auroc(np.array([1.0, 2.0]), np.array([True, True])))
