"""Train the embedded model's projector, decoder and selector on re-mixed videos; stage 3 of the embedded model.

Tower and DTS are frozen and their tokens come from a bank. A curriculum goes from short videos with a card or two to
long ones with many; a row of a batch is one video followed by all its questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from longtake.backbones.products import train_by_products
from longtake.data.probe_world.bank import GROUP, Mix
from longtake.data.probe_world.questions import Question, ask_all
from longtake.data.probe_world.regroup import VideoSource
from longtake.models.scorer import QueryScorer, min_max, straight_through
from longtake.models.video_llm import VideoLLM
from longtake.train import checkpoint
from longtake.train.checkpoint import Cycle
from longtake.train.embedded.grounding import grounding_loss
from longtake.train.embedded.ledger import Ledger, ledger_loss
from longtake.train.embedded.optimiser import Optimiser
from longtake.train.embedded.rows import Batch, Lesson, Text, event_groups, make_row, relevant_groups, states_of
from longtake.types import IGNORE, LongtakeError

STAMP_TOKENS = 4  # about
QUESTION_TOKENS = 22  # with its answer, about
SCALE_GROUPS = 2000  # whose values' spread measures the noise that is added
ASKED_ONCE = ("order", "count", "direction")  # of a video at most, so they are not left out


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One step of the curriculum: videos of ``groups`` = [fewest, most] groups, up to ``cards`` cards, these tasks."""

    until_step: int
    groups: tuple[int, int]
    cards: int
    tasks: tuple[str, ...]
    tokens: int = 8192  # a batch
    questions: int = 8  # a video
    late: float = 0.5  # share of videos that begin late
    thin: float = 0.3  # share of batches with longer videos, of whose background only some tokens are kept
    stretch: float = 1.0  # up to how many times longer those are
    least_stretch: float = 1.0  # and how many times at least
    blind: float | None = None  # share of rows without their video; None: the recipe's
    videos: int | None = None  # a batch; None: as many as fill its tokens
    learns_from: int = 0  # the first layer that learns; above 0 all before the layers rests, and the scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderRecipe:
    """Hyper-parameters of stage 3. Raises LongtakeError where phases and cycles end at different steps."""

    phases: tuple[Phase, ...]
    cycles: tuple[Cycle, ...]
    cooldown: float = 0.4  # share of a cycle over which the learning rate comes down
    lr: float = 8e-4
    muon_lr: float = 3e-3
    weight_decay: float = 0.05
    warmup: int = 100
    noise: float = 0.25  # of the tokens' standard deviation, against learning the bank's cards by heart
    jumps: float = 0.4  # share of videos whose positions leap, to stand in for longer ones
    blind: float = 0.03  # share of rows without their video, so that blind guessing is learned as what it is
    drop: tuple[float, float] = (0.05, 0.3)  # share of visual tokens dropped, in every other batch
    ledger: float = 0.3
    scorer: float = 0.3
    grounding: float = 0.3
    grounded_layer: int = 3  # the ledger reads what goes into it and into layers before
    seed: int = 0
    log_every: int = 50
    save_every: int = 250

    def __post_init__(self) -> None:
        if self.steps != self.phases[-1].until_step:
            raise LongtakeError(
                f"cycles end at step {self.steps} and phases at {self.phases[-1].until_step}; both must end at the same"
            )

    @property
    def steps(self) -> int:
        """How many steps all cycles take together."""
        return self.cycles[-1].until_step


class Bank(Protocol):
    """Tokens of groups, ``(groups, tokens, dim)``: a tensor, or what makes them when they are asked for."""

    @property
    def shape(self) -> torch.Size: ...

    def __getitem__(self, groups: Tensor, /) -> Tensor:
        """The tokens of some groups, by int64 ``(groups,)``."""


def train_decoder(
    recipe: DecoderRecipe,
    model: VideoLLM,
    tokenizer: PreTrainedTokenizerFast,
    bank: Bank,
    mixer: VideoSource,
    folder: Path,
    *,
    begin: Mapping[str, Mapping[str, Any]] | None = None,
    along: Mapping[str, nn.Module] | None = None,
) -> VideoLLM:
    """Train the projector, decoder and scorer, resuming from ``folder``; the bank's values are bf16 or float32.

    begin: weights to start from, by the names of this training's parts (``checkpoint.modules_of``).
    along: modules that the bank makes its tokens with, to be trained too.
    """
    torch.manual_seed(recipe.seed)
    text = Text(tokenizer, model.config.video_token_id)
    modules, optimiser = decoder_parts(recipe, model, begin, along)
    ledger = cast(Ledger, modules["ledger"])
    train_by_products(model.language_model)
    learning = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    start = checkpoint.resume(folder, modules, optimiser)
    log = checkpoint.Log(folder / "log.jsonl", recipe.steps, start)
    with torch.no_grad():
        scale = float(bank[torch.arange(min(SCALE_GROUPS, bank.shape[0]))].float().std())
    for step in range(start, recipe.steps):
        rng = np.random.default_rng([recipe.seed, step, 9])
        phase = next(p for p in recipe.phases if step < p.until_step)
        rests = resting(modules, phase.learns_from)
        for weight in learning:
            weight.requires_grad_(id(weight) not in rests)
        lessons, columns = draw_lessons(recipe, phase, mixer, rng, bank.shape[1])
        as_now = recipe if phase.blind is None else replace(recipe, blind=phase.blind)
        loss, figures = train_step(as_now, model, ledger, text, bank, scale, lessons, columns, rng)
        within, length, peak = checkpoint.in_cycle(recipe.cycles, step)
        optimiser.update(loss, peak * checkpoint.trapezoid(within, length, recipe.warmup, recipe.cooldown))
        log.add(loss=loss.item(), **figures)
        if (step + 1) % recipe.log_every == 0:
            log.write(step + 1)
        if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps:
            checkpoint.save(folder, step + 1, modules, optimiser)
    return model


def decoder_parts(
    recipe: DecoderRecipe,
    model: VideoLLM,
    begin: Mapping[str, Mapping[str, Any]] | None = None,
    along: Mapping[str, nn.Module] | None = None,
) -> tuple[dict[str, nn.Module], Optimiser]:
    """The modules that the stage trains, by name, with a ledger that begins anew, and their optimiser."""
    ledger = Ledger(model.config.text_config.hidden_size).to(model.device)
    modules = {"projector": model.projector, "decoder": model.language_model, "ledger": ledger, **(along or {})}
    if model.scorer is not None:
        modules["scorer"] = model.scorer
    for name, weights in (begin or {}).items():
        modules[name].load_state_dict(weights)
    return modules, Optimiser(modules, recipe.lr, recipe.muon_lr, recipe.weight_decay)


def resting(modules: Mapping[str, nn.Module], learns_from: int) -> set[int]:
    """``id`` of each weight that learns nothing where layers from ``learns_from`` on do; of none where all do.

    The last layers alone: what a group shows and which are relevant stays told as it was, and only what is made of it
    in an answer is learned anew. Without the layers that it reads the ledger has nothing to teach, so it rests too.
    """
    if not learns_from:
        return set()
    decoder = cast(Qwen2ForCausalLM, modules["decoder"]).model
    still = [module for name, module in modules.items() if name != "decoder"]
    still += [decoder.embed_tokens, *decoder.layers[:learns_from]]
    return {id(weight) for module in still for weight in module.parameters()}


def draw_lessons(
    recipe: DecoderRecipe, phase: Phase, mixer: VideoSource, rng: np.random.Generator, tokens: int
) -> tuple[list[Lesson], int]:
    """Draw one batch's videos, all of one length, with their questions, and how many columns a video may fill.

    tokens: of a group.
    """
    low, high = phase.groups
    groups = round(np.exp(rng.uniform(np.log(low), np.log(high))))
    asked = phase.questions * QUESTION_TOKENS
    rows = phase.videos or max(1, phase.tokens // (groups * (tokens + STAMP_TOKENS) + asked))
    columns = phase.tokens if phase.videos else max(groups * (tokens + STAMP_TOKENS), phase.tokens // rows - asked)
    if rng.random() < phase.thin:
        groups = round(groups * np.exp(rng.uniform(*np.log([phase.least_stretch, phase.stretch]))))
    lessons = []
    for _ in range(rows):
        cards = min(phase.cards, 1 + groups * mixer.frames_per_group // (2 * GROUP))
        mix = mixer.mix(rng, groups, cards, 0.5, phase.late)
        questions = [q for q in ask_all(mix.video, rng, 40) if q.task in phase.tasks]
        questions.sort(key=lambda q: q.task not in ASKED_ONCE)
        lessons.append((mix, questions[: phase.questions]))
    return lessons, columns


def train_step(
    recipe: DecoderRecipe,
    model: VideoLLM,
    ledger: Ledger,
    text: Text,
    bank: Bank,
    scale: float,
    lessons: list[Lesson],
    columns: int,
    rng: np.random.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of one batch and the share of answers it would have got right by task.

    columns: how many a video may fill. scale: standard deviation of the bank's values, for the noise added to them.
    """
    per_group = bank.shape[1]
    batch = draw_rows(recipe, text, lessons, per_group, columns, int(model.config.context_tokens or 0), rng)
    groups = torch.from_numpy(np.stack([mix.groups for mix, _ in lessons]))
    features = bank[groups.flatten()].to(model.device).float().view(*groups.shape, *bank.shape[1:])
    features = features + recipe.noise * scale * torch.randn_like(features)
    with torch.autocast(model.device.type, torch.bfloat16):
        tokens = model.projector(features).flatten(1, 2)
        embeddings = fill(model, batch, through_scores(model, text, tokens, lessons))
        layers = 1, recipe.grounded_layer - 1, recipe.grounded_layer
        into, last = states_of(model.language_model.model, batch, embeddings, layers)
        at = batch.labels[:, 1:] != IGNORE
        logits = model.language_model.lm_head(last[:, :-1][at[:, batch.video :]]).float()
    wanted = batch.labels[:, 1:][at]
    loss = F.cross_entropy(logits, wanted.to(logits.device))
    figures = {"lm": loss.item(), **answers_right(batch, at, logits, wanted, lessons)}
    told, more = ledger_loss(ledger, batch, into, lessons, per_group)
    figures |= more
    total = loss + recipe.ledger * told
    if recipe.grounding:
        grounded = grounding_loss(
            model.language_model, recipe.grounded_layer, into[-1].float(), batch, lessons, per_group, text.comma
        )
        figures["grounding"] = grounded.item()
        total = total + recipe.grounding * grounded
    if model.scorer is not None:
        scored = scorer_loss(model, text, tokens, lessons, per_group)
        figures["scorer"] = scored.item()
        total = total + recipe.scorer * scored
    return total, figures


def draw_rows(
    recipe: DecoderRecipe,
    text: Text,
    lessons: list[Lesson],
    per_group: int,
    columns: int,
    context: int,
    rng: np.random.Generator,
) -> Batch:
    """Draw a batch of rows; in every other one 5 to 30% of the visual tokens are dropped at random.

    columns: what a video may fill; a longer one is thinned. context: the model's.
    """
    dropped = rng.uniform(*recipe.drop) if rng.random() < 0.5 else 0.0
    rows = []
    for mix, questions in lessons:
        count = len(mix.groups)
        kept = (rng.random((count, per_group)) >= dropped) & (rng.random() >= recipe.blind)
        kept &= thinned(rng, mix, per_group, columns)
        leaps = _leaps(rng, recipe.jumps, count, context - count * (per_group + STAMP_TOKENS + 1) - 200)
        rows.append(make_row(text, mix, questions, per_group, kept, leaps))
    return Batch(rows)


def thinned(rng: np.random.Generator, mix: Mix, per_group: int, columns: int) -> NDArray[np.bool_]:
    """Draw the tokens that stay of a video with more than ``columns``, bool ``(groups, per_group)``.

    About what a selector leaves: most of what shows a card or a mover, and of other groups either all tokens of a few
    or a few of many, each with its stamp.
    """
    count = len(mix.groups)
    share = columns / (count * (per_group + STAMP_TOKENS))
    if share >= 1:
        return np.ones((count, per_group), np.bool_)
    most = min(1.0, columns / (count * (1 + STAMP_TOKENS)))
    of_groups = share * (most / share) ** rng.random()
    within = (columns / (count * of_groups) - STAMP_TOKENS) / per_group
    alive = rng.random(count) < of_groups
    kept: NDArray[np.bool_] = alive[:, None] & (rng.random((count, per_group)) < within)
    for event in mix.video.events:
        if event.what is not None:
            groups = event_groups(mix, event)
            kept[groups] |= rng.random((groups.stop - groups.start, per_group)) < rng.uniform(0.4, 1.2)
    return kept


def _leaps(rng: np.random.Generator, probability: float, groups: int, room: int) -> NDArray[np.int64]:
    """How far positions jump before each group, int64 ``(groups,)``: a short video then spans a long one's places."""
    leaps = np.zeros(groups, np.int64)
    if rng.random() < probability and room > 0:
        cuts = rng.integers(0, groups, 1 + int(rng.integers(4)))
        total = int(room * rng.random())
        np.add.at(leaps, cuts, (rng.dirichlet(np.ones(len(cuts))) * total).astype(np.int64))
    return leaps


def fill(model: VideoLLM, batch: Batch, tokens: Tensor) -> Tensor:
    """Text embeddings with ``tokens`` ``(batch, tokens, hidden)`` at the visual columns."""
    embeddings, visual = model.get_input_embeddings()(batch.ids.to(tokens.device)), batch.visual.to(tokens.device)
    picked = tokens.gather(1, visual.clamp_min(0)[..., None].expand(-1, -1, tokens.shape[-1]))
    return torch.where((visual >= 0)[..., None], picked.to(embeddings.dtype), embeddings)


def answers_right(batch: Batch, at: Tensor, logits: Tensor, wanted: Tensor, lessons: list[Lesson]) -> dict[str, float]:
    """Share of answers with every token right (teacher-forced), by task.

    at: bool ``(batch, columns - 1)``, where the next token is to be learned; logits and wanted: one row for each.
    """
    hits = torch.ones(batch.labels[:, 1:].shape, dtype=torch.bool)
    hits[at] = logits.argmax(-1).cpu() == wanted
    scores: dict[str, list[float]] = {}
    for row, (_, questions) in enumerate(lessons):
        for number, question in enumerate(questions, start=1):
            own = batch.turn[row, 1:] == number
            scores.setdefault(question.task, []).append(float(hits[row][own].all()))
    return {task: sum(values) / len(values) for task, values in scores.items()}


def through_scores(model: VideoLLM, text: Text, tokens: Tensor, lessons: list[Lesson]) -> Tensor:
    """Tokens of unchanged value through which the answers' gradient reaches the scorer, by a video's first question."""
    if not isinstance(model.scorer, QueryScorer):
        return tokens
    rows = []
    for row, (_, questions) in zip(tokens, lessons, strict=True):
        scores = model.scorer(row.detach(), question_states(model, text, questions[0])).float()
        rows.append(straight_through(row, min_max(scores)).to(row.dtype))
    return torch.stack(rows)


def question_states(model: VideoLLM, text: Text, question: Question) -> Tensor:
    """The question's own token embeddings, which the scorer reads: ``(tokens, hidden)``, without gradient."""
    ids = torch.tensor(text.ids(question.text), device=model.device)
    states: Tensor = model.get_input_embeddings()(ids).detach()
    return states


def scorer_loss(model: VideoLLM, text: Text, tokens: Tensor, lessons: list[Lesson], per_group: int) -> Tensor:
    """Cross-entropy between a question's scores over the video and the groups it is about, three questions a video.

    The loss is that of picking, by a softmax over all tokens, one that is relevant: it grows with the number of tokens
    only through their scores, so it holds at any length.
    """
    losses = []
    for row, (mix, questions) in zip(tokens.unbind(), lessons, strict=True):
        for question in questions[:3]:
            mask = relevant_groups(mix, question)
            if not mask.any() or mask.all():
                continue
            states = question_states(model, text, question)
            with torch.autocast(row.device.type, torch.bfloat16):
                scores = model.scorer(row, states).float()  # type: ignore[misc]  # there is one
            relevant = torch.from_numpy(mask.repeat(per_group))
            losses.append(torch.logsumexp(scores, 0) - torch.logsumexp(scores[relevant], 0))
    return torch.stack(losses).mean() if losses else tokens.sum() * 0
