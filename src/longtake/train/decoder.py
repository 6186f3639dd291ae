"""Train the embedded model's projector, decoder and selector on re-mixed videos; stage 3 of the embedded model.

Tower and DTS are frozen and their tokens come from a bank. One row of a batch is one video followed by all its
questions, each of which sees the video and itself only, at the positions it would have if asked alone. A ledger, a
linear layer on the states of the second layer that is thrown away afterwards, learns at each card how many came
before it and which colour the last one had; that is what "after", "order" and "how many" are answered from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from longtake.data.bank import GROUP, Mix, Mixer
from longtake.data.needles import COLOURS
from longtake.data.questions import Question, ask_all
from longtake.models.processor import stamp_text
from longtake.models.video_llm import VideoLLM
from longtake.train import checkpoint

IGNORE = -100
HEAD = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One step of the curriculum: videos of ``groups`` = [fewest, most] groups, up to ``cards`` cards, these tasks."""

    until_step: int
    groups: tuple[int, int]
    cards: int
    tasks: tuple[str, ...]
    tokens: int = 8192  # a batch
    questions: int = 8  # a video


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderRecipe:
    """Hyper-parameters of stage 3."""

    phases: tuple[Phase, ...]
    lr: float = 8e-4
    weight_decay: float = 0.05
    warmup: int = 100
    noise: float = 0.1
    jumps: float = 0.4  # share of videos whose positions leap, to stand in for longer ones
    drop: tuple[float, float] = (0.05, 0.3)  # share of visual tokens dropped, in every other batch
    ledger: float = 0.3
    scorer: float = 0.3
    seed: int = 0
    log_every: int = 50
    save_every: int = 250

    @property
    def steps(self) -> int:
        """All phases together."""
        return self.phases[-1].until_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A video with its questions as columns. ``visual``: index into the video's tokens, -1 for text.

    turn: 0 for the video and what stands before it, n for the n-th question and its answer.
    group: the group a visual token is of, -1 for text.
    """

    ids: Tensor
    visual: Tensor
    turn: Tensor
    positions: Tensor
    labels: Tensor
    tasks: tuple[str, ...]


class Text:
    """Token ids of the chat's fixed parts, of stamps and of questions."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, video_token_id: int) -> None:
        self.tokenizer, self.video_token_id = tokenizer, video_token_id
        self._known: dict[str, list[int]] = {}
        self.head = self.ids(HEAD)
        self.end = self.ids("<|im_end|>")

    def ids(self, text: str) -> list[int]:
        """Ids without special tokens added."""
        if text not in self._known:
            self._known[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._known[text]

    def question(self, text: str) -> list[int]:
        """What stands between the video and the answer."""
        return self.ids("\n" + text + TAIL)


def make_row(
    text: Text, mix: Mix, questions: list[Question], tokens_per_group: int, kept: np.ndarray, leaps: np.ndarray  # type: ignore[type-arg]
) -> Row:
    """Columns of one video and its questions.

    kept: bool ``(groups, tokens_per_group)``; a group that keeps none loses its stamp.
    leaps: how far positions jump before each group, int ``(groups,)``.
    """
    ids, visual, positions, place = list(text.head), [-1] * len(text.head), list(range(len(text.head))), len(text.head)
    for group in range(len(mix.groups)):
        alive = np.flatnonzero(kept[group])
        if not len(alive):
            continue
        stamp = text.ids(stamp_text(group * GROUP * mix.frame_seconds, "compact"))
        ids += stamp + [text.video_token_id] * len(alive)
        visual += [-1] * len(stamp) + (group * tokens_per_group + alive).tolist()
        place += int(leaps[group])
        positions += range(place, place + len(stamp) + len(alive))
        place += len(stamp) + len(alive)
    turn, labels = [0] * len(ids), [IGNORE] * len(ids)
    for number, question in enumerate(questions, start=1):
        asked, answer = text.question(question.text), text.ids(question.answer) + text.end
        ids += asked + answer
        labels += [IGNORE] * len(asked) + answer
        positions += range(place, place + len(asked) + len(answer))
        turn += [number] * (len(asked) + len(answer))
    visual += [-1] * (len(ids) - len(visual))
    columns = [torch.tensor(c) for c in (ids, visual, turn, positions, labels)]
    return Row(
        ids=columns[0], visual=columns[1], turn=columns[2], positions=columns[3], labels=columns[4],
        tasks=tuple(q.task for q in questions),
    )  # fmt: skip


def attention_mask(turn: Tensor) -> Tensor:
    """Causal, and a question sees the video and itself only: bool ``(batch, 1, length, length)``, True is seen.

    turn: int ``(batch, length)``, -1 on padding.
    """
    length = turn.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=turn.device).tril()
    same = (turn[:, :, None] == turn[:, None, :]) | (turn[:, None, :] == 0)
    return (causal & same)[:, None]


class Ledger(nn.Module):
    """From states at a card's visual tokens: how many cards came before (0 to 6), and the last one's colour (8: none)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.count, self.colour = nn.Linear(hidden, 7), nn.Linear(hidden, len(COLOURS) + 1)

    def loss(self, states: Tensor, targets: Tensor) -> Tensor:
        """states ``(tokens, hidden)``; targets int ``(tokens, 2)``, IGNORE where there is no card."""
        count = F.cross_entropy(self.count(states).float(), targets[:, 0], ignore_index=IGNORE)
        colour = F.cross_entropy(self.colour(states).float(), targets[:, 1], ignore_index=IGNORE)
        return count + colour


def ledger_targets(mix: Mix) -> np.ndarray:  # type: ignore[type-arg]
    """int ``(groups, 2)``: cards before the one in the group and the last one's colour; IGNORE without just one card."""
    targets = np.full((len(mix.groups), 2), IGNORE)
    shown = np.zeros(len(mix.groups), np.int64)
    previous = len(COLOURS)
    for number, (card, event) in enumerate(mix.video.cards):
        first = int(round(event.start_seconds / mix.frame_seconds))
        stop = int(round(event.stop_seconds / mix.frame_seconds))
        span = slice(first // GROUP, (stop - 1) // GROUP + 1)
        targets[span] = (min(number, 6), previous)
        shown[span] += 1
        previous = list(COLOURS).index(card.colour)
    targets[shown != 1] = IGNORE
    return targets


def relevant_groups(mix: Mix, question: Question) -> np.ndarray:  # type: ignore[type-arg]
    """bool ``(groups,)``: where what is asked about is to be seen; everywhere a card is for questions about all."""
    mask = np.zeros(len(mix.groups), bool)
    if question.task in ("order", "count", "after"):
        events = [event for _, event in mix.video.cards]
    else:
        events = [question.event] if question.event else []
    for event in events:
        first = int(round(event.start_seconds / mix.frame_seconds))
        stop = int(round(event.stop_seconds / mix.frame_seconds))
        mask[first // GROUP : (stop - 1) // GROUP + 1] = True
    return mask


def draw_mixes(recipe: DecoderRecipe, phase: Phase, mixer: Mixer, rng: np.random.Generator, tokens: int) -> list[tuple[Mix, list[Question]]]:
    """The videos of one batch, all of one length, with their questions; about ``phase.tokens`` columns in all."""
    low, high = phase.groups
    groups = int(round(np.exp(rng.uniform(np.log(low), np.log(high)))))
    columns = groups * (tokens + 4) + phase.questions * 22
    batch = []
    for _ in range(max(1, phase.tokens // columns)):
        mix = mixer.mix(rng, groups, min(phase.cards, 1 + groups // 2), 0.4)
        questions = [q for q in ask_all(mix.video, rng, 40) if q.task in phase.tasks]
        batch.append((mix, questions[: phase.questions]))
    return batch


class Batch:
    """Rows padded on the right, with the bank's tokens in place."""

    def __init__(self, rows: list[Row]) -> None:
        length = max(len(row.ids) for row in rows)

        def pad(name: str, value: int) -> Tensor:
            return torch.stack([F.pad(getattr(row, name), (0, length - len(row.ids)), value=value) for row in rows])

        self.ids, self.visual = pad("ids", 0), pad("visual", -1)
        self.turn, self.positions, self.labels = pad("turn", -1), pad("positions", 0), pad("labels", IGNORE)


def train_decoder(recipe: DecoderRecipe, model: VideoLLM, tokenizer: PreTrainedTokenizerFast, bank: Tensor, mixer: Mixer, folder: Path) -> VideoLLM:
    """Train ``model``'s projector, decoder and scorer, resuming from ``folder``; bank bf16 ``(groups, tokens, dim)``."""
    torch.manual_seed(recipe.seed)
    text = Text(tokenizer, model.config.video_token_id)
    ledger = Ledger(model.config.text_config.hidden_size)
    modules = {"projector": model.projector, "decoder": model.language_model, "ledger": ledger}
    if model.scorer is not None:
        modules["scorer"] = model.scorer
    optimiser = checkpoint.adamw(modules, recipe.lr, recipe.weight_decay)
    start = checkpoint.resume(folder, modules, optimiser)
    log = checkpoint.Log(folder / "log.jsonl", recipe.steps, start)
    params = [p for m in modules.values() for p in m.parameters()]
    scale = float(bank[:2000].float().std())
    for step in range(start, recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.lr * checkpoint.cosine(step, recipe.steps, recipe.warmup)
        rng = np.random.default_rng([recipe.seed, step, 9])
        phase = next(p for p in recipe.phases if step < p.until_step)
        mixes = draw_mixes(recipe, phase, mixer, rng, bank.shape[1])
        loss, figures = train_step(recipe, model, ledger, text, bank, scale, mixes, rng)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimiser.step()
        log.add(loss=loss.item(), **figures)
        if (step + 1) % recipe.log_every == 0:
            log.write(step + 1)
        if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps:
            checkpoint.save(folder, step + 1, modules, optimiser)
    return model


def train_step(
    recipe: DecoderRecipe, model: VideoLLM, ledger: Ledger, text: Text, bank: Tensor, scale: float,
    mixes: list[tuple[Mix, list[Question]]], rng: np.random.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of one batch and the share of answers it would have got right by task."""
    per_group = bank.shape[1]
    dropped = rng.uniform(*recipe.drop) if rng.random() < 0.5 else 0.0
    rows = []
    for mix, questions in mixes:
        count = len(mix.groups)
        kept = rng.random((count, per_group)) >= dropped
        rows.append(make_row(text, mix, questions, per_group, kept, _leaps(rng, recipe, model, count, per_group)))
    batch = Batch(rows)
    features = torch.stack([bank[torch.from_numpy(mix.groups)] for mix, _ in mixes]).float()
    features = features + recipe.noise * scale * torch.randn_like(features)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = model.projector(features).flatten(1, 2)
        embeddings = fill(model, batch, tokens)
        outputs = model.language_model.model(
            inputs_embeds=embeddings, position_ids=batch.positions, attention_mask=attention_mask(batch.turn),
            use_cache=False, output_hidden_states=True,
        )  # fmt: skip
        at = batch.labels[:, 1:] != IGNORE
        logits = model.language_model.lm_head(outputs.last_hidden_state[:, :-1][at]).float()
    wanted = batch.labels[:, 1:][at]
    loss = F.cross_entropy(logits, wanted)
    figures = {"lm": loss.item(), **answers_right(batch, at, logits, wanted, mixes)}
    noted = ledger_loss(ledger, batch, outputs.hidden_states[2], mixes, per_group)
    figures["ledger"] = noted.item()
    total = loss + recipe.ledger * noted
    if model.scorer is not None:
        scored = scorer_loss(model, text, tokens, mixes, per_group)
        figures["scorer"] = scored.item()
        total = total + recipe.scorer * scored
    return total, figures


def fill(model: VideoLLM, batch: Batch, tokens: Tensor) -> Tensor:
    """Text embeddings with ``tokens`` ``(batch, tokens, hidden)`` at the visual columns."""
    embeddings = model.get_input_embeddings()(batch.ids)
    picked = tokens.gather(1, batch.visual.clamp_min(0)[..., None].expand(-1, -1, tokens.shape[-1]))
    return torch.where((batch.visual >= 0)[..., None], picked.to(embeddings.dtype), embeddings)


def _leaps(rng: np.random.Generator, recipe: DecoderRecipe, model: VideoLLM, groups: int, per_group: int) -> np.ndarray:  # type: ignore[type-arg]
    """Where positions jump so that a short video spans the places of a long one: most groups none, some a lot."""
    leaps = np.zeros(groups, np.int64)
    room = int(model.config.context_tokens or 0) - groups * (per_group + 5) - 200
    if rng.random() < recipe.jumps and room > 0:
        cuts = rng.integers(0, groups, 1 + int(rng.integers(4)))
        total = int(room * rng.random())
        np.add.at(leaps, cuts, (rng.dirichlet(np.ones(len(cuts))) * total).astype(np.int64))
    return leaps


def answers_right(batch: Batch, at: Tensor, logits: Tensor, wanted: Tensor, mixes: list[tuple[Mix, list[Question]]]) -> dict[str, float]:
    """Share of answers with every token right (teacher-forced), by task."""
    hits = torch.ones(batch.labels[:, 1:].shape, dtype=torch.bool)
    hits[at] = logits.argmax(-1) == wanted
    scores: dict[str, list[float]] = {}
    for row, (_, questions) in enumerate(mixes):
        for number, question in enumerate(questions, start=1):
            own = batch.turn[row, 1:] == number
            scores.setdefault(question.task, []).append(float(hits[row][own].all()))
    return {task: sum(values) / len(values) for task, values in scores.items()}


def ledger_loss(ledger: Ledger, batch: Batch, states: Tensor, mixes: list[tuple[Mix, list[Question]]], per_group: int) -> Tensor:
    """The ledger's loss over all visual tokens of groups with one card."""
    targets = torch.from_numpy(np.stack([ledger_targets(mix) for mix, _ in mixes]))
    group = (batch.visual // per_group).clamp_min(0)
    spread = targets.gather(1, group[..., None].expand(-1, -1, 2))
    chosen = (batch.visual >= 0) & (spread[..., 0] != IGNORE)
    if not chosen.any():
        return states.sum() * 0
    return ledger.loss(states[chosen], spread[chosen])


def scorer_loss(model: VideoLLM, text: Text, tokens: Tensor, mixes: list[tuple[Mix, list[Question]]], per_group: int) -> Tensor:
    """Cross-entropy between a question's scores over the video and the groups it is about, one question a video.

    The loss is that of picking, by a softmax over all tokens, one that is relevant: it grows with no. of tokens only
    through their scores, so it holds at any length.
    """
    losses = []
    embed = model.get_input_embeddings()
    for row, (mix, questions) in enumerate(mixes):
        for question in questions[:3]:
            mask = relevant_groups(mix, question)
            if not mask.any() or mask.all():
                continue
            states = embed(torch.tensor(text.ids(question.text))).detach()
            with torch.autocast("cpu", torch.bfloat16):
                scores = model.scorer(tokens[row], states).float()  # type: ignore[misc]
            relevant = torch.from_numpy(mask.repeat(per_group))
            losses.append(torch.logsumexp(scores, 0) - torch.logsumexp(scores[relevant], 0))
    return torch.stack(losses).mean() if losses else tokens.sum() * 0
