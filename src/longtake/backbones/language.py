"""What every Hugging Face decoder shares: prepare, prefill, generate on the cache, log-probabilities.

A family adds how frames become tokens (``encode``), how tokens and text stand in the prompt (``layout``) and,
where it has one, its query scorer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import Cache as KeyValues
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longtake.backbones.attention import NAME, Abreast, Branches, Recorder, Veil
from longtake.backbones.base import Cache, Held, Inputs, Prompt, Read
from longtake.backbones.begun import begin, cached
from longtake.backbones.identity import weights_hash
from longtake.backbones.keys import crop, growing
from longtake.backbones.layout import Layout, collate, ids_of, with_answer
from longtake.backbones.tape import Tape
from longtake.models.latent import LatentInjection
from longtake.types import Frames, LongtakeError, Query, Rollout, VisualTokens

PREFILL_COLUMNS = 8192  # columns run at once: bounds the memory of activations, not the result
LOGITS = 1 << 26  # logits that exist at once while given completions are scored: 256 MiB in float32

Model = TypeVar("Model", bound=PreTrainedModel)


class DecoderBackbone(ABC):
    """A Backbone over a decoder that takes ``inputs_embeds``, and its output head.

    evidence_layers: the layers whose attention is recorded as evidence; by default the upper half, uncalibrated.
    evidence_threshold: share of the best group's attention above which a group counts as evidence.
    query_layer: the layer whose states ``encode_query`` returns; 0 is the embedding table.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        decoder: PreTrainedModel,
        head: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        banned: Sequence[int],
        query_layer: int,
        evidence_layers: Sequence[int] | None = None,
        evidence_threshold: float = 0.5,
    ) -> None:
        layers = decoder.config.num_hidden_layers
        if "sliding_attention" in decoder.config.layer_types:
            raise LongtakeError("the decoder has sliding-window layers; only full attention is supported")
        decoder.set_attn_implementation(NAME)
        self.model = model
        self.decoder = decoder
        self.head = head
        self.tokenizer = tokenizer
        self.query_layer = query_layer
        self.evidence_threshold = evidence_threshold
        self.evidence_layers = tuple(range(layers // 2, layers) if evidence_layers is None else evidence_layers)
        self._ids_of = ids_of(tokenizer)
        self._banned = torch.tensor(sorted(banned))
        self._ends = torch.tensor(sorted(_end_ids(model, tokenizer)))

    @property
    @abstractmethod
    def frames_per_group(self) -> int: ...

    @property
    @abstractmethod
    def context_tokens(self) -> int: ...

    @property
    @abstractmethod
    def frame_size(self) -> tuple[int, int] | None: ...

    @property
    @abstractmethod
    def scorer(self) -> str | None: ...

    @abstractmethod
    def encode(self, frames: Frames) -> VisualTokens: ...

    @abstractmethod
    def tower_features(self, frames: Frames) -> Tensor: ...

    @abstractmethod
    def random_tower(self, seed: int) -> Callable[[Frames], Tensor]: ...

    @abstractmethod
    def encode_features(self, features: Tensor, seconds: Tensor) -> VisualTokens: ...

    @property
    @abstractmethod
    def video_parts(self) -> tuple[torch.nn.Module, ...]: ...

    @abstractmethod
    def save(self, folder: Path) -> None: ...

    @abstractmethod
    def score(self, tokens: VisualTokens, query: Query) -> Tensor: ...

    @abstractmethod
    def layout(self, prompt: Prompt) -> Layout:
        """The columns of a prompt up to where the answer begins."""

    @property
    def name(self) -> str:
        """Architecture and a hash of the weights, the same whatever the device and floating-point type."""
        return f"{self.model.config.model_type}-{weights_hash(self.model)}"

    @property
    def device(self) -> torch.device:
        table: torch.nn.Module = self.decoder.get_input_embeddings()
        return next(table.parameters()).device

    @property
    def latent(self) -> LatentInjection | None:
        """What makes latents between question and answer; None where the model has none."""
        return getattr(self.model, "latent", None)

    @property
    def query_name(self) -> str:
        """The name under which ``encode_query`` puts its states into ``Query.embeddings``."""
        return f"{self.model.config.model_type}:layer{self.query_layer}"

    def encode_query(self, text: str) -> Query:
        """States of ``query_layer`` in a forward of the question's own tokens, ``(tokens, dim)``; differentiable."""
        query = Query(text=text)
        states = self.embed(self.text_ids(query.text.strip()))[None]
        if self.query_layer:
            places = torch.arange(states.shape[1], device=self.device)[None]
            run = self.decoder(
                inputs_embeds=states, position_ids=places, use_cache=False, output_hidden_states=True
            )
            states = run.hidden_states[self.query_layer]
        return Query(text=text, embeddings={self.query_name: states[0]})

    def prompt_tokens(self, prompt: Prompt) -> int:
        """Columns of a prompt up to where the answer begins."""
        return len(self.layout(prompt).ids)

    def prepare(self, prompts: Sequence[Prompt], *, shared: bool = False) -> Inputs:
        """Prompts to a padded batch (``collate``); an answer is followed by the end token, and both are learned."""
        layouts = []
        for prompt in prompts:
            layout = self.layout(prompt)
            if prompt.answer is not None:
                answer = [*self.text_ids(prompt.answer).tolist(), self.end_id]
                layout = with_answer(layout, answer)
            layouts.append(layout)
        return collate(layouts, self.embed, shared=shared)

    @torch.no_grad()
    def prefill(
        self, inputs: Inputs, cache: Cache | None = None, *, stop: int | None = None, veil: Veil | None = None
    ) -> Cache:
        """Run columns ``[cache.length, stop)``; extends the cache's keys in place.

        The given cache stays usable: whoever runs from it next crops what was added here.
        """
        stop = inputs.ids.shape[1] if stop is None else stop
        if cache is not None and cache.length == stop:
            crop(cache.key_values, stop)
            return cache
        recorder = self.recorder()
        read = self.read(inputs, cache, stop=stop, veil=veil, recorder=recorder)
        return cached(self, read, recorder)

    @torch.no_grad()
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
        """Run columns ``[held.length, stop)``, ``PREFILL_COLUMNS`` at a time; extends what is held in place.

        The states are those of the last ``columns`` columns, and the recorder records in the last pass.
        """
        stop = inputs.ids.shape[1] if stop is None else stop
        if held is None:
            start, key_values = 0, growing(self.decoder.config.num_hidden_layers, inputs.ids.shape[1])
        else:
            start, key_values = held.length, held.key_values
            crop(key_values, start)
        assert stop - start >= columns, f"{columns} columns are wanted, {start} to {stop} are run"
        mask = None if bool(inputs.mask[:, :stop].all()) else inputs.mask
        last = start
        while last < stop:
            first, last = last, min(last + PREFILL_COLUMNS, stop)
            if stop - last < columns:  # they are run together
                last = stop
            states = self.run(
                inputs.embeddings[:, first:last],
                inputs.positions[..., first:last],
                None if mask is None else mask[:, :last],
                key_values,
                recorder if last == stop else None,
                veil=veil,
            )
        return Read(key_values=key_values, length=stop, states=states[:, -columns:])

    @torch.no_grad()
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
        """Completions, ``num_rollouts`` for each row, rows first; greedy at temperature 0.

        top_p: tokens are drawn from the likeliest ones that together have this probability.
        generators: one for each row, whose draws then do not depend on the rows beside it; none: PyTorch's own.
        A given cache (of all columns, or of the prefix) is extended while this runs and cropped back at the end. One
        row's cache of the prefix will do for several rows that share it.
        Several completions of a row grow side by side, and so do rows that share a prefix: what they have in common is
        held and read once. ``Rollout.attention`` is aligned with the columns of ``inputs``, padding included.
        """
        begun = begin(self, inputs, cache, num_rollouts)
        logits, look, mask = begun.logits, begun.look, begun.mask
        batch, count = begun.positions.shape
        tape = Tape(ends=self._ends.to(self.device), looks=torch.zeros_like(look))
        for step in range(max_new_tokens):
            ids, logprobs = self._choose(logits, temperature, top_p, generators)
            tape.write(ids, logprobs, look)
            if tape.all_finished or step == max_new_tokens - 1:
                break
            recorder = self.recorder() if record_attention else None
            if mask is not None:
                mask = torch.nn.functional.pad(mask, (0, count), value=True)
            new = self.embed(ids).unflatten(0, (batch, count))
            states = self.run(new, begun.positions + step, mask, begun.key_values, recorder, begun.abreast)
            logits = self.head(states.flatten(0, 1))
            look = look if recorder is None else begun.aligned(recorder)
        if cache is not None:
            crop(cache.key_values, cache.length)
        return tape.rollouts(self.tokenizer, attention=record_attention)

    def logprobs(
        self, inputs: Inputs, completions: Sequence[Sequence[int]], *, temperature: float = 1.0
    ) -> Tensor:
        """Log-probabilities of given completions, float32 ``(completions, longest)``, 0 on padding. Differentiable.

        There may be several completions for each row, rows first, as ``generate`` returns them; each row is run once,
        with its gradient, and its completions go on from it side by side.
        """
        rows = len(inputs.ids)
        count, rest = divmod(len(completions), rows)
        assert not rest, f"{len(completions)} completions do not divide among {rows} rows"
        stem, longest = inputs.ids.shape[1], max(map(len, completions))
        given = [torch.tensor(ids, dtype=torch.int64, device=self.device) for ids in completions]
        ids = torch.nn.utils.rnn.pad_sequence(given, batch_first=True)
        real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in given], True)
        places = inputs.next_position[:, None] + torch.arange(longest, device=self.device).repeat(count)
        mask = torch.nn.functional.pad(inputs.mask, (0, count * longest), value=True)
        states = self.run(
            torch.cat([inputs.embeddings, self.embed(ids.view(rows, -1))], dim=1),
            torch.cat([inputs.positions, places.expand(*inputs.positions.shape[:-1], -1)], dim=-1),
            None if bool(inputs.mask.all()) else mask,
            branches=Branches(stem=stem, count=count) if count > 1 else None,
        )
        before = states[:, None, stem - 1 : stem].expand(-1, count, -1, -1)
        predicting = torch.cat([before, states[:, stem:].unflatten(1, (count, -1))[:, :, :-1]], dim=2).flatten(0, 1)
        return self._of_given(predicting, ids, temperature).masked_fill(~real, 0.0)

    def _of_given(self, states: Tensor, ids: Tensor, temperature: float) -> Tensor:
        """Log-probabilities of ids under the states that predict them, ``(rows, tokens)``.

        Rows are taken ``LOGITS`` logits at a time, and these computed again in the backward pass.
        """

        def of(states: Tensor, ids: Tensor) -> Tensor:
            return self._log_softmax(self.head(states), temperature).gather(-1, ids[..., None]).squeeze(-1)

        at_once = max(1, LOGITS // (ids.shape[1] * self.decoder.config.vocab_size))
        if at_once >= len(ids):
            return of(states, ids)
        parts = zip(states.split(at_once), ids.split(at_once), strict=True)
        return torch.cat([checkpoint(of, *part, use_reentrant=False) for part in parts])

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids to embeddings; differentiable."""
        table: torch.nn.Module = self.decoder.get_input_embeddings()
        embedded: Tensor = table(ids.to(self.device))
        return embedded

    def text_ids(self, text: str) -> Tensor:
        """Token ids of a text as it stands, int64 ``(tokens,)``."""
        return torch.tensor(self._ids_of(text, len(self.tokenizer)), dtype=torch.int64, device=self.device)

    @property
    def end_id(self) -> int:
        """The token that ends an answer."""
        return int(self.tokenizer.eos_token_id)

    def recorder(self, columns: int = 1) -> Recorder:
        """A ``Recorder`` of where the last ``columns`` columns of a run look, in the evidence layers."""
        return Recorder(layers=frozenset(self.evidence_layers), columns=columns)

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
        """States of columns behind those whose keys and values are given, which are extended; differentiable.

        mask: of these columns too. The other arguments are attention's own.
        """
        run = self.decoder(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=key_values,
            use_cache=key_values is not None,
            recorder=recorder,
            branches=branches,
            veil=veil,
        )
        states: Tensor = run.last_hidden_state
        return states

    def _log_softmax(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Float32 log-probabilities in which placeholders of visual tokens cannot be drawn."""
        logits = logits.float() / temperature
        return logits.index_fill(-1, self._banned.to(logits.device), float("-inf")).log_softmax(dim=-1)

    def _choose(
        self, logits: Tensor, temperature: float, top_p: float, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        logprobs = self._log_softmax(logits, temperature or 1.0)
        if top_p < 1.0:
            logprobs = nucleus(logprobs, top_p)
        if temperature:
            parts = logprobs.exp().chunk(max(1, len(generators)))
            drawn = zip(parts, generators or (None,), strict=True)
            ids = torch.cat([torch.multinomial(part, 1, generator=generator) for part, generator in drawn])
        else:
            ids = logprobs.argmax(dim=-1, keepdim=True)
        return ids[:, 0], logprobs.gather(-1, ids)[:, 0]


def pixels_of(frames: Frames, device: torch.device) -> Tensor:
    """The frames' pixels as a tensor of their own: views that run backwards or may not be written are copied."""
    return torch.tensor(np.ascontiguousarray(frames.pixels), device=device)


def nucleus(logprobs: Tensor, top_p: float) -> Tensor:
    """The distribution ``(..., vocabulary)`` cut to its likeliest tokens that together reach ``top_p``, renormalised.

    Paper: Holtzman et al., arXiv 1904.09751, equations 2 and 3. Tokens cut off have -inf; the likeliest always stays.
    """
    ordered, places = logprobs.sort(dim=-1, descending=True)
    before = ordered.exp().cumsum(dim=-1) - ordered.exp()
    cut = torch.zeros_like(before, dtype=torch.bool).scatter(-1, places, before >= top_p)
    return logprobs.masked_fill(cut, float("-inf")).log_softmax(dim=-1)


def load_weights(kind: type[Model], path: str, device: str | torch.device, dtype: torch.dtype | None) -> Model:
    """``from_pretrained``, but weights that the checkpoint lacks are an error and not random numbers."""
    loaded: Any = kind.from_pretrained(path, dtype=dtype or "auto", output_loading_info=True)
    model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise LongtakeError(
            f"{path}: the checkpoint lacks {len(missing)} weights, the first {missing[0]}; "
            "give one that was saved whole with this architecture"
        )
    placed: Model = model.to(device).eval()
    return placed


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    declared = model.generation_config.eos_token_id
    declared = [] if declared is None else [declared] if isinstance(declared, int) else declared
    return {*declared, tokenizer.eos_token_id}
