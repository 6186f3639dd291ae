"""Policy optimisation on puzzles: sample groups, score them, learn from what was better than its group.

A video is encoded once and never again (its puzzle holds a memory's tokens, or a frozen tower's features); a prompt is
prefilled once for its group; for the update it is run once, with its gradient, for the whole group.

Papers: GRPO, arXiv 2402.03300; the variants are named in ``methods.py``. On video puzzles: MVP, arXiv 2601.03781, of
which the reward, group size, rates and schedule are not public: all defaults here are ours.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from longtake.backbones.base import Backbone
from longtake.train import viewer
from longtake.train.advantages import temporal_bonus
from longtake.train.beside import Beside, Kind, draw, judge_each, kinds_of, learn_success, names_at, states
from longtake.train.exam import Summary, apply_control, held_figures
from longtake.train.grpo_recipe import TEMPORAL, GrpoRecipe, check, prepare
from longtake.train.judging import Verdict, experience, joined, judge_by_teacher
from longtake.train.losses import count
from longtake.train.policy import Policy
from longtake.train.puzzles import Puzzle
from longtake.train.rollouts import Experience, Group, roll, roll_each
from longtake.train.run import Run, gathered, start_processes
from longtake.train.runlog import RunLog, keep_until
from longtake.train.saving import write_backbone
from longtake.types import LongtakeError


def train_grpo(
    recipe: GrpoRecipe,
    backbone: Backbone,
    puzzles: Sequence[Puzzle],
    folder: Path,
    *,
    held: Sequence[Puzzle] = (),
    beside: Sequence[Beside] = (),
    teacher: Backbone | None = None,
    summary: Summary | None = None,
) -> None:
    """Train, resuming from ``folder``; the model is saved in ``folder/model``, LoRA merged.

    beside: puzzles of other kinds, some at every step. teacher: for a method with teaching; it must have the student's
    vocabulary. summary: of the held puzzles' answers.
    """
    fit, accelerator = recipe.fit, start_processes(recipe.fit)
    torch.manual_seed(fit.seed)
    if not puzzles:
        raise LongtakeError("there are no puzzles; give at least one to learn from")
    names = check(recipe, backbone, puzzles, teacher, accelerator.num_processes)
    kinds = kinds_of(recipe, puzzles, names, held, beside)
    prepare(recipe, backbone)
    backbone.model.to(accelerator.device)
    if teacher is not None:
        teacher.model.to(accelerator.device).eval().requires_grad_(False)
    run = Run(fit, accelerator, Policy(backbone, recipe.method.objective, recipe.draw), folder)
    start = run.resume()
    for kind in kinds if start else ():
        kind.curriculum.load(run.more["curricula"][kind.prefix])
    if run.is_main:
        keep_until(folder / viewer.FILE, start)
    steps = fit.steps_for(len(puzzles))
    with RunLog(folder, steps, start, every=fit.log_every, writes=run.is_main) as log:
        for step in range(start, steps):
            asked = draw(kinds, step)
            groups = sample(recipe, run, backbone, asked, step)
            verdicts = judge_each(kinds, gathered(parts_of(groups, kinds)), recipe)
            learn_success(kinds, verdicts, asked)
            verdict = joined(verdicts)
            made = experiences(recipe, run, backbone, teacher, groups, verdict)
            figures = all_figures(run, groups, kinds, verdicts)
            log.step(step + 1, **figures, **learn(recipe, run, made, verdict, step, steps), **chances(kinds))
            if run.is_main and (step + 1) % recipe.samples_every == 0:
                show(folder, step + 1, backbone, groups[0], verdict)
            if fit.is_due(fit.eval_every, step + 1, steps) and any(kind.held for kind in kinds):
                log.tell(step + 1, **held_of(recipe, run, backbone, kinds, summary))
            if fit.is_due(fit.save_every, step + 1, steps):
                run.save(step + 1, curricula=states(kinds))
    write_backbone(run, backbone, folder / "model")


def sample(
    recipe: GrpoRecipe, run: Run, backbone: Backbone, puzzles: Sequence[Puzzle], step: int
) -> dict[int, Group]:
    """This process's groups of a step, by their place in it; seeds do not depend on the number of processes."""
    run.module.eval()
    seeds = {
        place: (recipe.fit.seed, step, place)
        for place in range(run.accelerator.process_index, len(puzzles), run.accelerator.num_processes)
    }
    with run.accelerator.autocast():
        shown = [puzzles[place].varied(seed) for place, seed in seeds.items()]
        rolled = roll_each(backbone, shown, recipe.draw, list(seeds.values()))
        groups = dict(zip(seeds, rolled, strict=True))
        for place, seed in seeds.items():
            if recipe.contrast and place < recipe.fit.batch:
                groups[place] = add_temporal_bonus(recipe, backbone, groups[place], seed)
    run.module.train()
    return groups


def add_temporal_bonus(recipe: GrpoRecipe, backbone: Backbone, group: Group, seed: tuple[int, int, int]) -> Group:
    """The group with T-GRPO's bonus, 1 or 0, as one more part of its rewards."""
    half = dataclasses.replace(recipe.draw, group=max(1, recipe.draw.group // 2))
    prompt = apply_control(group.puzzle.prompt(backbone), "shuffled", seed[1] * recipe.fit.batch + seed[2])
    other = roll(backbone, group.puzzle, half, (*seed, 1), prompt)
    right, right_shuffled = (
        torch.tensor([[rollout.rewards[recipe.success] for rollout in each.rollouts]]) for each in (group, other)
    )
    bonus = temporal_bonus(right, right_shuffled, bonus=1.0)[0].tolist()
    rollouts = (
        dataclasses.replace(rollout, rewards={**rollout.rewards, TEMPORAL: value})
        for rollout, value in zip(group.rollouts, bonus, strict=True)
    )
    return Group(puzzle=group.puzzle, rollouts=tuple(rollouts))


def parts_of(groups: Mapping[int, Group], kinds: Sequence[Kind]) -> dict[int, list[list[float]]]:
    """This process's rewards by place, completion and part."""
    return {place: group.parts(names_at(kinds, place)) for place, group in groups.items()}


def experiences(
    recipe: GrpoRecipe,
    run: Run,
    backbone: Backbone,
    teacher: Backbone | None,
    groups: Mapping[int, Group],
    verdict: Verdict,
) -> dict[int, Experience]:
    """This process's experiences by place, with log-probabilities under older and other policies where needed."""
    method, policy = recipe.method, run.accelerator.unwrap_model(run.module)
    assert isinstance(policy, Policy)
    made = {}
    policy.eval()
    with torch.no_grad(), run.accelerator.autocast():
        for place, group in groups.items():
            old = policy.logprobs(group) if recipe.updates > 1 or teacher is not None else None
            own = experience(group, verdict, place, method, backbone, old=old)
            if method.objective.kl:
                own = dataclasses.replace(own, reference=policy.reference_logprobs(group))
            made[place] = own
        if teacher is not None and method.teaching is not None:
            made = judge_by_teacher(made, policy, teacher, method.teaching, recipe.weights)
    policy.train()
    return made


def learn(
    recipe: GrpoRecipe, run: Run, made: Mapping[int, Experience], verdict: Verdict, step: int, steps: int
) -> dict[str, float]:
    """Do the updates on a step's rollouts; returns figures for the log, means over them. Every process must call it.

    All processes make as many passes: one with fewer groups to learn from repeats one of its own with an empty mask.
    """
    objective, longest = recipe.method.objective, recipe.draw.max_new_tokens
    dropped = verdict.flat if recipe.method.drop_flat else torch.zeros_like(verdict.flat)
    rate = recipe.fit.rate(step, steps)
    if bool(dropped.all()):
        return {"rate": rate, "skipped": 1.0}
    kept = [own for place, own in made.items() if not dropped[place]]
    counted = sum(count(own.mask, objective.average, longest) for own in kept)
    spread, size = run.accelerator.num_processes, recipe.fit.micro_batch
    passes = max(math.ceil(int((~dropped[process::spread]).sum()) / size) for process in range(spread))
    first = next(iter(made.values()))
    idle = dataclasses.replace(first, mask=torch.zeros_like(first.mask))
    parts = [kept[begin : begin + size] for begin in range(0, len(kept), size)]
    parts += [[idle]] * (passes - len(parts))
    done = [run.update(parts, lambda part: run.module(*part), counted, rate) for _ in range(recipe.updates)]

    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(done)

    def by_token(place: int) -> float:
        return mean(update.more[place] / max(update.more[-1], 1e-12) for update in done)

    return {
        "loss": mean(update.loss for update in done),
        "norm": mean(update.norm for update in done),
        "rate": rate,
        "skipped": 0.0,
        "clipped": by_token(0),
        "entropy": by_token(2),  # estimated by the mean of -log pi of what was sampled
        "learned": done[0].more[-1] * done[0].counted,
    } | ({"kl": by_token(1)} if objective.kl else {})


def all_figures(
    run: Run, groups: Mapping[int, Group], kinds: Sequence[Kind], verdicts: Sequence[Verdict]
) -> dict[str, float]:
    """``rollout_figures`` of each kind under its name; tokens are those of all kinds. Every process must call it."""
    found: dict[str, float] = {}
    tokens = 0.0
    for kind, verdict in zip(kinds, verdicts, strict=True):
        own = {place: group for place, group in groups.items() if place in kind.places}
        figures = rollout_figures(run, own, verdict, kind.weights)
        tokens += figures.pop("tokens")
        found |= kind.named(figures)
    return found | {"tokens": tokens}


def chances(kinds: Sequence[Kind]) -> dict[str, float]:
    """The running success of each kind's levels, by name for the log."""
    return {
        name: p
        for kind in kinds
        for name, p in kind.named({f"p_{level}": p for level, p in kind.curriculum.success.items()}).items()
    }


def held_of(
    recipe: GrpoRecipe, run: Run, backbone: Backbone, kinds: Sequence[Kind], summary: Summary | None
) -> dict[str, float]:
    """Figures of the held puzzles of each kind that has some. summary: of the run's own. Every process must call it."""
    found: dict[str, float] = {}
    for kind in kinds:
        if kind.held:
            longest, own = recipe.draw.max_new_tokens, None if kind.prefix else summary
            figures = held_figures(
                run, backbone, kind.held, kind.held_weights, longest, recipe.controls, summary=own
            )
            found |= kind.named(figures)
    return found


def rollout_figures(
    run: Run, groups: Mapping[int, Group], verdict: Verdict, weights: Mapping[str, float]
) -> dict[str, float]:
    """Figures of a step's completions, over all processes. tokens: sampled, for the speed; length: their mean."""
    rollouts = [rollout for group in groups.values() for rollout in group.rollouts]
    cut, tokens, all_ = run.total(
        sum(not rollout.finished for rollout in rollouts), sum(len(r.ids) for r in rollouts), len(rollouts)
    )
    means = dict(zip(verdict.names, verdict.parts.mean(dim=(0, 1)).tolist(), strict=True))
    return {
        "tokens": tokens,
        "reward": sum(weights.get(name, 0.0) * mean for name, mean in means.items()),
        **{f"reward_{name}": mean for name, mean in means.items()},
        "flat": float(verdict.flat.float().mean()),
        "truncated": cut / all_,
        "length": tokens / all_,
    }


def show(folder: Path, step: int, backbone: Backbone, group: Group, verdict: Verdict) -> None:
    """Write the step's first group to the file of samples, for reading."""
    question = group.puzzle.prompt(backbone).question
    viewer.keep(folder, viewer.row_of(step, question, group, verdict.advantages[0].tolist()))
