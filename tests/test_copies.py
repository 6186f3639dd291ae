"""Lessons in comparing: what is shown, what is right, and that they are drawn anew in training."""

import numpy as np
import pytest
import torch

from grpo_runs import own, qwen
from longtake.train.copies import CopyLesson, copy_lessons
from longtake.train.rendering import Rendering
from longtake.types import LongtakeError


def pictures(lesson: CopyLesson, backbone) -> list[torch.Tensor]:
    return [part.tokens.features for part in lesson.prompt(backbone).parts if part.tokens is not None]


@pytest.mark.parametrize("backbone", [own, qwen])
def test_the_candidate_is_a_copy_of_the_side_that_is_right(backbone):
    model = backbone()
    for lesson, side in zip(copy_lessons(4, Rendering(side=2, size=3.0)), (0, 1, 0, 1), strict=True):
        *frames, copy = pictures(lesson, model)
        assert torch.equal(copy, frames[side])
        assert not torch.equal(copy, frames[1 - side])
        torch.testing.assert_close(copy.square().mean(dim=-1), torch.full((4,), 9.0))
        assert lesson.solution() == ("before", "after")[side]
        first, gap, last, asked = lesson.prompt(model).parts
        assert (first.timed, gap.tokens, last.timed, asked.timed) == (True, None, True, False)
        assert float(first.tokens.seconds[0]) < float(last.tokens.seconds[0])
        inputs = model.prepare([lesson.prompt(model)])
        assert int((inputs.source >= 0).sum()) == 12


def test_noise_lies_in_as_many_dimensions_as_puzzles_have():
    model = own()
    (lesson,) = copy_lessons(1, Rendering(side=2, dims=6, size=3.0))
    for features in pictures(lesson, model):
        assert bool(features[:, :6].all())
        assert not features[:, 6:].any()
        torch.testing.assert_close(features.square().mean(dim=-1), torch.full((4,), 9.0))
    (lesson,) = copy_lessons(1, Rendering(dims=9999))
    with pytest.raises(LongtakeError, match="dims is 9999, but a token has"):
        lesson.prompt(model)


def test_every_showing_draws_other_pictures_and_keeps_the_answer():
    model, lesson = own(), CopyLesson(number=3)
    shown = lesson.varied((0, 5, 1))
    assert shown.solution() == lesson.solution() == "after"
    assert torch.equal(pictures(shown, model)[0], pictures(lesson.varied((0, 5, 1)), model)[0])
    for other in (lesson, lesson.varied((0, 6, 1)), CopyLesson(number=1).varied((0, 5, 1))):
        assert not torch.equal(pictures(shown, model)[0], pictures(other, model)[0])


def test_only_the_right_word_alone_is_paid():
    lesson = CopyLesson(number=0)
    paid = {said: lesson.reward(said)["exact"] for said in ("before", " Before.", "after", "before after", "")}
    assert paid == {"before": 1, " Before.": 1, "after": 0, "before after": 0, "": 0}
    assert {lesson.guess(np.random.default_rng(seed)) for seed in range(20)} == {"before", "after"}
