"""Preprocessing against PIL and Hugging Face's own SigLIP processor; prompts, stamps and round trips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import tiny
from longtake.models import VideoLLMProcessor
from longtake.models.preprocess import normalised_pixels, resize
from longtake.models.processor import stamp_text
from longtake.types import Frames, LongtakeError

PAD = tiny.ID["<|vision_pad|>"]


def pictures(height: int, width: int) -> np.ndarray:
    """Noise, waves and a hard edge: uint8 (3, height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    waves = ((np.sin(x / 9) + np.cos(y / 7) + 2) * 63)[..., None].repeat(3, 2).astype(np.uint8)
    edge = np.where((x > y)[..., None], [250, 5, 90], [0, 255, 30]).astype(np.uint8)
    return np.stack([noise, waves, edge])


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((360, 640), (128, 128)),
        ((200, 90), (128, 128)),
        ((97, 213), (384, 384)),
        ((31, 17), (24, 24)),
        ((128, 300), (128, 128)),
        ((128, 128), (128, 128)),
    ],
    ids=str,
)
def test_pixels_are_those_of_the_pil_processor(shape: tuple[int, int], size: tuple[int, int]) -> None:
    images = pictures(*shape)
    processor = SiglipImageProcessorPil(size={"height": size[0], "width": size[1]})
    expected = processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
    actual = normalised_pixels(torch.from_numpy(images).permute(0, 3, 1, 2), size)
    steps = (actual - expected).abs() * 127.5  # of 8 bits; PIL and PyTorch each round twice
    assert steps.max() < 2.01
    assert (steps > 0.01).float().mean() < 0.02


def test_resize_without_the_8_bit_kernel_is_the_same() -> None:
    pixels = torch.from_numpy(pictures(90, 160)).permute(0, 3, 1, 2)
    passes = torch.nn.functional.interpolate(pixels.float(), size=(90, 64), mode="bicubic", antialias=True)
    passes = passes.round().clamp(0, 255)
    passes = torch.nn.functional.interpolate(passes, size=(64, 64), mode="bicubic", antialias=True)
    assert (resize(pixels, (64, 64)).float() - passes.round().clamp(0, 255)).abs().max() <= 2


def test_pixels_must_be_frames() -> None:
    with pytest.raises(ValueError, match="uint8"):
        normalised_pixels(torch.zeros(1, 3, 8, 8), (4, 4))
    with pytest.raises(ValueError, match="uint8"):
        normalised_pixels(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), (4, 4))


@pytest.mark.parametrize(
    ("seconds", "compact", "legacy"),
    [
        (0.0, "0:", "Time 0000.0s:"),
        (12.0, "12:", "Time 0012.0s:"),
        (12.04, "12:", "Time 0012.0s:"),
        (11.96, "12:", "Time 0012.0s:"),
        (2.5, "3:", "Time 0002.5s:"),
        (3.5, "4:", "Time 0003.5s:"),
        (9_999.96, "10000:", "Time 10000.0s:"),
        (12_345.6, "12346:", "Time 12345.6s:"),
    ],
)
def test_stamps(seconds: float, compact: str, legacy: str) -> None:
    assert stamp_text(seconds, "compact") == compact
    assert stamp_text(seconds, "legacy") == legacy


def processor(**changes: object) -> VideoLLMProcessor:
    """32-pixel frames, 4 tokens a group of 4 frames."""
    settings = {"frame_height": 32, "frame_width": 32, "tokens_per_group": 4} | changes
    return VideoLLMProcessor(tiny.tokenizer(), **settings)


def ask(*parts: dict[str, object]) -> list[dict[str, object]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "Which?"}]}]


def test_a_video_becomes_stamps_and_places() -> None:
    make = processor(stamp_style="legacy")
    clip = tiny.frames(6, 40, 52)
    out = make.apply_chat_template(
        ask({"type": "video", "video": clip}), tokenize=True, return_dict=True, add_generation_prompt=True
    )
    expected = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"Time 0000.0s:{'<|vision_pad|>' * 4}Time 0004.0s:{'<|vision_pad|>' * 4}"
        "\nWhich?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert make.tokenizer.decode(out["input_ids"][0]) == expected
    assert out["frame_counts"].tolist() == [6]
    assert out["attention_mask"].all()
    reference = SiglipImageProcessorPil(size={"height": 32, "width": 32})(
        [Image.fromarray(frame.transpose(1, 2, 0)) for frame in clip.pixels], return_tensors="pt"
    )
    assert (out["pixel_values_videos"] - reference["pixel_values"]).abs().max() < 2.01 / 127.5


def test_a_system_text_and_earlier_turns_are_kept() -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A card."},
        {"role": "user", "content": "Which colour?"},
    ]
    assert processor().apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<|image|>\nWhat?<|im_end|>\n"
        "<|im_start|>assistant\nA card.<|im_end|>\n<|im_start|>user\nWhich colour?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_batch_is_padded_on_the_left_and_mixes_videos_and_images() -> None:
    make = processor()
    clip, later = tiny.frames(5, 32, 32), tiny.frames(4, 64, 32, seed=1)
    picture = Image.fromarray(pictures(40, 40)[0])
    chats = [
        ask({"type": "image", "image": picture}, {"type": "video", "video": clip}),
        ask({"type": "video", "video": later}),
    ]
    out = make.apply_chat_template(chats, tokenize=True, return_dict=True)
    assert out["frame_counts"].tolist() == [1, 5, 4]
    assert out["pixel_values_videos"].shape == (10, 3, 32, 32)
    assert torch.equal(out["pixel_values_videos"][1:6], make.pixel_values(clip))
    assert (out["input_ids"] == PAD).sum(1).tolist() == [3 * 4, 1 * 4]
    assert out["attention_mask"][0].all()
    alone = make.apply_chat_template(chats[1], tokenize=True, return_dict=True)["input_ids"][0]
    padding = out["input_ids"].shape[1] - len(alone)
    assert padding > 0
    assert out["attention_mask"][1].tolist() == [0] * padding + [1] * len(alone)
    assert torch.equal(out["input_ids"][1, padding:], alone)


def test_saved_and_found_again_by_the_auto_classes(tmp_path: Path) -> None:
    tiny.save_video_llm(tmp_path, stamp_style="legacy")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    make = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(make, VideoLLMProcessor)
    assert (make.stamp_style, make.frame_height, make.tokens_per_group) == ("legacy", 32, 4)
    chat = ask({"type": "video", "video": tiny.frames(4, 24, 24)})
    inputs = make.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
    direct = processor(stamp_style="legacy").apply_chat_template(
        chat, tokenize=True, return_dict=True, add_generation_prompt=True
    )
    assert {name: value.tolist() for name, value in inputs.items()} == {n: v.tolist() for n, v in direct.items()}
    made = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert inputs["input_ids"].shape[1] < made.shape[1] <= inputs["input_ids"].shape[1] + 3


def test_an_array_is_an_image_too() -> None:
    make = processor()
    picture = pictures(20, 30)[0]
    ours = make("<|image|>?", images=picture)["pixel_values_videos"]
    assert torch.equal(ours, make("<|image|>?", images=Image.fromarray(picture))["pixel_values_videos"])
    with pytest.raises(LongtakeError, match=r"an image has shape \(20, 30\)"):
        make("<|image|>?", images=picture[..., 0])


def test_marks_and_videos_must_agree() -> None:
    make = processor()
    clip = tiny.frames(4, 32, 32)
    with pytest.raises(LongtakeError, match=r"the text has 2 of <\|video\|> but 1 were given"):
        make("<|video|><|video|>?", videos=clip)
    with pytest.raises(LongtakeError, match=r"the text has 0 of <\|image\|> but 1 were given"):
        make("Which?", images=[pictures(8, 8)[0]])
    with pytest.raises(LongtakeError, match="given as str; read it into longtake.Frames"):
        make("<|video|>?", videos=["talk.mp4"])
    with pytest.raises(LongtakeError, match="use 'pt'"):
        make("Which?", return_tensors="np")
    with pytest.raises(LongtakeError, match="no token '<|nothing|>'"):
        processor(video_token="<|nothing|>")


def test_a_view_of_stored_frames_needs_no_copy() -> None:
    stored = pictures(40, 40)
    clip = Frames(pixels=stored.transpose(0, 3, 1, 2), seconds=np.arange(3.0))
    contiguous = Frames(pixels=np.ascontiguousarray(clip.pixels), seconds=clip.seconds)
    assert torch.equal(processor().pixel_values(clip), processor().pixel_values(contiguous))
