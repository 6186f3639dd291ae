"""A ``VideoLLM`` and the loss of a batch's answers: what align and sft train, as one module that can be spread.

The visual parts run once for all clips of a batch, and once on an empty group where a batch has none: processes that
share a model's weights must call its parts equally often.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtake.backbones.products import train_by_products
from longtake.data.conversations.batches import Batch
from longtake.data.conversations.media import MediaClip
from longtake.data.features import Features
from longtake.data.groups import GroupStore
from longtake.models.preprocess import normalised_pixels
from longtake.models.scorer import LegacySelector, QueryScorer, straight_through
from longtake.models.video_llm import FRAMES_PER_PASS, VideoLLM
from longtake.train.columns import Columns, kept_columns, taken
from longtake.types import IGNORE, Frames


class AnswerLoss(nn.Module):
    """The summed cross-entropy of a batch's learned tokens.

    The selector's scores enter straight-through (faithful) or are added (legacy, as released), so that answers teach
    it; which tokens are dropped is told from outside. Frames pass the tower, features of a store go past it.
    """

    def __init__(self, model: VideoLLM, groups: GroupStore | None = None) -> None:
        """groups: what all that is frozen before the projector makes of clips; None: it is made at every call."""
        super().__init__()
        self.model, self.groups = model, groups
        train_by_products(model.language_model)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.projector.parameters()).device

    @property
    def trains_tower(self) -> bool:
        """Whether any weight of the tower is learned."""
        return any(parameter.requires_grad for parameter in self.model.vision_tower.parameters())

    def forward(self, batch: Batch, columns: Columns, kept: Tensor | None = None) -> Tensor:
        """The summed loss, a scalar. kept: bool ``(groups x per_group,)``, the visual tokens that stay; None: all.

        Every trained weight has a gradient afterwards, zero where the batch does not use it.
        """
        tokens = self.model.projected(self.compressed(batch.clips)).flatten(0, 2)
        questions = self.question_states(batch.question_ids)
        scored = self.scored(tokens, questions, columns)
        ids = columns.ids.to(self.device)
        embeddings = self.model.get_input_embeddings()(ids)
        if columns.num_groups:
            visual = columns.visual.to(self.device)
            picked = scored[visual.clamp_min(0)].to(embeddings.dtype)
            embeddings = torch.where((visual >= 0)[..., None], picked, embeddings)
        embeddings, idle = self.as_released(embeddings, columns)
        at = kept_columns(columns, kept)
        labels = taken(columns.labels, at, IGNORE).to(self.device)
        rows = at.clamp_min(0).to(self.device)[..., None].expand(-1, -1, embeddings.shape[-1])
        # padding stands behind everything that is learned, so a causal mask is all that is needed
        states = self.model.language_model.model(inputs_embeds=embeddings.gather(1, rows), use_cache=False)
        learned = labels[:, 1:] != IGNORE
        logits = self.model.language_model.lm_head(states.last_hidden_state[:, :-1][learned]).float()
        loss = F.cross_entropy(logits, labels[:, 1:][learned], reduction="sum")
        unused = scored.float().sum() + states.last_hidden_state.float().sum() + idle
        return loss + 0.0 * unused

    def compressed(self, clips: Sequence[MediaClip]) -> Tensor:
        """What the projector takes of all clips, ``(groups, rows, columns, dim)``; one group of zeros for none."""
        if self.groups is None:
            return self.model.before_projector(self.model.dts(self.visual_groups(clips)))
        stored = [clip for clip in clips if isinstance(clip, Features)]
        assert len(stored) == len(clips), "only features of a store are kept as groups"
        if stored:
            return torch.cat([self.groups.get(clip).to(self.device) for clip in stored])
        hidden = self.model.config.vision_config.hidden_size
        return self.model.before_projector(torch.zeros(1, *self.model.config.grid, hidden, device=self.device))

    def visual_groups(self, clips: Sequence[MediaClip]) -> Tensor:
        """All clips' features, ``(groups, frames_per_group, rows, columns, dim)``; one group of zeros for none."""
        features = [clip.features.to(self.device) for clip in clips if isinstance(clip, Features)]
        assert len(features) in (0, len(clips)), "clips are frames or features, not both"
        if (clips or self.trains_tower) and not features:
            features = self.encoded([clip for clip in clips if isinstance(clip, Frames)])
        if not features:
            rows, columns = self.model.config.tower_grid
            features = [torch.zeros(1, rows, columns, self.model.config.vision_config.hidden_size, device=self.device)]
        return torch.cat([self.model.split_groups(clip) for clip in features])

    def encoded(self, clips: Sequence[Frames]) -> list[Tensor]:
        """Tower features of each clip; of one black frame where there is none, so that the tower has been called."""
        side = self.model.config.vision_config.image_size
        shown = [normalised_pixels(torch.from_numpy(clip.pixels).to(self.device), (side, side)) for clip in clips]
        pixels = torch.cat(shown or [torch.zeros(1, 3, side, side, device=self.device)])
        if self.trains_tower:
            return list(self.model.encode_frames(pixels).split([len(clip) for clip in shown] or [1]))
        with torch.no_grad():
            features = torch.cat([self.model.encode_frames(part) for part in pixels.split(FRAMES_PER_PASS)])
        return list(features.split([len(clip) for clip in shown] or [1]))

    @torch.no_grad()
    def question_states(self, questions: Sequence[Tensor]) -> list[Tensor]:
        """States of each row's question, which the faithful scorer reads: ``(tokens, hidden)``, without gradient."""
        if not isinstance(self.model.scorer, QueryScorer):
            return []
        asked = [row if len(row) else row.new_zeros(1) for row in questions] or [torch.zeros(1, dtype=torch.int64)]
        padded = nn.utils.rnn.pad_sequence(asked, batch_first=True)
        states = self.model.get_input_embeddings()(padded.to(self.device))
        layer = self.model.config.scorer_layer
        if layer:
            run = self.model.language_model.model(inputs_embeds=states, use_cache=False, output_hidden_states=True)
            states = run.hidden_states[layer]
        return [row[: len(question)] for row, question in zip(states, questions or asked, strict=True)]

    def scored(self, tokens: Tensor, questions: Sequence[Tensor], columns: Columns) -> Tensor:
        """Visual tokens of the same values, through which the answers' gradient reaches the faithful scorer."""
        scorer = self.model.scorer
        if not isinstance(scorer, QueryScorer):
            return tokens
        per_group = self.model.config.tokens_per_group
        clips = list(tokens.split([groups * per_group for groups in columns.clip_groups] or [per_group]))
        rows = columns.clip_rows.tolist() or [0]
        for number, row in enumerate(rows):
            asked = questions[row] if len(questions[row]) else tokens.new_zeros(1, tokens.shape[1])
            scores = stretched(scorer(clips[number].detach(), asked.to(tokens.dtype)).float())
            weight = scores if len(questions[row]) else scores * 0.0
            clips[number] = straight_through(clips[number], weight).to(tokens.dtype)
        return torch.cat(clips)

    def as_released(self, embeddings: Tensor, columns: Columns) -> tuple[Tensor, Tensor]:
        """Embeddings as the legacy selector changes them, clip by clip, and a scalar that its weights are in.

        A clip's columns are turned and their scores added; without that selector nothing changes.

        The released code scores with all text of a conversation, its answers included, which are not there when it is
        asked; here with all text that is not learned (ours).
        """
        scorer, idle = self.model.scorer, embeddings.new_zeros(())
        if not isinstance(scorer, LegacySelector):
            return embeddings, idle
        if not columns.num_groups:
            block = embeddings.new_zeros(2, embeddings.shape[-1])
            turned, _ = scorer(block, torch.tensor([False, True], device=block.device), block[:1])
            return embeddings, turned.float().sum()
        changed = embeddings.clone()
        last = 0
        for groups, row in zip(columns.clip_groups, columns.clip_rows.tolist(), strict=True):
            group = columns.group[row].to(self.device)
            places = ((group >= last) & (group < last + groups)).nonzero().flatten()
            first, stop = int(places[0]), int(places[-1]) + 1
            text = (group < 0) & (columns.labels[row] == IGNORE).to(self.device) & self._real(columns, row)
            is_visual = columns.visual[row, first:stop].to(self.device) >= 0
            changed[row, first:stop], _ = scorer(embeddings[row, first:stop], is_visual, embeddings[row, text])
            last += groups
        return changed, idle

    def _real(self, columns: Columns, row: int) -> Tensor:
        """Bool ``(length,)``, True up to a row's last learned token's column: the rest is its end and padding."""
        learned = (columns.labels[row] != IGNORE).nonzero().flatten()
        stop = int(learned[-1]) if len(learned) else columns.ids.shape[1]
        return (torch.arange(columns.ids.shape[1]) < stop).to(self.device)


def stretched(scores: Tensor) -> Tensor:
    """Scores of one clip from 0 up, over their range where that is above 1: a larger range teaches no more.

    Ours. Stretching a small range too would magnify its rounding: a still picture's tokens would outweigh all others.
    """
    return (scores - scores.amin()) / (scores.amax() - scores.amin()).clamp_min(1.0)
