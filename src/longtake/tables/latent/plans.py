"""The arms of each table about latents, how long each is trained, and what is compared with what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from longtake.models.latent import Thinking
from longtake.tables.latent.arms import LatentArm, pausing
from longtake.tables.latent.cost import LatentCosts

FORKED = (
    "Every arm goes on from one model that has learned from answers alone for a while; arms with one seed see the same "
    "questions in the same order. Test videos have other footage, cards and sentences than training."
)
EQUAL = (
    "Training operations are those of the latents, K = 8, unless an arm is named after its steps: those have the "
    "steps of the latents and fewer operations. A trace in words is annotation that no other arm has. Learned "
    "vectors in the place of latents (pause) are taught through the same bottleneck."
)
LATENTS = LatentArm(thinking=Thinking())
EIGHT = "latents, K = 8"


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentPlanned:
    """An arm of a table. starred: with every seed; else with the first one, exploratory."""

    name: str
    arm: LatentArm
    starred: bool = True

    def seeds(self, seeds: Sequence[int]) -> list[int]:
        """The seeds that it is trained with."""
        return list(seeds) if self.starred else list(seeds[:1])


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentPlan:
    """One table before it is run. pairs: (arm, the arm it is compared with), by name.

    halves: (arm, low, high): whether an arm keeps half of what high gains over low. claims: (latents, pause, answers at
    equal operations): whether latent reasoning may be claimed.
    """

    name: str
    title: str
    notes: tuple[str, ...]
    arms: tuple[LatentPlanned, ...]
    pairs: tuple[tuple[str, str], ...]
    halves: tuple[tuple[str, str, str], ...] = ()
    claims: tuple[tuple[str, str, str], ...] = ()


def worth(costs: LatentCosts) -> LatentPlan:
    """What latents are worth beside answers alone, a trace in words, and learned vectors in their place."""
    steps = costs.setting.steps
    eight = replace(LATENTS, steps=steps)
    arms = [
        LatentPlanned(name=f"answer-only, {steps} steps", arm=LatentArm(steps=steps)),
        LatentPlanned(name="answer-only", arm=costs.as_costly(LatentArm(), eight)),
        LatentPlanned(name=f"trace in words, {steps} steps", arm=LatentArm(steps=steps, traced=True)),
        LatentPlanned(name="trace in words", arm=costs.as_costly(LatentArm(traced=True), eight)),
        LatentPlanned(name="pause, K = 8", arm=costs.as_costly(pausing(8), eight)),
        LatentPlanned(name=EIGHT, arm=eight),
    ]
    for count in (2, 4, 16):
        arm = costs.as_costly(replace(LATENTS, thinking=Thinking(latents=count)), eight)
        arms.append(LatentPlanned(name=f"latents, K = {count}", arm=arm, starred=False))
    short, equal, brief, trace, pause = (planned.name for planned in arms[:5])
    return LatentPlan(
        name="latent-worth",
        title="What latents are worth, by hops",
        notes=(FORKED, EQUAL),
        arms=tuple(arms),
        pairs=(
            *((EIGHT, name) for name in (short, equal, pause, brief, trace)),
            (brief, short),
            (trace, equal),
            (pause, equal),
            *((EIGHT, planned.name) for planned in arms[6:]),
        ),
        halves=((EIGHT, equal, trace),),
        claims=((EIGHT, pause, equal),),
    )


def parts(costs: LatentCosts) -> LatentPlan:
    """Latents without one of their parts, and other ways to make and to teach them."""
    eight = replace(LATENTS, steps=costs.setting.steps)
    others: list[tuple[str, LatentArm, bool]] = [
        ("without alignment", replace(LATENTS, align=0.0), True),
        ("without diversity", replace(LATENTS, diverse=0.0), True),
        ("without re-reading", replace(LATENTS, reread=False), True),
        ("without the bottleneck", replace(LATENTS, bottleneck=0.0), False),
        ("teacher: stretches of the video", replace(LATENTS, teacher="video"), False),
        ("teacher: a denser video", replace(LATENTS, teacher="dense"), False),
        ("one by one, no alignment", replace(LATENTS, thinking=Thinking(mode="autoregressive"), align=0.0), False),
        *((f"T = {n}", replace(LATENTS, thinking=Thinking(passes=n)), False) for n in (0, 1, 3)),
    ]
    arms = [LatentPlanned(name=EIGHT, arm=eight)]
    arms += [LatentPlanned(name=name, arm=costs.as_costly(arm, eight), starred=s) for name, arm, s in others]
    pairs = [(EIGHT, planned.name) for planned in arms[1:]]
    return LatentPlan(
        name="latent-parts",
        title="What the parts of latents are worth, by hops (T = 2, in parallel, teacher: themselves)",
        notes=(FORKED, "All arms have the training operations of the first."),
        arms=tuple(arms),
        pairs=(*pairs, ("one by one, no alignment", "without alignment")),
    )


PLANS = {"worth": worth, "parts": parts}
