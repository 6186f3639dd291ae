"""Tables about latents: questions in pairs, starts and slopes by hand, equal operations, and every command."""

import json
import re
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from longtake.data.probe_world import hops
from longtake.data.probe_world.hops import Hop, cards_by_shape, draw_pair, form_of
from longtake.eval.ablation import Estimate
from longtake.eval.ablation_report import Finding
from longtake.models.latent import Thinking
from longtake.tables.compare import TOGETHER, Measured, Titled, table_of
from longtake.tables.latent import tables
from longtake.tables.latent.__main__ import main
from longtake.tables.latent.arms import (
    LatentArm,
    base_arm,
    controlled,
    folder_of,
    latents_of,
    pausing,
    recipe_of,
    replies_of,
    trained,
)
from longtake.tables.latent.cost import LatentCosts, drawn_tokens
from longtake.tables.latent.plans import EIGHT, LATENTS, PLANS
from longtake.tables.latent.tables import (
    CONTROLS,
    SEVERAL,
    SINGLE,
    SLOPE,
    best_rule,
    beyond_half,
    claim,
    slope,
    starts,
    with_hops,
)
from longtake.tables.latent.world import SMALLEST, HopExam, HopWorld, Setting
from longtake.tables.operations import Cost, Operations
from longtake.tables.replies import Replies
from longtake.types import LongtakeError


def exam(pairs: int = 24) -> HopExam:
    """Questions alone; nobody looks at the videos."""
    drawn = [draw_pair(np.random.default_rng([9, n]), "test", form_of(n), 16) for n in range(pairs)]
    return HopExam(hops=tuple(hop for pair in drawn for hop in pair), puzzles=())


def said(asked: HopExam, right_on: set[int]) -> Replies:
    """Right on some numbers of hops, wrong on the others."""
    answers = tuple(hop.answer if hop.hops in right_on else "nothing" for hop in asked.hops)
    return Replies(answers=answers, spans=(None,) * len(answers))


def test_pairs_ask_the_same_about_two_videos():
    asked = exam()
    assert len(asked.hops) == len(asked.asked) == 48
    assert asked.video_of.tolist() == [n // 2 for n in range(48)]
    for one, other in zip(asked.hops[::2], asked.hops[1::2], strict=True):
        assert one.text == other.text
        assert one.answer != other.answer
    assert Counter(question.task for question in asked.asked) == dict.fromkeys(
        ("1 hop", "2 hops", "3 hops", "4 hops"), 12
    )


def test_starts_by_hand():
    asked = exam()
    found = starts(asked, said(asked, {1, 2}), said(asked, set()))
    assert [found[name].start for name in found] == [1, 1, 0, 0]
    assert [found[name].standing for name in found] == ["ceiling", "ceiling", "floor", "floor"]
    every = best_rule(asked, np.ones(48, bool))
    assert every == pytest.approx(sum(s.majority for s in found.values()) / 4)  # as many of each


def test_the_best_rule_by_hand():
    """Answers differ, the third card from the end always has them; between it is the commonest number."""
    deck = [cards[0] for cards in cards_by_shape("test")]
    things = [(deck[0], deck[1], deck[2]), (deck[3], deck[4], deck[5], deck[6]), (deck[5], deck[0], deck[1])]
    shapes = [
        Hop(split="test", form="shape", things=own, wording="", text="", found=own[-3:-2], answer=own[-3].content)
        for own in things
    ]
    counted = [replace(shapes[0], form="between", answer=answer) for answer in ("1", "1", "0")]
    asked = HopExam(hops=(*shapes, *counted), puzzles=())
    assert best_rule(asked, np.arange(6) < 3) == 1.0
    assert best_rule(asked, np.arange(6) >= 3) == pytest.approx(2 / 3)
    assert best_rule(asked, np.ones(6, bool)) == pytest.approx(5 / 6)


def test_a_difference_that_grows_by_hand():
    asked = exam()
    hops = np.array([hop.hops for hop in asked.hops])
    found = slope(np.stack([0.2 * hops, 0.2 * hops]), asked)
    assert found.mean == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(0.2), pytest.approx(0.2))
    even = slope(np.full((2, 48), 0.7), asked)
    assert even.mean == pytest.approx(0.0)
    assert even.standard_error == pytest.approx(0.0, abs=1e-9)


def test_a_slope_is_as_uncertain_as_the_line_leaves():
    """Over many exams the slope's interval holds the truth in about 95 of 100, however high the line lies."""
    asked = exam(40)
    hops = np.array([hop.hops for hop in asked.hops])
    rng, inside, widths = np.random.default_rng(4), 0, []
    for _ in range(200):
        pair = np.repeat(rng.normal(0, 0.3, 40), 2)
        found = slope((0.9 + 0.05 * hops + pair + rng.normal(0, 0.2, 80))[None], asked)
        inside += found.low <= 0.05 <= found.high
        widths.append(found.standard_error)
    assert 0.9 <= inside / 200 <= 0.99
    # least squares on 40 pairs of one number of hops each: sd of a pair's mean / sqrt(40 x variance of hops)
    assert np.mean(widths) == pytest.approx(np.hypot(0.3, 0.2 / np.sqrt(2)) / np.sqrt(40 * 1.25), rel=0.15)


def test_what_single_hops_lose_is_told_whatever_the_start():
    asked = exam()
    seeds = (0, 1, 2)
    measured = {
        "all": Measured(asked, {seed: said(asked, {1, 2, 3, 4}) for seed in seeds}, dict.fromkeys(seeds, {})),
        "one": Measured(asked, {seed: said(asked, {1}) for seed in seeds}, dict.fromkeys(seeds, {})),
    }
    tasks = starts(asked, said(asked, {1}), said(asked, set()))
    half = {name: replace(start, standing="open" if name == "4 hops" else start.standing)
            for name, start in tasks.items()}  # fmt: skip
    plan = Titled(name="t", title="t", notes=(), pairs=(("all", "one"),))
    table = with_hops(table_of(plan, measured, half), asked, measured, plan.pairs)
    found = {finding.measure: finding.found for finding in table.findings}
    assert set(found) == {TOGETHER, "4 hops", SINGLE, SEVERAL, SLOPE}
    assert (found["4 hops"].mean, found["4 hops"].verdict) == (1, "undetermined")  # all alike: no error is known
    assert (found[SINGLE].mean, found[SINGLE].verdict) == (0, "undetermined")
    # differences 0, 1, 1, 1 at 1 to 4 hops: the slope is (-1.5 x 0 - 0.5 + 0.5 + 1.5) / 5
    assert found[SLOPE].mean == pytest.approx(0.3)
    again = with_hops(table_of(plan, measured, tasks | {"1 hop": replace(tasks["1 hop"], standing="open")}), asked,
                      measured, plan.pairs)  # fmt: skip
    assert Counter(finding.measure for finding in again.findings)[SINGLE] == 1


def test_half_of_what_the_trace_gains_by_hand():
    asked = exam()
    measured = {
        name: Measured(asked, dict.fromkeys((0, 1, 2), said(asked, right)), dict.fromkeys((0, 1, 2), {}))
        for name, right in {"latents": {1, 2, 3}, "answers": {1, 2}, "trace": {1, 2, 3, 4}}.items()
    }
    found = beyond_half(asked, measured, "latents", "answers", "trace").found
    assert found.mean == pytest.approx(2 / 3 - (1 / 3 + 1) / 2)


def test_what_is_claimed_needs_all_conditions():
    better = Estimate(mean=0.2, by_seed=(0.1, 0.2, 0.3), standard_error=0.01, degrees=40.0)
    worse = replace(better, mean=-0.2, by_seed=(-0.1, -0.2, -0.3))
    told = {("pause", SEVERAL): better, ("equal", SEVERAL): worse, ("equal", SLOPE): replace(better, by_seed=(0.2,))}
    findings = [Finding(arm="l", against=name, measure=measure, found=f) for (name, measure), f in told.items()]
    text = claim(findings, "l", "pause", "equal")
    assert "better than pause: holds" in text
    assert "better than equal at equal operations: not shown" in text
    assert "the gain over it grows with hops: not shown" in text


def test_a_setting_must_stand_with_a_second_seed(tmp_path, monkeypatch):
    """Right by seed: the first setting has too little with seed 0, the second with seed 1, the third has enough."""
    size = replace(SMALLEST, settings=tuple(Setting(steps=n) for n in (1, 2, 3)), single=0.9, gain=0.25)
    world, asked, tries = HopWorld(tmp_path, None, size), exam(), []
    monkeypatch.setattr(HopWorld, "exam", lambda self, part, frames: asked)

    def replies(world, setting, arm, seed, exam, part):
        assert part == "search"
        tries.append((setting.steps, seed, arm.traced))
        fails = (setting.steps, seed) in ((1, 0), (2, 1))
        return said(asked, {1, 2} if arm.traced and not fails else {1})

    monkeypatch.setattr(tables, "replies_of", replies)
    table = tables.run_setting(world, (0, 1))
    assert sorted({(steps, seed) for steps, seed, _ in tries}) == [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1)]
    assert table.settings["found"] == 3
    assert world.setting() == Setting(steps=3)
    rows = {row.arm: row.cells for row in table.rows}
    assert rows["3: traces"][SEVERAL].mean == pytest.approx(1 / 3)
    assert rows["2: traces"][SEVERAL].mean == pytest.approx(1 / 6)


class FixedCosts(LatentCosts):
    """Known operations: 10 a step of answers alone, 20 with any latents."""

    def __init__(self, setting: Setting) -> None:
        self.world, self.setting = HopWorld(None, None, replace(SMALLEST, most_steps=100)), setting

    def arm(self, arm: LatentArm) -> Cost:
        return Cost(operations=20.0 if arm.thinking.latents else 10.0, seconds=1.0)


def test_equal_operations_by_hand():
    costs = FixedCosts(Setting(steps=30))
    eight = replace(LATENTS, steps=30)
    assert costs.as_costly(LatentArm(), eight).steps == 60
    assert costs.as_costly(pausing(8), eight).steps == 30
    assert costs.as_costly(LatentArm(), replace(LATENTS, steps=99)).steps == 100


@pytest.mark.parametrize("name", list(PLANS))
def test_plans_pair_arms_that_exist_and_differ(tmp_path, name):
    setting = Setting(steps=30)
    plan = PLANS[name](FixedCosts(setting))
    arms = {planned.name: planned for planned in plan.arms}
    assert len(arms) == len(plan.arms)
    assert arms[EIGHT].arm == replace(LATENTS, steps=30)
    for one, other in plan.pairs:
        assert arms[one].arm != arms[other].arm
    world = HopWorld(tmp_path, None, SMALLEST)
    for planned in plan.arms:
        assert planned.arm.steps >= 1
        recipe = recipe_of(world, setting, planned.arm, 0)
        assert recipe.thinks == bool(planned.arm.thinking.latents)
        assert recipe.fit.steps == planned.arm.steps
    folders = {folder_of(world, setting, planned.arm, seed) for planned in plan.arms for seed in (0, 1)}
    assert len(folders) == 2 * len(arms)
    assert folder_of(world, setting, base_arm(setting), 0, forked=False) not in folders


def test_operations_are_what_pytorch_counts():
    layer, x = torch.nn.Linear(8, 4), torch.randn(3, 8)
    with FlopCounterMode(display=False) as theirs:
        layer(x).sum().backward()
    with Operations() as ours:
        layer(x).sum().backward()
    assert ours.total == theirs.get_total_flops() == 2 * (2 * 3 * 8 * 4)  # forward, and the weights' gradient
    query = torch.randn(1, 2, 5, 8)
    with torch.no_grad(), Operations() as ours:
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert ours.total == 2 * (2 * 2 * 5 * 5 * 8)


@pytest.mark.slow
def test_learned_vectors_need_no_rollout(tmp_path):
    """A step of pause runs the model once, forward and back: as much as answers alone, but for a few more columns."""
    world = HopWorld(tmp_path, None, replace(SMALLEST, together=1))
    costs = LatentCosts(world, Setting())
    alone, pause, latents = (costs.arm(arm).operations for arm in (LatentArm(), pausing(8), LATENTS))
    assert alone < pause < 1.1 * alone
    assert latents > 1.2 * pause


@pytest.mark.slow
def test_a_denser_teacher_costs_what_it_sees(tmp_path):
    world = HopWorld(tmp_path, None, SMALLEST)
    costs = LatentCosts(world, Setting())
    dense, own = (costs.arm(replace(LATENTS, teacher=teacher)).operations for teacher in ("dense", "self"))
    tokens = [len(drawn_tokens(world, Setting(), fps)) for fps in (1.0, 2.0)]
    assert tokens[1] == 2 * tokens[0]
    assert dense > own


def test_other_questions_have_folders_of_their_own(tmp_path, monkeypatch):
    setting, arm = Setting(), LATENTS

    def names() -> list[object]:
        world = HopWorld(tmp_path, None, SMALLEST, 50)
        return [world.folder("exam", 16), folder_of(world, setting, arm, 0), world.digest("exam", 16)]

    before = names()
    assert names() == before
    monkeypatch.setattr(hops, "MOST_CARDS", 6)
    assert not set(names()) & set(before)


def test_settings_share_a_base_that_is_the_same(tmp_path):
    world = HopWorld(tmp_path, None, SMALLEST)
    bases = {
        folder_of(world, setting, base_arm(setting), 0, forked=False)
        for setting in (Setting(base_steps=5, steps=1), Setting(base_steps=5, steps=2), Setting(base_steps=6, steps=1))
    }
    assert len(bases) == 2


def test_threads_are_checked(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["latent_ablations", "worth", "--threads", "0"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "error: threads is 0; it must be at least 1\n"


@pytest.mark.slow
def test_tables_refuse_without_a_setting(tmp_path, monkeypatch, capsys):
    world = HopWorld(tmp_path, None, SMALLEST)
    with pytest.raises(LongtakeError, match="no setting .* find one first: python -m longtake.tables.latent setting"):
        world.setting()
    world.keep_setting(Setting(steps=7))
    assert world.setting() == Setting(steps=7)
    command = ["latent_ablations", "worth", "--work", str(tmp_path / "other"), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        main()
    assert re.match(r"error: .*/other holds no setting", capsys.readouterr().err.splitlines()[-1])


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("latents")


@pytest.fixture
def run(work, monkeypatch, capsys):
    """A command at its smallest size; what it printed."""

    def command(*words: str) -> str:
        own = ["latent_ablations", *words, "--work", str(work), "--results", str(work / "results"), "--seeds", "0",
               "--size", "smallest", "--threads", "1"]  # fmt: skip
        monkeypatch.setattr(sys, "argv", own)
        main()
        return capsys.readouterr().out

    return command


@pytest.mark.slow
@pytest.mark.parametrize("table", ["setting", "worth", "controls", "parts"])
def test_every_command_at_its_smallest(work, run, table):
    pytest.importorskip("matplotlib")
    if not HopWorld(work, None, SMALLEST).setting_file.exists():
        run("setting")
    first = run(table)
    kept = json.loads((work / "results" / f"latent-{table}.json").read_text())
    assert kept["title"] in first
    assert kept["settings"]["command"].startswith(f"python -m longtake.tables.latent {table} ")
    assert (work / "results" / f"latent-{table}.md").read_text().startswith(f"# {kept['title']}")
    assert (work / "results" / f"latent-{table}.png").read_bytes().startswith(b"\x89PNG")
    assert ("samples to equal accuracy" in kept) == (table in PLANS)
    assert (work / "results" / f"latent-{table}-curves.png").exists() == (table in PLANS)
    assert not list(work.glob("arm-*/checkpoint-*.pt"))
    before = {file: file.stat().st_mtime_ns for file in work.rglob("*.pt")}
    again = run(table)  # nothing is trained or asked anew
    assert "about 0.00 core-hours still to be done" in again
    assert {file: file.stat().st_mtime_ns for file in work.rglob("*.pt")} == before
    assert json.loads((work / "results" / f"latent-{table}.json").read_text()) == kept


@pytest.mark.slow
def test_a_dry_run_makes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["latent_ablations", "controls", "--work", str(tmp_path), "--size", "smallest",
                                      "--threads", "1", "--dry-run"])  # fmt: skip
    main()
    told = capsys.readouterr().out
    assert "the first one; none is found yet" in told
    assert "latents, K = 8, 1 steps" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_controls_are_what_they_say(work, run):
    if not HopWorld(work, None, SMALLEST).setting_file.exists():
        run("setting")
    world = HopWorld(work, None, SMALLEST)
    setting, arm = world.setting(), replace(LATENTS, steps=1)
    asked = world.exam("exam", setting.frames)
    backbone = trained(world, setting, arm, 0)
    own = latents_of(backbone, asked.puzzles, arm.thinking)
    names = [name for name in CONTROLS if name != "columns"]
    given = {name: controlled(world, setting, backbone, asked, arm.thinking, name) for name in names}
    assert given["markers"].shape[:2] == (8, 0)
    assert all(given[name].shape == own.shape for name in names if name != "markers")
    assert torch.equal(given["swapped"][::2], own[1::2])
    assert torch.equal(given["swapped"][1::2], own[::2])
    assert (given["repeated"] == given["repeated"][0, 0]).all()
    rms = [given[name].square().mean(-1).sqrt() for name in ("noise", "mean", "repeated")]
    assert all(torch.allclose(found, backbone.latent.rms.expand_as(found), atol=1e-3) for found in rms)
    assert torch.equal(given["mean"][0], given["mean"][1])
    assert not torch.equal(given["mean"][0, 0], given["mean"][0, 1])
    one_by_one = [latents_of(backbone, [puzzle], arm.thinking)[0] for puzzle in asked.puzzles]
    assert torch.allclose(torch.stack(one_by_one), own, atol=1e-4)  # questions in a batch do not see one another
    again = replies_of(world, setting, arm, 0, asked)
    assert len(again.answers) == 8
    assert Thinking() == arm.thinking
