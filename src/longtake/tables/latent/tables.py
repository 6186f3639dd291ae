"""From arms to tables by hops: the search for a setting, what latents are worth, their controls, their parts."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from longtake.data.probe_world.hops import MOST_HOPS
from longtake.data.probe_world.questions import normal
from longtake.eval.ablation import Estimate, difference, estimate, standing
from longtake.eval.ablation_report import AblationTable, Finding, Row, TaskStart
from longtake.tables.compare import Measured, Titled, table_of
from longtake.tables.latent.arms import Control, Given, LatentArm, base_arm, replies_of
from longtake.tables.latent.plans import FORKED, LATENTS, LatentPlan
from longtake.tables.latent.world import HopExam, HopWorld, Setting, hops_name
from longtake.tables.replies import Replies

SINGLE, SEVERAL = "1 hop", "2 to 4 hops"
SLOPE = "gain a hop"
HALF = "half of what the trace gains"
OWN = "its own latents"
CONTROLS: dict[Control, str] = {
    "markers": "markers only",
    "repeated": "one vector repeated",
    "noise": "noise of the same RMS",
    "swapped": "another video's latents",
    "columns": "another video's columns",
    "mean": "the mean latents",
}
assert set(CONTROLS) == {*get_args(Given), "columns"}


def starts(exam: HopExam, seen: Replies, unseen: Replies) -> dict[str, TaskStart]:
    """Where the starting model stands by hops; the majority gives each form the best answer that needs no question."""
    found = {}
    right, blind = seen.right(exam.asked), unseen.right(exam.asked)
    for hops in range(1, MOST_HOPS + 1):
        own = np.array([hop.hops == hops for hop in exam.hops])
        if own.any():
            majority = best_rule(exam, own)
            start, guess = float(right[own].mean()), float(blind[own].mean())
            verdict = standing(start, guess, majority)
            found[hops_name(hops)] = TaskStart(start=start, blind=guess, majority=majority, standing=verdict)
    return found


def best_rule(exam: HopExam, own: NDArray[np.bool_]) -> float:
    """The share of some questions that is right when each form follows the one rule that is best for it among them.

    Rules: always the same answer; what is on the card at the same place, counted from the first or from the last.
    """
    right: dict[str, Counter[str]] = {}
    for hop, is_own in zip(exam.hops, own, strict=True):
        if is_own:
            rules = right.setdefault(hop.form, Counter())
            rules[f"always {normal(hop.answer)}"] += 1
            for place, card in enumerate(hop.cards):
                if hop.answer == card.content:
                    rules.update((f"card {place}", f"card {place - len(hop.cards)}"))
    return sum(rules.most_common(1)[0][1] for rules in right.values()) / int(own.sum())


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
    found = with_hops(table_of(plan, measured, tasks), exam, measured, plan.pairs)
    findings = [*found.findings, *(beyond_half(exam, measured, *names) for names in plan.halves)]
    notes = (*found.notes, *(claim(findings, *names) for names in plan.claims))
    return dataclasses.replace(found, findings=tuple(findings), notes=notes)


def beyond_half(exam: HopExam, measured: Mapping[str, Measured], arm: str, low: str, high: str) -> Finding:
    """How far an arm is above the middle between two others, over several hops."""
    own = groups(exam)[SEVERAL]
    one, two, three = (measured[name].right[:, own] for name in (arm, low, high))
    return Finding(arm=arm, against=HALF, measure=SEVERAL, found=estimate(one - (two + three) / 2, exam.video_of[own]))


def claim(findings: Sequence[Finding], arm: str, pause: str, equal: str) -> str:
    """Whether what latent reasoning is claimed by is there: two of its three conditions; the third is of controls."""
    told = {(f.against, f.measure): f.found for f in findings if f.arm == arm}
    wanted = {
        f"better than {pause}": (pause, SEVERAL),
        f"better than {equal} at equal operations": (equal, SEVERAL),
        "the gain over it grows with hops": (equal, SLOPE),
    }
    met = {what: told[key].verdict == "holds" and told[key].mean > 0 for what, key in wanted.items()}
    shown = "; ".join(f"{what}: {'holds' if is_met else 'not shown'}" for what, is_met in met.items())
    return (
        f"Latent reasoning is claimed only if {arm} is better over {SEVERAL}, the gain grows with hops, and another "
        f"video's latents cost accuracy (table latent-controls). {shown}."
    )


def with_hops(
    table: AblationTable, exam: HopExam, measured: Mapping[str, Measured], pairs: Sequence[tuple[str, str]]
) -> AblationTable:
    """A table with single hops and several, wherever the start stands, and how differences grow with hops."""
    findings, asked = list(table.findings), groups(exam)
    for name, against in pairs:
        paired = min(len(measured[name].replies), len(measured[against].replies))
        one, other = (measured[own].first(paired).right for own in (name, against))
        for measure in (SINGLE, SEVERAL):
            own = asked[measure]
            if not any((f.arm, f.against, f.measure) == (name, against, measure) for f in findings):
                found = difference(one[:, own], other[:, own], exam.video_of[own])
                findings.append(Finding(arm=name, against=against, measure=measure, found=found))
        grown = slope(one - other, exam)
        findings.append(Finding(arm=name, against=against, measure=SLOPE, found=grown))
    notes = (
        *table.notes,
        f'"{SINGLE}" and "{SEVERAL}" are compared whatever the start is, for what is lost and won there; "{SLOPE}" is '
        "the slope of the difference over hops, by least squares over all questions. The best guess "
        "that needs no question is by form: the commonest answer, or what is on the card at one place.",
    )
    return dataclasses.replace(table, findings=tuple(findings), notes=notes)


def slope(gained: NDArray[np.float64], exam: HopExam) -> Estimate:
    """How a difference ``(seeds, questions)`` grows with each hop: the slope of least squares."""
    hops = np.array([hop.hops for hop in exam.hops], np.float64)
    centred = hops - hops.mean()
    weights = centred / np.square(centred).mean()
    steep = (gained * weights).mean(axis=1, keepdims=True)
    left = gained - gained.mean(axis=1, keepdims=True) - steep * centred  # so that the error is of what no line tells
    return estimate(left * weights + steep, exam.video_of)


def run_controls(world: HopWorld, setting: Setting, seeds: Sequence[int]) -> AblationTable:
    """What is answered when something else stands in the place of the latents, K = 8, with the same weights."""
    exam = world.exam("exam", setting.frames)
    arm = dataclasses.replace(LATENTS, steps=setting.steps)
    tasks = start_of(world, setting, exam, "exam")
    whole = {OWN: {seed: replies_of(world, setting, arm, seed, exam) for seed in seeds}}
    for control, name in CONTROLS.items():
        whole[name] = {seed: replies_of(world, setting, arm, seed, exam, control=control) for seed in seeds}
    measured = {name: Measured(exam, replies, dict.fromkeys(replies, {})) for name, replies in whole.items()}
    told = Titled(
        name="latent-controls",
        title="What answers lose when something else stands in the place of the latents (K = 8)",
        notes=(
            FORKED,
            "The same trained weights in all rows. Another video's latents: of the same question, with another answer; "
            "their columns look at the own video again. Another video's columns: keys and values as well, made there.",
        ),
        pairs=tuple((name, OWN) for name in CONTROLS.values()),
    )
    return with_hops(table_of(told, measured, tasks), exam, measured, told.pairs)


def run_setting(world: HopWorld, seeds: Sequence[int]) -> AblationTable:
    """Try settings in their order until one separates traces from answers alone, and keep it.

    Wanted: answers alone reach 90% on single hops, and traces are 15 points better on all others. Tried on questions
    that no table asks again; what one seed has reached must stand with the next ones too.
    """
    rows, findings, found = [], [], None
    for number, setting in enumerate(world.size.settings, start=1):
        exam = world.exam("search", setting.frames)
        told = tried(world, setting, exam, seeds)
        for says, right in told.items():
            cells = {name: estimate(right[:, own], exam.video_of[own]) for name, own in groups(exam).items()}
            rows.append(Row(arm=f"{number}: {says}", cells=cells))
        for name, own in groups(exam).items():
            gain = difference(told["traces"][:, own], told["answers"][:, own], exam.video_of[own])
            findings.append(Finding(arm=f"{number}: traces", against=f"{number}: answers", measure=name, found=gain))
        single, gained = reached(exam, told)
        print(f"setting {number}: single hops {single:.3f}, traces gain {gained:+.3f}", flush=True)
        if len(told["answers"]) == len(seeds) and is_enough(world, single, gained):
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
            "settings": [str(dataclasses.asdict(setting)) for setting in world.size.settings[:number]],
        },
    )


def tried(
    world: HopWorld, setting: Setting, exam: HopExam, seeds: Sequence[int]
) -> dict[str, NDArray[np.float64]]:
    """What answers alone and traces reach in a setting, ``(seeds, questions)`` each; no further seed once too little
    is reached."""
    told: dict[str, NDArray[np.float64]] = {}
    for seed in seeds:
        for says, traced in (("answers", False), ("traces", True)):
            arm = LatentArm(steps=setting.steps, traced=traced)
            right = replies_of(world, setting, arm, seed, exam, part="search").right(exam.asked)[None]
            told[says] = np.concatenate([told[says], right]) if says in told else right
        if not is_enough(world, *reached(exam, told)):
            break
    return told


def reached(exam: HopExam, told: Mapping[str, NDArray[np.float64]]) -> tuple[float, float]:
    """What answers alone reach on single hops, and what traces gain on all others."""
    single, several = groups(exam)[SINGLE], groups(exam)[SEVERAL]
    gain = told["traces"][:, several].mean() - told["answers"][:, several].mean()
    return float(told["answers"][:, single].mean()), float(gain)


def is_enough(world: HopWorld, single: float, gain: float) -> bool:
    """Whether a setting reaches what is wanted of it."""
    return single >= world.size.single and gain >= world.size.gain


def groups(exam: HopExam) -> dict[str, NDArray[np.bool_]]:
    """Which questions are of each number of hops, and of several."""
    hops = np.array([hop.hops for hop in exam.hops])
    each = {hops_name(n): hops == n for n in range(1, MOST_HOPS + 1)}
    return {**each, SEVERAL: hops > 1}
