"""Named methods: how rewards become advantages, which loss, and what is left out. Values without a paper are ours."""

from __future__ import annotations

from dataclasses import dataclass, field

from longtake.train.advantages import Credit
from longtake.train.losses import Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """SD-GRPO: tokens up to the first ``marker`` are judged by the parts in ``before``, the others by the rest.

    before: weights of the first segment's parts. A completion without the marker has the second segment only. Source:
    DynFrame, arXiv 2605.26680, from its description.
    """

    marker: str
    before: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Teaching:
    """On-policy distillation: advantages come from a teacher's log-probabilities, token by token (Video-OPD).

    least, share: of TVDF: the teacher's own reward that makes it reliable, and the share of such samples that is kept.
    share 0 keeps all samples, reliable or not.
    """

    least: float = 0.5
    share: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A method of policy optimisation.

    drop_flat: groups whose rewards do not differ are left out of the loss and of what it is divided by.
    mask_truncated: completions that did not end are not learned from; their rewards still count in their group's mean.
    """

    credit: Credit = field(default_factory=Credit)
    objective: Objective = field(default_factory=Objective)
    drop_flat: bool = False
    mask_truncated: bool = True
    segments: Segments | None = None
    teaching: Teaching | None = None


METHODS: dict[str, Method] = {
    "grpo": Method(),
    "dr_grpo": Method(credit=Credit(scale="none"), objective=Objective(average="constant")),
    "dapo": Method(objective=Objective(clip_high=0.28, average="token"), drop_flat=True),
    "gspo": Method(objective=Objective(ratio="sequence", clip_low=3e-4, clip_high=4e-4)),
    "cispo": Method(objective=Objective(surrogate="weight", clip_high=4.0, average="token")),
    "rloo": Method(credit=Credit(baseline="leave_one_out", scale="none"), objective=Objective(ratio="product")),
    "gdpo": Method(credit=Credit(decoupled=True)),
    "opd": Method(objective=Objective(average="token"), teaching=Teaching()),
}
