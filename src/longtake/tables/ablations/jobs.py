"""The parts of an ablation in several processes: pre-trainings, then arms, then figures, each kept by its settings.

A table is put together afterwards by ``run_plan``, which finds everything done. So nothing here decides a result, and a
command that was stopped goes on with another number of processes.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed, wait
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from longtake.data.probe_world.haystack import Clip
from longtake.tables.ablations.arms import Arm, Pretraining, base_arm, pretrain, run_arm, run_base, trained
from longtake.tables.ablations.figures import figures_of
from longtake.tables.ablations.tables import Plan
from longtake.tables.ablations.world import Exam, Size, World

Run = tuple[Arm, int]  # an arm and its seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What a process needs to find the same world."""

    folder: Path
    footage: Path | None
    size: Size
    model: Path
    device: str
    threads: int


@lru_cache(maxsize=1)
def world_at(site: Site) -> World:
    """The world, once a process."""
    torch.set_num_threads(site.threads)
    return World(site.folder, site.footage, site.size, torch.device(site.device), site.model)


@lru_cache(maxsize=2)
def exam_at(site: Site, frames: int) -> Exam:
    """Test videos of a length, once a process."""
    return world_at(site).exam(frames)


@lru_cache(maxsize=1)
def test_clips_at(site: Site) -> list[Clip]:
    """Footage of test videos, once a process."""
    return world_at(site).clips("test")


def processes(jobs: int) -> ProcessPoolExecutor:
    """So many processes, each of which imports everything anew."""
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))


def run_jobs(site: Site, plan: Plan, seeds: Sequence[int], jobs: int) -> None:
    """Do in ``jobs`` processes what a plan's table misses."""
    world = world_at(site)
    trained(world, base_arm(world.size), 0, forked=False)  # and with it the bank, which all others read
    world.exam(plan.frames)
    runs = [(planned.arm, seed) for planned in plan.arms for seed in planned.seeds(seeds)]
    first = {(arm.size, arm.pretraining, seed): None for arm, seed in runs if arm.pretraining is not None}
    with processes(jobs) as pool:
        before = [pool.submit(_pretrain, site, *what) for what in first]
        plain = [pool.submit(_ask, site, arm, seed, plan.frames) for arm, seed in runs if not arm.pretraining]
        plain.append(pool.submit(_ask_base, site, plan.frames, plan.every))
        wait(before)
        others = [pool.submit(_ask, site, arm, seed, plan.frames) for arm, seed in runs if arm.pretraining]
        follow([*before, *plain, *others])
        if plan.figures:
            follow([pool.submit(_measure, site, runs[n::jobs]) for n in range(min(jobs, len(runs)))])


def follow(parts: Sequence[Future[None]]) -> None:
    """Wait for all, telling how many are done; the first error ends it."""
    for done, part in enumerate(as_completed(parts), start=1):
        part.result()
        print(f"{done} of {len(parts)} parts", flush=True)


def _pretrain(site: Site, group: int, how: Pretraining, seed: int) -> None:
    pretrain(world_at(site), group, how, seed)


def _ask_base(site: Site, frames: int, every: int) -> None:
    run_base(world_at(site), frames, every, exam_at(site, frames))


def _ask(site: Site, arm: Arm, seed: int, frames: int) -> None:
    run_arm(world_at(site), arm, seed, exam_at(site, frames))


def _measure(site: Site, runs: Sequence[Run]) -> None:
    figures_of(world_at(site), runs)
