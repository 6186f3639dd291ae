"""Latents between a question and its answer: states of the language model made into its inputs, the video read again.

Idea: VideoLatent, arXiv 2606.22870, of which the abstract alone could be read ("latent injection module"). The form,
the sizes and all defaults here are ours. The markers before and after the latents are vectors of this module and no
words of the vocabulary: they are put in and never sampled, so that no table has to grow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import init

from longtake.models.dts import at_least_float32
from longtake.types import LongtakeError

Mode = Literal["parallel", "autoregressive", "pause"]

SLOT_STD = 0.5  # beside a content of RMS 1: a fifth of a latent's power is its slot's own, at first
SLOT_LIKE = 3.0  # RMS of the word that slots may stand in for, beside that


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """How latents are made. Defaults are ours.

    latents: how many; 0: none, and the answer is the one without this module.
    passes: of "parallel", how often all latents are made anew from the states that they led to.
    mode: "parallel": all at once; "autoregressive": each from the state before it; "pause": learned vectors, from which
    nothing is fed back.
    """

    latents: int = 8
    passes: int = 2
    mode: Mode = "parallel"

    def __post_init__(self) -> None:
        if self.latents < 0 or self.passes < 0:
            raise LongtakeError(f"latents is {self.latents} and passes {self.passes}; neither may be negative")
        if self.mode not in get_args(Mode):
            raise LongtakeError(f"mode is {self.mode!r}; it must be one of {', '.join(get_args(Mode))}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentSettings:
    """Sizes of the module, saved in a model's config. Defaults are ours.

    thinking: how it was trained, and how a model thinks unless it is told otherwise; as many latents have slots.
    width: of the projection and of the attention to the video, in ``heads`` heads. reread: False leaves that out.
    """

    thinking: Thinking = field(default_factory=Thinking)
    width: int = 512
    heads: int = 8
    reread: bool = True

    def __post_init__(self) -> None:
        if self.thinking.latents < 1:
            raise LongtakeError(f"latents is {self.thinking.latents}; a model that thinks has at least 1")
        if self.heads < 1 or self.width < 1 or self.width % self.heads:
            raise LongtakeError(f"width is {self.width} and heads {self.heads}; heads must divide width")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> LatentSettings:
        """Settings read back from the plain values that ``as_config`` gave."""
        return cls(**{**config, "thinking": Thinking(**config["thinking"])})

    def as_config(self) -> dict[str, Any]:
        """The settings as plain values, for a model's config.json."""
        return dataclasses.asdict(self)

    def asked(self, latents: int | None) -> Thinking:
        """Settings to think in ``latents`` latents; None: as trained. Raises LongtakeError for more than have slots."""
        if latents is None:
            return self.thinking
        if latents > self.thinking.latents:
            raise LongtakeError(
                f"latents is {latents}, but this model has {self.thinking.latents}; ask for at most as many"
            )
        return dataclasses.replace(self.thinking, latents=latents)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A batch's visual tokens as the latents read them again.

    keys, values: ``(batch, heads, tokens, width / heads)``. mask: bool ``(batch, tokens)``, False on padding.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Injected:
    """Latents, as they go into the language model at some slots.

    latents: ``(batch, slots, dim)``, each of the embedding table's RMS. content: the same before its slot's own vector
    is added, RMS 1. looks: float32 ``(batch, slots, tokens)``, where each read the video again, each row adding to one
    (to zero without a video); None in a module that does not.
    """

    latents: Tensor
    content: Tensor
    looks: Tensor | None


class LatentInjection(nn.Module):
    """States at the slots, and the video read again, to embeddings at the slots.

    z = rms * N(N(P(LN(h)) + tanh(g) * Wo a) + s), with a the attention of LN(h) Wq + e to LN(V), N the division by the
    RMS, s and e a slot's own vectors and g zero at first, so that a new module only projects what it feeds back.
    """

    rms: Tensor
    gate: nn.Parameter

    def __init__(self, hidden: int, settings: LatentSettings) -> None:
        """hidden: the language model's width."""
        super().__init__()
        self.settings = settings
        slots, width = settings.thinking.latents, settings.width
        self.start, self.end = (nn.Parameter(torch.empty(hidden)) for _ in range(2))
        self.slots = nn.Parameter(torch.empty(slots, hidden))
        self.state_norm = nn.LayerNorm(hidden)
        self.project = nn.Sequential(nn.Linear(hidden, width), nn.GELU(), nn.Linear(width, hidden))
        if settings.reread:
            self.slot_queries = nn.Parameter(torch.empty(slots, width))
            self.visual_norm = nn.LayerNorm(hidden)
            self.query = nn.Linear(hidden, width)
            self.key_value = nn.Linear(hidden, 2 * width)
            self.output = nn.Linear(width, hidden)
            self.gate = nn.Parameter(torch.empty(()))
        self.register_buffer("rms", torch.ones(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the module's own vectors; the linear layers start as their classes say."""
        init.normal_(self.slots, std=SLOT_STD)
        for marker in (self.start, self.end):
            init.normal_(marker)
        if self.settings.reread:
            init.normal_(self.slot_queries, std=SLOT_STD)
            init.zeros_(self.gate)

    @torch.no_grad()
    def match(self, table: Tensor) -> None:
        """Take the scale of an embedding table ``(vocabulary, dim)``: the mean RMS of its rows, markers included."""
        self.rms.copy_(at_least_float32(table).square().mean(dim=-1).sqrt().mean())
        for marker in (self.start, self.end):
            marker.copy_(self.rms * unit_rms(marker))

    @torch.no_grad()
    def stand_in_for(self, word: Tensor) -> None:
        """Begin at an embedding ``(dim,)``: the markers are it, and it is added to the slots as they were drawn."""
        for marker in (self.start, self.end):
            marker.copy_(self.rms * unit_rms(word))
        self.slots.add_(SLOT_LIKE * unit_rms(word))

    @property
    def openness(self) -> Tensor:
        """tanh of the gate: how much of what is read again is let in; 0 in a module that reads nothing again."""
        return self.gate.tanh() if self.settings.reread else self.start.new_zeros(())

    def read(self, visual: Tensor, mask: Tensor) -> Seen | None:
        """Visual tokens ``(batch, tokens, dim)`` and a mask, False on padding; once for all passes."""
        if not self.settings.reread:
            return None
        parts = self.key_value(normed(visual, self.visual_norm)).unflatten(-1, (2, self.settings.heads, -1))
        keys, values = parts.permute(2, 0, 3, 1, 4)
        return Seen(keys=keys, values=values, mask=mask)

    def forward(self, states: Tensor, seen: Seen | None, first: int = 0) -> Injected:
        """States ``(batch, n, dim)`` for the slots ``[first, first + n)``."""
        own = slice(first, first + states.shape[1])
        normal = normed(states, self.state_norm)
        content, looks = self.project(normal), None
        if self.settings.reread:
            assert seen is not None
            mixed, looks = attend(self.query(normal) + self.slot_queries[own], seen)
            content = content + self.openness * self.output(mixed)
        content = unit_rms(at_least_float32(content))
        latents = self.rms * unit_rms(content + self.slots[own])
        return Injected(latents=latents.to(states.dtype), content=content, looks=looks)

    def begin(self, batch: int, latents: int, seen: Seen | None) -> Injected:
        """The first latents, made of the slots' own vectors in the place of states."""
        return self(self.slots[:latents].expand(batch, -1, -1), seen)

    def pause(self, batch: int, latents: int) -> Injected:
        """Slots alone, with nothing fed back and nothing read."""
        slots = at_least_float32(self.slots[:latents]).expand(batch, -1, -1)
        latent = (self.rms * unit_rms(slots)).to(self.slots.dtype)
        return Injected(latents=latent, content=torch.zeros_like(slots), looks=None)


def unit_rms(x: Tensor) -> Tensor:
    """Vectors divided by the root mean square over the last axis, in float32 at least."""
    return F.rms_norm(at_least_float32(x), x.shape[-1:], eps=1e-6)


def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """A LayerNorm in float32 at least, whatever the weights are in; the result has the weights' type."""
    kind = torch.promote_types(torch.promote_types(x.dtype, norm.weight.dtype), torch.float32)
    found = F.layer_norm(x.to(kind), norm.normalized_shape, norm.weight.to(kind), norm.bias.to(kind), norm.eps)
    return found.to(norm.weight.dtype)


def attend(queries: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
    """Queries ``(batch, n, width)`` over the visual tokens: what they read ``(batch, n, width)``, and where.

    Without a visual token they read zeros.
    """
    split = queries.unflatten(-1, (seen.keys.shape[1], -1)).transpose(1, 2)
    scores = at_least_float32(split @ seen.keys.transpose(-1, -2)) * split.shape[-1] ** -0.5
    real = seen.mask[:, None, None]
    weights = scores.masked_fill(~real, torch.finfo(scores.dtype).min).softmax(dim=-1) * real
    mixed = (weights.to(seen.values.dtype) @ seen.values).transpose(1, 2).flatten(2)
    return mixed, weights.mean(dim=1)


def matched_noise(module: LatentInjection, batch: int, latents: int, generator: torch.Generator) -> Tensor:
    """Gaussian vectors of the latents' RMS, ``(batch, latents, dim)``: a control."""
    drawn = torch.randn(batch, latents, module.start.shape[0], generator=generator, device=generator.device)
    return module.rms * unit_rms(drawn.to(module.start.device))


def one_repeated(module: LatentInjection, latents: int) -> Tensor:
    """The first slot's own vector at every slot, ``(latents, dim)``: a control."""
    return module.pause(1, 1).latents[0].expand(latents, -1)


def mean_latents(module: LatentInjection, collected: Tensor) -> Tensor:
    """The mean over samples ``(samples, latents, dim)`` of each slot, at the latents' RMS: a control."""
    return module.rms * unit_rms(at_least_float32(collected).mean(dim=0))
