"""Puzzles of other kinds beside a run's own, such as questions that a model must not forget. Ours.

Each kind has its own reward, curriculum and figures; the groups of all kinds weigh the same in an update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from longtake.train.curriculum import Curriculum, CurriculumRecipe
from longtake.train.grpo_recipe import TEMPORAL, GrpoRecipe, names_of
from longtake.train.judging import Verdict, judge
from longtake.train.puzzles import Puzzle
from longtake.types import LongtakeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """Puzzles of one kind beside the run's own.

    name: stands before its figures in the log, as ``replay_reward_exact``. count: puzzles a step over all processes,
    on top of ``fit.batch``. weights, success: as in ``GrpoRecipe``, of this kind's reward. held: asked when the run's
    own held puzzles are. curriculum: None for the run's own.
    """

    name: str
    puzzles: Sequence[Puzzle]
    count: int
    weights: Mapping[str, float] = field(default_factory=lambda: {"exact": 1.0})
    success: str = "exact"
    held: Sequence[Puzzle] = ()
    curriculum: CurriculumRecipe | None = None

    def __post_init__(self) -> None:
        if not self.name or self.count < 1 or not self.puzzles or not any(self.weights.values()):
            raise LongtakeError(
                f"beside the puzzles stand {len(self.puzzles)} named {self.name!r}, {self.count} a step; there must be "
                "a name, puzzles, at least 1 a step, and a weight that is not 0"
            )
        names = names_of(self.puzzles)
        for asked in (*self.weights, self.success):
            if asked not in names:
                raise LongtakeError(f"{self.name} names {asked!r}; its rewards have the parts {', '.join(names)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind while it is trained on: the run's own puzzles, whose prefix is empty, or those beside them.

    weights, names: of the reward's parts, T-GRPO's among them where the run's own have it. puzzles are asked at the
    places of a step from ``first`` on.
    """

    prefix: str
    puzzles: Sequence[Puzzle]
    held: Sequence[Puzzle]
    first: int
    count: int
    weights: Mapping[str, float]
    names: tuple[str, ...]
    success: str
    curriculum: Curriculum

    @property
    def places(self) -> range:
        """The places in a step at which this kind's puzzles are asked."""
        return range(self.first, self.first + self.count)

    @property
    def held_weights(self) -> dict[str, float]:
        """Weights of the parts that a single answer earns: all but T-GRPO's, which needs a group."""
        return {name: weight for name, weight in self.weights.items() if name != TEMPORAL}

    def named(self, figures: Mapping[str, float]) -> dict[str, float]:
        """The figures with this kind's prefix before their names."""
        return {f"{self.prefix}{name}": value for name, value in figures.items()}


def kinds_of(
    recipe: GrpoRecipe,
    puzzles: Sequence[Puzzle],
    names: tuple[str, ...],
    held: Sequence[Puzzle],
    beside: Sequence[Beside],
) -> list[Kind]:
    """All kinds of a run, its own first. names: of its reward's parts.

    Raises LongtakeError for two kinds of one name, and for kinds beside where a teacher judges the run's own alone.
    """
    if beside and recipe.method.teaching is not None:
        raise LongtakeError(f"{beside[0].name} stands beside puzzles that a teacher judges; choose one of them")
    if len({kind.name for kind in beside}) < len(beside):
        raise LongtakeError(f"kinds beside are {', '.join(kind.name for kind in beside)}; give each its own name")
    weights = dict(recipe.weights) | ({TEMPORAL: recipe.contrast} if recipe.contrast else {})

    def curriculum(own: Sequence[Puzzle], how: CurriculumRecipe) -> Curriculum:
        return Curriculum(recipe=how, levels=[puzzle.level for puzzle in own], seed=recipe.fit.seed)

    found = [
        Kind(
            prefix="",
            puzzles=puzzles,
            held=held,
            first=0,
            count=recipe.fit.batch,
            weights=weights,
            names=names,
            success=recipe.success,
            curriculum=curriculum(puzzles, recipe.curriculum),
        )
    ]
    for kind in beside:
        found.append(
            Kind(
                prefix=f"{kind.name}_",
                puzzles=kind.puzzles,
                held=kind.held,
                first=found[-1].places.stop,
                count=kind.count,
                weights=kind.weights,
                names=names_of(kind.puzzles),
                success=kind.success,
                curriculum=curriculum(kind.puzzles, kind.curriculum or recipe.curriculum),
            )
        )
    return found


def draw(kinds: Sequence[Kind], step: int) -> list[Puzzle]:
    """Draw a step's puzzles, in the order of their places."""
    return [kind.puzzles[number] for kind in kinds for number in kind.curriculum.draw(step, kind.count)]


def names_at(kinds: Sequence[Kind], place: int) -> tuple[str, ...]:
    """Names of the reward's parts of the puzzle at a place."""
    return next(kind.names for kind in kinds if place in kind.places)


def judge_each(kinds: Sequence[Kind], parts: Sequence[Any], recipe: GrpoRecipe) -> list[Verdict]:
    """A verdict for each kind. parts: rewards by place, completion and part."""
    return [judge([parts[place] for place in kind.places], kind.names, kind.weights, recipe.method) for kind in kinds]


def learn_success(kinds: Sequence[Kind], verdicts: Sequence[Verdict], puzzles: Sequence[Puzzle]) -> None:
    """Tell each kind's curriculum how a step's puzzles went."""
    for kind, verdict in zip(kinds, verdicts, strict=True):
        levels = [puzzles[place].level for place in kind.places]
        kind.curriculum.learn(levels, verdict.mean(kind.success))


def states(kinds: Sequence[Kind]) -> dict[str, Any]:
    """The states of all curricula by prefix, to go on from."""
    return {kind.prefix: kind.curriculum.state() for kind in kinds}
