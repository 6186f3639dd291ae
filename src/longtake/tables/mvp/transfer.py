"""What policy optimisation on puzzles does to questions that it never trained on: answers, falls, the table. Ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from longtake.data.probe_world.questions import normal
from longtake.eval.ablation import difference, standing_of_all
from longtake.eval.ablation_report import AblationTable, Finding, TaskStart
from longtake.recipes.mvp_replay import memory_file
from longtake.tables.compare import Measured, Questions, Titled, questions_of, table_of
from longtake.tables.mvp.exam import (
    FRAMES,
    TRANSFER,
    TransferExam,
    exam_files,
    replay_folder,
    replies_to,
    transfer_exam,
)
from longtake.tables.mvp.site import Site, frozen, missing, training
from longtake.tables.mvp.transfer_arms import (
    ARMS,
    PUZZLES,
    QUESTIONS,
    REPLAY,
    TransferSize,
    arm_recipe,
    folder_of,
    replay_warmed,
    step_cost,
    trained,
    warm_folder,
)
from longtake.tables.operations import Cost, Part
from longtake.tables.replies import Replies
from longtake.tables.token_files import SHARD

START, WARM = "before the warm-up", "warm-up"
FALL = 0.02
PAIRS = ((PUZZLES, REPLAY), (PUZZLES, QUESTIONS), (QUESTIONS, REPLAY))
FALLS = (*PAIRS, *((arm, other) for other in (WARM, START) for arm in ARMS), (WARM, START))
NOTES = (
    "All arms begin from the warm-up of their seed, which teaches the form of a puzzle's answer, and replay's answers "
    "so that they are not forgotten: that is the starting model below. All have the same replay, as many questions at "
    "every step, of other tasks than are asked here.",
    f"{QUESTIONS}: further questions of replay's tasks, as many a step as cost the operations of the puzzles of "
    f"{PUZZLES}. {REPLAY} has the same steps and so fewer operations.",
    "Where arms are compared: one of them is 10 points above the best guess without the video, and not all are above "
    "90%. Elsewhere only a fall counts.",
)


def transfer_parts(site: Site, size: TransferSize, seeds: Sequence[int], costs: Mapping[str, Cost]) -> list[Part]:
    """What is still to be done; what was begun counts in full."""
    warm, steps = [warm_folder(site, size, seed) / "model" for seed in seeds], site.recipe.grpo.fit.steps
    parts = [training(WARM, site.recipe.warm.fit.steps, costs["warm"], missing(warm))]
    models: list[Path | None] = [None, *warm]
    for arm in ARMS:
        own = [folder_of(site, size, arm, seed, costs) / "model" for seed in seeds]
        parts.append(training(arm, steps, step_cost(site, size, arm, costs), missing(own)))
        models += own
    watched = [memory_file(replay_folder(site), "train", n) for n in range(size.replay.videos + size.more_videos)]
    shown = missing(watched) + min(SHARD, size.items) * missing(exam_files(site, size.items))
    answers = [replies_file(site, size, model) for model in models]
    answers += [replies_file(site, size, model, blind=True) for model in warm]
    asked = len(TRANSFER) * size.items
    return [
        *parts,
        Part(name=f"video of {FRAMES} frames", times=shown, seconds=costs["video"].seconds),
        Part(name=f"{asked} questions", times=missing(answers), seconds=asked * costs["asked"].seconds),
    ]


def run_transfer(
    site: Site, size: TransferSize, seeds: Sequence[int], costs: Mapping[str, Cost]
) -> AblationTable:
    """Train and ask what is missing, and put the table together."""
    material, exam = site.material(), transfer_exam(site, size.items)
    warm = {seed: replay_warmed(site, size, seed, material) for seed in seeds}
    models: dict[str, dict[int, Path | None]] = {START: {seeds[0]: None}, WARM: {**warm}}
    for arm in ARMS:
        models[arm] = {seed: trained(site, size, arm, seed, costs, material) for seed in seeds}
    measured = {}
    for name, by_seed in models.items():
        replies = {seed: cached_replies(site, size, model, exam) for seed, model in by_seed.items()}
        measured[name] = Measured(exam, replies, dict.fromkeys(replies, {}))
    blind = {seed: cached_replies(site, size, model, exam, blind=True) for seed, model in warm.items()}
    found = table_of_answers(exam, measured, Measured(exam, blind, dict.fromkeys(blind, {})))
    batch = {arm: arm_recipe(site, size, arm, 0, costs).fit.batch for arm in (QUESTIONS, PUZZLES)}
    videos = {"replay": size.replay.videos, QUESTIONS: size.more_videos, "exam": size.items}
    asked = {"replay": size.replay.count, **batch}
    return replace(found, settings={"steps": site.recipe.grpo.fit.steps, "asked a step": asked, "videos": videos})


def replies_file(site: Site, size: TransferSize, model: Path | None, *, blind: bool = False) -> Path:
    """Where a model's answers are kept. model: None for the start."""
    exam = exam_files(site, size.items)[0].parent.name
    return (model.parent if model else site.work) / f"{exam}-{size.items}{'-blind' if blind else ''}.json"


def cached_replies(
    site: Site, size: TransferSize, model: Path | None, exam: TransferExam, *, blind: bool = False
) -> Replies:
    """What a model answers; kept answers are not asked for again."""
    file = replies_file(site, size, model, blind=blind)
    if not file.exists():
        backbone = frozen(model, site) if model else site.recipe.start.backbone()
        replies_to(backbone, exam.puzzles, blind=blind).save(file)
    return Replies.load(file)


def table_of_answers(exam: Questions, measured: Mapping[str, Measured], blind: Measured) -> AblationTable:
    """From answers to a table. blind: the warm-up's without the videos."""
    tasks = starts(exam, measured, blind)
    title = "Questions of tasks that policy optimisation never trained on"
    found = table_of(Titled(name="mvp-transfer", title=title, notes=NOTES, pairs=PAIRS), measured, tasks)
    known = {(f.arm, f.against, f.measure) for f in found.findings}
    more = [f for pair in FALLS for f in beside(pair, exam, measured, tasks) if _key(f) not in known]
    findings = (*found.findings, *more)
    return replace(found, findings=findings, notes=(*found.notes, fallen(findings)))


def starts(exam: Questions, measured: Mapping[str, Measured], blind: Measured) -> dict[str, TaskStart]:
    """Where the warm-up stands on each task, and whether arms are compared there, which is theirs to decide."""
    found = {}
    for task in TRANSFER:
        own = questions_of(exam, [task])
        answers = Counter(normal(q.answer) for q, is_own in zip(exam.asked, own, strict=True) if is_own)
        majority = answers.most_common(1)[0][1] / int(own.sum())
        unseen = float(blind.right[:, own].mean())
        reached = [float(measured[arm].right[:, own].mean()) for arm in ARMS]
        found[task] = TaskStart(
            start=float(measured[WARM].right[:, own].mean()),
            blind=unseen,
            majority=majority,
            standing=standing_of_all(reached, max(unseen, majority)),
        )
    return found


def beside(
    pair: tuple[str, str], exam: Questions, measured: Mapping[str, Measured], tasks: Mapping[str, TaskStart]
) -> list[Finding]:
    """How an arm differs from another on each task, wherever they stand. The start answers once for all seeds."""
    arm, against = pair
    one = measured[arm].right
    other = np.broadcast_to(measured[against].right, one.shape)
    found = []
    for task, where in tasks.items():
        own = questions_of(exam, [task])
        measure = task if where.standing == "open" else f"{task}, at the {where.standing}"
        changed = difference(one[:, own], other[:, own], exam.video_of[own])
        found.append(Finding(arm=arm, against=against, measure=measure, found=changed))
    return found


def fallen(findings: Sequence[Finding]) -> str:
    """Which arms fell: the whole interval is below -2 points."""
    fell = [f"{f.arm} against {f.against} in {f.measure}" for f in findings if f.found.high < -FALL]
    return f"Fell (the whole interval below -{FALL:.0%}): {'; '.join(fell) or 'none'}."


def _key(finding: Finding) -> tuple[str, str, str]:
    return finding.arm, finding.against, finding.measure
