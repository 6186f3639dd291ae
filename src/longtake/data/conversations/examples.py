"""A conversation and what it shows as token ids and labels, exactly as ``VideoLLMProcessor`` would write it.

Learned are the assistant's words and the token that ends its turn, nothing else. The rule for what is too long is ours:
videos lose frames, evenly over their length, until all fits; words and answers are never cut.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longtake.data.conversations.conversations import Conversation
from longtake.data.conversations.media import MediaClip, MediaReader
from longtake.data.features import Features
from longtake.models.processor import IMAGE_MARK, VIDEO_MARK, VideoLLMProcessor
from longtake.types import IGNORE, Frames, LongtakeError

LETTERS_PER_TOKEN = 4  # of English text, roughly; only for lengths to sort by
STAMP_TOKENS = 3  # likewise


class TooLong(LongtakeError):
    """A conversation whose words and images alone exceed the length allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One conversation, ready to train on.

    ids: int64 ``(length,)``. labels: int64 ``(length,)``, IGNORE where nothing is learned; not shifted.
    clips: what stands at the ids' places for visual tokens, in order.
    question_ids: int64, what the user says, all turns, without template and media: what a selector asks with.
    left_out: how many frames were left out to fit.
    """

    name: str
    ids: Tensor
    labels: Tensor
    clips: tuple[MediaClip, ...]
    question_ids: Tensor
    left_out: int = 0

    def __post_init__(self) -> None:
        if self.ids.shape != self.labels.shape or self.ids.ndim != 1:
            raise ValueError(f"ids are {tuple(self.ids.shape)} but labels {tuple(self.labels.shape)}")

    def __len__(self) -> int:
        return int(self.ids.shape[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleMaker:
    """Conversations to examples of at most ``max_tokens`` (None: any length)."""

    processor: VideoLLMProcessor
    reader: MediaReader
    max_tokens: int | None = None

    def make(self, conversation: Conversation, epoch: int) -> Example:
        """Read the media and build the example. Raises VideoError for broken media, TooLong for too many words."""
        return build_example(self.processor, conversation, self.reader.read(conversation, epoch), self.max_tokens)

    def length(self, conversation: Conversation, epoch: int) -> int:
        """About how many tokens the example will have; only for sorting. Raises VideoError for broken media."""
        tokens = sum(len(turn.text) for turn in conversation.turns) // LETTERS_PER_TOKEN
        for frames in self.reader.num_frames(conversation, epoch):
            groups = -(-frames // self.processor.frames_per_group)
            tokens += groups * (self.processor.tokens_per_group + STAMP_TOKENS)
        return tokens if self.max_tokens is None else min(tokens, self.max_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A conversation as the chat template writes it, with a mark for each medium.

    spoken: the spans ``[start, stop)`` of ``text`` that are learned.
    """

    text: str
    spoken: tuple[tuple[int, int], ...]

    @property
    def pieces(self) -> list[tuple[int, str]]:
        """Where each piece begins, and the piece: texts and marks as the processor parts them."""
        found, place = [], 0
        for piece in re.split(f"({re.escape(VIDEO_MARK)}|{re.escape(IMAGE_MARK)})", self.text):
            found.append((place, piece))
            place += len(piece)
        return found


def messages_of(conversation: Conversation) -> list[dict[str, Any]]:
    """The conversation as a chat template wants it."""
    return [
        {
            "role": turn.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": part.kind} for part in turn.parts
            ],
        }
        for turn in conversation.turns
    ]


def build_example(
    processor: VideoLLMProcessor, conversation: Conversation, clips: Sequence[MediaClip], max_tokens: int | None = None
) -> Example:
    """The conversation's ids and labels around its clips, which lose frames where all would exceed ``max_tokens``.

    Raises TooLong when one group a video is still too much, LongtakeError for a text that holds a medium's mark.
    """
    script = write_script(processor, conversation)
    marks = sum(piece in (VIDEO_MARK, IMAGE_MARK) for _, piece in script.pieces)
    if marks != len(clips):
        raise LongtakeError(
            f"{conversation.name}: has {len(clips)} media but {marks} marks; "
            f"leave {VIDEO_MARK} and {IMAGE_MARK} out of its texts"
        )
    texts = list(text_columns(processor, script))
    words = sum(len(ids) for ids, _ in texts)
    kept = tuple(clips) if max_tokens is None else thinned(processor, clips, max_tokens - words)
    if kept is None:
        raise TooLong(
            f"{conversation.name}: {words} tokens of text and {len(clips)} media exceed {max_tokens} tokens; "
            "raise max_tokens or shorten the text"
        )
    ids, labels = list(texts[0][0]), list(texts[0][1])
    for clip, (text_ids, text_labels) in zip(kept, texts[1:], strict=True):
        shown = clip_ids(processor, clip)
        ids += shown + text_ids
        labels += [IGNORE] * len(shown) + text_labels
    questions = "\n".join(conversation.questions).strip()
    return Example(
        name=conversation.name,
        ids=torch.tensor(ids),
        labels=torch.tensor(labels),
        clips=kept,
        question_ids=torch.tensor(processor.text_ids(questions), dtype=torch.int64),
        left_out=sum(map(len, clips)) - sum(map(len, kept)),
    )


def write_script(processor: VideoLLMProcessor, conversation: Conversation) -> Script:
    """The template's text of the whole conversation, and where in it the assistant speaks.

    What is learned of a turn begins where the template would let the model answer, and ends with the last thing but
    white space that it writes behind the answer: the end token.
    """
    messages = messages_of(conversation)
    text = render(processor, messages, answer=False)
    spoken = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(processor, messages[:number], answer=True)
        after = render(processor, messages[: number + 1], answer=False)
        if not (text.startswith(after) and after.startswith(before)):
            raise LongtakeError(
                "the chat template writes a turn otherwise when more turns follow, so what the assistant says cannot "
                "be found in its text; give the processor a template without that"
            )
        spoken.append((len(before), len(after.rstrip())))
    return Script(text=text, spoken=tuple(spoken))


def render(processor: VideoLLMProcessor, messages: list[dict[str, Any]], *, answer: bool) -> str:
    """The template's text; with ``answer`` up to where the assistant would go on."""
    chat: Any = messages  # transformers types the content as plain text
    return str(processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=answer))


def text_columns(processor: VideoLLMProcessor, script: Script) -> Iterator[tuple[list[int], list[int]]]:
    """Ids and labels of the texts before, between and after the media.

    A piece is tokenised whole, as the processor does, so that the ids are its ids; a token that begins before the
    answer is not learned, because no answer begins with it.
    """
    tokenizer = processor.tokenizer
    if not tokenizer.is_fast:
        raise LongtakeError(f"{type(tokenizer).__name__} does not tell where its tokens stand; use a fast tokenizer")
    for place, piece in script.pieces:
        if piece in (VIDEO_MARK, IMAGE_MARK):
            continue
        encoded = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
        labels = []
        for token, (start, stop) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            within = any(s <= place + start and s < place + stop <= e for s, e in script.spoken)
            labels.append(token if within else IGNORE)
        yield list(encoded["input_ids"]), labels


def clip_ids(processor: VideoLLMProcessor, clip: MediaClip) -> list[int]:
    """A stamp and the places for visual tokens of every group."""
    return processor.video_ids(clip.seconds[:: processor.frames_per_group])


def thinned(processor: VideoLLMProcessor, clips: Sequence[MediaClip], room: int) -> tuple[MediaClip, ...] | None:
    """The clips with as many frames as fit in ``room`` tokens, each with the same share; None if no share fits.

    Groups stay whole and each clip keeps at least one.
    """
    per_group = processor.frames_per_group
    groups = [-(-len(clip) // per_group) for clip in clips]
    most = max(groups, default=1)

    def at(share: int) -> tuple[MediaClip, ...]:
        kept = [max(1, count * share // most) for count in groups]
        return tuple(evenly(clip, min(len(clip), n * per_group)) for clip, n in zip(clips, kept, strict=True))

    def cost(share: int) -> int:
        return sum(len(clip_ids(processor, clip)) for clip in at(share))

    if cost(most) <= room:
        return tuple(clips)
    fitting = bisect_right(range(1, most), room, key=cost)
    return at(fitting) if fitting else None


def evenly(clip: MediaClip, count: int) -> MediaClip:
    """``count`` of a clip's frames, the middle ones of equal parts; the clip itself when it has no more."""
    if count == len(clip):
        return clip
    kept = ((np.arange(count) + 0.5) * len(clip) / count).astype(np.int64)
    if isinstance(clip, Frames):
        return Frames(pixels=clip.pixels[kept], seconds=clip.seconds[kept])
    name = clip.name and f"{clip.name}-{count}"
    return Features(features=clip.features[torch.from_numpy(kept)], seconds=clip.seconds[kept], name=name)
