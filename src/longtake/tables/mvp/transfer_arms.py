"""The arms that are asked what policy optimisation does to other questions: what each learns from, and what it costs.

All arms have the same replay: with one seed the same questions in the same order, as many at every step, about what is
on a card, whether there is one, and when; their warm-up has it too. They are not of the tasks that are asked in the
end: replay is learned by policy optimisation, too, and would else be what is measured. Ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longtake.backbones.base import Backbone
from longtake.data.probe_world.haystack import drawn_clip
from longtake.recipes.mvp_replay import Replay, questions_of
from longtake.recipes.mvp_stages import Material
from longtake.recipes.settings import flat
from longtake.tables.mvp.exam import FRAMES, ROWS, exam_video, replay_folder, replies_to
from longtake.tables.mvp.site import EVENLY, Lessons, Site, arm_model, cached_costs, one_step, seeded
from longtake.tables.operations import Cost
from longtake.tables.token_files import encoded
from longtake.tables.work_folder import named
from longtake.train.beside import Beside
from longtake.train.grpo_recipe import GrpoRecipe
from longtake.train.imitate import train_imitation, with_questions
from longtake.train.puzzles import QuestionPuzzle
from longtake.train.run import start_processes

REPLAY, QUESTIONS, PUZZLES = "replay only", "GRPO on questions", "MVP-GRPO"
ARMS = (REPLAY, QUESTIONS, PUZZLES)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSize:
    """How large the table is. items: of each task. replay: beside all arms.

    more_videos: beyond replay's, for the questions of their arm.
    """

    items: int = 2000
    replay: Replay = Replay(count=2, videos=200, frames=FRAMES, tasks=("what", "is_there", "when"))
    more_videos: int = 800


SIZE = TransferSize()
SMALLEST = TransferSize(items=6, replay=replace(SIZE.replay, videos=2), more_videos=2)


def transfer_costs(site: Site, size: TransferSize) -> dict[str, Cost]:
    """What a step of the warm-up, each arm's own share of a step, an answer and a video cost."""

    def steps(model: Callable[[], Backbone]) -> dict[str, Callable[[Path], object]]:
        material, few = site.material(), replace(size, replay=replace(size.replay, videos=2), more_videos=2)
        found = {"warm": one_step(site.recipe.warm, model(), material.train)}
        for arm in ARMS:
            backbone = model()
            own = own_puzzles(site, few, arm, material, backbone)
            found[arm] = one_step(arm_recipe(site, size, arm, 0), backbone, own)
        backbone, clips = model(), [drawn_clip(0, 4.0)]
        some = questions_about(site, few, backbone, range(2))[:ROWS]
        return {
            **found,
            f"asked/{len(some)}": lambda folder: replies_to(backbone, some),
            "video": lambda folder: encoded(backbone, exam_video(0, clips)),
        }

    return cached_costs(site, "costs-transfer.json", steps, warm_folder(site, size, 0).name)


def arm_recipe(
    site: Site, size: TransferSize, arm: str, seed: int, costs: Mapping[str, Cost] | None = None
) -> GrpoRecipe:
    """How an arm is trained. costs: by which questions get the operations of puzzles; None for as many as puzzles."""
    base = replace(site.recipe.grpo, fit=replace(site.recipe.grpo.fit, seed=seed))
    if arm == PUZZLES:
        return base
    answered = replace(base, weights={"exact": 1.0})
    if arm == REPLAY:
        return replace(answered, fit=replace(base.fit, batch=size.replay.count))
    share = costs[PUZZLES].operations / costs[QUESTIONS].operations if costs else 1.0
    return replace(answered, fit=replace(base.fit, batch=max(1, round(base.fit.batch * share))))


def step_cost(site: Site, size: TransferSize, arm: str, costs: Mapping[str, Cost]) -> Cost:
    """What a step of an arm costs, its replay with it."""
    if arm == REPLAY:
        return costs[REPLAY]
    times = arm_recipe(site, size, arm, 0, costs).fit.batch / site.recipe.grpo.fit.batch
    return Cost(
        operations=costs[arm].operations * times + costs[REPLAY].operations,
        seconds=costs[arm].seconds * times + costs[REPLAY].seconds,
    )


def warm_folder(site: Site, size: TransferSize, seed: int) -> Path:
    """The folder of the warm-up with replay that all arms begin from."""
    key = flat(site.recipe.warm) | flat(size.replay, "replay") | {"footage": site.footage_names}
    return site.folder(seed) / named("warm-replayed", key)


def replay_warmed(site: Site, size: TransferSize, seed: int, material: Material) -> Path:
    """A seed's model after the warm-up; trained where it is not.

    Replay is there from the begin, in the share of a later step: the form alone leaves no question with an answer that
    earns anything (docs/mvp.md), and policy optimisation cannot learn from rewards that are all 0.
    """
    found = warm_folder(site, size, seed) / "model"
    if not found.exists():
        backbone = site.recipe.start.backbone()
        backbone.model.to(start_processes(site.recipe.warm.fit).device).eval()
        replay, batch = replay_of(site, size, material, backbone), site.recipe.grpo.fit.batch
        lessons = with_questions(material.train, replay, batch)
        train_imitation(seeded(site.recipe, seed).warm, backbone, lessons, found.parent)
    return found


def own_puzzles(
    site: Site, size: TransferSize, arm: str, material: Material, backbone: Backbone
) -> Sequence[Any]:
    """What an arm learns from beside the replay; of the arm that has nothing else, the replay."""
    if arm == PUZZLES:
        return material.train
    replayed = range(size.replay.videos)
    further = range(len(replayed), len(replayed) + size.more_videos)
    return questions_about(site, size, backbone, replayed if arm == REPLAY else further)


def replay_of(site: Site, size: TransferSize, material: Material, backbone: Backbone) -> Beside:
    """The replay that stands beside what an arm learns from."""
    asked = own_puzzles(site, size, REPLAY, material, backbone)
    return Beside(name="replay", puzzles=asked, count=size.replay.count, curriculum=EVENLY)


def questions_about(
    site: Site, size: TransferSize, backbone: Backbone, videos: Iterable[int]
) -> list[QuestionPuzzle]:
    """Questions of replay's tasks about training videos of these numbers."""
    replay = replace(size.replay, footage=str(site.footage or ""))
    return questions_of(replay, backbone, "train", replay_folder(site), videos)


def folder_of(site: Site, size: TransferSize, arm: str, seed: int, costs: Mapping[str, Cost]) -> Path:
    """Where an arm's weights and answers are kept."""
    key = flat(arm_recipe(site, size, arm, seed, costs)) | flat(size.replay, "replay")
    key |= {"footage": site.footage_names, "more": size.more_videos if arm == QUESTIONS else 0}
    return site.folder(seed) / named(f"transfer-{arm.replace(' ', '-')}", key)


def trained(
    site: Site, size: TransferSize, arm: str, seed: int, costs: Mapping[str, Cost], material: Material
) -> Path:
    """An arm's model, trained now, on from where it was stopped, or as kept."""

    def lessons(backbone: Backbone) -> Lessons:
        own = own_puzzles(site, size, arm, material, backbone)
        return own, () if arm == REPLAY else (replay_of(site, size, material, backbone),)

    recipe = arm_recipe(site, size, arm, seed, costs)
    warm = replay_warmed(site, size, seed, material)
    return arm_model(warm, folder_of(site, size, arm, seed, costs), recipe, lessons)
