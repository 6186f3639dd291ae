"""Questions about the probe world beside puzzles, so that a model does not forget them. Ours.

A video is watched once by the model that training begins from, and its memory kept in a file: only the language model
may learn, as tokens stay what they are. Training questions are the probe world's train split, held ones its test split.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longtake.backbones.base import Backbone
from longtake.data.probe_world.haystack import Clip, load_clips
from longtake.data.probe_world.needles import Split
from longtake.data.probe_world.probe import make_video
from longtake.data.probe_world.questions import TASKS, WHEN_TOLERANCE_SECONDS, Question, ask_all
from longtake.memory import load_memory, save_memory
from longtake.train.beside import Beside
from longtake.train.puzzles import QuestionPuzzle
from longtake.types import LongtakeError, Memory, Sampling
from longtake.watch import watch_frames

LEAST_FRAMES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Questions beside puzzles. count: so many a step, 0 for none. videos: of the probe world, one frame a second.

    held_videos: whose questions are asked while puzzles are learned. tasks: of the questions; none: all. footage: a
    folder of videos as the haystack; empty for drawn scenes.
    """

    count: int = 0
    videos: int = 100
    held_videos: int = 5
    frames: int = 32
    tasks: tuple[str, ...] = ()
    footage: str = ""

    def __post_init__(self) -> None:
        if self.count < 0 or self.videos < 1 or self.held_videos < 1 or self.frames < LEAST_FRAMES:
            raise LongtakeError(
                f"count is {self.count}, videos {self.videos}, held_videos {self.held_videos}, frames {self.frames}; "
                f"count must not be negative, videos be at least 1, frames at least {LEAST_FRAMES}"
            )
        if unknown := [task for task in self.tasks if task not in TASKS]:
            raise LongtakeError(f"there are no questions of the task {unknown[0]!r}; known are {', '.join(TASKS)}")


def replay_beside(replay: Replay, backbone: Backbone, folder: Path) -> Beside:
    """Questions of both splits with the memories they are asked of, which are kept in ``folder``."""
    return Beside(
        name="replay",
        puzzles=questions_of(replay, backbone, "train", folder, range(replay.videos)),
        count=replay.count,
        held=questions_of(replay, backbone, "test", folder, range(replay.held_videos)),
    )


def questions_of(
    replay: Replay, backbone: Backbone, split: Split, folder: Path, videos: Iterable[int]
) -> list[QuestionPuzzle]:
    """Questions about the videos of these numbers of a split, in their order."""
    clips = load_clips(split, Path(replay.footage) if replay.footage else None, folder / "footage")
    found = []
    for number in videos:
        memory, questions = _watched(replay, backbone, split, number, clips, folder)
        found += [
            QuestionPuzzle(
                name=f"{split} {number}.{place}",
                question=question.text,
                answers=answers_of(question),
                tokens=memory.tokens,
                level=question.task,
            )
            for place, question in enumerate(questions)
            if not replay.tasks or question.task in replay.tasks
        ]
    return found


def _watched(
    replay: Replay, backbone: Backbone, split: Split, number: int, clips: list[Clip], folder: Path
) -> tuple[Memory, list[Question]]:
    """A video's memory, made once, and its questions."""
    video = make_video(number, split=split, clips=clips, num_frames=replay.frames)
    file = memory_file(folder, split, number)
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        memory = watch_frames(
            backbone,
            video.frames(),
            Sampling(fps=1.0),
            duration_seconds=float(replay.frames),
            num_planned=replay.frames,
        )
        save_memory(memory, file)
    return load_memory(file), ask_all(video, np.random.default_rng([number, 5]))


def memory_file(folder: Path, split: Split, number: int) -> Path:
    """Where a video's memory is kept."""
    return folder / f"{split}-{number:04d}.memory"


def answers_of(question: Question) -> tuple[str, ...]:
    """What ``data.probe_world.questions.score`` takes for right: the answer, or every whole second near it."""
    if question.task != "when":
        return (question.answer,)
    second, near = int(question.answer.removesuffix(" s")), int(WHEN_TOLERANCE_SECONDS)
    return tuple(f"{said} s" for said in range(max(0, second - near), second + near + 1))
