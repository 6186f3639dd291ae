"""The cost of a ``VideoLLM``, from its config alone: parameters, floating-point operations and time of each part.

An operation is a multiplication or an addition, counted as PyTorch's own counter does (``torch.utils.flop_counter``):
those of matrix products, convolutions and attention; norms, pools, activation functions, the optimiser and the query
scorer's weights are left out, together under a hundredth at real sizes. Memory is in ``footprint``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from longtake.models.video_llm import VideoLLMConfig
from longtake.types import LongtakeError

ModelPart = Literal["tower", "dts", "projector", "decoder"]
Precision = Literal["float32", "autocast", "mixed", "bfloat16"]

PARTS: tuple[ModelPart, ...] = get_args(ModelPart)  # in the order that data flows
RECOMPUTED: frozenset[ModelPart] = frozenset({"tower", "dts", "decoder"})  # by checkpointing, layer by layer
ATTENTION_BACKWARD = 2.5  # of its forward pass: four products, and the scores once more as fused kernels keep none


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The work that one device gets at a time: ``batch`` prompts of equal length, each with one video.

    frames: of each video; 0 for a prompt without one.
    text_tokens: of each prompt beside the video's stamps and visual tokens, a learned answer included.
    stamp_tokens: of the text in front of each group; 10 by Qwen's tokenizer for published checkpoints' stamps.
    answer_tokens: generated, when answering.
    logit_tokens: positions of each prompt whose logits a training step computes; None for all, as Hugging Face does.
    trainable: parts that learn; the head learns with the decoder. A part after one of them passes gradients on.
    lora_rank: of low-rank weights that learn beside the frozen ones of the decoder (``train/lora.py``); 0: none.
    precision: "float32"; "autocast" (float32 weights, bfloat16 products); "mixed" (bfloat16 with the optimiser's
        float32 copy, DeepSpeed's); "bfloat16" (all of it, the optimiser's states too).
    checkpointing: layers of decoder and tower and stages of the DTS are computed again in the backward pass, as after
        Hugging Face's ``activation_checkpointing_enable``; without ``disable_input_require_grads`` after it, frozen
        parts would get a backward pass too, the tower's alone more than all else.
    stored_features: the tower does not run; its features come from the disk.
    skips_masked: attention leaves out what the causal mask hides, as fused kernels do; PyTorch's counter counts as if
        it did not.
    """

    frames: int
    text_tokens: int
    stamp_tokens: int = 10
    batch: int = 1
    answer_tokens: int = 0
    logit_tokens: int | None = None
    trainable: frozenset[ModelPart] = frozenset()
    lora_rank: int = 0
    precision: Precision = "autocast"
    checkpointing: bool = False
    stored_features: bool = False
    skips_masked: bool = True

    def __post_init__(self) -> None:
        if unknown := sorted(self.trainable - set(PARTS)):
            raise LongtakeError(f"trainable names {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
        if self.stored_features and "tower" in self.trainable:
            raise LongtakeError("a tower that learns cannot read stored features; train it on frames")
        if self.lora_rank and ("decoder" in self.trainable or self.precision not in ("float32", "autocast")):
            raise LongtakeError("LoRA's weights are float32 beside a frozen decoder; give that precision or autocast")

    @property
    def reached(self) -> frozenset[ModelPart]:
        """The parts that gradients go through: the first that learns and all after it."""
        learning = self.trainable | ({"decoder"} if self.lora_rank else set())
        first = min((PARTS.index(part) for part in learning), default=len(PARTS))
        return frozenset(PARTS[first:])

    def groups(self, config: VideoLLMConfig) -> int:
        """Time groups of each video."""
        return -(-self.frames // config.frames_per_group)

    def positions(self, config: VideoLLMConfig) -> int:
        """Columns of each prompt: text, stamps and visual tokens."""
        return self.text_tokens + self.groups(config) * (self.stamp_tokens + config.tokens_per_group)

    def logits(self, config: VideoLLMConfig) -> int:
        """Positions of each prompt whose logits a training step computes."""
        return self.positions(config) if self.logit_tokens is None else self.logit_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device's rate of dense products, in operations a second."""

    name: str
    flops_per_second: float



@dataclass(frozen=True, slots=True, kw_only=True)
class PartFlops:
    """Operations of one part in one step: ``recompute`` is what checkpointing computes a second time."""

    forward: float
    backward: float = 0.0
    recompute: float = 0.0

    @property
    def total(self) -> float:
        """Forward, backward and recomputed operations together."""
        return self.forward + self.backward + self.recompute


@dataclass(frozen=True, slots=True, kw_only=True)
class _Products:
    """Operations of a part's forward pass, by what their backward pass costs.

    first: products of the part's input and its weights. inner: of states within and weights.
    last: those of ``inner`` whose outcome no backward pass needs, so that checkpointing leaves them out.
    attention: of fused attention.
    """

    first: float = 0.0
    inner: float = 0.0
    last: float = 0.0
    attention: float = 0.0

    def flops(self, learns: bool, fed: bool, checkpointed: bool) -> PartFlops:
        """The part's operations in a step. fed: whether its input needs a gradient, for something before it learns."""
        forward = self.first + self.inner + self.attention
        if not (learns or fed):
            return PartFlops(forward=forward)
        backward = self.first * (learns + fed) + self.inner * (learns + 1) + self.attention * ATTENTION_BACKWARD
        again = self.inner + self.attention - self.last if checkpointed else 0.0
        return PartFlops(forward=forward, backward=backward, recompute=again)


def parameters(config: VideoLLMConfig) -> dict[str, int]:
    """Parameters of each part, and of the ``head`` where it has its own (tied to the embedding it counts there)."""
    seen, text = config.vision_config, config.text_config
    d, f = seen.hidden_size, seen.intermediate_size
    layer = 4 * (d * d + d) + 2 * d * f + f + d + 4 * d
    patches = config.tower_grid[0] * config.tower_grid[1]
    tower = (seen.num_channels * seen.patch_size**2 + 1 + patches) * d + seen.num_hidden_layers * layer + 2 * d
    hidden, kv = text.hidden_size, kv_width(config)
    attention = (hidden + 1) * (query_width(config) + 2 * kv) + query_width(config) * hidden
    table = text.vocab_size * hidden
    blocks = text.num_hidden_layers * (attention + 3 * hidden * text.intermediate_size + 2 * hidden)
    return {
        "tower": tower,
        "dts": dts_parameters(d, config.frames_per_group),
        "projector": (d + 1) * hidden + (hidden + 1) * hidden,
        "decoder": table + blocks + hidden,
        "head": 0 if config.tie_word_embeddings else table,
    }


def dts_parameters(dim: int, frames_per_group: int) -> int:
    """Parameters of a ``DynamicTokenSynthesizer``: 93,526,272 at width 1152 with 4 frames."""
    return (frames_per_group.bit_length() - 1) * _stage_parameters(dim) + frames_per_group * dim


def recot_parameters(config: VideoLLMConfig) -> dict[str, int]:
    """Parameters of what ReCoT pre-trains: masking (two queries of each kind), DTS, reconstructor."""
    dim, doublings = config.vision_config.hidden_size, config.frames_per_group.bit_length() - 1
    return {
        "masking": 5 * dim,
        "dts": dts_parameters(dim, config.frames_per_group),
        "reconstructor": doublings // 2 * (_stage_parameters(dim) + 2 * dim) + doublings % 2 * (18 * dim + 1) * dim,
    }


def lora_parameters(config: VideoLLMConfig, rank: int) -> int:
    """Parameters of low-rank weights beside all linear layers of the decoder's blocks."""
    text = config.text_config
    ends = 4 * text.hidden_size + 2 * (query_width(config) + kv_width(config))  # queries, keys, values, outcome
    return int(text.num_hidden_layers * rank * (ends + 3 * (text.hidden_size + text.intermediate_size)))


def relative_positions(dim: int, stages: int) -> int:
    """Parameters in the tables of relative positions of so many stages, two tables a stage."""
    return stages * 2 * 129 * dim


def _stage_parameters(dim: int) -> int:
    """Parameters of two attentions with their norms, of tables of relative positions, and of a convolution."""
    spatial = 4 * (dim * dim + dim) + 2 * dim
    temporal = 4 * dim * dim + 4 * dim + 2 * dim
    return spatial + temporal + 27 * dim * dim + dim + relative_positions(dim, 1)


def training_flops(config: VideoLLMConfig, work: Workload) -> dict[str, PartFlops]:
    """Operations of one training step on one device, of each part, of the head, and of LoRA's weights."""
    found = {}
    first = next((part for part in PARTS if part in work.trainable), None)
    for part, products in _forward(config, work, causal_pairs(work.positions(config), work.skips_masked)).items():
        learns = part in work.trainable
        fed = part in work.reached and part != first
        checkpointed = work.checkpointing and part in RECOMPUTED
        if part == "decoder" and work.lora_rank:
            products = replace(products, last=0.0)  # LoRA's own come after it
        found[str(part)] = products.flops(learns, fed, checkpointed)
    head = _Products(inner=_head(config, work.batch * work.logits(config)))
    found["head"] = head.flops("decoder" in work.trainable, "decoder" in work.reached, False)
    return found | {"lora": _lora(config, work).flops(True, True, work.checkpointing)}


def answering_flops(config: VideoLLMConfig, work: Workload) -> dict[str, PartFlops]:
    """Operations of answering: the parts that see the video, ``prefill``, ``decode`` and the head's logits."""
    positions, steps = work.positions(config), max(work.answer_tokens - 1, 0)
    found = _forward(config, work, causal_pairs(positions, work.skips_masked))
    prefill = found.pop("decoder")
    pairs = steps * positions + causal_pairs(steps, skips_masked=True)
    decode = _decoder(config, work.batch * steps, work.batch * pairs)
    head = _Products(inner=_head(config, work.batch * (steps + 1)))
    named = {str(part): products for part, products in found.items()}
    named |= {"prefill": prefill, "decode": decode, "head": head}
    return {name: products.flops(learns=False, fed=False, checkpointed=False) for name, products in named.items()}


def recot_flops(config: VideoLLMConfig, frames: int, *, stored_features: bool = False) -> dict[str, PartFlops]:
    """Operations of one ReCoT sample of ``frames``: frozen tower, DTS and reconstructor; the masking's few left out."""
    groups = -(-frames // config.frames_per_group)
    tower = _Products() if stored_features else _tower(config, frames)
    return {
        "tower": tower.flops(learns=False, fed=False, checkpointed=False),
        "dts": _dts(config, groups).flops(learns=True, fed=False, checkpointed=False),
        "reconstructor": _reconstructor(config, groups).flops(learns=True, fed=True, checkpointed=False),
    }


def total(parts: dict[str, PartFlops]) -> float:
    """All operations of all parts."""
    return sum(part.total for part in parts.values())


def seconds(flops: float, device: Device, utilisation: float) -> float:
    """Time that the operations take at a share ``utilisation`` of the device's peak."""
    if not 0 < utilisation <= 1:
        raise LongtakeError(f"utilisation is {utilisation}; it is a share of the device's peak, above 0 and at most 1")
    return flops / (device.flops_per_second * utilisation)


def causal_pairs(positions: int, skips_masked: bool) -> int:
    """Pairs of a query and a key in causal attention over so many positions."""
    return positions * (positions + 1) // 2 if skips_masked else positions * positions


def _forward(config: VideoLLMConfig, work: Workload, pairs: int) -> dict[ModelPart, _Products]:
    """Forward products of each part; ``pairs`` of each prompt's attention."""
    columns = work.batch * work.positions(config)
    tower = _Products() if work.stored_features else _tower(config, work.batch * work.frames)
    groups = work.batch * work.groups(config)
    return {
        "tower": tower,
        "dts": _dts(config, groups),
        "projector": _projector(config, groups),
        "decoder": _decoder(config, columns, work.batch * pairs),
    }


def _tower(config: VideoLLMConfig, frames: int) -> _Products:
    seen = config.vision_config
    d, patches = seen.hidden_size, config.tower_grid[0] * config.tower_grid[1]
    layers = frames * seen.num_hidden_layers
    narrow = 2 * patches * d * seen.intermediate_size
    return _Products(
        first=frames * 2 * patches * seen.num_channels * seen.patch_size**2 * d,
        inner=layers * (8 * patches * d * d + 2 * narrow),
        last=layers * narrow,
        attention=layers * 4 * patches * patches * d,
    )


def _dts(config: VideoLLMConfig, groups: int) -> _Products:
    """Operations of the DTS. Each stage ends in its convolution, which is therefore not computed again."""
    (rows, columns), dim = config.grid, config.vision_config.hidden_size
    frames, inner, last, attention = config.frames_per_group, 0.0, 0.0, 0.0
    while frames > 1:
        mixed = _attentions(dim, rows * columns, groups * frames, frames)
        convolution = groups * frames // 2 * rows * columns * 2 * 27 * dim * dim
        inner += mixed.inner + convolution
        last += convolution
        attention += mixed.attention
        frames //= 2
    return _Products(inner=inner, last=last, attention=attention)


def _reconstructor(config: VideoLLMConfig, groups: int) -> _Products:
    """Operations of the reconstructor; every tap of its transposed convolutions is of a frame that stays."""
    (rows, columns), dim = config.grid, config.vision_config.hidden_size
    frames, inner, attention = 1, 0.0, 0.0
    if config.frames_per_group.bit_length() % 2 == 0:  # an odd number of doublings begins with a lone one
        frames, inner = 2, groups * rows * columns * 2 * 18 * dim * dim
    while frames < config.frames_per_group:
        mixed = _attentions(dim, rows * columns, groups * 2 * frames, 2 * frames)
        inner += mixed.inner + groups * 2 * frames * rows * columns * 2 * 27 * dim * dim
        attention += mixed.attention
        frames *= 4
    return _Products(inner=inner, attention=attention)


def _attentions(dim: int, places: int, frames: int, window: int) -> _Products:
    """Operations of both attentions on so many frames of all groups together, ``window`` of which see each other.

    The products between frames in time are counted with the weights': there are few frames.
    """
    inner = 16 * frames * places * dim * dim + 8 * frames * places * window * dim
    return _Products(inner=inner, attention=4 * frames * places * places * dim)


def _projector(config: VideoLLMConfig, groups: int) -> _Products:
    rows, columns = config.grid if config.pool_after_projector else config.token_grid
    tokens, hidden = groups * rows * columns, config.text_config.hidden_size
    return _Products(first=2 * tokens * config.vision_config.hidden_size * hidden, inner=2 * tokens * hidden * hidden)


def _decoder(config: VideoLLMConfig, columns: int, pairs: int) -> _Products:
    text = config.text_config
    hidden, query = text.hidden_size, query_width(config)
    narrow = 2 * hidden * text.intermediate_size
    linear = 4 * hidden * (query + kv_width(config)) + 3 * narrow
    layers = text.num_hidden_layers
    return _Products(
        inner=layers * columns * linear, last=layers * columns * narrow, attention=layers * 4 * pairs * query
    )


def _lora(config: VideoLLMConfig, work: Workload) -> _Products:
    each = 2 * work.batch * work.positions(config)
    text = config.text_config
    return _Products(
        inner=each * lora_parameters(config, work.lora_rank),
        last=each * text.num_hidden_layers * work.lora_rank * text.hidden_size,
    )


def _head(config: VideoLLMConfig, columns: int) -> float:
    return 2 * columns * config.text_config.hidden_size * config.text_config.vocab_size


def query_width(config: VideoLLMConfig) -> int:
    """Width of a decoder layer's queries, all heads together."""
    text = config.text_config
    return int(text.num_attention_heads * _head_width(config))


def kv_width(config: VideoLLMConfig) -> int:
    """Width of a decoder layer's keys, and of its values."""
    return int(config.text_config.num_key_value_heads * _head_width(config))


def _head_width(config: VideoLLMConfig) -> int:
    text = config.text_config
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
