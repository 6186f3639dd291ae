"""Our path through Qwen2.5-VL against transformers' own: pixels, features, positions and generated tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

import tiny
from longtake.backbones.base import Part, Prompt
from longtake.backbones.qwen_pixels import patches, smart_size
from longtake.backbones.qwen_vl import QwenVL, seconds_per_group
from longtake.types import Frames, LongtakeError

QUESTION = "What is on the red card?"
SIDE = 8  # pixels of a token in the tiny model


@pytest.fixture(scope="module")
def backbone() -> QwenVL:
    return QwenVL(tiny.qwen_vl(), tiny.tokenizer(), min_tokens=4, max_tokens=24)


def stock_inputs(frames: Frames, question: str, seconds_per_grid: float) -> dict[str, torch.Tensor]:
    """What transformers' processor would hand the stock model, made with PIL and numpy only, one frame at a time."""
    bounds = {"shortest_edge": 4 * SIDE**2, "longest_edge": 24 * SIDE**2}
    processor = Qwen2VLImageProcessorPil(patch_size=4, size=bounds)
    images = [Image.fromarray(frame.transpose(1, 2, 0)) for frame in frames.pixels]
    images += images[-1:] * (len(images) % 2)
    halves, grids = [], []
    for image in images:
        one = processor(images=[image], return_tensors="np")
        halves.append(one["pixel_values"].reshape(-1, 3, 2, 4 * 4)[:, :, 0])  # the processor repeats an image in time
        grids.append(one["image_grid_thw"][0])
    groups = [np.stack(halves[i : i + 2], axis=2) for i in range(0, len(halves), 2)]
    grid = [len(groups), int(grids[0][1]), int(grids[0][2])]
    places = grid[0] * grid[1] * grid[2] // 4
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|video_pad|>" * places
        + f"<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tiny.tokenizer()(text, return_tensors="pt")["input_ids"]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == tiny.ID["<|video_pad|>"]).long() * 2,
        "pixel_values_videos": torch.tensor(np.concatenate(groups).reshape(places * 4, -1)),
        "video_grid_thw": torch.tensor([grid]),
        "second_per_grid_ts": torch.tensor([seconds_per_grid]),
    }


@pytest.mark.parametrize("size", [(24, 40), (27, 43), (8, 100), (5, 7), (64, 48), (480, 270)])
def test_smart_size_is_transformers_rule(size: tuple[int, int]) -> None:
    expected = smart_resize(*size, factor=8, min_pixels=4 * 64, max_pixels=24 * 64)
    assert smart_size(*size, side=8, min_tokens=4, max_tokens=24) == expected


def test_smart_size_refuses_a_sliver() -> None:
    with pytest.raises(LongtakeError, match="2x1000; one side may be 200 times"):
        smart_size(1000, 2, side=28, min_tokens=4, max_tokens=100)


def test_patches_equal_the_image_processor() -> None:
    frames = tiny.frames(5, 61, 83)  # an odd count, and a size that must be shrunk
    expected = stock_inputs(frames, QUESTION, 2.0)
    size = smart_size(61, 83, side=8, min_tokens=4, max_tokens=24)
    ours = patches(torch.tensor(frames.pixels), size, frames=2, patch=4, merge=2)
    assert ours.shape == expected["pixel_values_videos"].shape
    apart = (ours - expected["pixel_values_videos"]).abs()
    # PIL and PyTorch round their two 8-bit passes apart: by 2 steps (in units of the deviation) at most, and rarely
    assert apart.max() < 2.01 / 255 / 0.2613
    assert (apart > 1e-5).float().mean() < 0.05


def test_encode_equals_stock_features_and_knows_places_and_times(backbone: QwenVL) -> None:
    frames = tiny.frames(5, 24, 40, every_seconds=0.5)
    stock = stock_inputs(frames, QUESTION, 1.0)
    tokens = backbone.encode(frames)
    expected = tiny.qwen_vl().model.get_video_features(stock["pixel_values_videos"], stock["video_grid_thw"])
    torch.testing.assert_close(tokens.features, expected.pooler_output[0])
    assert tokens.grid == (3, 3, 5)
    assert tokens.position[[0, 1, 5, 15, 44]].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [2, 2, 4]]
    assert tokens.seconds[[0, 14, 15, 44]].tolist() == [0.0, 0.0, 1.0, 2.0]
    assert tokens.weight.tolist() == [8.0] * 45  # 2 frames x 2 x 2 patches


def test_encoding_in_chunks_of_groups_changes_nothing(backbone: QwenVL) -> None:
    frames = tiny.frames(6, 24, 40)
    parts = [Frames(pixels=frames.pixels[s], seconds=frames.seconds[s]) for s in (slice(0, 4), slice(4, 6))]
    joined = torch.cat([backbone.encode(part).features for part in parts])
    torch.testing.assert_close(backbone.encode(frames).features, joined)


@pytest.mark.parametrize("every_seconds", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("count", [5, 8])
def test_generation_equals_stock_token_for_token(backbone: QwenVL, count: int, every_seconds: float) -> None:
    frames = tiny.frames(count, 24, 40, every_seconds=every_seconds, seed=count)
    stock = stock_inputs(frames, QUESTION, 2 * every_seconds)
    run = tiny.qwen_vl().generate(**stock, do_sample=False, max_new_tokens=32)
    expected = run[0, stock["input_ids"].shape[1] :].tolist()
    inputs = backbone.prepare([Prompt(question=QUESTION, tokens=backbone.encode(frames))])
    assert inputs.ids.tolist() == stock["input_ids"].tolist()
    (ours,) = backbone.generate(inputs, max_new_tokens=32)
    assert list(ours.ids) == expected
    assert len(set(expected)) > 8  # a model that repeats itself would not notice wrong positions


@pytest.mark.parametrize("every_seconds", [0.5, 1.0])
def test_videos_and_pictures_in_one_prompt_equal_stock(backbone: QwenVL, every_seconds: float) -> None:
    """Two videos with a picture between them and one behind them, against transformers on the same pixels."""
    videos = [tiny.frames(count, 24, 40, every_seconds=every_seconds, seed=count) for count in (6, 4)]
    pictures = [tiny.frames(1, 24, 40, seed=seed) for seed in (7, 8)]
    stock = [stock_inputs(video, QUESTION, 2 * every_seconds) for video in videos]
    flat = [patches(torch.tensor(p.pixels), (24, 40), frames=2, patch=4, merge=2) for p in pictures]
    parts = (
        Part(tokens=backbone.encode(videos[0])),
        Part(text="a gap", tokens=backbone.encode(pictures[0]), timed=False),
        Part(tokens=backbone.encode(videos[1])),
        Part(text="1: ", tokens=backbone.encode(pictures[1]), timed=False),
    )
    inputs = backbone.prepare([Prompt(question=QUESTION, parts=parts)])
    types = torch.zeros_like(inputs.ids)
    types[inputs.ids == tiny.ID["<|image_pad|>"]] = 1
    types[inputs.ids == tiny.ID["<|video_pad|>"]] = 2
    run = tiny.qwen_vl().generate(
        input_ids=inputs.ids,
        attention_mask=torch.ones_like(inputs.ids),
        mm_token_type_ids=types,
        pixel_values=torch.cat(flat),
        image_grid_thw=torch.tensor([[1, 6, 10]] * 2),
        pixel_values_videos=torch.cat([each["pixel_values_videos"] for each in stock]),
        video_grid_thw=torch.cat([each["video_grid_thw"] for each in stock]),
        second_per_grid_ts=torch.cat([torch.as_tensor(each["second_per_grid_ts"]) for each in stock]),
        do_sample=False,
        max_new_tokens=24,
    )
    (ours,) = backbone.generate(inputs, max_new_tokens=24)
    assert list(ours.ids) == run[0, inputs.ids.shape[1] :].tolist()
    assert len(set(ours.ids)) > 6
    assert (types == 1).sum() == 30  # two pictures of 3 x 5 places


def test_a_blind_prompt_equals_stock_text(backbone: QwenVL) -> None:
    inputs = backbone.prepare([Prompt(question=QUESTION)])
    run = tiny.qwen_vl().generate(
        input_ids=inputs.ids, attention_mask=torch.ones_like(inputs.ids), do_sample=False, max_new_tokens=24
    )
    (ours,) = backbone.generate(inputs, max_new_tokens=24)
    assert list(ours.ids) == run[0, inputs.ids.shape[1] :].tolist()
    assert bool((inputs.source == -1).all())


@pytest.mark.parametrize("every_seconds", [0.3, 1.0])
def test_dropped_tokens_leave_the_stock_positions_of_the_others(backbone: QwenVL, every_seconds: float) -> None:
    frames = tiny.frames(8, 24, 40, every_seconds=every_seconds)
    stock = stock_inputs(frames, QUESTION, 2 * every_seconds)
    wanted = {k: stock[k] for k in ("input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts")}
    positions, _ = tiny.qwen_vl().model.get_rope_index(**wanted)
    tokens = backbone.encode(frames)
    kept = torch.tensor([0, 7, 16, 31, 33, 58])  # no token of the last group's first row, one of the first group's
    inputs = backbone.prepare([Prompt(question=QUESTION, tokens=tokens[kept])])

    visual = torch.nonzero(stock["input_ids"][0] == tiny.ID["<|video_pad|>"])[:, 0]
    stays = torch.ones(positions.shape[2], dtype=torch.bool)
    stays[visual] = False
    stays[visual[kept]] = True
    assert inputs.positions.tolist() == positions[:, :, stays].tolist()
    assert inputs.ids.tolist() == stock["input_ids"][:, stays].tolist()
    assert inputs.next_position.tolist() == (positions[0, :, -1] + 1).tolist()
    assert inputs.source[inputs.source >= 0].tolist() == list(range(6))


def test_a_far_time_is_told_from_a_near_one(backbone: QwenVL) -> None:
    tokens = backbone.encode(tiny.frames(8, 24, 40, every_seconds=3.0))
    assert seconds_per_group(tokens) == 6.0
    assert seconds_per_group(tokens[torch.tensor([2, 50])]) == 6.0
    assert seconds_per_group(tokens[torch.tensor([50])]) == 1.0


def test_encode_is_differentiable(backbone: QwenVL) -> None:
    backbone.encode(tiny.frames(2, 24, 40)).features.square().sum().backward()
    gradient = backbone.model.model.visual.patch_embed.proj.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    backbone.model.zero_grad()


def test_a_backbone_without_a_scorer_offers_uniform_selection(backbone: QwenVL) -> None:
    tokens = backbone.encode(tiny.frames(2, 24, 40))
    assert backbone.scorer is None
    with pytest.raises(LongtakeError, match="no trained scorer.*--select uniform"):
        backbone.score(tokens, backbone.encode_query(QUESTION))
