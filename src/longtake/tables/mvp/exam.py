"""Questions of the probe world's test split that policy optimisation never trains on, with their videos' tokens. Ours.

Tower, DTS and projector stay as the starting model has them, so that a video's tokens are the same for every arm.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from longtake.backbones.base import Backbone
from longtake.backbones.layout import some_rows
from longtake.data.probe_world.haystack import Clip, load_clips
from longtake.data.probe_world.probe import ProbeVideo, make_video
from longtake.data.probe_world.questions import Question, ask_all
from longtake.eval.probe import ANSWER_TOKENS
from longtake.outputs import write_json
from longtake.tables.mvp.site import Site
from longtake.tables.replies import Replies
from longtake.tables.token_files import encoded, read_tokens, token_files, videos_of, write_tokens
from longtake.tables.work_folder import named
from longtake.train.puzzles import QuestionPuzzle

TRANSFER = ("order", "after", "direction", "count")
FRAMES = 32  # at a frame a second: four cards and a moving shape always fit
CARDS = (2, 3, 4)
FIRST = 3 * 10**6  # number of the first video; replay's held-out ones come from 0
ROWS = 16  # blind questions that are answered together


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferExam:
    """One question of each of ``TRANSFER`` about each video, video after video."""

    asked: list[Question]
    puzzles: tuple[QuestionPuzzle, ...]

    @property
    def video_of(self) -> NDArray[np.int64]:
        """The video that each question is about."""
        return np.arange(len(self.asked)) // len(TRANSFER)


def replay_folder(site: Site) -> Path:
    """Where the memories of training videos are kept, and all footage as it is decoded."""
    return site.work / named("replay", {"footage": site.footage_names, "frames": FRAMES})


def exam_files(site: Site, items: int) -> list[Path]:
    """Files of the exam's tokens; their questions stand beside them."""
    key = {"footage": site.footage_names, "frames": FRAMES, "cards": CARDS, "first": FIRST}
    return token_files(site.work / named("exam", key), items)


def transfer_exam(site: Site, items: int) -> TransferExam:
    """An exam of so many questions of each task; its videos are rendered and encoded once."""
    files = exam_files(site, items)
    if absent := [number for number, file in enumerate(files) if not file.exists()]:
        print(f"exam: {items} videos of {FRAMES} frames", flush=True)
        backbone = site.recipe.start.backbone()
        clips = load_clips("test", site.footage, replay_folder(site) / "footage")
        for shard in absent:
            numbers = videos_of(shard, items)
            videos = [exam_video(number, clips) for number in numbers]
            write_questions(videos, numbers, files[shard].with_suffix(".json"))
            write_tokens([encoded(backbone, video) for video in videos], files[shard])
    asked = [Question(**row) for file in files for row in json.loads(file.with_suffix(".json").read_text())]
    tokens = [own for file in files for own in read_tokens(file)]
    puzzles = tuple(
        QuestionPuzzle(
            name=f"transfer {number}",
            question=question.text,
            answers=(question.answer,),
            tokens=tokens[number // len(TRANSFER)],
            level=question.task,
        )
        for number, question in enumerate(asked)
    )
    return TransferExam(asked=asked, puzzles=puzzles)


def exam_video(number: int, clips: list[Clip]) -> ProbeVideo:
    """The video of this number: two, three or four cards in turn, and a moving shape."""
    cards = CARDS[number % len(CARDS)]
    return make_video(FIRST + number, split="test", clips=clips, num_frames=FRAMES, num_cards=cards, mover=True)


def questions_about(video: ProbeVideo, number: int) -> list[Question]:
    """One question of each task, without the event it is about."""
    drawn = ask_all(video, np.random.default_rng([number, 64]), limit=100)
    first = {question.task: question for question in reversed(drawn)}
    return [dataclasses.replace(first[task], event=None) for task in TRANSFER]


def write_questions(videos: Sequence[ProbeVideo], numbers: Iterable[int], file: Path) -> None:
    """Write the questions about videos as JSON, whole or not at all."""
    asked = [q for video, number in zip(videos, numbers, strict=True) for q in questions_about(video, number)]
    write_json(file, [dataclasses.asdict(question) for question in asked])


@torch.no_grad()
def replies_to(backbone: Backbone, puzzles: Sequence[QuestionPuzzle], *, blind: bool = False) -> Replies:
    """What a model answers, greedily; a video is run once for the questions about it that stand together.

    blind: without the videos.
    """
    said: list[str] = []
    for asked in asked_together(puzzles, blind):
        prompts = [puzzle.prompt(backbone) for puzzle in asked]
        inputs = backbone.prepare([prompt.unseen() for prompt in prompts] if blind else prompts, shared=not blind)
        video = None if blind else backbone.prefill(some_rows(inputs, slice(1)), stop=inputs.prefix)
        said += [rollout.text for rollout in backbone.generate(inputs, video, max_new_tokens=ANSWER_TOKENS)]
    return Replies(answers=tuple(said), spans=(None,) * len(said))


def asked_together(puzzles: Sequence[QuestionPuzzle], blind: bool) -> Iterator[Sequence[QuestionPuzzle]]:
    """Questions that are answered together: those about one video that follow each other, or if blind any."""
    if blind:
        yield from (puzzles[first : first + ROWS] for first in range(0, len(puzzles), ROWS))
        return
    for _, own in groupby(puzzles, key=lambda puzzle: id(puzzle.tokens)):
        yield list(own)
