"""The adapter protocol: all that watching, asking and training know of a model.

Two families stand behind it: longtake's own ``VideoLLM`` and Hugging Face VLMs as they are. Everything
else (watch, ask, selectors, policy optimisation, latents) is written once against these verbs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from longtake.types import Frames, LongtakeError, Query, Rollout, VisualTokens

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor
    from torch.nn import Module
    from transformers import Cache as KeyValues
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from longtake.backbones.attention import Abreast, Branches, Recorder, Veil
    from longtake.models.latent import LatentInjection


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of a prompt: some text, and behind it a video or a picture.

    timed: whether the tokens' times are told, as a video's are; a picture has none.
    """

    text: str = ""
    tokens: VisualTokens | None = None
    timed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One question about one video (or about none), with the answer when it is to be learned.

    parts: what stands before the question instead of one video: texts, videos and pictures in their order.
    """

    question: str
    tokens: VisualTokens | None = None
    answer: str | None = None
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        if self.parts and self.tokens is not None:
            raise ValueError("a prompt has one video's tokens or parts, not both")

    def unseen(self) -> Prompt:
        """Without its video; of parts the text alone stays."""
        return replace(self, tokens=None, parts=tuple(replace(part, tokens=None) for part in self.parts))

    @property
    def shown(self) -> tuple[Part, ...]:
        """What stands before the question, the one video too as a part."""
        return self.parts if self.tokens is None else (Part(tokens=self.tokens),)

    @property
    def visuals(self) -> tuple[VisualTokens, ...]:
        """The tokens of all parts that have some."""
        return tuple(part.tokens for part in self.shown if part.tokens is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """A padded batch, ready for the language model. Rows are padded on the LEFT, and behind prefixes that are shared.

    embeddings: ``(batch, length, dim)``.
    positions: int64 ``(batch, length)``, or ``(3, batch, length)`` for multi-axis rotary embeddings.
    mask: bool ``(batch, length)``, False on padding.
    source: int64 ``(batch, length)``: the index of the prompt's visual token in this column, -1 elsewhere; the tokens
        of several parts are counted on.
    ids: int64 ``(batch, length)``: the token ids, a placeholder id where a visual token stands, -1 where a latent or a
        latents' marker does.
    labels: int64 ``(batch, length)``, each column's own id where it is to be learned (not shifted), IGNORE elsewhere;
        None when no prompt has an answer.
    prefix: leading columns that do not depend on the question (system text, and all up to the last video or picture),
        so that a cache of them can be asked again; 0 where rows are not prepared to share them.
    next_position: int64 ``(batch,)``: the position of the first generated token.
    """

    embeddings: Tensor
    positions: Tensor
    mask: Tensor
    source: Tensor
    ids: Tensor
    labels: Tensor | None = None
    prefix: int = 0
    next_position: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Keys and values of the first ``length`` columns of some Inputs.

    key_values: mutable; running on from them extends them, and ``generate`` crops them back to ``length``.
        What is made from a shorter cache shares them, and ends when the shorter one is asked again.
    """

    key_values: KeyValues
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Read(Held):
    """The same, with the states of the last columns that were run: ``(batch, columns, dim)``."""

    states: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache(Held):
    """The same, and what the last column gave.

    logits: ``(batch, vocabulary)``. attention: float32 ``(batch, length)``, where it looked: mean over heads and
    evidence layers.
    """

    logits: Tensor
    attention: Tensor


def no_scorer(name: str) -> LongtakeError:
    """The refusal where a backbone of this name has no trained query scorer."""
    return LongtakeError(
        f"{name} has no trained scorer to choose tokens by the question; "
        "choose evenly with selector=longtake.select.Uniform() (--select uniform), or watch at a lower fps"
    )


class Backbone(Protocol):
    """A video language model behind the adapter."""

    @property
    def name(self) -> str:
        """Identity for provenance: architecture and a hash of the weights."""

    @property
    def model(self) -> PreTrainedModel:
        """The whole network, with all weights."""

    @property
    def decoder(self) -> PreTrainedModel:
        """The language model without its head; part of ``model``, as all parts named here."""

    @property
    def head(self) -> Module:
        """The output head: states to logits."""

    @property
    def video_parts(self) -> tuple[Module, ...]:
        """Parts that ``encode_features`` passes, between the frozen tower and the language model; () for none."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def latent(self) -> LatentInjection | None:
        """What makes latents between question and answer, a part of ``model``; None where the model has none."""

    @property
    def frames_per_group(self) -> int:
        """How many frames become one time group; a chunk of frames is encoded in whole groups."""

    @property
    def context_tokens(self) -> int:
        """Positions that the language model was declared for."""

    @property
    def frame_size(self) -> tuple[int, int] | None:
        """(height, width) that frames are resized to whatever their shape, or None when the shape matters."""

    @property
    def evidence_threshold(self) -> float:
        """Share of the best group's attention above which a group counts as evidence."""

    @property
    def scorer(self) -> str | None:
        """The name of the trained query scorer's embedding in ``Query.embeddings``; None when there is none."""

    def encode(self, frames: Frames) -> VisualTokens:
        """Frames to tokens in the language model's space; differentiable; times in ``frames.seconds``."""

    def tower_features(self, frames: Frames) -> Tensor:
        """Each frame alone, as the frozen vision encoder sees it: ``(frames, rows, columns, dim)``."""

    def random_tower(self, seed: int) -> Callable[[Frames], Tensor]:
        """``tower_features`` of the same architecture with random weights: what its shape alone tells."""

    def encode_features(self, features: Tensor, seconds: Tensor) -> VisualTokens:
        """Stored ``tower_features`` and their frames' times, float64 ``(frames,)``, to tokens; differentiable."""

    def encode_query(self, text: str) -> Query:
        """Question-only forward of the language model: states of a stated layer, ``(tokens, dim)``."""

    def score(self, tokens: VisualTokens, query: Query) -> Tensor:
        """Relevance of each visual token to the question, ``(tokens,)``; raises without a trained scorer."""

    def text_ids(self, text: str) -> Tensor:
        """Token ids of a text as it stands, int64 ``(tokens,)``."""

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids to embeddings; differentiable."""

    @property
    def end_id(self) -> int:
        """The token that ends an answer."""

    def prompt_tokens(self, prompt: Prompt) -> int:
        """How many columns ``prepare`` would make of a prompt without an answer; nothing is embedded."""

    def prepare(self, prompts: Sequence[Prompt], *, shared: bool = False) -> Inputs:
        """Prompts to a padded batch of embeddings, positions, mask and labels.

        shared: they are questions about one video's tokens, and the batch keeps the prefix that they have in common; or
        about several videos, and the prefixes end in one column.
        """

    def prefill(
        self, inputs: Inputs, cache: Cache | None = None, *, stop: int | None = None, veil: Veil | None = None
    ) -> Cache:
        """Run columns ``[cache.length, stop)`` of the inputs through the language model; without gradient."""

    def read(
        self,
        inputs: Inputs,
        held: Held | None = None,
        *,
        stop: int | None = None,
        veil: Veil | None = None,
        columns: int = 1,
        recorder: Recorder | None = None,
    ) -> Read:
        """The same, for the states of the last ``columns`` columns: run in one pass, which the recorder records."""

    def run(
        self,
        embeddings: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        key_values: KeyValues | None = None,
        recorder: Recorder | None = None,
        branches: Branches | Abreast | None = None,
        veil: Veil | None = None,
    ) -> Tensor:
        """States of columns behind those whose keys and values are given, which are extended; differentiable."""

    def recorder(self, columns: int = 1) -> Recorder:
        """A ``Recorder`` of where the last columns of a run look, in the layers whose attention is evidence."""

    def generate(
        self,
        inputs: Inputs,
        cache: Cache | None = None,
        *,
        max_new_tokens: int = 64,
        num_rollouts: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        generators: Sequence[torch.Generator] = (),
        record_attention: bool = False,
    ) -> list[Rollout]:
        """Completions for each row (``num_rollouts`` a row, rows first); greedy at temperature 0.

        generators: one for each row, whose draws then do not depend on the rows beside it; none: PyTorch's own.
        """

    def logprobs(
        self, inputs: Inputs, completions: Sequence[Sequence[int]], *, temperature: float = 1.0
    ) -> Tensor:
        """Log-probabilities of given completions, float32 ``(completions, longest)``, 0 on padding; differentiable.

        As many for each row of the inputs, rows first; a row is run once for all of its completions.
        """

    def save(self, folder: Path) -> None:
        """Write what ``load_backbone`` reads into a folder."""
