"""From arms to tables by hops: the search for a setting, what latents are worth, their controls, their parts."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from longtake.data.hops import MOST_HOPS
from longtake.data.questions import normal
from longtake.eval.ablation import Estimate, difference, estimate, standing
from longtake.eval.ablation_report import AblationTable, Finding, Row, TaskStart
from longtake.recipes.latent_ablations.arms import Control, LatentArm, base_arm, replies_of
from longtake.recipes.latent_ablations.plans import FORKED, LATENTS, LatentPlan
from longtake.recipes.latent_ablations.world import HopExam, HopWorld, Setting, hops_name
from longtake.recipes.replies import Replies
from longtake.recipes.tables import Measured, questions_of, table_of

SINGLE, SEVERAL = "1 hop", "2 to 4 hops"
SLOPE = "gain a hop"
OWN = "its own latents"
CONTROLS: dict[Control, str] = {
    "markers": "markers only",
    "repeated": "one vector repeated",
    "noise": "noise of the same RMS",
    "swapped": "another video's latents",
    "mean": "the mean latents",
}
assert set(CONTROLS) == set(get_args(Control))


def starts(exam: HopExam, seen: Replies, unseen: Replies) -> dict[str, TaskStart]:
    """Where the starting model stands by hops; the majority gives each form its commonest answer."""
    found = {}
    right, blind = seen.right(exam.asked), unseen.right(exam.asked)
    for hops in range(1, MOST_HOPS + 1):
        own = np.array([hop.hops == hops for hop in exam.hops])
        if own.any():
            majority = commonest(exam, own)
            start, guess = float(right[own].mean()), float(blind[own].mean())
            verdict = standing(start, guess, majority)
            found[hops_name(hops)] = TaskStart(start=start, blind=guess, majority=majority, standing=verdict)
    return found


def commonest(exam: HopExam, own: NDArray[np.bool_]) -> float:
    """The share of some questions that is right when each form is given its commonest answer among them."""
    counts: dict[str, Counter[str]] = {}
    for hop, is_own in zip(exam.hops, own, strict=True):
        if is_own:
            counts.setdefault(hop.form, Counter())[normal(hop.answer)] += 1
    return sum(counter.most_common(1)[0][1] for counter in counts.values()) / int(own.sum())


def start_of(world: HopWorld, setting: Setting, exam: HopExam, part: str) -> dict[str, TaskStart]:
    """Where the model stands that all arms go on from."""
    seen, unseen = (
        replies_of(world, setting, base_arm(setting), 0, exam, part=part, forked=False, blind=blind)
        for blind in (False, True)
    )
    return starts(exam, seen, unseen)


def run_plan(world: HopWorld, setting: Setting, plan: LatentPlan, seeds: Sequence[int]) -> AblationTable:
    """Train and ask what is missing, and put the table together."""
    exam = world.exam("exam", setting.frames)
    tasks = start_of(world, setting, exam, "exam")
    measured = {}
    for planned in plan.arms:
        replies = {seed: replies_of(world, setting, planned.arm, seed, exam) for seed in planned.seeds(seeds)}
        measured[planned.name] = Measured(exam, replies, dict.fromkeys(replies, {}))
    return with_hops(table_of(plan, measured, tasks), exam, measured, plan.pairs)


def with_hops(
    table: AblationTable, exam: HopExam, measured: Mapping[str, Measured], pairs: Sequence[tuple[str, str]]
) -> AblationTable:
    """The same with what single hops lose, wherever the start stands, and how differences grow from hop to hop."""
    single, videos = questions_of(exam, [SINGLE]), exam.video_of
    findings = list(table.findings)
    for name, against in pairs:
        paired = min(len(measured[name].replies), len(measured[against].replies))
        one, other = (measured[own].first(paired).right for own in (name, against))
        if not any((f.arm, f.against, f.measure) == (name, against, SINGLE) for f in findings):
            lost = difference(one[:, single], other[:, single], videos[single])
            findings.append(Finding(arm=name, against=against, measure=SINGLE, found=lost))
        grown = slope(one - other, exam)
        findings.append(Finding(arm=name, against=against, measure=SLOPE, found=grown))
    notes = (
        *table.notes,
        f'"{SINGLE}" is compared whatever the start is, for what is lost there; "{SLOPE}" is the slope of the '
        "difference over hops, by least squares over all questions.",
    )
    return dataclasses.replace(table, findings=tuple(findings), notes=notes)


def slope(gained: NDArray[np.float64], exam: HopExam) -> Estimate:
    """How a difference ``(seeds, questions)`` grows with each hop: the slope of least squares."""
    hops = np.array([hop.hops for hop in exam.hops], np.float64)
    centred = hops - hops.mean()
    return estimate(gained * centred / np.square(centred).mean(), exam.video_of)


def run_controls(world: HopWorld, setting: Setting, seeds: Sequence[int]) -> AblationTable:
    """What is answered when something else stands in the place of the latents, K = 8, with the same weights."""
    exam = world.exam("exam", setting.frames)
    arm = dataclasses.replace(LATENTS, steps=setting.steps)
    tasks = start_of(world, setting, exam, "exam")
    whole = {OWN: {seed: replies_of(world, setting, arm, seed, exam) for seed in seeds}}
    for control, name in CONTROLS.items():
        whole[name] = {seed: replies_of(world, setting, arm, seed, exam, control=control) for seed in seeds}
    measured = {name: Measured(exam, replies, dict.fromkeys(replies, {})) for name, replies in whole.items()}
    plan = LatentPlan(
        name="latent-controls",
        title="What answers lose when something else stands in the place of the latents (K = 8)",
        notes=(
            FORKED,
            "The same trained weights in all rows. Another video's latents: of the same question, with another answer.",
        ),
        arms=(),
        pairs=tuple((name, OWN) for name in CONTROLS.values()),
    )
    return with_hops(table_of(plan, measured, tasks), exam, measured, plan.pairs)


def run_setting(world: HopWorld, seed: int) -> AblationTable:
    """Try settings in their order until one separates traces from answers alone, and keep it.

    Wanted: answers alone reach 90% on single hops, and traces are 15 points better on all others. Tried on questions
    that no table asks again; one seed.
    """
    rows, findings, found = [], [], None
    for number, setting in enumerate(world.size.settings, start=1):
        exam = world.exam("search", setting.frames)
        told = {}
        for says, traced in (("answers", False), ("traces", True)):
            arm = LatentArm(steps=setting.steps, traced=traced)
            told[says] = replies_of(world, setting, arm, seed, exam, part="search").right(exam.asked)[None]
            cells = {name: estimate(told[says][:, own], exam.video_of[own]) for name, own in groups(exam).items()}
            rows.append(Row(arm=f"{number}: {says}", cells=cells))
        several = groups(exam)[SEVERAL]
        gain = difference(told["traces"][:, several], told["answers"][:, several], exam.video_of[several])
        findings.append(Finding(arm=f"{number}: traces", against=f"{number}: answers", measure=SEVERAL, found=gain))
        single = rows[-2].cells[SINGLE].mean
        print(f"setting {number}: single hops {single:.3f}, traces gain {gain.mean:+.3f}", flush=True)
        if single >= world.size.single and gain.mean >= world.size.gain:
            world.keep_setting(setting)
            found = number
            break
    return AblationTable(
        name="latent-setting",
        title="In which setting a trace in words is worth most",
        notes=(
            f"Wanted: single hops {world.size.single:.0%} from answers alone, and traces {world.size.gain:.0%} better "
            f"at {SEVERAL}. " + (f"Setting {found} has both." if found else "No setting that was tried has both."),
        ),
        rows=tuple(rows),
        findings=tuple(findings),
        settings={
            "found": found or "none",
            "settings": [str(dataclasses.asdict(setting)) for setting in world.size.settings[: len(findings)]],
        },
    )


def groups(exam: HopExam) -> dict[str, NDArray[np.bool_]]:
    """Which questions are of each number of hops, and of several."""
    hops = np.array([hop.hops for hop in exam.hops])
    each = {hops_name(n): hops == n for n in range(1, MOST_HOPS + 1)}
    return {**each, SEVERAL: hops > 1}
