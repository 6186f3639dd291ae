"""How much memory training and answering take on a device, from a ``VideoLLM``'s config alone.

Weights, gradients, the optimiser's states, what a forward pass saves for the backward pass (worked out layer by layer
from what PyTorch's operators keep), the largest passing tensors, and keys and values. Left out: the allocator's gaps,
the libraries' workspaces and the device's own context, usually a few gigabytes on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from longtake.backbones.language import PREFILL_COLUMNS
from longtake.models.video_llm import FRAMES_PER_PASS, VideoLLMConfig
from longtake.train.estimate import (
    RECOMPUTED,
    Precision,
    Workload,
    kv_width,
    lora_parameters,
    parameters,
    query_width,
    recot_parameters,
    relative_positions,
)
from longtake.types import LongtakeError

Sharding = Literal["none", "zero2", "full"]

FULL, HALF = 4, 2  # bytes of a float32 and of a bfloat16


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes on one device at the fullest moment.

    activations_bytes: what waits for the backward pass, or for answering the visual tokens and the prompt's embeddings.
    working_bytes: what stands beside it for a moment: the logits and their gradients, or a layer or
        DTS stage computed again.
    kv_bytes: keys and values.
    """

    weights_bytes: float = 0.0
    gradients_bytes: float = 0.0
    states_bytes: float = 0.0
    activations_bytes: float = 0.0
    working_bytes: float = 0.0
    kv_bytes: float = 0.0

    @property
    def total_bytes(self) -> float:
        """All bytes together."""
        fixed = self.weights_bytes + self.gradients_bytes + self.states_bytes
        return fixed + self.activations_bytes + self.working_bytes + self.kv_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Widths:
    """Bytes of one number in weights, products, residual stream and gradients, and of a weight's AdamW states.

    copies: of a weight cast anew for its product, which lives until the backward pass.
    """

    weight: int
    product: int
    stream: int
    gradient: int
    states: int
    copies: int = 0

    def normed(self, dim: int, consumers: int) -> int:
        """Bytes that products keep of one norm's outcome: its cast, one for each of them, or the outcome itself."""
        return self.product * dim * (1 if self.stream == self.product else consumers)


WIDTHS: dict[Precision, _Widths] = {
    "float32": _Widths(weight=4, product=4, stream=4, gradient=4, states=8),
    "autocast": _Widths(weight=4, product=2, stream=4, gradient=4, states=8, copies=2),
    "mixed": _Widths(weight=2, product=2, stream=2, gradient=2, states=12),
    "bfloat16": _Widths(weight=2, product=2, stream=2, gradient=2, states=4),
}


def training_memory(
    config: VideoLLMConfig, work: Workload, *, sharding: Sharding = "none", ranks: int = 1
) -> MemoryEstimate:
    """Memory of one training step with AdamW on one of ``ranks`` devices.

    sharding: "zero2" splits gradients and states over the ranks (DeepSpeed's second stage, which keeps a rank's share
        of float32 weights a second time; offloaded, all of these stand in host memory instead); "full" the weights too
        (FSDP2), a layer's gathered weights left out.
    Gradients count whole, as between the steps of an accumulation; the backward pass of a first step is lower.
    """
    split, widths, counts = _split(sharding, ranks), WIDTHS[work.precision], parameters(config)
    added = lora_parameters(config, work.lora_rank)
    learned = sum(counts[part] for part in work.trainable) + counts["head"] * ("decoder" in work.trainable) + added
    saved = activations_bytes(config, work)
    return MemoryEstimate(
        weights_bytes=(sum(counts.values()) + added) * widths.weight * (split if sharding == "full" else 1.0),
        gradients_bytes=learned * widths.gradient * split,
        states_bytes=learned * _states(widths, sharding) * split,
        activations_bytes=saved,
        working_bytes=max(_loss_bytes(config, work), _again_bytes(config, work), _frozen_bytes(config, work) - saved),
    )


def recot_memory(
    config: VideoLLMConfig,
    frames: int,
    *,
    clips: int = 1,
    precision: Literal["float32", "autocast"] = "autocast",
    sharding: Sharding = "none",
    ranks: int = 1,
) -> MemoryEstimate:
    """Memory of one ReCoT step with AdamW on one of ``ranks`` devices, ``clips`` of ``frames`` at a time.

    The weights are those of masking, DTS and reconstructor, and the whole tower's, which stands by for features that
    are not stored yet; what passes while it computes them is left out. sharding: as in ``training_memory``.
    """
    split, widths, counts = _split(sharding, ranks), WIDTHS[precision], parameters(config)
    learned = sum(recot_parameters(config).values())
    saved = clips * _recot_saved(config, widths, frames)
    tables = relative_positions(config.vision_config.hidden_size, 3 * (config.frames_per_group.bit_length() - 1) // 2)
    return MemoryEstimate(
        weights_bytes=(counts["tower"] + learned * (split if sharding == "full" else 1.0)) * widths.weight,
        gradients_bytes=learned * widths.gradient * split,
        states_bytes=learned * _states(widths, sharding) * split,
        activations_bytes=saved + (learned - tables) * widths.copies + _turned_kernels(config, widths),
        working_bytes=_recot_working(config, widths, clips, frames),
    )


def _split(sharding: Sharding, ranks: int) -> float:
    """One rank's share of what is split. Raises LongtakeError where nothing is, and for fewer ranks than one."""
    if ranks < 1 or (sharding == "none" and ranks > 1):
        raise LongtakeError(f"{ranks} ranks with sharding {sharding}; each rank of plain data parallelism counts as 1")
    return 1 / ranks


def _states(widths: _Widths, sharding: Sharding) -> int:
    """Bytes that the optimiser holds for a weight; DeepSpeed adds the weight itself where it is a float32 one."""
    return widths.states + (FULL if sharding == "zero2" and widths.weight == FULL else 0)


def activations_bytes(config: VideoLLMConfig, work: Workload) -> float:
    """Bytes that a forward pass saves for the backward pass, all parts together, the loss's own left out.

    With checkpointing the layers of tower and decoder and the DTS's stages leave their inputs only.
    """
    widths, reached = WIDTHS[work.precision], work.reached
    columns, learns = work.batch * work.positions(config), "decoder" in work.trainable
    total = 0.0
    if "tower" in reached:
        total += work.batch * work.frames * _tower_saved(config, work)
    if "dts" in reached:
        total += work.batch * work.groups(config) * _dts_saved(config, widths, work.checkpointing)
    if "projector" in reached:
        total += work.batch * work.groups(config) * _projector_saved(config, widths)
    if "decoder" in reached:
        text = config.text_config
        layer = text.hidden_size * widths.stream if work.checkpointing else _decoder_layer(config, work)
        norm = text.hidden_size * (FULL + widths.stream * learns) + FULL
        total += columns * (text.num_hidden_layers * layer + norm)
        total += work.batch * work.logits(config) * text.hidden_size * widths.product * learns
    return total + _copies(config, work)


def kv_bytes(config: VideoLLMConfig, positions: int, number_bytes: int = 2) -> int:
    """Bytes of keys and values of so many positions: 36 KiB a position in bfloat16 at Qwen2.5-3B's shape."""
    return 2 * config.text_config.num_hidden_layers * kv_width(config) * number_bytes * positions


def answering_memory(config: VideoLLMConfig, work: Workload) -> MemoryEstimate:
    """Memory of watching and asking once: weights, visual tokens, the prompt's embeddings, keys and values, a pass."""
    width = WIDTHS[work.precision].product
    positions, text = work.positions(config), config.text_config
    run = min(positions, PREFILL_COLUMNS)
    layer = run * width * (4 * text.hidden_size + 3 * text.intermediate_size)
    if positions > run:  # grouped keys and values are written out for each query head, and grow by copying
        layer += 2 * positions * width * (query_width(config) + kv_width(config))
    tokens = work.groups(config) * config.tokens_per_group
    return MemoryEstimate(
        weights_bytes=sum(parameters(config).values()) * WIDTHS[work.precision].weight,
        activations_bytes=work.batch * (tokens + positions) * text.hidden_size * width,
        working_bytes=max(work.batch * layer, _watching_bytes(config, work)),
        kv_bytes=work.batch * kv_bytes(config, positions + work.answer_tokens, width),
    )


def _tower_saved(config: VideoLLMConfig, work: Workload) -> float:
    """Bytes that the tower saves of each frame: every layer's share, and the outcome that a last norm keeps."""
    seen, widths = config.vision_config, WIDTHS[work.precision]
    patches, d = config.tower_grid[0] * config.tower_grid[1], seen.hidden_size
    layer = d * widths.stream if work.checkpointing else _tower_layer(config, widths)
    pixels = seen.num_channels * seen.patch_size**2 * widths.product
    return patches * (seen.num_hidden_layers * layer + d * widths.stream * config.vision_norm + pixels)


def _tower_layer(config: VideoLLMConfig, widths: _Widths) -> float:
    """Bytes that a tower layer saves of each patch.

    Two norms' inputs, what the products read, queries, keys, values and outcome, and both sides of the GELU.
    """
    seen = config.vision_config
    d = seen.hidden_size
    norms = 2 * (widths.stream * d + 2 * widths.stream) + widths.normed(d, 3) + widths.normed(d, 1)
    attention = 4 * widths.product * d + FULL * seen.num_attention_heads
    return norms + attention + 2 * widths.product * seen.intermediate_size


def _decoder_layer(config: VideoLLMConfig, work: Workload) -> float:
    """Bytes that a decoder layer saves of each column.

    A frozen layer that gradients go through keeps no input of its products; LoRA's keep theirs.
    """
    text, widths, learns = config.text_config, WIDTHS[work.precision], "decoder" in work.trainable
    d, query, f = text.hidden_size, query_width(config), text.intermediate_size
    norms = 2 * (FULL * d + FULL)
    attention = widths.product * (2 * query + 2 * kv_width(config)) + FULL * text.num_attention_heads
    gates = 3 * widths.product * f
    if not (learns or work.lora_rank):
        return norms + attention + gates
    inputs = widths.normed(d, 3) + widths.normed(d, 2) + widths.product * f
    if learns:
        return norms + attention + gates + inputs + 2 * widths.stream * d
    cast = widths.product * query * (widths.product < FULL)  # the attention's outcome, once more
    return norms + attention + gates + inputs + cast + 7 * widths.product * work.lora_rank


def _dts_saved(config: VideoLLMConfig, widths: _Widths, checkpointing: bool) -> float:
    """Bytes that the DTS saves of each group, stage by stage. A later stage's stream comes out of a convolution."""
    (rows, columns), d = config.grid, config.vision_config.hidden_size
    frames, total = config.frames_per_group, 0.0
    while frames > 1:
        total += frames * rows * columns * widths.stream * d if checkpointing else _dts_stage(config, widths, frames)
        frames, widths = frames // 2, replace(widths, stream=widths.product)
    return total


def _dts_stage(config: VideoLLMConfig, widths: _Widths, frames: int) -> float:
    """Bytes that a DTS stage saves of each group of ``frames``.

    Norms (in float32), attentions, and the convolution's input with and without border.
    """
    (rows, columns), d = config.grid, config.vision_config.hidden_size
    norms = 2 * FULL * d + widths.normed(d, 3) + widths.normed(d, 1)
    statistics = FULL * d * (1 + rows * columns)  # deviations of each channel, in the group and at every place
    shares = FULL * (1 + frames) + widths.product * frames * (widths.product < FULL)  # in space their sums alone
    attention = (4 + 3 + 1) * widths.product * d + shares
    bordered = (frames + 1) * (rows + 2) * (columns + 2) * widths.product * d
    return frames * rows * columns * (norms + attention + widths.stream * d) + statistics + bordered


def _recot_saved(config: VideoLLMConfig, widths: _Widths, frames: int) -> float:
    """Bytes that masking, DTS, reconstructor and error save of each clip.

    Masking keeps its input, that layer-normed, the same a frame later, each frame's mean, and scores; the error keeps
    the difference from the target.
    """
    (rows, columns), d = config.grid, config.vision_config.hidden_size
    groups = -(-frames // config.frames_per_group)
    differences = frames * rows * columns * FULL * d
    masking = 3 * differences + frames * FULL * d + frames * rows * columns * 2 * FULL
    return (
        masking
        + groups * (_dts_saved(config, widths, checkpointing=False) + _reconstructor_saved(config, widths))
        + differences
    )


def _reconstructor_saved(config: VideoLLMConfig, widths: _Widths) -> float:
    """Bytes that the reconstructor saves of each group.

    A lone doubling's input with and without border; what gains multiply, and a stage as the DTS's. The gains are
    float32, so that a stage's stream is as wide as the DTS's first. Two convolutions read an input with border: where
    they read it cast, each has a cast of its own.
    """
    (rows, columns), number = config.grid, widths.product * config.vision_config.hidden_size
    second_cast = (rows + 2) * (columns + 2) * number * (widths.product < FULL)
    frames, total = 1, 0.0
    if config.frames_per_group.bit_length() % 2 == 0:  # an odd number of doublings begins with a lone one
        frames, total = 2, number * (rows * columns + (rows + 2) * (columns + 2)) + second_cast
    while frames < config.frames_per_group:
        total += number * frames * rows * columns + _dts_stage(config, widths, 2 * frames) + 2 * frames * second_cast
        frames *= 4
    return total


def _turned_kernels(config: VideoLLMConfig, widths: _Widths) -> float:
    """Bytes of the reconstructor's kernels turned round for direct convolutions, kept where no cast of them is."""
    doublings = config.frames_per_group.bit_length() - 1
    taps = 18 * (doublings % 2) + 27 * (doublings // 2)
    return taps * config.vision_config.hidden_size**2 * FULL * (widths.product == FULL)


def _recot_working(config: VideoLLMConfig, widths: _Widths, clips: int, frames: int) -> float:
    """Passing bytes at the larger of two moments: the backward pass of the error or of the last convolution.

    The first has beside what is saved the gradient, three numbers on the way to the next one, and the clips in
    bfloat16; as much stands there when the error is computed. The second has the clips, the gradients of the
    convolution's outcome and of its input with border, and that of its kernel twice, as it comes in two parts (with a
    cast one); what the error kept is gone.
    """
    (rows, columns), d, last = config.grid, config.vision_config.hidden_size, config.frames_per_group
    numbers, groups = clips * frames * rows * columns * d, clips * -(-frames // config.frames_per_group)
    seen, taps = (1, 18) if last == 2 else (last // 2 + 1, 27)
    gradients = widths.product * groups * d * (seen * (rows + 2) * (columns + 2) + last * rows * columns)
    kernel = taps * d * d * (2 * FULL + widths.product * (widths.product < FULL))
    return numbers * HALF + max(numbers * 4 * FULL, kernel + gradients - numbers * FULL)


def _projector_saved(config: VideoLLMConfig, widths: _Widths) -> float:
    rows, columns = config.grid if config.pool_after_projector else config.token_grid
    return rows * columns * widths.product * (config.vision_config.hidden_size + 2 * config.text_config.hidden_size)


def _copies(config: VideoLLMConfig, work: Workload) -> float:
    """Bytes of weights cast for their products; the embedding only as a head, relative positions not at all.

    Those that learn are cast once and kept for the whole forward pass, others for as long as a product is saved.
    """
    counts, each = parameters(config), WIDTHS[work.precision].copies
    counts["dts"] -= relative_positions(config.vision_config.hidden_size, config.frames_per_group.bit_length() - 1)
    again = RECOMPUTED if work.checkpointing else frozenset()
    kept = work.trainable | (work.reached - again)
    head = config.text_config.vocab_size * config.text_config.hidden_size if work.reached else 0
    added = lora_parameters(config, work.lora_rank)
    return each * (sum(counts[part] for part in kept) + head * ("decoder" not in kept) + added)


def _loss_bytes(config: VideoLLMConfig, work: Workload) -> float:
    """Bytes of the logits, their log-softmax in float32, and its gradient."""
    numbers = work.batch * work.logits(config) * config.text_config.vocab_size
    return numbers * (WIDTHS[work.precision].product + 2 * FULL) if work.reached else 0.0


def _again_bytes(config: VideoLLMConfig, work: Workload) -> float:
    """Bytes of the largest layer or DTS stage that checkpointing computes again, while its backward pass runs."""
    widths = WIDTHS[work.precision]
    if not work.checkpointing or not work.reached:
        return 0.0
    ways = [work.batch * work.positions(config) * _decoder_layer(config, work)]
    if "dts" in work.reached:  # its first stage sees the most frames
        ways.append(work.batch * work.groups(config) * _dts_stage(config, widths, config.frames_per_group))
    if "tower" in work.reached:
        patches = work.batch * work.frames * config.tower_grid[0] * config.tower_grid[1]
        ways.append(patches * _tower_layer(config, widths))
    return max(ways)


def _frozen_bytes(config: VideoLLMConfig, work: Workload) -> float:
    """Passing bytes of a tower and a DTS that no gradient reaches, in training; gone when the decoder runs."""
    frames = work.batch * work.groups(config) * config.frames_per_group  # the DTS sees all at once
    ways = [0.0]
    if "tower" not in work.reached and not work.stored_features:
        ways.append(min(frames, FRAMES_PER_PASS) * (_pixels(config, work) + _tower_passing(config, work)))
    if "dts" not in work.reached:
        ways.append(frames * _dts_passing(config, work))
    return max(ways)


def _watching_bytes(config: VideoLLMConfig, work: Workload) -> float:
    """Passing bytes of tower and DTS on the frames that are watched at once.

    Pixels and, where the grid is another, the tower's features stand beside the DTS.
    """
    patches, stream = config.tower_grid[0] * config.tower_grid[1], WIDTHS[work.precision].stream
    features = patches * stream * config.vision_config.hidden_size * (config.grid != config.tower_grid)
    most = max(_tower_passing(config, work), features + _dts_passing(config, work))
    return min(work.frames, FRAMES_PER_PASS) * (_pixels(config, work) + most)


def _pixels(config: VideoLLMConfig, work: Workload) -> float:
    """Bytes of one frame's pixels."""
    return config.vision_config.num_channels * config.vision_config.image_size**2 * WIDTHS[work.precision].stream


def _tower_passing(config: VideoLLMConfig, work: Workload) -> float:
    """Passing bytes of a tower layer for each frame, at the GELU or at the attention's end; embeddings are in both."""
    seen, widths = config.vision_config, WIDTHS[work.precision]
    gelu = 4 * widths.stream * seen.hidden_size + 2 * widths.product * seen.intermediate_size
    attention = (3 * widths.stream + 5 * widths.product) * seen.hidden_size
    return config.tower_grid[0] * config.tower_grid[1] * max(gelu, attention)


def _dts_passing(config: VideoLLMConfig, work: Workload) -> float:
    """Passing bytes of the DTS for each frame, at the end of temporal attention.

    The DTS's input, the stage's, that of the attention, the same in another order, and the sum; queries, keys and
    values, and the outcome in both orders.
    """
    widths = WIDTHS[work.precision]
    numbers = config.grid[0] * config.grid[1] * config.vision_config.hidden_size
    return numbers * (5 * widths.stream + 5 * widths.product)
