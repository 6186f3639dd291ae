"""ReCoT pre-training as a stage: it learns, hands its DTS on, and goes on where it stopped."""

import numpy as np
import pytest
import torch

from longtake.data.clips import Clips
from longtake.train.recot import ReCoTRecipe, load_dts, train_recot
from longtake.types import LongtakeError
from stage_runs import NoisyClips, fit, fresh_model, logged, run_recot
from test_stages import Killed, kill_at_save


@pytest.mark.slow
def test_it_learns_to_reconstruct(tmp_path):
    run_recot(tmp_path, steps=60, lr=5e-4, batch=8, micro_batch=8, held=True, eval_every=30)
    losses = logged(tmp_path)
    assert losses[60] < 0.8 * losses[1]
    held = logged(tmp_path, "held_loss")
    assert list(held) == [30, 60]
    assert held[60] < held[30]
    mean = logged(tmp_path, "held_mean_frame_error")
    assert mean[30] == mean[60]
    masked, visible = (logged(tmp_path, f"{kind}_error") for kind in ("masked", "visible"))
    assert losses[7] == pytest.approx((masked[7] + visible[7]) / 2, rel=1e-5)  # half of the tokens are masked


def test_the_dts_goes_into_a_model(tmp_path):
    model = fresh_model()
    before = model.dts.stages[0].conv.weight.clone()
    with pytest.raises(LongtakeError, match="run the stage recot first"):
        load_dts(model.dts, tmp_path)
    run_recot(tmp_path, steps=1)
    load_dts(model.dts, tmp_path)
    assert not torch.equal(model.dts.stages[0].conv.weight, before)


def test_a_dts_can_be_gone_on_with(tmp_path):
    dts = fresh_model().dts
    before = dts.stages[0].conv.weight.detach().clone()
    recipe = ReCoTRecipe(fit=fit(steps=1, lr=1e-6))
    train_recot(recipe, fresh_model().config, NoisyClips(), tmp_path, start_from=dts)
    after = fresh_model().dts
    load_dts(after, tmp_path)
    torch.testing.assert_close(after.stages[0].conv.weight, before, rtol=0, atol=2e-6)


class RowsOfAStep(NoisyClips):
    """Each row of a step is one certain clip, whichever micro-batch it is drawn in."""

    def draw(self, rng, clips):
        _, step, slot = rng.bit_generator.seed_seq.entropy
        rows = range(slot * clips, (slot + 1) * clips)
        drawn = [NoisyClips.draw(self, np.random.default_rng([step, row]), 1) for row in rows]
        return Clips(
            features=torch.cat([clip.features for clip in drawn]), is_image=torch.cat([clip.is_image for clip in drawn])
        )


def test_a_step_is_the_same_however_it_is_cut(tmp_path):
    """Of the same clips, with nothing masked: each micro-batch draws its own clips and masks."""
    for rows in (1, 2, 4):
        recipe = ReCoTRecipe(fit=fit(steps=3, micro_batch=rows), policy="none")
        torch.manual_seed(0)
        train_recot(recipe, fresh_model().config, RowsOfAStep(), tmp_path / str(rows))
    for name in ("loss", "norm", "visible_error"):
        whole = list(logged(tmp_path / "4", name).values())
        for rows in ("1", "2"):
            assert list(logged(tmp_path / rows, name).values()) == pytest.approx(whole, rel=1e-4), (name, rows)
    assert len(set(whole)) == 3


def test_a_step_that_cannot_be_cut_evenly_is_refused(tmp_path):
    with pytest.raises(LongtakeError, match="batch is 4; it must be a multiple of micro_batch 3 x 1 processes"):
        run_recot(tmp_path / "c", micro_batch=3)
    with pytest.raises(LongtakeError, match=r"set recot\.fit\.steps"):
        ReCoTRecipe(fit=fit(steps=None))


def test_clips_are_whole_groups_of_the_model(tmp_path):
    with pytest.raises(LongtakeError, match=r"recot.frames is 6; it must be a multiple of 4, .* set recot.frames=8"):
        run_recot(tmp_path, frames=6)


def test_an_oracle_must_know_the_needles(tmp_path):
    with pytest.raises(LongtakeError, match="recot.policy is 'oracle', but no one knows where needles are"):
        run_recot(tmp_path, policy="oracle")


@pytest.mark.parametrize("policy", ["semantic", "random", "tube", "none"])
def test_every_policy_trains_all_its_weights(tmp_path, policy):
    run_recot(tmp_path, steps=1, policy=policy)
    assert logged(tmp_path, "masked_error")[1] == 0.0 if policy == "none" else logged(tmp_path, "masked_error")[1] > 0


def test_killed_and_resumed_losses_are_equal(tmp_path):
    run_recot(tmp_path / "whole", held=True)
    for step, before in ((2, False), (6, True)):
        with pytest.MonkeyPatch.context() as patch:
            kill_at_save(patch, step, before=before)
            with pytest.raises(Killed):
                run_recot(tmp_path / "parts", held=True)
    run_recot(tmp_path / "parts", held=True)
    for name in ("loss", "norm", "masked_error", "held_loss"):
        assert logged(tmp_path / "parts", name) == logged(tmp_path / "whole", name), name
