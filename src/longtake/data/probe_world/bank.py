"""Banks: many short probe videos rendered once, whose frames' features are kept on disk and re-mixed without end.

Frames pass the frozen tower alone, and groups of frames pass the frozen compressor alone; so a group's tokens do not
depend on its neighbours, and millions of different training videos can be put together from one bank.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from longtake.data.probe_world.decoys import vivid_shot
from longtake.data.probe_world.haystack import Clip
from longtake.data.probe_world.needles import COLOURS, CONTENTS, Card, Mover, Split, draw_card_choice, draw_mover_choice
from longtake.data.probe_world.probe import CARD_SIZE, SIZES, SMALL, Event, ProbeVideo, centre

GROUP = 4  # frames
LATEST_STARTS = (250, 2500, 2500, 9000)  # groups; one of these, then uniform


@dataclass(frozen=True, slots=True, kw_only=True)
class BankRecipe:
    """How many videos of how many frames, and from which seed."""

    split: Split = "train"
    videos: int = 14_000
    frames: int = 40
    seed: int = 0
    side: int = 128
    plain: float = 0.0  # share of pairs of groups that are left as they are, beside those that stay so by chance
    small: float = 0.0  # share of events whose card is a small one


class RenderedVideos(Dataset[tuple[Tensor, str]]):
    """Video n of a bank as uint8 ``(frames, 3, side, side)``, and its events as JSON; depends on (recipe, n) alone."""

    def __init__(self, recipe: BankRecipe, clips: list[Clip]) -> None:
        self.recipe, self.clips = recipe, clips

    def __len__(self) -> int:
        return self.recipe.videos

    def __getitem__(self, number: int) -> tuple[Tensor, str]:
        side = self.recipe.side
        video = bank_video(self.recipe, self.clips, number)
        pictures = [Image.fromarray(p.transpose(1, 2, 0)) for frames in video.frames() for p in frames.pixels]
        shrunk = [np.asarray(p.resize((side, side), Image.Resampling.BICUBIC)) for p in pictures]
        return torch.from_numpy(np.stack(shrunk)).permute(0, 3, 1, 2), json.dumps(_describe(video))


def bank_video(recipe: BankRecipe, clips: list[Clip], number: int) -> ProbeVideo:
    """Video ``number`` of a bank: pairs of groups, each another shot with its own needles, at 1 or 2 frames a second.

    What is learned from a bank depends on how many different cards it holds, so there are more than a video of the
    probe world would have: about six in 40 frames.
    """
    rng = np.random.default_rng([recipe.seed, number, 5])
    fps = 2.0 if rng.random() < 0.2 else 1.0
    shots, events = [], []
    for pair in range(0, recipe.frames, 2 * GROUP):
        shots.append(vivid_shot(rng, clips, pair / fps))
        if recipe.plain and rng.random() < recipe.plain:
            continue
        for plan in plan_pair(rng, recipe.split, with_movers=fps == 1.0):
            begin, end = (pair + plan.first - 0.5) / fps, (pair + plan.stop - 0.5) / fps
            seed = int(rng.integers(2**31))
            size = SMALL if recipe.small and rng.random() < recipe.small else CARD_SIZE
            events.append(
                Event(what=plan.what, start_seconds=begin, stop_seconds=end, seed=seed, card_size=size)
            )
    return ProbeVideo(
        seed=number,
        split=recipe.split,
        fps=fps,
        num_frames=recipe.frames,
        size=SIZES[int(rng.integers(len(SIZES)))],
        shots=tuple(shots),
        events=tuple(events),
        foreign=tuple(vivid_shot(rng, clips, event.start_seconds) for event in events),
    )


def plan_pair(rng: np.random.Generator, split: Split, with_movers: bool) -> list[Placed]:
    """What two groups show, by frames 0 to 8: a card on both, a mover, two cards close together, or one thing on each.

    A card shows on two to four frames, on fewer where its group ends.
    """
    dice = rng.random()
    if dice < 0.25:
        first = int(rng.integers(1, GROUP))
        what = draw_card_choice(rng, split)
        return [Placed(what=what, first=first, stop=int(rng.integers(GROUP + 1, first + GROUP + 1)))]
    if dice < 0.45 and with_movers:
        first = int(rng.integers(0, 3))
        mover = draw_mover_choice(rng, split)
        return [Placed(what=mover, first=first, stop=min(2 * GROUP, first + int(rng.integers(6, 9))))]
    if dice < 0.65:
        return plan_two_cards(rng, split)
    planned = []
    for begin in (0, GROUP):
        first = begin + int(rng.integers(GROUP))
        stop = min(first + int(rng.integers(2, GROUP + 1)), begin + GROUP)
        dice = rng.random()
        if dice < 0.85:  # nothing in the rest
            card = draw_card_choice(rng, split) if dice < 0.75 else None
            planned.append(Placed(what=card, first=first, stop=stop))
    return planned


def plan_two_cards(rng: np.random.Generator, split: Split) -> list[Placed]:
    """Two cards of different colours, one or two frames apart, so that one group shows both."""
    both = GROUP * int(rng.integers(2))  # where that group begins
    stop = both + int(rng.integers(1, 3))
    again = int(rng.integers(stop + 1, both + GROUP))
    one = draw_card_choice(rng, split)
    other = draw_card_choice(rng, split, colour=str(rng.choice([c for c in COLOURS if c != one.colour])))
    first, end = (int(rng.integers(2, GROUP + 1)) for _ in range(2))
    return [
        Placed(what=one, first=max(stop - first, 0), stop=stop),
        Placed(what=other, first=again, stop=min(again + end, 2 * GROUP)),
    ]


def build_bank(
    recipe: BankRecipe, clips: list[Clip], encode: Callable[[Tensor], Tensor], folder: Path, workers: int = 1
) -> None:
    """Render and encode every video; resumes after an interrupt.

    encode: uint8 ``(frames, 3, side, side)`` to bf16 features ``(frames, tokens, dim)``. Written to
    ``features.bin`` in the order of videos, with one line of events a video in ``videos.jsonl``. A video is done when
    its line is there, and its line is written when its features are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = folder / "videos.jsonl"
    done = len(lines.read_text().splitlines()) if lines.exists() else 0
    data = torch.utils.data.Subset(RenderedVideos(recipe, clips), range(done, recipe.videos))
    with (folder / "features.bin").open("r+b" if done else "wb") as sink, lines.open("a") as record:
        for number, (pixels, line) in enumerate(DataLoader(data, batch_size=None, num_workers=workers), start=done):
            features = encode(pixels).contiguous()
            sink.seek(number * features.numel() * 2)
            sink.write(features.view(torch.int16).numpy().tobytes())
            sink.flush()
            record.write(line + "\n")
            record.flush()
            if (number + 1) % 100 == 0:
                print(f"bank: {number + 1}/{recipe.videos} videos", flush=True)


def _describe(video: ProbeVideo) -> dict[str, object]:
    events = []
    for event in video.events:
        first, stop = (math.ceil(at * video.fps) for at in (event.start_seconds, event.stop_seconds))
        row: dict[str, object] = {"what": None, "first": first, "stop": stop}
        if event.what is not None:
            places = [centre(event, frame / video.fps, video.size[::-1], video.split) for frame in range(first, stop)]
            row["what"] = [getattr(event.what, field) for field in event.what.__slots__]
            row["centres"] = [[round(x, 3), round(y, 3)] for x, y in places]
        events.append(row)
    return {"fps": video.fps, "frames": video.num_frames, "events": events}


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """An event of a bank's video: what it is, the frames ``[first, stop)`` it shows on, and where on each.

    centres: (x, y) as shares of the frame's width and height, one for each of its frames; none for a cut.
    """

    what: Card | Mover | None
    first: int
    stop: int
    centres: tuple[tuple[float, float], ...] = ()

    def onset_in(self, begin: int, frames: int = GROUP) -> int:
        """The quarter of the ``frames`` from ``begin`` on in which the event first shows; 4: it was on before."""
        return (self.first - begin) * GROUP // frames if self.first >= begin else GROUP

    def centres_in(self, begin: int, frames: int = GROUP) -> tuple[tuple[float, float], ...]:
        """The event's places on those of the ``frames`` from ``begin`` on that show it."""
        return self.centres[max(0, begin - self.first) : begin + frames - self.first]


def read_events(folder: Path) -> list[tuple[float, list[Placed]]]:
    """The fps and the events, in order, of each video of a bank."""
    rows = [json.loads(line) for line in (folder / "videos.jsonl").read_text().splitlines()]
    return [(row["fps"], [_placed(event) for event in row["events"]]) for row in rows]


def _placed(event: dict[str, Any]) -> Placed:
    centres = tuple((x, y) for x, y in event.get("centres", ()))
    return Placed(what=_thing(event["what"]), first=event["first"], stop=event["stop"], centres=centres)


def _thing(fields: list[str] | None) -> Card | Mover | None:
    if fields is None:
        return None
    if fields[2] in ("left", "right", "up", "down"):
        return Mover(shape=fields[0], colour=fields[1], direction=fields[2])
    assert fields[0] in CONTENTS
    return Card(content=fields[0], colour=fields[1], outline=fields[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A run of groups of one bank video: with all events in it, or plain. Event frames count from the run's start."""

    first_group: int  # in the bank's flat order of groups
    groups: int
    events: tuple[Placed, ...]

    @property
    def colours(self) -> set[str]:
        """Colours of its cards."""
        return {e.what.colour for e in self.events if isinstance(e.what, Card)}


def cut_units(
    events: list[tuple[float, list[Placed]]], groups_per_video: int, frames_per_group: int = GROUP
) -> list[Unit]:
    """Every video cut into maximal runs of groups that share events, and plain runs between them.

    An event between two frames, seen on neither, is left out.
    """
    units, size = [], frames_per_group
    for number, (_, placed) in enumerate(events):
        busy = _runs(placed, groups_per_video, size)
        edges = np.flatnonzero(np.diff(busy, prepend=-1, append=-1))  # a run begins or ends
        for begin, end in zip(edges[:-1], edges[1:], strict=True):
            inside = tuple(
                replace(e, first=e.first - begin * size, stop=e.stop - begin * size)
                for e in placed
                if busy[begin] and begin * size <= e.first < end * size and e.stop > e.first
            )
            units.append(
                Unit(first_group=number * groups_per_video + int(begin), groups=int(end - begin), events=inside)
            )
    return units


def _runs(placed: list[Placed], groups: int, size: int) -> NDArray[np.int64]:
    """The number of each group's run, counted from 1; 0 where the group is plain."""
    busy = np.zeros(groups, np.int64)
    run = 0
    for event in placed:
        first, last = event.first // size, min(groups - 1, (event.stop - 1) // size)
        if event.stop <= event.first or first >= groups:
            continue
        if not busy[first]:
            run += 1
            busy[first] = run
        busy[first : last + 1] = busy[first]
    return busy


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """A training video put together from units: its groups in the bank, and itself as a probe video for asking.

    start_seconds: the time of its first frame, as if it were a part of a longer video; a whole number of groups.
    placed: the video's events by frames of the video, in the same order.
    """

    groups: NDArray[np.int64]
    video: ProbeVideo
    frame_seconds: float
    start_seconds: float
    placed: tuple[Placed, ...]
    frames_per_group: int = GROUP

    @property
    def group_seconds(self) -> NDArray[np.floating]:
        """The times at which groups begin, ``(groups,)``."""
        return self.start_seconds + np.arange(len(self.groups)) * self.frames_per_group * self.frame_seconds

    def frames_of(self, event: Event) -> tuple[int, int]:
        """The frames ``[first, stop)`` that show an event; none where it falls between two frames."""
        first, stop = event.start_seconds - self.start_seconds, event.stop_seconds - self.start_seconds
        return math.ceil(first / self.frame_seconds - 1e-6), math.ceil(stop / self.frame_seconds - 1e-6)


class Mixer:
    """Puts units of a bank together into videos of any length; a video's cards have different colours."""

    def __init__(self, units: list[Unit], split: Split, frames_per_group: int = GROUP) -> None:
        self.split, self.frames_per_group = split, frames_per_group
        self.busy = [u for u in units if any(isinstance(e.what, Card) for e in u.events)]
        self.moving = [u for u in units if u.events and all(isinstance(e.what, Mover) for e in u.events)]
        self.cuts = [u for u in units if u.events and all(e.what is None for e in u.events)]
        self.plain = [u for u in units if not u.events]

    def mix(
        self, rng: np.random.Generator, num_groups: int, max_cards: int, mover: float, late: float = 0.5
    ) -> Mix:
        """One video of ``num_groups`` groups with up to ``max_cards`` cards, and a mover with probability ``mover``.

        Many cards are likelier than few (the larger of two draws): they are harder to count and to put in order. late:
        the share of videos that begin late, so that times with any number of digits are met in short ones.
        """
        chosen = self._choose(rng, num_groups, max_cards, mover)
        room = num_groups - sum(unit.groups for unit in chosen)
        order = [chosen[i] for i in rng.permutation(len(chosen))]
        gaps = np.diff(np.sort(rng.integers(0, room + 1, len(order))), prepend=0, append=room)
        frame_seconds = float(rng.choice([1.0, 1.0, 1.0, 1.0, 0.5, 2.0]))
        size = self.frames_per_group
        start = size * int(rng.integers(rng.choice(LATEST_STARTS))) if rng.random() < late else 0
        units: list[Unit] = []
        for unit, gap in zip(order, gaps[:-1], strict=True):
            units += [*self._filler(rng, int(gap)), unit]
        units += self._filler(rng, int(gaps[-1]))
        return join(units, self.split, size, frame_seconds, start)

    def _choose(self, rng: np.random.Generator, room: int, max_cards: int, mover: float) -> list[Unit]:
        """Units with cards, a mover and cuts that fit ``room`` groups; card colours differ, and one mover at most."""
        chosen: list[Unit] = []
        colours: set[str] = set()
        wanted = int(rng.integers(1, max_cards + 1, 2).max())
        if rng.random() < mover:
            unit = self.moving[rng.integers(len(self.moving))]
            if unit.groups <= room:
                chosen.append(unit)
                room -= unit.groups
        for _ in range(8 * wanted):
            unit = self.busy[rng.integers(len(self.busy))]
            too_many = len(colours) + _count(unit, Card) > wanted or bool(unit.colours & colours)
            two_movers = _count(unit, Mover) and any(_count(other, Mover) for other in chosen)
            if unit.groups <= room and not too_many and not two_movers:
                chosen.append(unit)
                colours |= unit.colours
                room -= unit.groups
        for _ in range(wanted):
            unit = self.cuts[rng.integers(len(self.cuts))]
            if unit.groups < room:
                chosen.append(unit)
                room -= unit.groups
        return chosen

    def _filler(self, rng: np.random.Generator, count: int) -> Iterator[Unit]:
        while count > 0:
            unit = self.plain[rng.integers(len(self.plain))]
            used = min(count, unit.groups)
            yield replace(unit, groups=used)
            count -= used


def join(units: Sequence[Unit], split: Split, frames_per_group: int, frame_seconds: float, start: int) -> Mix:
    """Units one after the other as one video, whose first frame is frame ``start`` of a longer one."""
    rows: list[int] = []
    placed: list[Placed] = []
    for unit in units:
        base = len(rows) * frames_per_group
        placed += [replace(e, first=base + e.first, stop=base + e.stop) for e in unit.events]
        rows += range(unit.first_group, unit.first_group + unit.groups)
    video = ProbeVideo(
        seed=0,
        split=split,
        fps=1 / frame_seconds,
        num_frames=len(rows) * frames_per_group,
        size=(0, 0),
        shots=(),
        events=tuple(_event(e, start, frame_seconds) for e in placed),
        foreign=(),
    )
    return Mix(
        groups=np.asarray(rows),
        video=video,
        frame_seconds=frame_seconds,
        start_seconds=start * frame_seconds,
        placed=tuple(placed),
        frames_per_group=frames_per_group,
    )


def _count(unit: Unit, kind: type[Card | Mover]) -> int:
    return sum(isinstance(event.what, kind) for event in unit.events)


def _event(placed: Placed, base: int, frame_seconds: float) -> Event:
    """An event whose frames count from frame ``base`` on."""
    start, stop = (base + placed.first) * frame_seconds, (base + placed.stop) * frame_seconds
    return Event(what=placed.what, start_seconds=start, stop_seconds=stop, seed=0)
