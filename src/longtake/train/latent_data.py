"""Conversations about one video each as questions to think about, the video's tokens with them."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from longtake.backbones.base import Backbone
from longtake.data.conversations.conversations import Conversation
from longtake.data.conversations.media import MediaReader
from longtake.train.puzzles import QuestionPuzzle
from longtake.types import Frames, LongtakeError, VisualTokens


@torch.no_grad()
def questions_of(
    conversations: Iterable[Conversation], reader: MediaReader, backbone: Backbone
) -> list[QuestionPuzzle]:
    """Every question with its answer, each by itself; a video is encoded once for all of its conversation's.

    Named by the conversation and the turn. All tokens are kept in memory, on the CPU.

    Raises LongtakeError for a conversation about several media, and for instructions of the system: a question is asked
    without them.
    """
    found = []
    for conversation in conversations:
        if len(conversation.media) > 1 or conversation.turns[0].role == "system":
            raise LongtakeError(
                f"{conversation.name}: has {len(conversation.media)} media, or a turn of the system; "
                "for thinking give one video and no system turn"
            )
        tokens = _tokens(conversation, reader, backbone)
        spoken = [turn.text for turn in conversation.turns]
        for number, (question, answer) in enumerate(zip(spoken[::2], spoken[1::2], strict=True), start=1):
            name = f"{conversation.name}/{number}"
            found.append(QuestionPuzzle(name=name, question=question, answers=(answer,), tokens=tokens))
    return found


def _tokens(conversation: Conversation, reader: MediaReader, backbone: Backbone) -> VisualTokens | None:
    for clip in reader.read(conversation, epoch=0):
        assert isinstance(clip, Frames), "a reader of features has no frames to encode"
        return backbone.encode(clip).cpu()
    return None
