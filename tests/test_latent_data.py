"""Conversations to questions to think about, and the stage on them with a denser teacher."""

import dataclasses
import json

import pytest
import torch

from grpo_runs import own
from longtake.data.conversations.conversations import Conversation, Media, Turn, read_conversations
from longtake.data.conversations.media import MediaReader, VariableSampling
from longtake.data.left_out import Broken
from longtake.recipes import settings, stages
from longtake.recipes.debug import debug
from longtake.recipes.latent import latent
from longtake.recipes.recipe import DataFiles
from longtake.train.latent_data import questions_of
from longtake.types import LongtakeError
from stage_runs import READING, logged, write_set


def none_broken() -> Broken:
    return Broken(count=1, share=0.0)


def test_every_question_has_its_answer_and_the_videos_tokens(tmp_path):
    backbone = own()
    conversations = read_conversations(write_set(tmp_path, rows=4), tmp_path)
    reader = MediaReader(READING.sampling, seed=0, frame_size=backbone.frame_size)
    found = questions_of(conversations, reader, backbone, none_broken())
    assert [(puzzle.name, puzzle.answers) for puzzle in found] == [
        ("row0/1", ("red",)), ("row1/1", ("green",)), ("row2/1", ("blue",)), ("row3/1", ("nothing 3",))
    ]  # fmt: skip
    assert [None if puzzle.tokens is None else puzzle.tokens.grid[0] for puzzle in found] == [1, 1, 1, None]
    (frames,) = reader.read(conversations[2], 0)
    with torch.no_grad():
        assert torch.equal(found[2].tokens.features, backbone.encode(frames).features)
    assert not found[0].tokens.features.requires_grad


def test_turns_share_a_video_and_are_learned_one_by_one(tmp_path):
    backbone = own()
    (first, *_) = read_conversations(write_set(tmp_path, rows=1), tmp_path)
    more = (Turn(role="user", parts=("And?",)), Turn(role="assistant", parts=("No.",)))
    both = dataclasses.replace(first, turns=(*first.turns, *more))
    reader = MediaReader(READING.sampling, seed=0, frame_size=backbone.frame_size)
    one, two = questions_of([both], reader, backbone, none_broken())
    assert (two.name, two.question, two.answers) == ("row0/2", "And?", ("No.",))
    assert two.tokens is one.tokens


def test_several_media_and_system_turns_are_refused(tmp_path):
    media = tuple(Media(kind="image", path=tmp_path / name) for name in "ab")
    answer = Turn(role="assistant", parts=("red",))
    several = Conversation(name="two", turns=(Turn(role="user", parts=(*media, "Which?")), answer))
    system = Conversation(name="told", turns=(Turn(role="system", parts=("Be short.",)), *several.turns))
    reader = MediaReader(READING.sampling, seed=0)
    with pytest.raises(LongtakeError, match="two: has 2 media"):
        questions_of([several], reader, own(), none_broken())
    with pytest.raises(LongtakeError, match="told: .* a turn of the system"):
        questions_of([system], reader, own(), none_broken())


def test_denser_sampling():
    sampling = VariableSampling(short_seconds=10, short_fps=(1.0, 2.0), long_fps=0.5, max_frames=8)
    assert sampling.denser(2) == VariableSampling(
        short_seconds=10, short_fps=(2.0, 4.0), long_fps=1.0, max_frames=16
    )
    assert sampling.denser(1) == sampling


def test_settings_of_latents_by_name():
    recipe = latent()
    for assignment in ("settings.thinking.mode=autoregressive", "teacher=video", "settings.heads=2"):
        recipe = settings.changed(recipe, f"latent.{assignment}")
    assert recipe.latent.settings.thinking.mode == "autoregressive"
    assert (recipe.latent.teacher, recipe.latent.settings.heads) == ("video", 2)
    with pytest.raises(LongtakeError, match="must be one of self, video, dense"):
        settings.changed(recipe, "latent.teacher=other")


@pytest.mark.slow
def test_the_stage_with_a_denser_teacher_and_without_latents(tmp_path):
    file = write_set(tmp_path / "set")
    data = DataFiles(files=((file, 1.0),), media=file.parent, held=file)
    for name, change in {"dense": "latent.teacher=dense", "none": "latent.thinks=false"}.items():
        recipe = debug()
        for assignment in ("latent.fit.steps=2", "latent.fit.batch=4", "latent.bottleneck=0", change):
            recipe = settings.changed(recipe, assignment)
        stages.run(recipe, ["latent"], data, tmp_path / name)
    assert all(value > 0 for value in logged(tmp_path / "dense/latent", "align").values())
    assert not logged(tmp_path / "none/latent", "align")
    assert "latent" not in (tmp_path / "none/latent/model/config.json").read_text().replace('"latent": null', "")
    assert json.loads((tmp_path / "dense/latent/model/config.json").read_text())["latent"]["heads"] == 2
