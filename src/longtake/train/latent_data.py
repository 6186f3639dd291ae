"""Conversations about one video each as questions to think about, the video's tokens with them."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from longtake.backbones.base import Backbone
from longtake.data.conversations.conversations import Conversation
from longtake.data.conversations.media import MediaReader
from longtake.data.left_out import Broken, LeftOut
from longtake.train.puzzles import QuestionPuzzle
from longtake.types import Frames, LongtakeError, VideoError, VisualTokens


@torch.no_grad()
def questions_of(
    conversations: Iterable[Conversation], reader: MediaReader, backbone: Backbone, broken: Broken
) -> list[QuestionPuzzle]:
    """Every question with its answer, each by itself; a video is encoded once for all of its conversation's.

    Named by the conversation and the turn. All tokens are kept in memory, on the CPU. Conversations about a video that
    cannot be read are left out, and ``broken`` counts and names them.

    Raises LongtakeError for a conversation about several media, for instructions of the system (a question is asked
    without them), and when too many are broken.
    """
    found = []
    for conversation in conversations:
        if len(conversation.media) > 1 or conversation.turns[0].role == "system":
            raise LongtakeError(
                f"{conversation.name}: has {len(conversation.media)} media, or a turn of the system; "
                "for thinking give one video and no system turn"
            )
        try:
            tokens = _tokens(conversation, reader, backbone)
        except VideoError as error:
            broken.add(LeftOut(name=conversation.name, reason=str(error)))
            continue
        spoken = [turn.text for turn in conversation.turns]
        for number, (question, answer) in enumerate(zip(spoken[::2], spoken[1::2], strict=True), start=1):
            name = f"{conversation.name}/{number}"
            found.append(QuestionPuzzle(name=name, question=question, answers=(answer,), tokens=tokens))
    broken.check()
    return found


def _tokens(conversation: Conversation, reader: MediaReader, backbone: Backbone) -> VisualTokens | None:
    for clip in reader.read(conversation, epoch=0):
        assert isinstance(clip, Frames), "a reader of features has no frames to encode"
        return backbone.encode(clip).cpu()
    return None
