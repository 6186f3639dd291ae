"""Operations and parameters by formula, against PyTorch's own counter and real modules."""

import pytest
import torch
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config

import tiny
from longtake import LongtakeError
from longtake.models import VideoLLM, VideoLLMConfig
from longtake.models.convert import so400m
from longtake.models.recot import ReCoT
from longtake.train import estimate, lora
from longtake.train.estimate import PARTS, Device, PartFlops, Workload


def attention(*shapes, **kwargs) -> int:
    """The counter's own formula for CUDA's fused kernels; those of a CPU are not in its table."""
    return flop_counter.sdpa_flop_count(*shapes[:3])


def attention_backward(*shapes, **kwargs) -> int:
    """The same for the backward pass."""
    return flop_counter.sdpa_backward_flop_count(*shapes[:4])


CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
}
DEVICE = Device(name="slow", flops_per_second=1e9)
MODULES = {"tower": "vision_tower", "dts": "dts", "projector": "projector", "decoder": "language_model"}


def small(**changes: object) -> VideoLLM:
    """Odd enough that no two sizes are alike: grouped keys, an untied head, a resized grid."""
    settings: dict[str, object] = {
        "scorer": None,
        "vision_config": {
            "hidden_size": 64,
            "intermediate_size": 112,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 40,
            "patch_size": 8,
            "vision_use_head": False,
        },
        "text_config": {
            "vocab_size": tiny.VOCABULARY,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        },
        "dts_grid": 6,
    }
    return tiny.video_llm(**(settings | changes))


def big() -> VideoLLMConfig:
    """The paper's sizes: SigLIP-so400m, DTS 1152, Qwen2.5-3B, 24x24 places, 144 tokens for 4 frames."""
    text = Qwen2Config(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )
    return VideoLLMConfig(
        vision_config=so400m(),
        text_config=text,
        dts_grid=24,
        pool_after_projector=True,
        stamp_style="legacy",
        video_token_id=151654,
    )


def loss_of(model: VideoLLM, work: Workload, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """One forward pass of a training step of the workload, with random frames and ids."""
    config = model.config
    group = [1] * work.stamp_tokens + [config.video_token_id] * config.tokens_per_group
    ids = torch.tensor([[1] * work.text_tokens + group * work.groups(config)] * work.batch)
    side = config.vision_config.image_size
    places = ids == config.video_token_id
    frames = (torch.randn(work.frames, 3, side, side, dtype=dtype) for _ in range(work.batch))  # one video at a time
    groups = torch.cat([model.split_groups(model.encode_frames(one)) for one in frames])
    tokens = model.project(model.dts(groups)).flatten(0, 2)  # all videos' groups at once, as training does
    embedded = model.get_input_embeddings()(ids)
    embedded = embedded.masked_scatter(places[..., None], tokens.to(embedded.dtype))
    return model.language_model(inputs_embeds=embedded, labels=ids, use_cache=False).loss


def learn(model: VideoLLM, trainable: frozenset[str]) -> None:
    """Only these parts learn."""
    for part, name in MODULES.items():
        model.get_submodule(name).requires_grad_(part in trainable)


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_the_models(tied):
    model = small()
    text = model.config.text_config.to_dict() | {"tie_word_embeddings": tied}
    model = small(text_config=text)
    found = estimate.parameters(model.config)
    real = {p: sum(w.numel() for w in model.get_submodule(n).parameters()) for p, n in MODULES.items()}
    assert {part: found[part] for part in PARTS[:3]} == {part: real[part] for part in PARTS[:3]}
    assert found["decoder"] + found["head"] == real["decoder"]
    assert sum(found.values()) == model.num_parameters()
    assert (found["head"] == 0) == tied


def test_parameters_at_real_size():
    found = estimate.parameters(big())
    assert found["dts"] == 93_526_272
    with torch.device("meta"):
        model = VideoLLM(big())
    assert sum(found.values()) == model.num_parameters()


@pytest.mark.parametrize(
    "trainable",
    [
        (),
        ("projector",),
        ("dts",),
        ("projector", "decoder"),
        ("dts", "projector", "decoder"),
        ("tower",),
        ("tower", "dts", "projector", "decoder"),
    ],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_has_as_many_operations_as_pytorch_counts(trainable, checkpointing):
    model = small().train()
    work = Workload(
        frames=6,
        text_tokens=13,
        stamp_tokens=3,
        batch=2,
        trainable=frozenset(trainable),
        checkpointing=checkpointing,
        skips_masked=False,
    )
    learn(model, work.trainable)
    if checkpointing:
        model.activation_checkpointing_enable()
        model.disable_input_require_grads()  # else frozen parts get a backward pass, the tower too
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    with counter:
        loss = loss_of(model, work)
        forward = counter.get_total_flops()
        if trainable:
            loss.backward()
    found = estimate.training_flops(model.config, work)
    assert sum(part.forward for part in found.values()) == pytest.approx(forward, rel=1e-6)
    assert estimate.total(found) == pytest.approx(counter.get_total_flops(), rel=0.003)
    assert (estimate.total(found) > forward) == bool(trainable)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_by_lora_has_as_many_operations_as_pytorch_counts(checkpointing):
    work = Workload(
        frames=6, text_tokens=13, stamp_tokens=3, batch=2, trainable=frozenset({"dts", "projector"}),
        lora_rank=3, checkpointing=checkpointing, skips_masked=False,
    )  # fmt: skip
    model = small().train()
    learn(model, work.trainable)
    lora.add(model.language_model, 3, 8.0)
    added = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert estimate.lora_parameters(model.config, 3) == added
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.disable_input_require_grads()
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    with counter:
        loss_of(model, work).backward()
    found = estimate.training_flops(model.config, work)
    assert estimate.total(found) == pytest.approx(counter.get_total_flops(), rel=0.003)


@torch.no_grad()
def test_answering_has_as_many_operations_as_pytorch_counts():
    model = small()
    work = Workload(frames=5, text_tokens=13, stamp_tokens=3, answer_tokens=4, skips_masked=False)
    found = estimate.answering_flops(model.config, work)
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    ids = torch.tensor([[1] * 13 + ([1] * 3 + [model.config.video_token_id] * model.config.tokens_per_group) * 2])
    with counter:
        embedded = model.embed(ids, torch.randn(5, 3, 40, 40))
        seen = counter.get_total_flops()
        run = model.language_model(inputs_embeds=embedded, use_cache=True, logits_to_keep=1)
        prefilled = counter.get_total_flops()
        for _ in range(3):
            next_id = run.logits[:, -1:].argmax(-1)
            run = model.language_model(input_ids=next_id, past_key_values=run.past_key_values, use_cache=True)
    assert found["tower"].total + found["dts"].total + found["projector"].total == pytest.approx(seen, rel=1e-6)
    assert found["prefill"].total + found["head"].total / 4 == pytest.approx(prefilled - seen, rel=1e-6)
    assert estimate.total(found) == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_real_size_has_as_many_operations_as_pytorch_counts():
    """On the meta device, which works out shapes alone."""
    config = big()
    work = Workload(frames=8, text_tokens=40, skips_masked=False)
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad(), counter:
        model = VideoLLM(config)
        assert len(model.video_tokens(torch.empty(8, 3, 384, 384))) == 2 * 144
        model.language_model(inputs_embeds=torch.empty(1, work.positions(config), 2048), use_cache=True)
    found = estimate.training_flops(config, work)
    assert estimate.total(found) == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_real_size_costs_what_was_estimated_by_hand():
    """The estimates of the paper's notes: 0.2 TFLOP a group in the DTS, 0.65 a frame in the tower, a share of 8%."""
    found = estimate.training_flops(big(), Workload(frames=4, text_tokens=0))
    tower, dts = found["tower"].forward, found["dts"].forward
    assert dts == pytest.approx(0.2e12, rel=0.05)
    assert tower / 4 == pytest.approx(0.65e12, rel=0.02)
    assert dts / tower == pytest.approx(0.08, abs=0.002)


def test_attention_that_skips_the_masked_costs_half():
    whole = Workload(frames=0, text_tokens=1000, skips_masked=False)
    half = Workload(frames=0, text_tokens=1000)
    all_pairs, seen_pairs = (estimate.training_flops(big(), work)["decoder"].forward for work in (whole, half))
    assert all_pairs - seen_pairs == 36 * 4 * 2048 * 1000 * 999 // 2


def test_stored_features_leave_out_the_tower_alone():
    work = Workload(frames=8, text_tokens=10, trainable=frozenset({"projector"}))
    stored = Workload(frames=8, text_tokens=10, trainable=frozenset({"projector"}), stored_features=True)
    found, less = (estimate.training_flops(big(), each) for each in (work, stored))
    assert less.pop("tower").total == 0 < found.pop("tower").total
    assert less == found


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_a_sample_of_pretraining_has_as_many_operations_as_pytorch_counts(stride):
    """Within 3%, for the masking's scores. The tower runs elsewhere: its features are given."""
    config = small().config
    config.frames_per_group = stride
    recot = ReCoT(64, stride)
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    with counter:
        recot(torch.randn(1, 16, 6, 6, 64)).loss.backward()
    found = estimate.recot_flops(config, 16, stored_features=True)
    assert estimate.total(found) == pytest.approx(counter.get_total_flops(), rel=0.03)
    real = {name: sum(w.numel() for w in part.parameters()) for name, part in recot.named_children()}
    assert estimate.recot_parameters(config) == real
    encoded = estimate.recot_flops(config, 16)
    once = estimate.training_flops(config, Workload(frames=16, text_tokens=0))
    assert encoded == found | {"tower": once["tower"]}


def test_time_by_hand():
    assert estimate.seconds(1e9, DEVICE, 0.4) == pytest.approx(2.5)
    assert PartFlops(forward=1.0, backward=2.0, recompute=0.5).total == 3.5


def test_what_makes_no_sense_is_refused():
    with pytest.raises(LongtakeError, match="trainable names head; the parts are tower, dts, projector, decoder"):
        Workload(frames=4, text_tokens=1, trainable=frozenset({"head"}))
    with pytest.raises(LongtakeError, match="a tower that learns cannot read stored features"):
        Workload(frames=4, text_tokens=1, trainable=frozenset({"tower"}), stored_features=True)
    with pytest.raises(LongtakeError, match=r"utilisation is 40; it is a share"):
        estimate.seconds(1.0, DEVICE, 40)
