"""The arms of a table before it is run, and with which seeds each is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Arm = TypeVar("Arm")


class Starred:
    """An arm that is trained with every seed where it is starred; else with the first one, exploratory."""

    __slots__ = ()
    starred: bool

    def seeds(self, seeds: Sequence[int]) -> list[int]:
        """The seeds that it is trained with."""
        return list(seeds) if self.starred else list(seeds[:1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned(Starred, Generic[Arm]):
    """An arm of a table, by the name that the table has for it."""

    name: str
    arm: Arm
    starred: bool = True
