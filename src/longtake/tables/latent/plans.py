"""The arms of each table about latents, how long each is trained, and what is compared with what."""

from __future__ import annotations

from dataclasses import dataclass, replace

from longtake.models.latent import Thinking
from longtake.tables.compare import Titled
from longtake.tables.latent.arms import LatentArm, pausing
from longtake.tables.latent.cost import LatentCosts
from longtake.tables.planned import Planned

FORKED = (
    "Every arm goes on from one model, the one in the package after base_steps of answers alone; arms with one seed "
    "see the same questions in the same order. Test videos have other footage, cards and sentences than training."
)
EQUAL = (
    "Training operations are those of the latents, K = 8, unless an arm is named after its steps: those have the "
    "steps of the latents and fewer operations. A trace in words is annotation that no other arm has. Learned "
    "vectors in the place of latents (pause) are taught through the same bottleneck."
)
LATENTS = LatentArm(thinking=Thinking())
EIGHT = "latents, K = 8"
TOLD = "told what to hold, T = 3"


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentPlan(Titled):
    """One table before it is run.

    halves: (arm, low, high): whether an arm keeps half of what high gains over low. claims: (latents, pause, answers at
    equal operations): whether latent reasoning may be claimed.
    """

    arms: tuple[Planned[LatentArm], ...]
    halves: tuple[tuple[str, str, str], ...] = ()
    claims: tuple[tuple[str, str, str], ...] = ()


def worth(costs: LatentCosts) -> LatentPlan:
    """What latents are worth beside answers alone, a trace in words, and learned vectors in their place."""
    steps = costs.setting.steps
    eight = replace(LATENTS, steps=steps)
    arms = [
        Planned(name=f"answer-only, {steps} steps", arm=LatentArm(steps=steps)),
        Planned(name="answer-only", arm=costs.as_costly(LatentArm(), eight)),
        Planned(name=f"trace in words, {steps} steps", arm=LatentArm(steps=steps, traced=True)),
        Planned(name="trace in words", arm=costs.as_costly(LatentArm(traced=True), eight)),
        Planned(name="pause, K = 8", arm=costs.as_costly(pausing(8), eight)),
        Planned(name=EIGHT, arm=eight),
    ]
    for count in (2, 4, 16):
        arm = costs.as_costly(replace(LATENTS, thinking=Thinking(latents=count)), eight)
        arms.append(Planned(name=f"latents, K = {count}", arm=arm, starred=False))
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
    deep = replace(LATENTS, thinking=Thinking(passes=3), through=True)
    others: list[tuple[str, LatentArm, bool]] = [
        ("without alignment", replace(LATENTS, align=0.0), True),
        ("without diversity", replace(LATENTS, diverse=0.0), True),
        ("without re-reading", replace(LATENTS, reread=False), True),
        ("without the bottleneck", replace(LATENTS, bottleneck=0.0), False),
        ("teacher: stretches of the video", replace(LATENTS, teacher="video"), False),
        ("teacher: a denser video", replace(LATENTS, teacher="dense"), False),
        ("one by one, no alignment", replace(LATENTS, thinking=Thinking(mode="autoregressive"), align=0.0), False),
        *((f"T = {n}", replace(LATENTS, thinking=Thinking(passes=n)), False) for n in (0, 1, 3)),
        ("T = 3, gradients through all makings", deep, False),
        ("prompt hidden, begun behind it", replace(LATENTS, hides="prompt", begin="answer"), False),
        (TOLD, replace(deep, spell=1.0, begin="answer", bottleneck=0.0), False),
    ]
    arms = [Planned(name=EIGHT, arm=eight)]
    arms += [Planned(name=name, arm=costs.as_costly(arm, eight), starred=s) for name, arm, s in others]
    pairs = [(EIGHT, planned.name) for planned in arms[1:]]
    return LatentPlan(
        name="latent-parts",
        title="What the parts of latents are worth, by hops (T = 2, in parallel, teacher: themselves)",
        notes=(
            FORKED,
            "All arms have the training operations of the first.",
            f'"{TOLD}": its latents are taught to say the words of a trace, which are annotation; gradients go through '
            "all makings, there is no bottleneck, and slots begin behind the prompt.",
        ),
        arms=tuple(arms),
        pairs=(*pairs, ("one by one, no alignment", "without alignment")),
    )


PLANS = {"worth": worth, "parts": parts}
