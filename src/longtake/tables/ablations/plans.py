"""The arms of each table, and how long each is trained: equal steps, or equal operations where one was pre-trained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from longtake.models.masking import Policy
from longtake.tables.ablations.arms import Arm, Pretraining
from longtake.tables.ablations.cost import arm_cost, pretraining_cost
from longtake.tables.ablations.data import Kept, Samples
from longtake.tables.ablations.tables import Plan
from longtake.tables.ablations.world import World
from longtake.tables.compare import MASKED
from longtake.tables.operations import Cost
from longtake.tables.planned import Planned

FORKED = (
    "Every arm forks one decoder that has learned from means of four frames, with a fresh projector; arms with one "
    "seed see the same videos and questions. Test videos have other footage, fonts, cards and sentences than training."
)
EQUAL = (
    "Arms have the same training operations in all, their pre-training included, unless they are named after their "
    "steps or clips; an arm that would need more than the most steps stops there."
)
FIGURES = (
    f'"{MASKED}" is over other tokens in each arm, those that its own masking chose: it is shown and not compared. '
    "Probes learn from the same clips, and are tried on the same ones, with every seed."
)
RATES = (
    "DTSs were pre-trained on frames 1 s apart. Here those of stride 2 and 4 see frames 4 s and 2 s apart; only stride "
    "8 sees its own rate."
)


class Costs:
    """What arms cost, each measured once."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._arm = lru_cache(maxsize=None)(lambda arm: arm_cost(world, arm))
        self._pretraining = lru_cache(maxsize=None)(lambda group, how: pretraining_cost(world, group, how))

    def arm(self, arm: Arm) -> Cost:
        """What a decoder's training step costs; what it starts and learns from and how long makes no difference."""
        found: Cost = self._arm(replace(arm, steps=0, start="mean", pretraining=None, samples="bank", kept="all"))
        return found

    def pretraining(self, arm: Arm) -> Cost:
        """What a step of an arm's pre-training costs."""
        assert arm.pretraining is not None
        found: Cost = self._pretraining(arm.size, replace(arm.pretraining, steps=1))
        return found

    def operations(self, arm: Arm) -> float:
        """Operations of an arm's whole training, its pre-training included."""
        before = arm.pretraining.steps * self.pretraining(arm).operations if arm.pretraining else 0.0
        return before + arm.steps * self.arm(arm).operations

    def tokenising(self, arms: Iterable[Planned[Arm]]) -> str:
        """What equal operations leave out, to be told."""
        frozen = {own.arm.size: own.arm for own in arms if own.arm.kind == "DTS" and not own.arm.trainable}
        told = ", ".join(f"{self.arm(arm).once_operations / 1e12:.3g} (stride {size})" for size, arm in frozen.items())
        return (
            "Beside these, once per compressor: a frozen DTS makes the tokens of the whole bank, in 10^12 operations "
            f"{told}; a mean makes them without any that are counted."
        )

    def as_costly(self, arm: Arm, as_arm: Arm) -> Arm:
        """An arm with as many steps as another's operations buy beside its own pre-training, within ``most_steps``."""
        left = self.operations(as_arm) - self.operations(replace(arm, steps=0))
        return replace(arm, steps=self.arm(arm).steps(left, self.world.size.most_steps))


def compression(costs: Costs) -> tuple[Plan, ...]:
    """No compressor, means and DTSs: with the same frames, and with the same number of tokens for the decoder."""
    size = costs.world.size
    before = Pretraining(steps=size.pretraining_steps)
    fourth = Arm(size=4, pretraining=before, steps=size.steps)
    pairs = [("DTS, stride 4", other) for other in ("no DTS", "mean of 4", "DTS, stride 2", "DTS, stride 8")]
    plans = []
    for name, title, frames, block in (
        ("compression-frames", "Compression at equal frames: 16", 16, None),
        ("compression-context", "Compression at equal context: 64 tokens of a video of 32 s", 32, 8),
    ):

        def seen(arm: Arm, frames: int = frames, block: int | None = block) -> Arm:
            every = block // arm.size if block else 1
            return replace(arm, frames=frames, every=every)

        plain = [("no DTS", seen(Arm(kind="mean", size=1))), ("mean of 4", seen(Arm(kind="mean", size=4)))]
        dts = [(f"DTS, stride {n}", seen(Arm(size=n, pretraining=before))) for n in (2, 4, 8)]
        arms = [Planned(name=n, arm=costs.as_costly(arm, seen(fourth))) for n, arm in (*plain, *dts)]
        same = [
            Planned(name=f"{n}, {size.steps} steps", arm=replace(arm, steps=size.steps), starred=False)
            for n, arm in plain
        ]
        notes = (FORKED, EQUAL, costs.tokenising(arms), "DTSs were pre-trained with ReCoT and are frozen.")
        plans.append(
            Plan(
                name=name,
                title=title,
                notes=(*notes, RATES if block else FIGURES),
                arms=(*arms, *same),
                pairs=(*pairs, ("mean of 4", "no DTS"), *[("DTS, stride 4", planned.name) for planned in same]),
                frames=frames,
                every=block // 4 if block else 1,
                figures=block is None,
            )
        )
    return tuple(plans)


def pretraining(costs: Costs) -> tuple[Plan, ...]:
    """What ReCoT gives a DTS that stays frozen or is trained along; and by how many clips it was pre-trained with."""
    size = costs.world.size
    before = Pretraining(steps=size.pretraining_steps)
    frozen, live = Arm(steps=size.steps), Arm(steps=size.steps, trainable=True)
    recot, recot_live = replace(frozen, pretraining=before), replace(live, pretraining=before)
    equal_steps = f"as ReCoT starts, frozen, {size.steps} steps"
    arms = [
        Planned(name="ReCoT, frozen", arm=recot),
        Planned(name="ReCoT, trainable", arm=recot_live),
        Planned(name="random, frozen", arm=costs.as_costly(replace(frozen, start="random"), recot)),
        Planned(name="as ReCoT starts, frozen", arm=costs.as_costly(frozen, recot)),
        Planned(name="scratch, trainable", arm=costs.as_costly(live, recot_live)),
        Planned(name=equal_steps, arm=frozen),
    ]
    by_clips = [
        Planned(
            name=f"ReCoT, frozen, {steps * size.clips} clips",
            arm=replace(frozen, pretraining=replace(before, steps=steps)),
            starred=False,
        )
        for steps in (max(1, round(size.pretraining_steps * share)) for share in (0.25, 0.5, 2.0))
    ]
    return (
        Plan(
            name="pretraining",
            title="What pre-training the DTS gives (stride 4, 16 frames)",
            notes=(
                FORKED,
                EQUAL,
                "Arms with a frozen DTS have the operations of ReCoT, frozen, the two others those of ReCoT, "
                "trainable.",
                f"ReCoT saw {size.pretraining_steps * size.clips} clips of 8 frames unless an arm names others.",
                "ReCoT starts from a DTS that gives the mean of its frames, and so does scratch; random has PyTorch's "
                "own weights.",
                costs.tokenising(arms),
                FIGURES,
            ),
            arms=(*arms, *by_clips),
            pairs=(
                *(("ReCoT, frozen", name) for name in ("random, frozen", "as ReCoT starts, frozen", equal_steps)),
                ("ReCoT, trainable", "scratch, trainable"),
                ("ReCoT, trainable", "ReCoT, frozen"),
                *(("ReCoT, frozen", planned.name) for planned in by_clips),
            ),
            figures=True,
        ),
    )


def masking(costs: Costs) -> tuple[Plan, ...]:
    """Semantic-guided masking against other ways to mask as much, and other amounts."""
    size = costs.world.size

    def planned(name: str, policy: Policy, ratio: float = 0.5, starred: bool = False) -> Planned[Arm]:
        before = Pretraining(steps=size.pretraining_steps, policy=policy, mask_ratio=ratio)
        return Planned(name=name, arm=Arm(pretraining=before, steps=size.steps), starred=starred)

    arms = (
        planned("SGM 0.5", "semantic", starred=True),
        planned("random 0.5", "random", starred=True),
        planned("tube 0.5", "tube"),
        planned("none", "none"),
        planned("oracle 0.5", "oracle"),
        planned("SGM 0.25", "semantic", 0.25),
        planned("SGM 0.75", "semantic", 0.75),
    )
    return (
        Plan(
            name="masking",
            title="What is masked in pre-training (stride 4, frozen, 16 frames)",
            notes=(
                FORKED,
                "All pre-trainings see the same clips for as many steps.",
                "SGM draws what it masks from the lowest-scoring 0.75 of all tokens. SGM 0.75 masks all of these, and "
                "draws nothing at random.",
                FIGURES,
            ),
            arms=arms,
            pairs=tuple(("SGM 0.5", arm.name) for arm in arms[1:]),
            figures=True,
        ),
    )


def pruning(costs: Costs) -> tuple[Plan, ...]:
    """Half of the data, the most redundant dropped or some at random, and all of it."""
    steps = costs.world.size.steps
    titles: dict[Samples, str] = {
        "as it is": "as the bank is",
        "planted": "with as many stills without needles",
        "adverse": "with needles in stills alone",
    }

    def planned(name: str, samples: Samples, kept: Kept, factor: int = 1) -> Planned[Arm]:
        arm = Arm(kind="mean", size=4, steps=steps * factor, samples=samples, kept=kept)
        return Planned(name=name, arm=arm, starred=factor == 1)

    plans = []
    for samples, title in titles.items():
        arms = (
            planned("pruned half", samples, "pruned half"),
            planned("random half", samples, "random half"),
            planned("all, equal steps", samples, "all"),
            planned("all, equal epochs", samples, "all", 2),
        )
        plans.append(
            Plan(
                name=f"pruning-{samples.replace(' ', '-')}",
                title=f"Pruning by redundancy, data {title}",
                notes=(FORKED, "A sample is a block of 8 frames; its score the mean cosine of neighbouring frames."),
                arms=arms,
                pairs=tuple(("pruned half", arm.name) for arm in arms[1:]),
            )
        )
    return tuple(plans)


PLANS = {"compression": compression, "pretraining": pretraining, "masking": masking, "pruning": pruning}
