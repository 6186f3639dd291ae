"""Conversion of a published checkpoint: a tiny one with the published names, against the released computation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

import tiny
from longtake.models.convert import convert, renamed_key, so400m
from longtake.types import Frames, LongtakeError

WIDTH, HIDDEN = 32, 16
PLACE = tiny.ID["<|vision_pad|>"]
TOWER = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 60,  # like 384 / 14, not a whole number of patches
    "patch_size": 14,
    "vision_use_head": False,
}
TEXT = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
PUBLISHED = TEXT | {
    "architectures": ["LlavaQwenForCausalLM"],
    "model_type": "llava_qwen",
    "rope_theta": 1000000.0,
    "torch_dtype": "float32",
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "mm_hidden_size": WIDTH,
    "mm_projector_type": "mlp2x_gelu",
    "mm_spatial_pool_mode": "average",
    "mm_spatial_pool_stride": 2,
    "mm_patch_merge_type": "unires",
    "use_cache": True,
}


def published_weights() -> dict[str, Tensor]:
    """Every tensor of a second-generation checkpoint, under its published name and in its published shape."""
    torch.manual_seed(0)
    parts: dict[str, nn.Module] = {
        "model.vision_tower.vision_tower.vision_model.": SiglipVisionModel(SiglipVisionConfig(**TOWER)),
        "": Qwen2ForCausalLM(Qwen2Config(**TEXT)),
        "model.mm_projector.0.": nn.Linear(WIDTH, HIDDEN),
        "model.mm_projector.2.": nn.Linear(HIDDEN, HIDDEN),
        "model.text_mlp.0.": nn.Linear(HIDDEN, HIDDEN),
    }
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        parts[f"model.WindowTimeToTokenAttention.{name}."] = nn.Linear(HIDDEN, HIDDEN)
    for first in (0, 3):
        spatial, temporal, conv = (f"model.sae.encoder.{first + i}." for i in range(3))
        for name in ("q", "k", "v", "proj_out"):
            parts[f"{spatial}{name}."] = nn.Conv3d(WIDTH, WIDTH, 1)
        parts[f"{temporal}qkv."] = nn.Conv1d(WIDTH, 3 * WIDTH, 1)
        parts[f"{temporal}proj_out."] = nn.Conv1d(WIDTH, WIDTH, 1)
        parts[f"{spatial}norm."] = nn.GroupNorm(32, WIDTH)
        parts[f"{temporal}norm."] = nn.GroupNorm(32, WIDTH)
        parts[f"{conv}conv."] = nn.Conv3d(WIDTH, WIDTH, 3)
    weights = {before + name: w for before, part in parts.items() for name, w in part.state_dict().items()}
    weights["model.sae.temporal_encoding"] = torch.empty(4, WIDTH)
    for stage in (1, 4):
        for table in "kv":
            weights[f"model.sae.encoder.{stage}.relative_position_{table}.embeddings_table"] = torch.empty(129, WIDTH)
    del weights["lm_head.weight"]  # tied, so not saved
    position_ids = "model.vision_tower.vision_tower.vision_model.embeddings.position_ids"
    return {k: torch.randn_like(w) * 0.1 for k, w in weights.items()} | {position_ids: torch.arange(16)[None]}


def write(folder: Path, weights: dict[str, Tensor], **config: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(PUBLISHED | config))
    names = sorted(weights)
    save_file({name: weights[name].contiguous() for name in names[::2]}, folder / "model-00001-of-00002.safetensors")
    save_file({name: weights[name].contiguous() for name in names[1::2]}, folder / "model-00002-of-00002.safetensors")
    tiny.tokenizer().save_pretrained(folder)
    return folder


class Released:
    """The released computation on the published names: channels first, convolutions, one dense masked matrix."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.w = weights

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def conv(self, function: Callable[..., Tensor], name: str, x: Tensor, **options: object) -> Tensor:
        return function(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"], **options)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, self.w[f"{name}.weight"], self.w[f"{name}.bias"], eps=1e-6)

    def part(self, module: nn.Module, prefix: str) -> nn.Module:
        own = {k.removeprefix(prefix): v for k, v in self.w.items() if k.startswith(prefix)}
        own.pop("embeddings.position_ids", None)
        module.load_state_dict(own)
        return module.eval()

    def video(self, pixel_values: Tensor) -> Tensor:
        """(groups, 144, hidden) of whole groups of four frames."""
        tower = SiglipVisionModel(SiglipVisionConfig(**TOWER))
        self.part(tower, "model.vision_tower.vision_tower.vision_model.")
        seen = tower(pixel_values, output_hidden_states=True).hidden_states[-1]
        maps = seen.transpose(1, 2).reshape(len(seen), WIDTH, 4, 4)
        maps = F.interpolate(maps, size=(24, 24), mode="bilinear", align_corners=False).contiguous()
        x = maps.view(len(maps) // 4, WIDTH, 4, 24, 24)  # the released view, without a permute
        x = x + self.w["model.sae.temporal_encoding"].T[None, :, :, None, None]
        for first in (0, 3):
            x = self.spatial(f"model.sae.encoder.{first}", x)
            x = self.temporal(f"model.sae.encoder.{first + 1}", x)
            x = F.pad(x, (1, 1, 1, 1, 1, 0), mode="replicate")
            x = self.conv(F.conv3d, f"model.sae.encoder.{first + 2}.conv", x, stride=(2, 1, 1))
        tokens = x.squeeze(2).flatten(2).transpose(1, 2)
        projected = self.linear("model.mm_projector.2", F.gelu(self.linear("model.mm_projector.0", tokens)))
        return F.avg_pool2d(projected.transpose(1, 2).unflatten(2, (24, 24)), 2).flatten(2).transpose(1, 2)

    def spatial(self, name: str, x: Tensor) -> Tensor:
        normed = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(F.conv3d, f"{name}.{n}", normed) for n in "qkv")
        q, k, v = (t.permute(0, 2, 3, 4, 1).flatten(0, 1).flatten(1, 2) for t in (q, k, v))
        mixed = (q @ k.transpose(1, 2) * WIDTH**-0.5).softmax(-1) @ v
        mixed = mixed.view(len(x), x.shape[2], 24, 24, WIDTH).permute(0, 4, 1, 2, 3)
        return x + self.conv(F.conv3d, f"{name}.proj_out", mixed)

    def temporal(self, name: str, x: Tensor) -> Tensor:
        groups, _, frames, rows, columns = x.shape
        series = x.permute(0, 3, 4, 1, 2).reshape(-1, WIDTH, frames)
        q, k, v = self.conv(F.conv1d, f"{name}.qkv", self.norm(f"{name}.norm", series)).chunk(3, dim=1)
        scale = WIDTH**-0.25
        step = torch.arange(frames)[None, :] - torch.arange(frames)[:, None] + 64
        keys = self.w[f"{name}.relative_position_k.embeddings_table"][step]
        values = self.w[f"{name}.relative_position_v.embeddings_table"][step]
        logits = torch.einsum("bct,bcs->bts", q * scale, k * scale)
        logits = logits + torch.einsum("bct,tsc->bst", q * scale, keys)  # transposed, as released
        weights = logits.softmax(-1)
        mixed = torch.einsum("bts,bcs->bct", weights, v) + torch.einsum("bts,tsc->bct", weights, values)
        out = self.conv(F.conv1d, f"{name}.proj_out", mixed)
        return x + out.view(groups, rows, columns, WIDTH, frames).permute(0, 3, 4, 1, 2)

    def selector(self, block: Tensor, stamp: int, text: Tensor) -> Tensor:
        """What replaces a block of groups, each ``stamp`` time tokens and 144 visual ones; nothing dropped."""
        group, place = torch.arange(len(block)) // (stamp + 144), torch.arange(len(block)) % (stamp + 144)
        time, visual = place < stamp, place >= stamp
        name = "model.WindowTimeToTokenAttention"
        q = self.linear(f"{name}.q_proj", block[time]).view(-1, 4, HIDDEN // 4).transpose(0, 1)
        k = self.linear(f"{name}.k_proj", block[visual]).view(-1, 4, HIDDEN // 4).transpose(0, 1)
        dense = k @ q.transpose(1, 2) / (HIDDEN // 4) ** 0.5
        dense = dense.masked_fill(group[visual][:, None] != group[time][None], -6e4)
        mixed = self.linear(f"{name}.out_proj", (dense.softmax(-1) @ q).transpose(0, 1).reshape(-1, HIDDEN))
        score = (mixed @ F.gelu(self.linear("model.text_mlp.0", text)).T).mean(-1)
        score = (score - score.min()) / (score.max() - score.min())
        angle = torch.arange(len(block))[:, None] * torch.exp(torch.arange(0, HIDDEN, 2) * -(np.log(1e6) / HIDDEN))
        cos, sin = angle.cos().repeat_interleave(2, 1), angle.sin().repeat_interleave(2, 1)
        crossed = torch.stack([-block[:, 1::2], block[:, ::2]], dim=-1).flatten(1)
        out = block * cos + crossed * sin
        out[visual] += score[:, None].float()
        return out.float()

    def logits(self, before: Tensor, stamps: list[Tensor], after: Tensor, pixel_values: Tensor) -> Tensor:
        text_config = Qwen2Config(**TEXT, rope_theta=1000000.0)
        decoder = Qwen2ForCausalLM(text_config)
        own = {k: v for k, v in self.w.items() if k.startswith(("model.layers", "model.embed", "model.norm"))}
        decoder.load_state_dict(own | {"lm_head.weight": self.w["model.embed_tokens.weight"]})
        words = decoder.model.embed_tokens
        groups = zip(stamps, self.video(pixel_values), strict=True)
        block = torch.cat([torch.cat([words(stamp), tokens]) for stamp, tokens in groups])
        block = self.selector(block, len(stamps[0]), words(torch.cat([before, after])))
        return decoder.eval()(inputs_embeds=torch.cat([words(before), block, words(after)])[None]).logits


@torch.no_grad()
def test_a_converted_checkpoint_computes_what_the_released_code_does(tmp_path: Path) -> None:
    weights = published_weights()
    source = write(tmp_path / "published", weights)
    dropped = convert(source, tmp_path / "ours", SiglipVisionConfig(**TOWER))
    assert [name.rsplit(".", 2)[-2:] for name in dropped if "v_proj" in name] == [
        ["v_proj", "bias"],
        ["v_proj", "weight"],
    ]
    assert len(dropped) == 3  # and the position ids

    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours").eval()
    assert model.config.text_config.rope_parameters["rope_theta"] == 1_000_000.0
    assert model.generation_config.eos_token_id == tiny.ID["<|im_end|>"]
    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    clip = tiny.frames(8, 50, 70, every_seconds=2.0)
    chat = [{"role": "user", "content": [{"type": "video", "video": clip}, {"type": "text", "text": "What?"}]}]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)

    def ids(text: str) -> Tensor:
        return torch.tensor(tiny.tokenizer()(text)["input_ids"])

    before = ids("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n")
    after = ids("\nWhat?<|im_end|>\n<|im_start|>assistant\n")
    stamps = [ids("Time 0000.0s:"), ids("Time 0008.0s:")]
    places = torch.full((144,), PLACE)
    assert torch.equal(inputs["input_ids"][0], torch.cat([before, stamps[0], places, stamps[1], places, after]))
    expected = Released(weights).logits(before, stamps, after, inputs["pixel_values_videos"])
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-3, atol=1e-4)
    assert expected.std() > 0.05


def test_the_checkpoint_s_type_and_ties_are_kept(tmp_path: Path) -> None:
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in published_weights().items()}
    half["lm_head.weight"] = half["model.embed_tokens.weight"]
    convert(write(tmp_path / "published", half), tmp_path / "ours", SiglipVisionConfig(**TOWER))
    saved = load_file(tmp_path / "ours" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert "language_model.lm_head.weight" not in saved
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_published_tower_has_the_published_sizes() -> None:
    with torch.device("meta"):
        tower = SiglipVisionModel(so400m())
    layer = 4 * (1152 * 1152 + 1152) + 2 * 1152 * 4304 + 1152 + 4304 + 4 * 1152
    patches = 3 * 14 * 14 * 1152 + 1152 + 27 * 27 * 1152
    assert sum(p.numel() for p in tower.parameters()) == patches + 26 * layer + 2 * 1152


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("model.sae.encoder.3.proj_out.weight", "dts.stages.1.spatial.proj_out.weight"),
        ("model.sae.encoder.1.qkv.bias", "dts.stages.0.temporal.qkv.bias"),
        ("model.sae.encoder.5.conv.weight", "dts.stages.1.conv.weight"),
        ("model.norm.weight", "language_model.model.norm.weight"),
        ("lm_head.weight", "language_model.lm_head.weight"),
        ("model.image_newline", "model.image_newline"),
    ],
)
def test_names(published: str, ours: str) -> None:
    assert renamed_key(published) == ours


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    weights = published_weights()
    weights["model.image_newline"] = torch.zeros(HIDDEN)
    weights["model.mm_projector.0.weight"] = torch.zeros(HIDDEN, WIDTH + 1)
    del weights["model.layers.1.mlp.up_proj.weight"]
    source = write(tmp_path / "published", weights)
    with pytest.raises(LongtakeError) as caught:
        convert(source, tmp_path / "ours", SiglipVisionConfig(**TOWER))
    assert str(caught.value) == (
        "3 weights do not fit: model.image_newline is unknown; "
        "model.mm_projector.0.weight has shape (16, 33), not (16, 32); "
        "language_model.model.layers.1.mlp.up_proj.weight is missing"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published"]


def test_of_many_that_do_not_fit_ten_are_listed(tmp_path: Path) -> None:
    unknown = {f"model.other.{n:02d}": torch.zeros(1) for n in range(12)}
    source = write(tmp_path / "published", published_weights() | unknown)
    with pytest.raises(LongtakeError, match=r"^12 weights do not fit: .*\.09 is unknown; and 2 more$") as caught:
        convert(source, tmp_path / "ours", SiglipVisionConfig(**TOWER))
    assert str(caught.value).count("is unknown") == 10


def test_other_checkpoints_are_refused(tmp_path: Path) -> None:
    tower = SiglipVisionConfig(**TOWER)
    first = published_weights() | {"model.layers.0.self_attn.beacon_q_proj.weight": torch.zeros(2, 2)}
    with pytest.raises(LongtakeError, match="first-generation checkpoint"):
        convert(write(tmp_path / "first", first), tmp_path / "ours", tower)
    plain = {name: w for name, w in published_weights().items() if "sae" not in name}
    with pytest.raises(LongtakeError, match=r"no model.sae.\* weights"):
        convert(write(tmp_path / "plain", plain), tmp_path / "ours", tower)
    changed = {"mm_spatial_pool_stride": 4, "mm_hidden_size": 48}
    with pytest.raises(LongtakeError, match="mm_spatial_pool_stride is 4, not 2; mm_hidden_size is 48, not 32"):
        convert(write(tmp_path / "pool", published_weights(), **changed), tmp_path / "ours", tower)
    untied = published_weights() | {"lm_head.weight": torch.zeros(tiny.VOCABULARY, HIDDEN)}
    with pytest.raises(LongtakeError, match="lm_head.weight differs"):
        convert(write(tmp_path / "untied", untied), tmp_path / "ours", tower)
    with pytest.raises(LongtakeError, match="holds no config.json"):
        convert(tmp_path / "nowhere", tmp_path / "ours", tower)
    with pytest.raises(LongtakeError, match="exists already"):
        convert(tmp_path / "first", tmp_path / "plain", tower)


def test_stamps_beyond_ten_thousand_seconds(tmp_path: Path) -> None:
    convert(write(tmp_path / "published", published_weights()), tmp_path / "ours", SiglipVisionConfig(**TOWER))
    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours")
    base = tiny.frames(8, 40, 40)
    late = Frames(pixels=base.pixels, seconds=base.seconds + 9_996.0)
    inputs = processor("<|video|>What?", videos=late)
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    assert text.startswith("Time 9996.0s:<")
    assert "Time 10000.0s:<" in text
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()
