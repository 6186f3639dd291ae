"""The samples of a conversation file as they stand in it, each with its videos and the kind of its question."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longtake.data.conversations.conversations import Conversation, Media, read_conversations
from longtake.data.pruning.scorer import VideoPart

Subset = Literal["caption", "multiple-choice", "open"]
SUBSETS: tuple[Subset, ...] = ("caption", "multiple-choice", "open")

# What data sets call their tasks, in small letters and without marks between words
NAMED: dict[str, Subset] = {
    **dict.fromkeys(("caption", "captioning", "videocaption", "videocaptioning", "description"), "caption"),
    **dict.fromkeys(("detailedcaption", "detailedcaptioning", "densecaption", "summary"), "caption"),
    **dict.fromkeys(("multiplechoice", "mc", "mcq", "mcqa", "multichoice", "choice"), "multiple-choice"),
    **dict.fromkeys(("open", "openended", "oe", "oeqa", "openquestion", "openendedqa", "qa"), "open"),
}
_NEXT_OBJECT = re.compile(r"[\s,]*(?=\{)")
_OPTION = re.compile(r"(?:^|\s)\(?([A-F])[.):]\s*\S", re.MULTILINE)
_TELL = re.compile(
    r"\b(describe|caption|summari[sz]e|narrate|recount|depict|description of|summary of|narrative of|"
    r"tell me (what|about)|what (is|'s) (happening|going on))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample: its name, kind, videos in order, all files that it shows, and its bytes in the file."""

    name: str
    subset: Subset
    parts: tuple[VideoPart, ...]
    files: tuple[Path, ...]
    raw: bytes


def read_samples(file: Path, media: Path) -> list[Sample]:
    """Every sample of a JSON or JSONL file of conversations, in order.

    Raises LongtakeError, as ``read_conversations`` does, for a file that is missing or whose samples make no sense.
    """
    conversations = read_conversations(file, media)
    raws = cut_samples(file.read_bytes())
    assert len(raws) == len(conversations), f"{file}: {len(raws)} samples but {len(conversations)} conversations"
    return [
        Sample(
            name=talk.name,
            subset=subset_of(talk),
            parts=_parts(talk.media, media),
            files=tuple(one.path for one in talk.media),
            raw=raw,
        )
        for talk, raw in zip(conversations, raws, strict=True)
    ]


def _parts(found: Sequence[Media], media: Path) -> tuple[VideoPart, ...]:
    return tuple(
        VideoPart(
            name=os.path.relpath(one.path, media),
            path=one.path,
            start_seconds=one.start_seconds,
            stop_seconds=one.stop_seconds,
        )
        for one in found
        if one.kind == "video"
    )


def subset_of(conversation: Conversation) -> Subset:
    """The task type: the sample's own where its name says one of the three, else by the first question's text. Ours.

    A text with options "A." and "B." (or in brackets) is multiple-choice; one that asks to describe, to summarise or
    what is happening, or that says nothing beside the video, is a caption; all else is open.
    """
    named = NAMED.get(re.sub(r"[^a-z]", "", (conversation.task or "").lower()))
    if named is not None:
        return named
    text = next(iter(conversation.questions), "").strip()
    if {"A", "B"} <= set(_OPTION.findall(text)):
        return "multiple-choice"
    return "caption" if not text or _TELL.search(text) else "open"


def cut_samples(data: bytes) -> list[bytes]:
    """The bytes of each sample: of each line that is not blank, or of each object of one valid JSON list."""
    text = data.removeprefix(codecs.BOM_UTF8)
    if not is_list(data):
        return [line for line in text.split(b"\n") if line.strip()]
    return [found.encode() for found in _cut_list(text.decode())]


def _cut_list(text: str) -> Iterator[str]:
    decoder = json.JSONDecoder()
    start = text.index("[") + 1
    while (found := _NEXT_OBJECT.match(text, start)) is not None:
        _, stop = decoder.raw_decode(text, found.end())
        yield text[found.end() : stop]
        start = stop


def is_list(data: bytes) -> bool:
    """Whether a file is one JSON list, and not a line a sample."""
    return data.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def join_samples(samples: Sequence[Sample], *, as_list: bool) -> bytes:
    """A file of samples as they stood, in the form of the file they came from."""
    if as_list:
        return b"[\n" + b",\n".join(sample.raw for sample in samples) + b"\n]\n"
    return b"".join(sample.raw + b"\n" for sample in samples)
