"""Samples to equal accuracy: names that stay, an exam on the way that changes nothing, and a section by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from latent_runs import made, questions, recipe
from longtake.data.probe_world.haystack import drawn_clip
from longtake.eval.ablation_report import AblationTable, as_json, as_markdown, as_text
from longtake.eval.equal_accuracy import Curve
from longtake.tables.latent.arms import LatentArm, base_arm, folder_of, recipe_of
from longtake.tables.latent.curves import (
    FIGURES,
    NAME,
    SAMPLES,
    cached_cost,
    curve_picture,
    read_curve,
    with_curves,
)
from longtake.tables.latent.plans import LATENTS
from longtake.tables.latent.world import SMALLEST, HopWorld, Setting
from longtake.tables.operations import Cost
from longtake.train.latent import train_latent
from longtake.types import LongtakeError


def world(curve_every: int) -> HopWorld:
    """Of the smallest size, with a model's name that never changes."""
    found = HopWorld(Path("w"), None, SMALLEST, curve_every)
    found.start_name = "model"
    return found


def test_names_of_what_is_kept_without_curves_stay():
    setting, latents, trace = Setting(base_steps=300), replace(LATENTS, steps=3), LatentArm(steps=3, traced=True)
    before = world(0)
    assert folder_of(before, setting, latents, 1).name == "arm-parallel-8-3-1-c8b9c72b67"
    assert folder_of(before, setting, trace, 0).name == "arm-trace-3-0-3fa84d28b9"
    assert before.setting_file.name == "setting-e4794bcf18.json"
    base = folder_of(before, setting, base_arm(setting), 0, forked=False)
    assert base.name == "base-answer-300-0-71c7785795"
    for every in (20, 50):
        after = world(every)
        assert after.setting_file == before.setting_file
        assert folder_of(after, setting, base_arm(setting), 0, forked=False) == base
        assert recipe_of(after, setting, latents, 1).fit.eval_every == every
    assert len({folder_of(world(every), setting, latents, 1) for every in (0, 20, 50)}) == 3
    changed = [{"spell": 1.0}, {"hides": "prompt"}, {"through": True}, {"begin": "answer"}, {}]
    assert len({folder_of(before, setting, replace(latents, **each), 1) for each in changed}) == 5


def test_training_videos_have_four_questions_each(monkeypatch):
    small = HopWorld(Path("w"), None, SMALLEST)
    monkeypatch.setattr(small, "_tokens", lambda part, frames, fps: list(range(small.count(part))))
    assert small.tokens("train", 16) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert small.tokens("exam", 16) == list(range(8))
    for part, each in (("train", 4), ("exam", 1)):
        asked = small.hops(part, 16)
        assert len(asked) == each * small.count(part)
        shown = [small.video(part, 16, 1.0, number, [drawn_clip(0, 4.0)]) for number in range(small.count(part))]
        assert [hop.things for hop in asked] == [
            tuple(event.what for event in video.events) for video in shown for _ in range(each)
        ]


def test_a_curve_every_so_many_steps():
    with pytest.raises(LongtakeError, match="curve is -1; it must be a number of steps, or 0 for none"):
        HopWorld(Path("w"), None, SMALLEST, -1)
    assert world(1).count("curve") == 2 * SMALLEST.curve_pairs
    small = HopWorld(Path("w"), None, SMALLEST, 1)
    asked = small.hops("curve", 16)
    assert [hop.hops for hop in asked] == [1, 1, 2, 2]  # both kinds, of one hop and of several
    assert not set(map(str, asked)) & {str(hop) for part in ("search", "exam") for hop in small.hops(part, 16)}


def test_an_exam_on_the_way_changes_no_weight(tmp_path):
    told, names = [], []

    def learned(folder: Path, **settings: object) -> None:
        backbone = made("own")

        def exam() -> dict[str, float]:
            told.append((backbone.model.training, float(backbone.model.projector[0].weight.detach().sum())))
            return {"right": len(told) / 10}

        given = {"exam": exam} if settings.pop("asked") else {}
        train_latent(recipe(**settings), backbone, questions(backbone, 8), folder, **given)
        names.append(backbone.name)
        assert backbone.model.training

    learned(tmp_path / "asked", asked=True, steps=3, eval_every=2)
    learned(tmp_path / "silent", asked=False, steps=3)
    assert [training for training, _ in told] == [False] * 3  # before the first of three steps, after two, at the end
    assert read_curve(tmp_path / "asked", "right") == Curve(steps=(0, 2, 3), right=(0.1, 0.2, 0.3))
    assert names[0] == names[1]


def test_a_beginning_that_was_told_twice(tmp_path):
    rows = [{"step": 0, "right": 0.1}, {"step": 0, "right": 0.1}, {"step": 1, "loss": 2.0}, {"step": 2, "right": 0.4}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_curve(tmp_path, "right") == Curve(steps=(0, 2), right=(0.1, 0.4))


def test_a_cost_is_measured_once(tmp_path):
    file = tmp_path / "arm" / "cost.json"
    costs = iter([Cost(operations=3.0, seconds=2.0)])
    first, again = (cached_cost(file, lambda: next(costs)) for _ in range(2))
    assert first == again == Cost(operations=3, seconds=2)


def arms() -> tuple[dict[str, dict[str, list[Curve]]], dict[str, dict[str, float]]]:
    """Two seeds of one arm twice as fast as the other, a third arm of one seed that learns nothing; and their units."""
    fast = [Curve(steps=(0, 10, 20), right=(0.2, 0.4, end)) for end in (0.6, 0.8)]
    slow = [Curve(steps=(0, 20, 40), right=(0.2, 0.4, end)) for end in (0.6, 0.6)]
    none = [Curve(steps=(0, 10), right=(0.2, 0.2))]
    found = {name: dict.fromkeys(FIGURES, each) for name, each in (("fast", fast), ("slow", slow), ("none", none))}
    units = {name: {SAMPLES: 8.0, "operations": cost} for name, cost in (("fast", 4), ("slow", 1), ("none", 1))}
    return found, units


def table() -> AblationTable:
    plain = AblationTable(name="demo", title="A table", notes=(), rows=(), findings=())
    return with_curves(plain, *arms(), (("fast", "slow"), ("fast", "none"), ("slow", "fast")), "Four questions.")


def test_a_section_by_hand():
    data = as_json(table())[NAME]
    assert data["curves"]["slow"] == {SAMPLES: [0, 160, 320], **dict.fromkeys(FIGURES, [[0.2, 0.4, 0.6]] * 2)}
    rows = [row for row in data["levels"] if row["arm"] == "fast"]
    assert [(row["share"], row["right"]) for row in rows] == [(0.25, 0.3), (0.5, 0.4), (0.75, 0.5), (1.0, 0.6)]
    half = rows[1]
    assert (half[SAMPLES]["arm"], half[SAMPLES]["against"]) == pytest.approx((80, 160))
    assert (half["operations"]["arm"], half["operations"]["against"]) == pytest.approx((40, 20))
    assert half[SAMPLES]["times"] == pytest.approx(2)
    assert half["operations"]["times"] == pytest.approx(0.5)  # twice the steps of a quarter of the cost
    assert half[SAMPLES]["times by seed"] == pytest.approx([2, 2])
    assert half[SAMPLES]["over seeds"] == pytest.approx([2, 2, 2])
    # at 0.6 the mean of the fast one is 0.4 at ten and 0.7 at twenty steps: two thirds of the way
    last = rows[3]
    assert last[SAMPLES]["arm"] == pytest.approx(8 * (10 + 20 / 3))
    assert last[SAMPLES]["times by seed"] == pytest.approx([40 / 20, 40 / 15])
    low, high = last[SAMPLES]["over seeds"][1:]
    assert low < 2 < 40 / 15 < high
    assert [row[SAMPLES]["times"] for row in data["levels"][4:]] == pytest.approx(
        [1 / row[SAMPLES]["times"] for row in rows]
    )


def test_a_section_is_read():
    page = as_markdown(table())
    assert "## Samples to equal accuracy\n\nFour questions.\n" in page
    assert "| fast | slow | 50% | 0.400 | 80 | 160 | 2.00 | 2.00 2.00 | 2.00 [2.00, 2.00] | 0.50 |" in page
    assert "| fast | none | none | - | - |" in page
    assert page.index("## Samples") < page.index("## Settings")
    assert "Samples to equal accuracy" in as_text(table()).splitlines()


def test_a_seed_that_never_arrives():
    found, units = arms()
    found["slow"] = dict.fromkeys(
        FIGURES, [Curve(steps=(0, 20, 40), right=(0.2, 0.4, 0.8)), Curve(steps=(0, 20, 40), right=(0.2, 0.3, 0.4))]
    )
    plain = AblationTable(name="demo", title="A table", notes=(), rows=(), findings=())
    made_of = with_curves(plain, found, units, (("fast", "slow"),), "Four questions.")
    last = as_json(made_of)[NAME]["levels"][3][SAMPLES]
    # fast: all ten steps and ten more, and half of those; slow: twenty and half of twenty, and never
    assert last["by seed"] == [pytest.approx([160, 240]), [pytest.approx(120), None]]
    assert last["times by seed"] == [pytest.approx(1.5), None]
    assert last["over seeds"] is None
    assert "| 2.40 | 1.50 never | - |" in as_markdown(made_of)  # means: 0.6 at 320 samples and at 133


@pytest.mark.slow
def test_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    curve_picture(table(), tmp_path)
    assert (tmp_path / "demo-curves.png").read_bytes().startswith(b"\x89PNG")
