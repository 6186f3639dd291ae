"""Memory, question and backbone to Answer: select if it must, prompt, generate, and say which moments counted."""

from __future__ import annotations

import time
import warnings
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import longtake.video
from longtake.backbones.base import Cache, Inputs, Prompt, no_scorer
from longtake.backbones.layout import some_rows
from longtake.backbones.thinking import Thought, think, thinking_of
from longtake.evidence import evidence_spans, group_scores, group_times, place_scores
from longtake.models.latent import Thinking
from longtake.select import Selector, TopK
from longtake.types import Answer, LatentLooks, LongtakeError, Memory, Query, Usage, VideoError, VisualTokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from longtake.backbones.base import Backbone

COLUMNS_AT_ONCE = 1024  # of the questions that are answered side by side, the video's columns left out

__all__ = ["PrefixCache", "ask", "ask_all", "check_video", "thinking_for"]


@dataclass(slots=True, kw_only=True)
class PrefixCache:
    """Keys and values of videos already read by the language model, by (memory, kept tokens), latest used last.

    max_entries: how many to hold; each costs the keys and values of one whole prompt.
    """

    max_entries: int = 2
    _entries: OrderedDict[tuple[int, bytes], tuple[Memory, Cache]] = field(default_factory=OrderedDict, init=False)

    def get(self, memory: Memory, kept: Tensor | None) -> Cache | None:
        entry = self._entries.get(_key(memory, kept))
        if entry is None:
            return None
        self._entries.move_to_end(_key(memory, kept))
        return entry[1]

    def put(self, memory: Memory, kept: Tensor | None, cache: Cache) -> None:
        self._entries[_key(memory, kept)] = (memory, cache)  # holding the memory keeps its id from being used again
        while len(self._entries) > self.max_entries:
            self._entries.popitem(last=False)

    def __len__(self) -> int:
        return len(self._entries)


def _key(memory: Memory, kept: Tensor | None) -> tuple[int, bytes]:
    return id(memory), _kept_key(kept)


def _kept_key(kept: Tensor | None) -> bytes:
    return b"" if kept is None else kept.cpu().numpy().tobytes()


def ask(
    backbone: Backbone,
    memory: Memory,
    question: str,
    *,
    selector: Selector | None = None,
    budget_tokens: int | None = None,
    max_new_tokens: int = 64,
    cache: PrefixCache | None = None,
    latents: int | None = None,
    show_latents: bool = False,
) -> Answer:
    """Answer one question about a watched video, greedily; nothing is read or encoded again.

    selector: how to choose among the tokens, used only when they do not fit the model's context or a budget is given;
        None means by relevance to the question, which needs a backbone with a trained scorer.
    budget_tokens: at most this many visual tokens in the prompt.
    cache: shares the language model's reading of the video among questions about the same memory and kept tokens.
    latents: how many to think in before answering; None: as the model was trained, 0: none.
    show_latents: whether to tell where they looked.

    In the answer's usage, read, encode and compress are what watching spent, once; prefill is reading the video's part
    of the prompt (0 when it came from the cache), think the question and its latents where there are any, and generate
    the answer (with the question where there are none).

    Warns when the video file has changed.
    Raises LongtakeError for an empty or too long question, another model's memory, a missing scorer, or latents that
    the model does not have.
    """
    (answer,) = ask_all(
        backbone,
        memory,
        [question],
        selector=selector,
        budget_tokens=budget_tokens,
        max_new_tokens=max_new_tokens,
        cache=cache,
        latents=latents,
        show_latents=show_latents,
    )
    return answer


@torch.no_grad()
def ask_all(
    backbone: Backbone,
    memory: Memory,
    questions: Sequence[str],
    *,
    selector: Selector | None = None,
    budget_tokens: int | None = None,
    max_new_tokens: int = 64,
    cache: PrefixCache | None = None,
    latents: int | None = None,
    show_latents: bool = False,
) -> list[Answer]:
    """Answer several questions about a watched video, each as ``ask`` does alone, to rounding.

    Those for which the same tokens are kept go on side by side from the video's part of their prompts, which is read
    and held once; questions that are thought about are answered one after the other. An answer's usage has an equal
    share of the seconds that those beside it took together. Arguments, warnings and errors are those of ``ask``, and
    nothing is answered where one question is refused.
    """
    queries = [Query(text=question) for question in questions]
    check_model(backbone, memory)
    check_video(memory)
    thinking = thinking_for(backbone, latents, show_latents)
    thought_tokens = 0 if thinking is None else thinking.latents + 2
    asked = []
    for place, query in enumerate(queries):
        clock = _Clock(device=backbone.device)
        kept = _kept(backbone, memory.tokens, query, selector, budget_tokens, max_new_tokens, thought_tokens)
        clock.lap("select")
        asked.append(_Asked(place=place, query=query, kept=kept, seconds=clock.laps["select"]))
    answers: dict[int, Answer] = {}
    for some in _together(backbone, memory, asked, alone=thinking is not None):
        found = _answered(backbone, memory, some, thinking, max_new_tokens, cache, show_latents)
        answers |= {one.place: answer for one, answer in zip(some, found, strict=True)}
    return [answers[place] for place in range(len(queries))]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A question, its place among others, the tokens kept for it (None: all), and the seconds that choosing took."""

    place: int
    query: Query
    kept: Tensor | None
    seconds: float


def _together(backbone: Backbone, memory: Memory, asked: Sequence[_Asked], alone: bool) -> Iterator[list[_Asked]]:
    """Questions that are answered side by side: those with the same tokens, as many as ``COLUMNS_AT_ONCE`` allows."""
    alike: dict[bytes, list[_Asked]] = {}
    for one in asked:
        alike.setdefault(_kept_key(one.kept), []).append(one)
    for group in alike.values():
        rows = 1
        if len(group) > 1 and not alone:
            longest = max(group, key=lambda one: _prompt_tokens(backbone, one.query.text, None))
            inputs = backbone.prepare([Prompt(question=longest.query.text, tokens=_tokens(memory, longest.kept))])
            rows = max(1, COLUMNS_AT_ONCE // (inputs.ids.shape[1] - inputs.prefix)) if inputs.prefix else 1
        yield from (group[start : start + rows] for start in range(0, len(group), rows))


def _answered(
    backbone: Backbone,
    memory: Memory,
    asked: Sequence[_Asked],
    thinking: Thinking | None,
    max_new_tokens: int,
    cache: PrefixCache | None,
    show_latents: bool,
) -> list[Answer]:
    """Answers to questions for which the same tokens are kept, side by side."""
    clock = _Clock(device=backbone.device)
    kept = asked[0].kept
    tokens = _tokens(memory, kept)
    inputs = backbone.prepare([Prompt(question=one.query.text, tokens=tokens) for one in asked], shared=True)
    clock.lap("select")
    prefix = _prefix(backbone, inputs, memory, kept, cache)
    clock.lap("prefill")
    prompt_tokens, thought = inputs.mask.sum(dim=1).tolist(), None
    if thinking is not None:
        thought = think(backbone, inputs, prefix, thinking=thinking, record=True)
        inputs, prefix = thought.inputs, thought.cache
        clock.lap("think")
    rollouts = backbone.generate(inputs, prefix, max_new_tokens=max_new_tokens, record_attention=True)
    clock.lap("generate")
    answers = []
    for row, (one, rollout) in enumerate(zip(asked, rollouts, strict=True)):
        assert rollout.attention is not None
        look = rollout.attention if thought is None else relied_on(thought, row, rollout.attention)
        scores = group_scores(look, inputs.source[row], tokens)
        laps = {name: seconds / len(asked) for name, seconds in clock.laps.items()}
        laps["select"] += one.seconds
        looks = _looks(backbone, thought, row, tokens, memory) if thought is not None and show_latents else None
        answers.append(
            Answer(
                text=rollout.text.strip(),
                evidence=evidence_spans(scores, memory, backbone.evidence_threshold),
                usage=_usage(memory, len(tokens), prompt_tokens[row], laps),
                latents=looks,
            )
        )
    return answers


def relied_on(thought: Thought, row: int, answered: Tensor) -> Tensor:
    """Where a row's latents and its answer looked, ``(columns of the prompt,)``: a latent counts as much as the answer.

    What latents found the answer need not look at again. answered: where it looked.
    """
    assert thought.attended is not None
    return torch.cat([thought.attended[row], answered[None]]).mean(dim=0)


def _tokens(memory: Memory, kept: Tensor | None) -> VisualTokens:
    return memory.tokens if kept is None else memory.tokens[kept]


def thinking_for(backbone: Backbone, latents: int | None, shown: bool) -> Thinking | None:
    """How a question is thought about; None: not at all. Raises LongtakeError for latents that are not there."""
    thinking = thinking_of(backbone, latents)
    if shown and thinking is None:
        raise LongtakeError(f"there are no latents to show: {backbone.name} answers without; leave show_latents out")
    return thinking


def _usage(memory: Memory, visual_tokens: int, prompt_tokens: int, laps: Mapping[str, float]) -> Usage:
    provenance = memory.provenance
    return Usage(
        frames=provenance.frames,
        visual_tokens=visual_tokens,
        prompt_tokens=prompt_tokens,
        seconds={"read": 0.0, "encode": 0.0, "compress": 0.0, **provenance.seconds, **laps},
    )


def _looks(backbone: Backbone, thought: Thought, row: int, tokens: VisualTokens, memory: Memory) -> LatentLooks:
    assert thought.attended is not None
    assert backbone.latent is not None
    source, reread = thought.inputs.source[row], thought.reread
    return LatentLooks(
        attended=place_scores(thought.attended[row], source, tokens),
        reread=None if reread is None else place_scores(reread[row], source, tokens),
        openness=float(backbone.latent.openness),
        times=tuple(zip(*group_times(memory), strict=True)),
    )


def check_model(backbone: Backbone, memory: Memory) -> None:
    """Raises LongtakeError for a memory that another model made."""
    if memory.provenance.model != backbone.name:
        raise LongtakeError(
            f"this memory was made by {memory.provenance.model}, the model is {backbone.name}; "
            "load that model or watch the video again with this one"
        )


def check_video(memory: Memory) -> None:
    """Warn when the file that the memory names is not the one that was watched; a file that is gone is no matter."""
    video = memory.provenance.video
    if Path(video).is_absolute() and Path(video).is_file() and _identity(video) != memory.provenance.video_identity:
        line = f"{video} has changed since it was watched; the answer is about the earlier file; watch it again"
        warnings.warn(line, stacklevel=4)


def _identity(video: str) -> str | None:
    """A video file's identity; None where it is there and can't be read as a video: it's empty, or may not be read."""
    try:
        return longtake.video.identity(video)
    except VideoError:
        return None


def _prefix(
    backbone: Backbone, inputs: Inputs, memory: Memory, kept: Tensor | None, cache: PrefixCache | None
) -> Cache | None:
    """The keys and values of the columns before the questions, of one row for all, remembered or computed now."""
    if inputs.prefix == 0:
        return None
    found = cache.get(memory, kept) if cache is not None else None
    if found is None:
        found = backbone.prefill(some_rows(inputs, slice(1)), stop=inputs.prefix)
        if cache is not None:
            cache.put(memory, kept, found)
    assert found.length == inputs.prefix
    return found


def _kept(
    backbone: Backbone,
    tokens: VisualTokens,
    query: Query,
    selector: Selector | None,
    budget_tokens: int | None,
    max_new_tokens: int,
    thought_tokens: int,
) -> Tensor | None:
    """The tokens to keep, or None for all of them."""
    if max_new_tokens < 1:
        raise LongtakeError(f"max_new_tokens is {max_new_tokens}; it must be at least 1, for example 64")
    room = backbone.context_tokens - max_new_tokens - thought_tokens
    text_tokens = _prompt_tokens(backbone, query.text, None)
    if text_tokens >= room:
        thought = f" and a thought of {thought_tokens}" if thought_tokens else ""
        raise LongtakeError(
            f"the question is {text_tokens} tokens with its frame; this model's context of {backbone.context_tokens} "
            f"leaves {room} beside an answer of {max_new_tokens}{thought}; shorten it"
        )
    if budget_tokens is not None and budget_tokens < 1:
        raise LongtakeError(f"budget is {budget_tokens} tokens; it must be at least 1")
    budget = len(tokens) if budget_tokens is None else min(budget_tokens, len(tokens))
    # more tokens than room need no counting; fewer may still not fit, as each group brings its stamp
    fits = len(tokens) < room and _prompt_tokens(backbone, query.text, tokens) <= room
    if fits and budget == len(tokens):
        return None
    if selector is None:
        selector = TopK()
    scores = _scores(backbone, tokens, query) if selector.needs_scores else None
    kept = selector.select(tokens, budget, scores)
    return kept if fits else _fitting(backbone, tokens, query, selector, scores, kept, room - text_tokens)


def _scores(backbone: Backbone, tokens: VisualTokens, query: Query) -> Tensor:
    if backbone.scorer is None:
        raise no_scorer(backbone.name)
    return backbone.score(tokens, backbone.encode_query(query.text))


def _fitting(
    backbone: Backbone,
    tokens: VisualTokens,
    query: Query,
    selector: Selector,
    scores: Tensor | None,
    kept: Tensor,
    room: int,
) -> Tensor:
    """The largest selection whose tokens and stamps fill at most ``room`` columns.

    A stamp's length is measured on a real prompt, the budget found by bisection under it, and the result counted again.
    """
    text_tokens = _prompt_tokens(backbone, query.text, None)
    kept = selector.select(tokens, min(len(kept), room), scores)
    while (length := _prompt_tokens(backbone, query.text, tokens[kept]) - text_tokens) > room:
        stamp = (length - len(kept)) / _num_groups(tokens, kept)
        low, high = 0, len(kept) - 1
        while low < high:
            middle = (low + high + 1) // 2
            trial = selector.select(tokens, middle, scores)
            fits = len(trial) + stamp * _num_groups(tokens, trial) <= room
            low, high = (middle, high) if fits else (low, middle - 1)
        if low == 0:
            raise LongtakeError(
                f"the question leaves no room for a visual token in {backbone.context_tokens} positions; shorten it"
            )
        kept = selector.select(tokens, low, scores)
    return kept


def _num_groups(tokens: VisualTokens, kept: Tensor) -> int:
    return int(torch.bincount(tokens.position[:, 0][kept]).count_nonzero())


def _prompt_tokens(backbone: Backbone, question: str, tokens: VisualTokens | None) -> int:
    return backbone.prompt_tokens(Prompt(question=question, tokens=tokens))


@dataclass(slots=True, kw_only=True)
class _Clock:
    """Wall seconds between laps, by name; a lap ends when the device has done its work."""

    device: torch.device
    laps: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def lap(self, name: str) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now
