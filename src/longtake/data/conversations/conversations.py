"""Conversations about images and videos, from the two forms that training data come in.

LLaVA's: ``{"id", "image" or "video": path or list, "conversations": [{"from", "value"}]}``, media marked by ``<image>``
and ``<video>`` in the text. OpenAI's: ``{"messages": [{"role", "content"}]}``, where content is text (marked likewise,
with lists ``images`` and ``videos`` beside the messages) or a list of parts. Either as one JSON array or as JSON lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NoReturn

from longtake.types import LongtakeError

Kind = Literal["video", "image"]
Role = Literal["system", "user", "assistant"]

KINDS: tuple[Kind, ...] = ("video", "image")
ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
MARK = re.compile("(<image>|<video>)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """A video, of which the half-open span ``[start, stop)`` counts (None: to the video's own end), or an image."""

    kind: Kind
    path: Path
    start_seconds: float | None = None
    stop_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one side says: texts and media in the order they are given. Texts have no white space at their ends."""

    role: Role
    parts: tuple[str | Media, ...]

    @property
    def text(self) -> str:
        """The texts alone, one a line."""
        return "\n".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Turns in order: perhaps one of the system first, then the user's and the assistant's by turns.

    name: the entry's id, or its file and line. task: what kind of example it is, where the data say so.
    """

    name: str
    turns: tuple[Turn, ...]
    task: str | None = None

    @property
    def media(self) -> tuple[Media, ...]:
        """All media in the order they come."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, Media))

    @property
    def questions(self) -> tuple[str, ...]:
        """What the user says, turn by turn."""
        return tuple(turn.text for turn in self.turns if turn.role == "user")


def read_conversations(file: Path, media: Path) -> list[Conversation]:
    """All conversations of a JSON or JSONL file; relative media paths count from the folder ``media``.

    Whether the media exist is not looked at here. Entries may have ``start`` and ``end`` (seconds; a list where there
    are several videos) and ``task`` or ``type``.

    Raises LongtakeError, with file, line and id, at the first entry that is not such a conversation.
    """
    return [Entry(place, entry, media).conversation() for place, entry in read_entries(file)]


def read_entries(file: Path) -> Iterator[tuple[str, Any]]:
    """Entries and where they stand, as ``file:number``: a line, or an entry's place in an array, counted from 1."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LongtakeError(f"{file}: could not be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise LongtakeError(f"{file}: is not UTF-8 text ({error.reason}); give a JSON or JSONL file") from error
    if text.lstrip().startswith("["):
        for number, entry in enumerate(parse(text, str(file)), start=1):
            yield f"{file}:{number}", entry
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{file}:{number}", parse(line, f"{file}:{number}")


def parse(text: str, place: str) -> Any:
    """The value that a text in JSON holds. Raises LongtakeError where it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise LongtakeError(
            f"{place}: not JSON ({error.msg}, line {error.lineno}, column {error.colno}); "
            "give one array, or one object a line"
        ) from error
    except RecursionError as error:
        raise LongtakeError(f"{place}: is nested too deeply; give one array, or one object a line") from error


class Entry:
    """One entry of a file on its way to a conversation."""

    def __init__(self, place: str, entry: Any, folder: Path) -> None:
        self.place, self.folder = place, folder
        if not isinstance(entry, dict):
            self.refuse(f"is {shown(entry)}", "an entry is an object with 'messages' or 'conversations'")
        self.entry: dict[str, Any] = entry
        self.listed = {kind: self._listed(kind) for kind in KINDS}
        self.used = dict.fromkeys(KINDS, 0)
        self.spans = self._spans()

    def refuse(self, value: str, rule: str) -> NoReturn:
        """The error of this entry."""
        entry = getattr(self, "entry", {})
        name = f" (id {entry['id']})" if "id" in entry else ""
        raise LongtakeError(f"{self.place}{name}: {value}; {rule}")

    def conversation(self) -> Conversation:
        """The conversation, all its media in place."""
        turns = tuple(self._turn(role, content) for role, content in self._said())
        for kind in KINDS:
            if self.used[kind] < len(self.listed[kind]):
                self.refuse(
                    f"names {len(self.listed[kind])} {kind}s but marks {self.used[kind]}",
                    f"put one <{kind}> in the text for each",
                )
        if self.spans and self.used["video"] != len(self.spans):
            self.refuse(f"has {len(self.spans)} spans for {self.used['video']} videos", "give one start and end each")
        self._check_order(turns)
        task = self.entry.get("task", self.entry.get("type"))
        name = self.entry.get("id")
        return Conversation(
            name=Path(self.place).name if name is None else str(name),
            turns=turns,
            task=None if task is None else str(task),
        )

    def _said(self) -> Iterator[tuple[Role, Any]]:
        """Role and content of each message, in either form."""
        for messages, who, what in (("messages", "role", "content"), ("conversations", "from", "value")):
            if messages not in self.entry:
                continue
            said = self.entry[messages]
            if not isinstance(said, list) or not said:
                self.refuse(f"{messages} is {shown(said)}", "it must be a list with a message for each turn")
            for message in said:
                if not isinstance(message, dict) or who not in message or what not in message:
                    self.refuse(f"a message is {shown(message)}", f"it must be an object with {who!r} and {what!r}")
                if message[who] not in ROLES:
                    self.refuse(f"{who} is {shown(message[who])}", f"it must be one of {', '.join(ROLES)}")
                yield ROLES[message[who]], message[what]
            return
        self.refuse(f"has {sorted(self.entry)}", "it must have 'messages' or 'conversations'")

    def _turn(self, role: Role, content: Any) -> Turn:
        """Marked text or a list of parts to a turn; white space beside a medium and at the ends belongs to the form."""
        if isinstance(content, str):
            parts = [self._marked(piece) if MARK.fullmatch(piece) else piece for piece in MARK.split(content)]
        elif isinstance(content, list):
            parts = [self._part(part) for part in content]
        else:
            self.refuse(f"a content is {shown(content)}", "it must be text or a list of parts")
        runs = [list(run) for _, run in groupby(parts, key=lambda part: isinstance(part, str))]
        joined = [["".join(map(str, run)).strip()] if isinstance(run[0], str) else run for run in runs]
        return Turn(role=role, parts=tuple(part for run in joined for part in run if part))

    def _marked(self, mark: str) -> Media:
        """The next medium of a mark's kind. LLaVA-Video marks videos by ``<image>``, so it may mean one."""
        kind: Kind = "video" if mark == "<video>" or not self.listed["image"] else "image"
        if self.used[kind] == len(self.listed[kind]):
            named = ", ".join(f"{len(paths)} {kind}s" for kind, paths in self.listed.items())
            self.refuse(f"has a {mark} too many for {named}", "name one file for each mark, in their order")
        return self._medium(kind, self.listed[kind][self.used[kind]])

    def _part(self, part: Any) -> str | Media:
        """A part of an OpenAI-style content; a medium without a path takes the next that the entry lists."""
        kind = str(part.get("type")) if isinstance(part, dict) else shown(part)
        if kind == "text" and isinstance(part.get("text"), str):
            return str(part["text"])
        for known in KINDS:
            if kind not in (known, f"{known}_url"):
                continue
            source = part.get(kind)
            if isinstance(source, dict):
                source = source.get("url")
            if source is None:
                return self._marked(f"<{known}>")
            return self._medium(known, source)
        self.refuse(
            f"a part is {shown(part)}", "it must be a text, image, image_url, video or video_url with its value"
        )

    def _medium(self, kind: Kind, source: Any) -> Media:
        if not isinstance(source, str) or not source:
            self.refuse(f"a path is {shown(source)}", "it must be text, relative to the media folder")
        path = source.removeprefix("file://")
        if re.match(r"\w+://|data:", path):
            self.refuse(f"a path is {shown(source)}", "longtake reads files only: download it and name the file")
        number, self.used[kind] = self.used[kind], self.used[kind] + 1
        start, stop = (None, None)
        if kind == "video" and self.spans:
            start, stop = self.spans[min(number, len(self.spans) - 1)]
        return Media(kind=kind, path=self.folder / path, start_seconds=start, stop_seconds=stop)

    def _listed(self, kind: Kind) -> list[Any]:
        """Paths under "video" or "videos", "image" or "images": one or a list."""
        found = self.entry.get(kind, self.entry.get(f"{kind}s"))
        if found is None:
            return []
        return found if isinstance(found, list) else [found]

    def _spans(self) -> list[tuple[float | None, float | None]]:
        """The spans of the videos, one each; nothing where the entry has none."""
        given = [self.entry.get("start"), self.entry.get("end")]
        if given == [None, None]:
            return []
        starts, stops = (value if isinstance(value, list) else [value] for value in given)
        if len(starts) != len(stops):
            self.refuse(f"has {len(starts)} starts and {len(stops)} ends", "give one of each for each video")
        for start, stop in zip(starts, stops, strict=True):
            if not (is_seconds(start) and is_seconds(stop)):
                self.refuse(f"start is {shown(start)} and end {shown(stop)}", "both are seconds, 0 or more")
            if stop is not None and stop <= (start or 0.0):
                self.refuse(f"start is {start} and end {stop}", "the end must come after the start")
        return list(zip(starts, stops, strict=True))

    def _check_order(self, turns: tuple[Turn, ...]) -> None:
        """An optional system turn, then user and assistant by turns, the assistant last, none of them empty."""
        spoken = [turn for turn in turns if turn.role != "system"]
        expected = ["user", "assistant"] * (len(spoken) // 2)
        if not spoken or [turn.role for turn in spoken] != expected or "system" in [t.role for t in turns[1:]]:
            told = ", ".join(turn.role for turn in turns)
            self.refuse(f"the turns are {told}", "user and assistant must take turns, the assistant last")
        for turn in spoken:
            if not turn.parts or (turn.role == "assistant" and not turn.text):
                self.refuse(f"a turn of the {turn.role} is empty", "write what is said, or leave the entry out")


def is_seconds(value: Any) -> bool:
    """Whether a value can be a time, or is left out."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9)


def shown(value: Any) -> str:
    """A value in an error, cut to a readable length."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
