"""A backbone and the loss of latent self-forcing, as one module that can be spread over processes.

Two passes. The rollout makes the latents exactly as they are made when a question is asked, on a cache and in eval
mode; only the last making of each latent has a gradient (as in Self Forcing, arXiv 2506.08009, where the last step of a
rollout has), or all makings. The forced pass then runs prompt, these latents and the answer as one sequence, with its
gradient and without a cache, so that layers may be computed again. Ours; of VideoLatent the abstract alone is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtake.backbones.attention import Branches, Veil
from longtake.backbones.base import Backbone, Cache, Inputs, Prompt
from longtake.backbones.layout import some_rows
from longtake.backbones.thinking import rolled, seen_by, with_latents
from longtake.models.dts import at_least_float32
from longtake.models.latent import Injected
from longtake.train import latent_losses as losses
from longtake.train.latent_recipe import Hides, LatentRecipe
from longtake.train.tuning import idle
from longtake.types import VisualTokens

FIGURES = ("answer", "align", "within", "across", "spelled", "cosine", "rank")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A micro-batch of questions with their answers, and what their latents are compared with.

    others: contents of earlier samples, float32 ``(others, latents, dim)``; counts: bool ``(rows, others)``, False
    where one is of the row's own sample. veiled: the answer sees the video through the latents alone. dense: denser
    videos. steps: words for what is found on the way to each answer. together: so many rows one after the other are
    about one video, which is run once for them.
    """

    prompts: tuple[Prompt, ...]
    answers: tuple[str, ...]
    others: Tensor
    counts: Tensor
    veiled: bool
    dense: tuple[VisualTokens | None, ...] = ()
    steps: tuple[tuple[str, ...], ...] = ()
    together: int = 1


class Forcing(nn.Module):
    """The loss of a micro-batch, summed over its rows."""

    def __init__(self, backbone: Backbone, recipe: LatentRecipe) -> None:
        super().__init__()
        self.model = backbone.model
        self.backbone, self.recipe = backbone, recipe

    def forward(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """The summed loss; sums of the figures that ``FIGURES`` names; the latents' contents, without gradient.

        Every trained weight has a gradient afterwards, zero where a mode does not use it.
        """
        backbone, recipe = self.backbone, self.recipe
        module = backbone.latent if recipe.thinks else None
        inputs = backbone.prepare(rows.prompts, shared=rows.together > 1)
        branches = branching(inputs, rows.together)
        answers = [torch.cat([backbone.text_ids(text), torch.tensor([backbone.end_id], device=inputs.ids.device)])
                   for text in rows.answers]  # fmt: skip
        if module is None:
            states, _ = self.forced(inputs, answers, None, branches=branches)
            answer = self.answer_loss(states, inputs.ids.shape[1], answers)
            nothing = torch.zeros(len(FIGURES) - 1, device=answer.device)
            return answer.sum(), torch.cat([answer.detach().sum()[None], nothing]), inputs.embeddings[:, :0]
        thinking = module.settings.thinking
        longest = max(map(len, answers))
        veil = bottleneck(inputs, thinking.latents, longest, recipe.hides) if rows.veiled else None
        if thinking.mode == "pause":  # learned vectors, whatever the prompt is: there is nothing to roll out
            made = module.pause(len(answers), thinking.latents)
        else:
            with uncheckpointed(backbone.model):
                before = None if branches is None else read_once(backbone, inputs, branches)
                made, _ = rolled(backbone, inputs, before, thinking, veil, through=recipe.through)
        whole = with_latents(inputs, made.latents, module)
        layered = recipe.teacher == "dense" and self.aligns(rows)
        states, layers = self.forced(whole, answers, veil, layered=layered, branches=branches)
        answer = self.answer_loss(states, whole.ids.shape[1], answers)
        aligned = answer.new_zeros(len(answer))
        if layered:
            aligned = losses.state_distance(layers[:, :, whole.ids.shape[1] - 1], self.teacher_states(rows))
        elif self.aligns(rows):
            aligned = self.alignment(inputs, states, made)
        within = losses.alike_within(made.content, recipe.margin)
        across = losses.alike_across(made.content, rows.others, rows.counts, recipe.margin_across)
        loss = answer + recipe.align * aligned + recipe.diverse * (within + recipe.across * across)
        spelled = answer.new_zeros(len(answer))
        if recipe.spell:
            spelled = self.spelling(states[:, self.making(inputs)], answers, rows.steps)
            loss = loss + recipe.spell * spelled
        figures = [answer, aligned, within, across, spelled, *latent_figures(made)]
        sums = torch.stack([part.detach().sum() for part in figures])
        return loss.sum() + idle([module]), sums, made.content.detach()

    def aligns(self, rows: Rows) -> bool:
        """Whether alignment is a part of these rows' loss."""
        return bool(self.recipe.align) and not rows.veiled

    def forced(
        self,
        inputs: Inputs,
        answers: Sequence[Tensor],
        veil: Veil | None,
        *,
        layered: bool = False,
        branches: Branches | None = None,
    ) -> tuple[Tensor, Tensor]:
        """States ``(rows, columns, dim)`` of a prompt with its answers behind it; of all layers too, if asked.

        branches: how many rows share how many columns, which are then run once, with their gradient.
        """
        ids = nn.utils.rnn.pad_sequence(list(answers), batch_first=True)
        places = inputs.next_position[:, None] + torch.arange(ids.shape[1], device=ids.device)
        mask = F.pad(inputs.mask, (0, ids.shape[1]), value=True)  # padding behind an answer is seen by nothing real
        embeddings = torch.cat([inputs.embeddings, self.backbone.embed(ids)], dim=1)
        positions = torch.cat([inputs.positions, places.expand(*inputs.positions.shape[:-1], -1)], dim=-1)
        if branches is not None:
            embeddings, mask = branches.joined(embeddings), branches.joined(mask)
            positions = branches.joined(positions.movedim((-2, -1), (0, 1))).movedim((0, 1), (-2, -1))
        run = self.backbone.decoder(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask=None if bool(mask.all()) else mask,
            use_cache=False,
            output_hidden_states=layered,
            branches=branches,
            veil=veil,
        )
        layers = [run.last_hidden_state, *(run.hidden_states[1:] if layered else ())]
        if branches is not None:
            layers = [branches.parted(states) for states in layers]
        return layers[0], torch.stack(layers[1:]) if layered else layers[0][None, :, :0]

    def answer_loss(self, states: Tensor, prompt: int, answers: Sequence[Tensor]) -> Tensor:
        """The mean cross-entropy of each row's answer and end, ``(rows,)``. prompt: columns before the answers."""
        predicting = torch.cat([row[prompt - 1 :][: len(ids)] for row, ids in zip(states, answers, strict=True)])
        logits = at_least_float32(self.backbone.head(predicting))
        each = F.cross_entropy(logits, torch.cat(list(answers)), reduction="none")
        return torch.stack([part.mean() for part in each.split([len(ids) for ids in answers])])

    def alignment(self, inputs: Inputs, states: Tensor, made: Injected) -> Tensor:
        """Distance from the teacher of what the forced pass would make next, ``(rows,)``; 0 without visual tokens."""
        module = self.backbone.latent
        assert module is not None
        count = made.content.shape[1]
        predicted = module(states[:, self.making(inputs)], seen_by(module, inputs)).content
        if self.recipe.teacher == "self":
            return losses.disagreement(predicted, made.content)
        found = []
        for row, is_visual in enumerate(inputs.source >= 0):
            visual = inputs.embeddings[row, is_visual].detach()
            one = predicted[row : row + 1]
            target = losses.chunk_means(visual, count)[None] if len(visual) else one
            found.append(losses.disagreement(one, target))
        return torch.cat(found)

    def making(self, inputs: Inputs) -> slice:
        """The columns whose states latents are made of: their own, or one by one those before them."""
        assert self.backbone.latent is not None
        thinking = self.backbone.latent.settings.thinking
        first = inputs.ids.shape[1] + (thinking.mode != "autoregressive")
        return slice(first, first + thinking.latents)

    def spelling(self, states: Tensor, answers: Sequence[Tensor], steps: Sequence[Sequence[str]]) -> Tensor:
        """The mean cross-entropy of each row's steps, a word a latent, then of the answer's first token, ``(rows,)``.

        Of a word its first token, with a space before it.
        """
        count, wanted = states.shape[1], []
        for answer, words in zip(answers, steps, strict=True):
            firsts = [self.backbone.text_ids(f" {word}")[:1] for word in words[:count]]
            wanted.append(torch.cat([*firsts, answer[:1].expand(count - len(firsts))]))
        logits = at_least_float32(self.backbone.head(states))
        return F.cross_entropy(logits.transpose(1, 2), torch.stack(wanted), reduction="none").mean(dim=1)

    @torch.no_grad()
    def teacher_states(self, rows: Rows) -> Tensor:
        """States before the answer without latents, on denser videos, of all layers: ``(layers, rows, dim)``."""
        prompts = [replace(prompt, tokens=more) for prompt, more in zip(rows.prompts, rows.dense, strict=True)]
        inputs = self.backbone.prepare(prompts)
        none = [inputs.ids.new_zeros(0)] * len(prompts)
        return self.forced(inputs, none, None, layered=True)[1][:, :, -1]


def latent_figures(made: Injected) -> tuple[Tensor, Tensor]:
    """Two figures of each row's latents, ``(rows,)`` each: the mean cosine of their pairs, and their effective rank."""
    content = made.content.detach()
    cosine = losses.pair_cosines(content).mean(dim=-1) if content.shape[1] > 1 else content.new_ones(len(content))
    return cosine, losses.effective_rank(content)


def bottleneck(inputs: Inputs, latents: int, answer: int, hides: Hides = "video") -> Veil:
    """A veil through which an answer knows the video by its latents alone.

    "video": it is hidden from the question, the markers and the answer behind it. Hidden are all columns from a row's
    first visual token to its last: the times between them have read what is before. "prompt": prompt and first marker
    are hidden from the second marker and the answer; the question sees the video as ever.
    """
    is_visual = F.pad(inputs.source >= 0, (0, latents + 2 + answer))
    first = inputs.ids.shape[1] + 1
    if hides == "prompt":
        column = torch.arange(is_visual.shape[1], device=is_visual.device).expand_as(is_visual)
        return Veil(hidden=column < first, blind=column >= first + latents)
    seen_before, seen_after = is_visual.cumsum(1) > 0, is_visual.flip(1).cumsum(1).flip(1) > 0
    blind = seen_before & ~seen_after
    blind[:, first : first + latents] = False
    return Veil(hidden=seen_before & seen_after, blind=blind)


def branching(inputs: Inputs, together: int) -> Branches | None:
    """How so many rows about one video go on from it; None where they share nothing.

    They share columns up to the last visual token: what is behind it may be blind to it in a bottleneck.
    """
    columns = (inputs.source >= 0).any(dim=0).nonzero()
    return Branches(stem=int(columns.max()) + 1, count=together) if together > 1 and len(columns) else None


def read_once(backbone: Backbone, inputs: Inputs, branches: Branches) -> Cache:
    """A cache of the columns that some rows share, for all of them; they are run once."""
    cache = backbone.prefill(some_rows(inputs, slice(None, None, branches.count)), stop=branches.stem)
    cache.key_values.batch_repeat_interleave(branches.count)
    logits, attention = (part.repeat_interleave(branches.count, dim=0) for part in (cache.logits, cache.attention))
    return replace(cache, logits=logits, attention=attention)


@contextmanager
def uncheckpointed(model: nn.Module) -> Iterator[None]:
    """Keep the model in eval mode for a block: layers that are computed again in training keep no cache."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
