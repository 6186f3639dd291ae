"""Training a tower to tell frames apart: the loss by hand, what is drawn, and a tiny run that resumes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

import tiny
import world
from longtake import LongtakeError
from longtake.backbones.tower import Tower, lower_part
from longtake.data.probe_world.haystack import Clip
from longtake.data.puzzles.footage import on_places, placed
from longtake.models.preprocess import normalised_pixels
from longtake.train import checkpoint
from longtake.train.embedded.eyes import EyesRecipe, draw_batch, draw_stretch, found_share, neighbour_loss, train_eyes

VISION = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 32, "patch_size": 8, "vision_use_head": False}  # fmt: skip


def recipe(**changes) -> EyesRecipe:
    settings = {"steps": 4, "stretches": 2, "frames": 10, "every": 2, "warmup": 2, "head": 1}
    return EyesRecipe(**(settings | changes))


def tower(seed: int = 0) -> SiglipVisionModel:
    torch.manual_seed(seed)
    return SiglipVisionModel(SiglipVisionConfig(**VISION))


def counting_clip(count: int, name: str = "count") -> Clip:
    """Frame k is plain k."""
    levels = np.arange(count, dtype=np.uint8)
    return Clip(name=name, pixels=np.broadcast_to(levels[:, None, None, None], (count, 48, 64, 3)), fps=3.0)


def test_the_loss_by_hand():
    """Three frames of one stretch at 0, 60 and 90 degrees, and two of another that must not matter to them."""
    angles = torch.deg2rad(torch.tensor([0.0, 60, 90, 0, 30]))
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[1.0], [3], [2], [5], [1]])
    stretch, place = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 0, 1])
    half, none, high = (math.exp(math.cos(math.radians(angle)) / 0.5) for angle in (60, 90, 30))
    first, last = -math.log(half / (half + none)), -math.log(high / (high + none))
    found = neighbour_loss(vectors, stretch, place, temperature=0.5)
    assert float(found) == pytest.approx((first + 0 + last + 0 + 0) / 5, abs=1e-6)


def test_the_loss_pulls_neighbours_and_pushes_others():
    vectors = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    stretch, place = torch.zeros(8, dtype=torch.int64), torch.arange(8)
    before = neighbour_loss(vectors, stretch, place, 0.1)
    before.backward()
    with torch.no_grad():
        after = neighbour_loss(vectors - 0.05 * vectors.grad, stretch, place, 0.1)
    assert after < before


def test_a_stretch_is_in_the_order_of_time_at_one_stride():
    """Frames are plain, so the crop changes nothing; a tint scales all alike."""
    rng = np.random.default_rng(0)
    strides = set()
    for _ in range(20):
        frames = draw_stretch(recipe(strides=(1, 2, 3)), [counting_clip(100)], 32, rng)
        assert frames.shape == (10, 3, 32, 32)
        levels = frames[:, :, 16, 16].float()
        assert (frames == frames[:, :, :1, :1]).all()
        apart = (levels[1:] - levels[:-1]).mean(dim=0)
        strides.add(int(torch.round(apart.mean())))
        assert (levels.diff(dim=0) >= 0).all()
    assert strides == {1, 2, 3}


def test_short_clips_give_what_they_have():
    rng = np.random.default_rng(0)
    assert len(draw_stretch(recipe(strides=(3,)), [counting_clip(9)], 32, rng)) == 9
    assert len(draw_stretch(recipe(strides=(3,)), [counting_clip(16)], 32, rng)) == 8


def test_frames_of_a_stretch_share_crop_flip_and_tint():
    """A ramp that stands still is drawn the same in every frame, and not always the same way."""
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None] * 3, (12, 48, 64, 3))
    clip = Clip(name="ramp", pixels=ramp, fps=3.0)
    rng = np.random.default_rng(1)
    drawn = [draw_stretch(recipe(), [clip], 32, rng) for _ in range(8)]
    assert all((frames == frames[:1]).all() for frames in drawn)
    assert len({frames[0].numpy().tobytes() for frames in drawn}) == 8
    rising = [int(frames[0, 0, 16, 31]) > int(frames[0, 0, 16, 0]) for frames in drawn]
    assert 0 < sum(rising) < 8


def test_a_batch_depends_on_seed_and_step_alone():
    clips = world.clips(70, 2, 12.0)
    pixels, stretch, place = draw_batch(recipe(), clips, 32, 3)
    assert stretch.tolist() == [0] * 10 + [1] * 10
    assert place.tolist() == [*range(10)] * 2
    assert torch.equal(draw_batch(recipe(), clips, 32, 3)[0], pixels)
    assert not torch.equal(draw_batch(recipe(), clips, 32, 4)[0], pixels)
    assert not torch.equal(draw_batch(recipe(seed=1), clips, 32, 3)[0], pixels)


def test_a_tower_by_itself_sees_what_the_model_does(tmp_path):
    """Its features are those that a model with this tower gives to the synthesis."""
    model = tiny.video_llm(seed=2)
    model.vision_tower.save_pretrained(tmp_path)
    frames = tiny.frames(3, 40, 60)
    own = Tower.load(tmp_path, "cpu")
    with torch.no_grad():
        wanted = model.encode_frames(normalised_pixels(torch.from_numpy(frames.pixels), (32, 32)))
        normed = model.vision_tower.post_layernorm(wanted)
    assert torch.equal(own.features(frames), wanted if model.config.vision_norm else normed)
    assert own.name.startswith("siglip_vision_model-")
    assert np.array_equal(placed(own.features, frames), on_places(own.features(frames)).numpy())
    assert own.side == 32


def test_a_tower_with_places_gives_their_means_as_one_vector(tmp_path):
    """Four by four patches in two by two places, each the mean of four, by hand; the places are saved with it."""
    own = tower()
    plain = Tower(model=own)
    frames = tiny.frames(3, 40, 60)
    grid = plain.features(frames)
    own.config.places = 2
    own.save_pretrained(tmp_path)
    placed_tower = Tower.load(tmp_path, "cpu")
    assert (plain.name != placed_tower.name, placed_tower.places) == (True, 2)
    found = placed_tower.features(frames)
    assert found.shape == (3, 1, 1, 4 * 64)
    means = [grid[:, down : down + 2, across : across + 2].mean(dim=(1, 2)) for down in (0, 2) for across in (0, 2)]
    wanted = torch.stack(means, dim=2).flatten(1)
    torch.testing.assert_close(found[:, 0, 0], wanted)
    assert np.array_equal(placed(placed_tower.features, frames), found[:, 0, 0].numpy())


def test_the_lower_part_is_what_stands_below_and_a_plain_norm():
    whole = tower().eval()
    with torch.no_grad():
        whole.post_layernorm.weight.fill_(3.0)
        pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        states = whole(pixels, output_hidden_states=True).hidden_states
        found = lower_part(whole, 1)(pixels).last_hidden_state
    torch.testing.assert_close(found, torch.nn.functional.layer_norm(states[1], (64,), eps=1e-6))
    assert (whole.config.num_hidden_layers, lower_part(whole, 2)) == (2, whole)
    with pytest.raises(LongtakeError, match="layers is 0; it must be from 1 to 2"):
        lower_part(whole, 0)


def test_a_head_that_leaves_nothing_is_refused_before_training(tmp_path):
    with pytest.raises(LongtakeError, match="layers is 0; it must be from 1 to 2"):
        train_eyes(recipe(head=2), tower(), world.clips(70, 1, 8.0), [], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_broken_tower_is_one_line(tmp_path):
    tiny.video_llm().vision_tower.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(LongtakeError, match="the tower cannot be loaded"):
        Tower.load(tmp_path, "cpu")


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_stopped_run_goes_on_to_the_same_tower(tmp_path):
    clips, held = world.clips(70, 2, 8.0), world.clips(90, 1, 10.0)
    whole, again = tower(), tower(seed=1)  # where it goes on it does not matter what it is given
    train_eyes(recipe(), whole, clips, held, tmp_path / "whole")
    train_eyes(recipe(), tower(), clips, held, tmp_path / "parts")
    (tmp_path / "parts" / "checkpoint-00000004.pt").unlink()  # as if killed after the second step
    (tmp_path / "parts" / "model.safetensors").unlink()
    train_eyes(recipe(), again, clips, held, tmp_path / "parts")
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    rows = rows_of(tmp_path / "whole")
    assert [row["step"] for row in rows] == [2, 4]
    assert all(0 <= row["held_out"] <= 1 and row["loss"] > 0 for row in rows)
    saved = SiglipVisionModel.from_pretrained(tmp_path / "whole")
    assert saved.config.places == recipe().places == 4
    assert saved.config.num_hidden_layers == 1
    for name, weight in saved.encoder.layers[0].named_parameters():
        assert torch.equal(weight, whole.encoder.layers[0].get_parameter(name)), name
    assert checkpoint.last_step(tmp_path / "parts") == 4


def test_clips_too_short_to_learn_from_are_said(tmp_path):
    with pytest.raises(LongtakeError, match="no clip has 8 stored frames"):
        train_eyes(recipe(), tower(), [counting_clip(5)], [], tmp_path)


def flickering(clip: Clip, seed: int) -> Clip:
    """With another light in every frame, which is what a random tower sees first."""
    light = np.random.default_rng(seed).uniform(0.4, 1.0, (len(clip.pixels), 1, 1, 1))
    return Clip(name=clip.name, pixels=(clip.pixels * light).astype(np.uint8), fps=clip.fps)


@pytest.mark.slow
def test_training_tells_frames_apart_better_than_a_random_tower(tmp_path):
    """On the clips it learns from."""
    clips = [flickering(clip, seed) for seed, clip in enumerate(world.clips(70, 3, 20.0))]
    learns = tower()
    before = found_share(learns.eval(), clips)
    train_eyes(recipe(steps=60, stretches=3, frames=16, every=60, warmup=5), learns, clips, clips, tmp_path)
    assert found_share(learns, clips) > before + 0.15
