"""VideoLLM against its Hugging Face parts put together by hand, and as a Hugging Face model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText

import tiny
from longtake.models import VideoLLM, VideoLLMConfig
from longtake.models.video_llm import average_pool
from longtake.types import LongtakeError

VIDEO = tiny.ID["<|vision_pad|>"]


def model(**changes: object) -> VideoLLM:
    """The tiny model with frozen dice; 4 visual tokens a group unless changed."""
    return tiny.video_llm(scorer=None, **changes)


def pixels(frames: int, seed: int = 0, side: int = 32) -> Tensor:
    return torch.randn(frames, 3, side, side, generator=torch.Generator().manual_seed(seed))


def prompt(*groups: int) -> Tensor:
    """One row: some text, then for each video its stamps and places, then a question."""
    row = [40, 41, 42]
    for count in groups:
        row += [16, *[VIDEO] * 4] * count
    return torch.tensor([[*row, 50, 51]])


def by_hand(vlm: VideoLLM, ids: Tensor, video: Tensor, frames_of_a_group: list[list[int]]) -> Tensor:
    """Logits from the parts, with PyTorch's own pooling and convolution-style layouts."""
    config = vlm.config
    states = vlm.vision_tower(video, output_hidden_states=True)
    seen = states.last_hidden_state if config.vision_norm else states.hidden_states[-1]
    side = config.vision_config.image_size // config.vision_config.patch_size
    maps = seen.transpose(1, 2).reshape(len(video), -1, side, side)
    if config.dts_grid is not None:
        maps = F.interpolate(maps, size=(config.dts_grid, config.dts_grid), mode="bilinear")
    groups = torch.stack([maps[index] for index in frames_of_a_group])
    tokens = vlm.dts(groups.permute(0, 1, 3, 4, 2)).permute(0, 3, 1, 2)
    first, _, second = vlm.projector
    if config.pool_after_projector:
        projected = second(F.gelu(first(tokens.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        visual = F.avg_pool2d(projected, config.pool).flatten(2).transpose(1, 2)
    else:
        pooled = F.avg_pool2d(tokens, config.pool).flatten(2).transpose(1, 2)
        visual = second(F.gelu(first(pooled)))
    embeddings = vlm.language_model.model.embed_tokens(ids).clone()
    embeddings[ids == VIDEO] = visual.flatten(0, 1)
    return vlm.language_model(inputs_embeds=embeddings).logits


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pool_after_projector": True},
        {"vision_norm": True},
        {"dts_layout": "legacy"},
        {"dts_grid": 6, "pool": 3, "pool_after_projector": True},
    ],
    ids=str,
)
@torch.no_grad()
def test_the_whole_is_its_parts(changes: dict[str, object]) -> None:
    vlm = model(**changes)
    video = pixels(6)  # an incomplete second group: its last frame is repeated
    expected = by_hand(vlm, prompt(2), video, [[0, 1, 2, 3], [4, 5, 5, 5]])
    actual = vlm(input_ids=prompt(2), pixel_values_videos=video).logits
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_pool_order_matters() -> None:
    before, after = model(), model(pool_after_projector=True)
    assert (before.video_tokens(pixels(4)) - after.video_tokens(pixels(4))).abs().max() > 0.01


@torch.no_grad()
def test_an_image_is_its_frame_four_times() -> None:
    vlm = model()
    image = pixels(1)
    torch.testing.assert_close(vlm.video_tokens(image), vlm.video_tokens(image.expand(4, -1, -1, -1)))
    assert vlm.video_tokens(image).shape == (4, 32)


def test_384_pixels_cost_144_tokens_for_four_frames() -> None:
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    tower |= {"image_size": 384, "patch_size": 14, "vision_use_head": False}
    vlm = model(vision_config=tower, dts_grid=24, pool_after_projector=True)
    assert vlm.config.tokens_per_group == 144
    with torch.no_grad():
        assert vlm.encode_frames(pixels(4, side=384)).shape == (4, 27, 27, 32)
        assert vlm.video_tokens(pixels(5, side=384)).shape == (2 * 144, 32)


@torch.no_grad()
def test_long_videos_pass_in_pieces_with_the_same_result() -> None:
    vlm = model().double()  # the test's large random weights make rounding grow a thousandfold
    video = pixels(131).double()
    with torch.enable_grad():  # in one pass
        whole = vlm.video_tokens(video).detach()
    torch.testing.assert_close(vlm.video_tokens(video), whole, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_several_videos_fill_their_own_places() -> None:
    vlm = model()
    long, short, image = pixels(7, seed=1), pixels(3, seed=2), pixels(1, seed=3)
    ids = torch.cat([prompt(2, 1), prompt(1, 2)])
    joined = vlm.embed(ids, torch.cat([long, short, image, long]), [7, 3, 1, 7])
    listed = vlm.embed(ids, [long, short, image, long])
    assert torch.equal(joined, listed)
    expected = torch.cat([vlm.video_tokens(video) for video in (long, short, image, long)])
    torch.testing.assert_close(joined[ids == VIDEO], expected)


@torch.no_grad()
def test_generate_is_greedy_on_full_forwards() -> None:
    vlm = model()
    video, ids = pixels(8), prompt(2)
    made = vlm.generate(
        input_ids=ids, pixel_values_videos=video, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=256
    )
    for _ in range(6):
        best = vlm(input_ids=ids, pixel_values_videos=video, use_cache=False).logits[:, -1].argmax(-1)
        ids = torch.cat([ids, best[:, None]], dim=1)
    assert made.tolist() == ids.tolist()


@torch.no_grad()
def test_generate_in_a_padded_batch_and_with_beams() -> None:
    vlm = model()
    one, two, three = pixels(8, seed=1), pixels(1, seed=2), pixels(3, seed=3)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 256}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    first = {"input_ids": prompt(2, 1), "pixel_values_videos": [one, two]}
    second = {"input_ids": prompt(1), "pixel_values_videos": three}
    padding = prompt(2, 1).shape[1] - prompt(1).shape[1]
    ids = torch.cat([prompt(2, 1), F.pad(prompt(1), (padding, 0), value=256)])
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "pixel_values_videos": torch.cat([one, two, three])}
    batch["frame_counts"] = torch.tensor([8, 1, 3])
    alone = [vlm.generate(**row, **options) for row in (first, second)]
    together = vlm.generate(**batch, **options)
    assert together.sequences[:, -5:].tolist() == [out.sequences[0, -5:].tolist() for out in alone]
    beams = vlm.generate(**batch, **options, num_beams=3)
    expected = torch.cat([out.logits[0] for out in alone]).repeat_interleave(3, dim=0)
    torch.testing.assert_close(beams.logits[0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_save_and_load_keep_every_number(tmp_path: Path, tied: bool) -> None:
    text = tiny.video_llm().config.text_config.to_dict() | {"tie_word_embeddings": tied}
    vlm = tiny.video_llm(text_config=text, evidence_layers=[1, 2], dts_layout="legacy")
    vlm.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert isinstance(again, VideoLLM)
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == tied
    saved, loaded = vlm.state_dict(), again.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    for field in VideoLLMConfig.__annotations__.keys() - {"vision_config", "text_config", "sub_configs_defaults"}:
        assert getattr(again.config, field) == getattr(vlm.config, field), field
    inputs = {"input_ids": prompt(1), "pixel_values_videos": pixels(4)}
    assert torch.equal(vlm(**inputs).logits, again(**inputs).logits)


def test_gradient_reaches_every_part() -> None:
    vlm = model(vision_norm=True)
    ids = prompt(2)
    labels = ids.masked_fill(ids == VIDEO, -100)
    out = vlm(input_ids=ids, pixel_values_videos=pixels(8), labels=labels)
    expected = F.cross_entropy(out.logits[0, :-1].float(), labels[0, 1:], ignore_index=-100)
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    idle = [name for name, p in vlm.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert idle == []


def test_a_fresh_model_starts_the_dts_as_it_says() -> None:
    dts = VideoLLM(model().config).dts
    for stage in dts.stages:
        for linear in (stage.temporal.qkv, stage.temporal.proj_out):
            assert linear.weight.abs().max() == 0
        bound = 1 / (32 * 27) ** 0.5  # PyTorch's start of a convolution: uniform, by its fan-in
        assert bound * 0.99 < stage.conv.weight.abs().max() <= bound
    assert 0.01 < dts.temporal_encoding.std() < 0.03


@torch.no_grad()
def test_average_pool_is_pytorch_s() -> None:
    x = torch.randn(2, 6, 9, 5)
    expected = nn.functional.avg_pool2d(x.permute(0, 3, 1, 2), 3).permute(0, 2, 3, 1)
    torch.testing.assert_close(average_pool(x, 3), expected)
    assert torch.equal(average_pool(x, 1), x)


@torch.no_grad()
def test_places_and_frames_must_agree() -> None:
    vlm = model()
    with pytest.raises(LongtakeError, match="8 places for visual tokens but the frames give 4"):
        vlm(input_ids=prompt(2), pixel_values_videos=pixels(4))
    with pytest.raises(LongtakeError, match="no frames were given"):
        vlm(input_ids=prompt(2))
    with pytest.raises(LongtakeError, match="frame_counts sum to 5 but 4 frames"):
        vlm(input_ids=prompt(1), pixel_values_videos=pixels(4), frame_counts=[5])
    with pytest.raises(ValueError, match="exactly one"):
        vlm(pixel_values_videos=pixels(4))


def test_impossible_configs_are_refused() -> None:
    with pytest.raises(LongtakeError, match="27x27 and pool is 2"):
        VideoLLMConfig(vision_config={"image_size": 384, "patch_size": 14})
    with pytest.raises(LongtakeError, match="dts_layout is 'interleaved'"):
        VideoLLMConfig(dts_layout="interleaved")
    with pytest.raises(LongtakeError, match="scorer is 'both'"):
        VideoLLMConfig(scorer="both")
