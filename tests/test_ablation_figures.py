"""Figures of compressors alone: a value for each test clip, against the model's own sums; what is kept and compared."""

import json
import types

import numpy as np
import pytest
import torch

from longtake.data.probe_world.needles import Card
from longtake.data.probe_world.probe import Event, ProbeVideo
from longtake.models.recot import ReCoT
from longtake.tables.ablations import figures
from longtake.tables.ablations.arms import Arm, Pretraining, folder_of
from longtake.tables.ablations.figures import KEPT, figures_of, reconstruction
from longtake.tables.ablations.world import SMALLEST, Exam, World
from longtake.tables.compare import MASKED, Measured, table_of

RED = Card(content="7", colour="red", outline="round")


def exam(videos: int = 5) -> Exam:
    """One video without a card, the others with one."""
    shown = [Event(what=RED, start_seconds=2.0, stop_seconds=4.0, seed=n) for n in range(1, videos)]
    made = [ProbeVideo(seed=0, split="test", fps=1.0, num_frames=16, size=(80, 80), shots=(), events=own, foreign=())
            for own in ((), *((event,) for event in shown))]  # fmt: skip
    features = torch.randn(videos, 16, 16, 32, generator=torch.Generator().manual_seed(0))
    return Exam(features=features, videos=tuple(made), questions=((),) * videos)


@pytest.mark.parametrize("policy", ["semantic", "none"])
def test_a_reconstruction_has_a_value_for_each_video(monkeypatch, policy):
    torch.manual_seed(0)
    model, asked = ReCoT(32, 4, policy=policy), exam()
    monkeypatch.setattr(figures, "pretrain", lambda *_: model)
    monkeypatch.setattr(figures, "CLIPS_PER_PASS", 99)
    packaged = types.SimpleNamespace(config=types.SimpleNamespace(tower_grid=(4, 4)))
    here = types.SimpleNamespace(exam=lambda _: asked, packaged=packaged, size=types.SimpleNamespace(dim=32))
    found = reconstruction(here, Arm(pretraining=Pretraining(steps=1, policy=policy)), 3)
    clips = asked.features.view(10, 8, 4, 4, 32)
    with torch.no_grad():
        whole, masked = model.eval()(clips), model.train()(clips, generator=torch.Generator().manual_seed(3))
    assert (len(found["error"]), len(found["AUROC"])) == (5, 4)
    assert np.mean(found["error"]) == pytest.approx(float(whole.loss / clips.var()), rel=1e-5)
    one = model.eval()(clips[2:4]).loss.item()
    assert found["error"][1] == pytest.approx(one / float(clips.var()), rel=1e-5)
    if policy == "none":
        assert MASKED not in found
    else:
        assert np.mean(found[MASKED]) == pytest.approx(float(masked.masked_error / clips.var()), rel=1e-5)


def test_kept_means_are_not_taken_for_values(tmp_path, monkeypatch):
    here, arm = World(tmp_path, None, SMALLEST), Arm(steps=2)
    folder = folder_of(here, arm, 0)
    folder.mkdir(parents=True)
    (folder / "figures.json").write_text(json.dumps({"content, linear": 0.9}))  # of all clips together, as once kept
    monkeypatch.setattr(figures, "probes", lambda _, arms: {name: {"content, linear": [1.0, 0.0]} for name in arms})
    assert figures_of(here, [(arm, 0)]) == [{"content, linear": [1.0, 0.0]}]
    assert json.loads((folder / KEPT).read_text()) == {"content, linear": [1.0, 0.0]}


def test_figures_have_the_clips_error_and_masked_tokens_no_differences():
    """Two of three hundred clips, the same with every seed: nothing holds."""
    asked = Exam(features=torch.zeros(1, 16, 4, 8), videos=exam(1).videos, questions=((),))
    right = {"one": [1.0] * 270 + [0.0] * 30, "other": [1.0] * 268 + [0.0] * 32}
    measured = {
        name: Measured(asked, dict.fromkeys(range(3), None), {s: {"content": own, MASKED: own} for s in range(3)})
        for name, own in right.items()
    }
    plan = types.SimpleNamespace(name="n", title="t", notes=(), pairs=(("one", "other"),))
    table = table_of(plan, measured, {})
    cell = table.rows[0].cells["content"]
    assert cell.mean == pytest.approx(0.9)
    assert cell.high - cell.low == pytest.approx(2 * 1.96 * np.sqrt(0.9 * 0.1 / 300), rel=0.15)
    assert MASKED in table.rows[0].cells
    (found,) = table.findings
    assert (found.measure, found.found.verdict) == ("content", "undetermined")
