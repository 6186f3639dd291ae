"""What could not be read, or does not fit: counted once however often it is met, named, and stopped above a share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from longtake.types import LongtakeError

NAMED = 5  # broken ones named in an error


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A conversation that no row was made of, its name beginning with its source's; or a file that is no clip."""

    name: str
    reason: str
    too_long: bool = False


@dataclass(slots=True, kw_only=True)
class Broken:
    """What had to be left out, by name, each with the reason.

    count: how many there are of all. share: of these, above which ``check`` stops the run. what: of them is told.
    names: the broken or missing ones. too_long: those that do not fit; they don't count as broken.
    fresh: what was added since the last ``take``, by this process.
    """

    count: int
    share: float
    what: str = "conversations have broken or missing media"
    names: dict[str, str] = field(default_factory=dict)
    too_long: dict[str, str] = field(default_factory=dict)
    fresh: list[LeftOut] = field(default_factory=list)

    @property
    def all(self) -> dict[str, str]:
        """All that was left out, broken or too long: the reasons by name."""
        return self.names | self.too_long

    def add(self, left_out: LeftOut) -> None:
        """Count one; again the same one changes nothing."""
        if left_out.name not in self._kind(left_out):
            self.merge([left_out])
            self.fresh.append(left_out)

    def merge(self, others: Iterable[LeftOut]) -> None:
        """Count what another process has added."""
        for left_out in others:
            self._kind(left_out).setdefault(left_out.name, left_out.reason)

    def take(self) -> list[LeftOut]:
        """What this process has added since the last ``take``."""
        taken, self.fresh = self.fresh, []
        return taken

    def check(self) -> None:
        """Raise LongtakeError when more are broken than the share allows."""
        if len(self.names) > self.share * self.count:
            first = "; ".join(list(self.names.values())[:NAMED])
            raise LongtakeError(
                f"{len(self.names)} of {self.count} {self.what}, more than "
                f"{self.share:.1%} (first: {first}); mend or remove them, or raise max_broken"
            )

    def state(self) -> dict[str, dict[str, str]]:
        """Plain values to go on from."""
        return {"names": dict(self.names), "too_long": dict(self.too_long)}

    def load(self, state: Mapping[str, Mapping[str, str]]) -> None:
        """Count what an earlier run has counted."""
        self.names |= state["names"]
        self.too_long |= state["too_long"]

    def _kind(self, left_out: LeftOut) -> dict[str, str]:
        return self.too_long if left_out.too_long else self.names
