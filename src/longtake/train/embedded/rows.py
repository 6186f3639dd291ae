"""Training rows: one video followed by all its questions, each asked as if it stood alone.

A row holds the columns that ``OwnVideoLLM.prepare`` would make of the video, then every question with its answer. Each
question sees the video and itself only (``attention_mask``), at the positions it would have if asked alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerFast, Qwen2Model

from longtake.data.probe_world.bank import Mix
from longtake.data.probe_world.probe import Event
from longtake.data.probe_world.questions import Question
from longtake.models.processor import stamp_text
from longtake.types import IGNORE

HEAD = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"

Lesson = tuple[Mix, list[Question]]  # a video and what is asked about it


class Text:
    """Token ids of the chat's fixed parts, of stamps and of questions."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, video_token_id: int) -> None:
        self.tokenizer, self.video_token_id = tokenizer, video_token_id
        self._known: dict[str, list[int]] = {}
        self.head = self.ids(HEAD)
        self.end = self.ids("<|im_end|>")
        self.comma = self.ids(",")[-1]

    def ids(self, text: str) -> list[int]:
        """Ids without special tokens added."""
        if text not in self._known:
            self._known[text] = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._known[text]

    def question(self, text: str) -> list[int]:
        """Ids of what stands between the video and the answer."""
        return self.ids("\n" + text + TAIL)

    def blind_question(self, text: str) -> list[int]:
        """Ids of a question, up to its answer, where there is no video."""
        return self.ids(text + TAIL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A video with its questions as columns, int64 ``(columns,)`` each.

    visual: index into the video's tokens, -1 for text.
    turn: 0 for the video and what stands before it, n for the n-th question and its answer.
    labels: the ids of answers and their end, IGNORE elsewhere; not shifted.
    """

    ids: Tensor
    visual: Tensor
    turn: Tensor
    positions: Tensor
    labels: Tensor


def make_row(
    text: Text,
    mix: Mix,
    questions: list[Question],
    tokens_per_group: int,
    kept: NDArray[np.bool_],
    leaps: NDArray[np.int64],
) -> Row:
    """Columns of one video and its questions.

    kept: ``(groups, tokens_per_group)``, the visual tokens that stay; a group that keeps none loses its stamp, and
        where nothing stays the row is that of questions without a video.
    leaps: ``(groups,)``, how far positions jump before each group that stays.
    """
    ids, visual, positions, place = list(text.head), [-1] * len(text.head), list(range(len(text.head))), len(text.head)
    for group, seconds in enumerate(mix.group_seconds.tolist()):
        alive = np.flatnonzero(kept[group])
        if not len(alive):
            continue
        stamp = text.ids(stamp_text(seconds, "compact"))
        ids += stamp + [text.video_token_id] * len(alive)
        visual += [-1] * len(stamp) + (group * tokens_per_group + alive).tolist()
        place += int(leaps[group])
        positions += range(place, place + len(stamp) + len(alive))
        place += len(stamp) + len(alive)
    turn, labels = [0] * len(ids), [IGNORE] * len(ids)
    for number, question in enumerate(questions, start=1):
        asked = text.question(question.text) if kept.any() else text.blind_question(question.text)
        answer = text.ids(question.answer) + text.end
        ids += asked + answer
        labels += [IGNORE] * len(asked) + answer
        positions += range(place, place + len(asked) + len(answer))
        turn += [number] * (len(asked) + len(answer))
    visual += [-1] * (len(ids) - len(visual))
    return Row(
        ids=torch.tensor(ids),
        visual=torch.tensor(visual),
        turn=torch.tensor(turn),
        positions=torch.tensor(positions),
        labels=torch.tensor(labels),
    )


class Batch:
    """Rows padded after the video and after the questions, int64 ``(batch, columns)`` each; turn is -1 on padding.

    They stay on the CPU, where targets are made of them, whatever device the decoder is on.
    video: how many columns stand before the questions, the same in every row.
    """

    def __init__(self, rows: list[Row]) -> None:
        videos = [int((row.turn == 0).sum()) for row in rows]
        self.video = max(videos)
        rest = max(len(row.ids) - own for row, own in zip(rows, videos, strict=True))

        def pad(name: str, value: int) -> Tensor:
            padded = []
            for row, own in zip(rows, videos, strict=True):
                video, asked = getattr(row, name).tensor_split([own])
                video = F.pad(video, (0, self.video - len(video)), value=value)
                padded.append(torch.cat([video, F.pad(asked, (0, rest - len(asked)), value=value)]))
            return torch.stack(padded)

        self.ids, self.visual = pad("ids", 0), pad("visual", -1)
        self.turn, self.positions, self.labels = pad("turn", -1), pad("positions", 0), pad("labels", IGNORE)


def attention_mask(turn: Tensor) -> Tensor:
    """Causal mask under which a question sees the video and itself only, bool ``(batch, 1, length, length)``.

    True is seen. turn: int ``(batch, length)``, -1 on padding.
    """
    length = turn.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=turn.device).tril()
    same = (turn[:, :, None] == turn[:, None, :]) | (turn[:, None, :] == 0)
    return (causal & same)[:, None]


def states_of(
    decoder: Qwen2Model, batch: Batch, embeddings: Tensor, layers: tuple[int, ...]
) -> tuple[list[Tensor], Tensor]:
    """Run a decoder on a batch of rows: inputs of some of its layers, and its last states at the questions' columns.

    embeddings: ``(batch, columns, hidden)``. Returns ``(batch, columns, hidden)`` for each layer, and ``(batch, columns
    - video, hidden)``. The video is read causally without a mask, which is faster, then all questions at once.
    """
    cache = DynamicCache(config=decoder.config)
    run = functools.partial(decoder, past_key_values=cache, use_cache=True, output_hidden_states=True)
    positions, turn = batch.positions.to(embeddings.device), batch.turn.to(embeddings.device)
    video = run(inputs_embeds=embeddings[:, : batch.video], position_ids=positions[:, : batch.video])
    asked = run(
        inputs_embeds=embeddings[:, batch.video :],
        position_ids=positions[:, batch.video :],
        attention_mask=attention_mask(turn)[:, :, batch.video :],
    )
    into = [torch.cat([video.hidden_states[layer], asked.hidden_states[layer]], dim=1) for layer in layers]
    return into, asked.last_hidden_state


def event_groups(mix: Mix, event: Event) -> slice:
    """The groups of a mixed video in which an event is to be seen; none where it falls between two frames."""
    first, stop = mix.frames_of(event)
    size = mix.frames_per_group
    return slice(first // size, (stop - 1) // size + 1) if stop > first else slice(0, 0)


def relevant_groups(mix: Mix, question: Question) -> NDArray[np.bool_]:
    """The groups that show what is asked about, bool ``(groups,)``; all with a card for questions about all."""
    mask = np.zeros(len(mix.groups), np.bool_)
    if question.task in ("order", "count", "after"):
        events = [event for _, event in mix.video.cards]
    else:
        events = [question.event] if question.event else []
    for event in events:
        mask[event_groups(mix, event)] = True
    return mask


def looked_at_groups(mix: Mix, question: Question) -> NDArray[np.bool_]:
    """The groups that show what each part of an answer is read from, bool ``(parts, groups)``; none if not there.

    An order is read card by card and ends where no card follows; how many there are, from the last card; what came
    after, from the card that followed; when, from the first group that shows what is asked about.
    """
    cards = [event_groups(mix, event) for _, event in mix.video.cards]
    own = event_groups(mix, question.event) if question.event else None
    parts: Sequence[slice | None] = [own]
    if question.task == "order":
        parts = [*cards, None]
    elif question.task == "count":
        parts = [cards[-1] if cards else None]
    elif question.task == "when" and own:
        parts = [slice(own.start, min(own.start + 1, own.stop))]
    elif question.task == "after":
        events = [event for _, event in mix.video.cards]
        place = next(n for n, event in enumerate(events) if event is question.event)
        parts = [cards[place + 1] if place + 1 < len(cards) else None]
    masks = np.zeros((len(parts), len(mix.groups)), np.bool_)
    for mask, groups in zip(masks, parts, strict=True):
        if groups:
            mask[groups] = True
    return masks
