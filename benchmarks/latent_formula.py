"""Operations of thinking by formula: of what ``latent.py`` runs, and at Video-R1's lengths, which is computed only.

Where something is run, the formulas are checked against counted operations. Of Qwen2.5-VL-7B the shape alone is used.
PyTorch's counter counts in attention what the causal mask hides, and so do formulas that are checked against it; at
Video-R1's lengths that is left out, as fused kernels do. Norms, activation functions and the optimiser are left out.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from transformers import Qwen2Config

from longtake.models.latent import LatentSettings, Thinking

GROUP = 8  # Video-R1's completions of a prompt
TEXT = 150  # tokens of its prompt beside the video; ours
ANSWER = 2  # tokens of an option's letter and the end; ours
VISUAL = {16: 8 * 128, 32: 16 * 256, 64: 32 * 256}  # tokens by frames: its training, and two of its evaluations
# its length reward pays for 320 to 512 tokens, its training samples 768 at most, its evaluation 1024
LENGTHS = (320, 512, 768, 1024)
CLAIMED = {"asked": 68.0, "learned": 6.0}  # in VideoLatent's abstract, of what is not said

TOWER = {"layers": 32, "full": 4, "width": 1280, "inner": 3420, "patch": 3 * 2 * 14 * 14, "window": 64, "merged": 4}


@lru_cache
def seven_billion() -> Qwen2Config:
    """The shape of Qwen2.5-VL-7B's language model."""
    return Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """A decoder's operations. skips_masked: attention leaves out what the causal mask hides."""

    config: Qwen2Config
    skips_masked: bool

    def run(self, columns: int, before: int = 0, *, rows: int = 1) -> float:
        """So many columns at once, behind others; each row."""
        return rows * (columns * self._column + self._attention(columns, before))

    def one_by_one(self, columns: int, before: int, *, rows: int = 1) -> float:
        """So many columns one after the other, each with its logits."""
        pairs = columns * before + columns * (columns + 1) // 2
        return rows * (columns * (self._column + self.head()) + pairs * self._pair)

    def learn(self, columns: int, before: int = 0, *, rows: int = 1) -> float:
        """Forward and backward: twice the products with weights, and two and a half times those of attention."""
        return rows * (3 * columns * self._column + 3.5 * self._attention(columns, before))

    def head(self, columns: int = 1) -> float:
        """Logits."""
        return 2.0 * columns * self.config.hidden_size * self.config.vocab_size

    def _attention(self, columns: int, before: int) -> float:
        own = columns * (columns + 1) // 2 if self.skips_masked else columns * columns
        return (columns * before + own) * self._pair

    @property
    def _column(self) -> float:
        """Products of one column with all weights."""
        own, heads = self.config, self.config.num_attention_heads
        width = own.hidden_size // heads
        attention = own.hidden_size * width * (2 * heads + 2 * own.num_key_value_heads)
        return 2.0 * own.num_hidden_layers * (attention + 3 * own.hidden_size * own.intermediate_size)

    @property
    def _pair(self) -> float:
        return 4.0 * self.config.num_hidden_layers * self.config.hidden_size


def thinking_flops(
    decoder: Decoder, settings: LatentSettings, thinking: Thinking, prompt: int, visual: int, *, rows: int = 1
) -> float:
    """Of all between a prompt and its answer, but for the columns that are run with the prompt."""
    count, dim, width = thinking.latents, decoder.config.hidden_size, settings.width
    passes: list[float] = []
    makings = 0
    if thinking.mode == "autoregressive":
        passes = [decoder.run(1, prompt + n) for n in range(1, count)] + [decoder.run(2, prompt + count)]
        makings = count
    elif thinking.mode == "parallel":
        makings = count * (1 + thinking.passes)
        if thinking.passes:
            passes = [decoder.run(count, prompt + 1)] * (thinking.passes - 1) + [decoder.run(count + 1, prompt + 1)]
    module = makings * making_flops(settings, dim, visual)
    if makings and settings.reread:
        module += 4.0 * visual * dim * width
    return rows * (sum(passes) + decoder.head() + module)


def making_flops(settings: LatentSettings, dim: int, visual: int) -> float:
    """Of one latent: its projection and, where it reads the video again, query, attention and output."""
    width = settings.width
    return 4.0 * dim * width + settings.reread * (4.0 * dim * width + 4.0 * visual * width)


def passes_of(thinking: Thinking | None, thought: int, answer: int) -> int:
    """Forward passes of the language model one after the other, once the prompt was run.

    thinking: None for a thought in words, of ``thought`` tokens (0: none). answer: tokens, its end included.
    """
    if thinking is None:
        return thought + answer - 1
    steps = {"parallel": thinking.passes, "autoregressive": thinking.latents, "pause": 0}[thinking.mode]
    return steps + answer - 1


def columns_with_prompt(thinking: Thinking) -> int:
    """How many columns behind the prompt are known beforehand and run with it: marker, first latents, perhaps all."""
    if thinking.mode == "autoregressive":
        return 1
    return thinking.latents + (1 if thinking.mode == "parallel" and thinking.passes else 2)


def asking_flops(
    decoder: Decoder, prompt: int, visual: int, answer: int, *, thought: int = 0,
    settings: LatentSettings | None = None, thinking: Thinking | None = None,
) -> dict[str, float]:  # fmt: skip
    """Of one question, by stage: prefill, thought, answer."""
    if settings is None or thinking is None:
        first = decoder.run(prompt) + decoder.head()
        think, begun = decoder.one_by_one(thought, prompt), prompt + thought
    else:
        first = decoder.run(prompt + columns_with_prompt(thinking))
        think = thinking_flops(decoder, settings, thinking, prompt, visual)
        begun = prompt + thinking.latents + 2
    return {"prefill": first, "thought": think, "answer": decoder.one_by_one(answer - 1, begun)}


def sft_flops(decoder: Decoder, columns: int, learned: int) -> float:
    """Of a step on one row of so many columns, of which an answer or a trace with its end is learned."""
    return decoder.learn(columns) + 3 * decoder.head(learned)


def latent_flops(
    decoder: Decoder, settings: LatentSettings, prompt: int, visual: int, answer: int, learned: int
) -> float:
    """Of a step of self-forcing on one row, latents made all at once and aligned to themselves.

    The rollout without a gradient but for the last making, then the forced pass over prompt, latents and ``answer``
    columns, of which ``learned`` are. What is read again and the last two makings have a backward pass.
    """
    count, passes, dim = settings.thinking.latents, settings.thinking.passes, decoder.config.hidden_size
    rollout = 0.0
    if passes:
        together = count * (passes > 1)  # a making with a gradient is run apart from the prompt
        rollout = decoder.run(prompt + 1 + together) + decoder.learn(count, prompt + 1)
        rollout += max(0, passes - 2) * decoder.run(count, prompt + 1)
    making = count * making_flops(settings, dim, visual)
    module = (passes + 2 * 3) * making + 2 * 3 * settings.reread * 4.0 * visual * dim * settings.width
    forced = sft_flops(decoder, prompt + count + 2 + answer, learned)
    return rollout + module + forced


def grpo_flops(decoder: Decoder, prompt: int, length: int, group: int) -> float:
    """Of a step on one prompt as ``train/grpo.py`` takes it, without a reference: the prompt is run once a pass."""
    sampled = decoder.run(prompt) + decoder.head() + decoder.one_by_one(length - 1, prompt, rows=group)
    update = decoder.learn(prompt) + decoder.learn(length, prompt, rows=group)
    return sampled + update + 3 * decoder.head(group * length)


def video_r1_flops(decoder: Decoder, prompt: int, length: int, group: int) -> float:
    """Of a step on one prompt as Video-R1's trainer takes it: a prompt for each completion, logits of all columns, and
    a reference; T-GRPO's completions on shuffled frames left out."""
    sampled = decoder.run(prompt) + decoder.head() + decoder.one_by_one(length - 1, prompt)
    whole = prompt + length
    scored = decoder.run(whole) + decoder.learn(whole) + 4 * decoder.head(whole)
    return group * (sampled + scored)


def tower_flops(visual: int, frames: int) -> float:
    """Of Qwen2.5-VL-7B's tower, for so many tokens of a video: most layers look within windows of 64 patches."""
    width, merged = TOWER["width"], TOWER["merged"]
    patches, together = merged * visual, merged * visual // (frames // 2)
    linear = 2.0 * TOWER["layers"] * (4 * width**2 + 3 * width * TOWER["inner"]) + 2.0 * TOWER["patch"] * width
    looks = TOWER["full"] * together + (TOWER["layers"] - TOWER["full"]) * TOWER["window"]
    merger = 2.0 * (merged * width) * (merged * width + 3584)
    return patches * (linear + 4.0 * looks * width) + visual * merger


def compared(settings: LatentSettings, frames: int, length: int) -> dict[str, dict[str, float]]:
    """How many times what latents take a completion of ``length`` tokens takes, by denominator.

    asked: one question. learned: one question's step, without tower and reading.
    """
    decoder, thinking, visual = Decoder(config=seven_billion(), skips_masked=True), settings.thinking, VISUAL[frames]
    prompt, tower = TEXT + visual, tower_flops(visual, frames)
    ours = asking_flops(decoder, prompt, visual, ANSWER, settings=settings, thinking=thinking)
    theirs = asking_flops(decoder, prompt, visual, ANSWER, thought=length - ANSWER)
    after = [own["thought"] + own["answer"] for own in (theirs, ours)]
    language = [sum(own.values()) for own in (theirs, ours)]
    learned = latent_flops(decoder, settings, prompt, visual, ANSWER, ANSWER)
    return {
        "asked": {
            "tokens": length / ANSWER,
            "tokens and latents": length / (thinking.latents + ANSWER),
            "passes": passes_of(None, length - ANSWER, ANSWER) / passes_of(thinking, 0, ANSWER),
            "operations after the prompt": after[0] / after[1],
            "operations of the language model": language[0] / language[1],
            "operations with the tower": (language[0] + tower) / (language[1] + tower),
        },
        "learned": {
            "trace": sft_flops(decoder, prompt + length, length) / learned,
            "grpo": grpo_flops(decoder, prompt, length, GROUP) / learned,
            "grpo, Video-R1's trainer": video_r1_flops(decoder, prompt, length, GROUP) / learned,
        },
    }


def at_video_r1s_lengths(settings: LatentSettings) -> dict[str, Any]:
    """``compared`` at its lengths, and the shortest completion at which each ratio is the one that is claimed.

    first: by frames and denominator; None where no length up to the longest has it.
    """
    rows = [
        {"frames": frames, "length": length, **compared(settings, frames, length)}
        for frames in VISUAL for length in LENGTHS
    ]  # fmt: skip
    first: dict[int, dict[str, int | None]] = {frames: {} for frames in VISUAL}
    lengths = range(ANSWER + 1, LENGTHS[-1] + 1)
    for frames, found in first.items():
        for kind, claimed in CLAIMED.items():
            for name in rows[0][kind]:
                place = bisect_left(
                    lengths, claimed, key=lambda length: compared(settings, frames, length)[kind][name]
                )
                found[f"{kind}: {name}"] = lengths[place] if place < len(lengths) else None
    return {"rows": rows, "first": first}
