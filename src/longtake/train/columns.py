"""Where the visual tokens of a batch stand, and what is left of its columns when some of the tokens are dropped.

A row's video is a run of groups, each its stamp and then its visual tokens. The query-aware selector's training drops
5 to 30% of a video's tokens (Video-XL-Pro, arXiv 2503.18478, section 3.3); which ones, that is at random, and that
images keep theirs is ours. A group that keeps none loses its stamp too, as when the trained selector chooses.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from longtake.data.conversations.batches import Batch
from longtake.data.conversations.media import MediaClip
from longtake.types import IGNORE


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """A batch's columns, int64 ``(rows, length)`` each; G groups of all clips, in the order in which they stand.

    ids, labels: as the batch has them. group: the group a stamp or a visual token belongs to, -1 for other text.
    visual: which of the ``G x per_group`` visual tokens stands there, -1 for text and stamps.
    clip_groups: how many groups each clip has. clip_rows: int64 ``(clips,)``, the row of each.
    """

    ids: Tensor
    labels: Tensor
    group: Tensor
    visual: Tensor
    clip_groups: tuple[int, ...]
    clip_rows: Tensor

    @property
    def num_groups(self) -> int:
        """Groups of all clips together."""
        return sum(self.clip_groups)


def columns_of(
    batch: Batch, video_token_id: int, frames_per_group: int, per_group: int, stamp_tokens: Callable[[float], int]
) -> Columns:
    """A batch's columns with their groups and visual tokens.

    per_group: visual tokens of a group. stamp_tokens: how many ids stand for the stamp of a time in seconds.

    Raises ValueError when places and clips differ: the batch was made for another model.
    """
    clip_groups = tuple(-(-len(clip) // frames_per_group) for clip in batch.clips)
    places = (batch.ids == video_token_id).nonzero()
    if len(places) != sum(clip_groups) * per_group:
        raise ValueError(f"{len(places)} places for visual tokens, but {sum(clip_groups)} groups of {per_group}")
    visual = torch.full_like(batch.ids, -1)
    visual[places[:, 0], places[:, 1]] = torch.arange(len(places))
    group = torch.where(visual >= 0, visual // per_group, -1)
    starts = places[::per_group].tolist()  # of each group: its row and its first visual token's column
    seconds = [float(t) for clip in batch.clips for t in clip.seconds[::frames_per_group]]
    for number, ((row, column), time) in enumerate(zip(starts, seconds, strict=True)):
        group[row, column - stamp_tokens(time) : column] = number
    return Columns(
        ids=batch.ids,
        labels=batch.labels,
        group=group,
        visual=visual,
        clip_groups=clip_groups,
        clip_rows=batch.clip_rows,
    )


def draw_kept(
    names: Sequence[str],
    clips: Sequence[MediaClip],
    columns: Columns,
    per_group: int,
    share: tuple[float, float],
    seed: Sequence[int],
) -> Tensor:
    """Draw the visual tokens that stay, bool ``(groups x per_group,)``: of each video all but a share [least, most].

    names: of the rows; the draw depends on a row's name and ``seed`` alone, so that it is the same on any process.
    """
    kept = torch.ones(columns.num_groups, per_group, dtype=torch.bool)
    begin = 0
    for number, (clip, groups, row) in enumerate(
        zip(clips, columns.clip_groups, columns.clip_rows.tolist(), strict=True)
    ):
        if len(clip) > 1:
            rng = np.random.default_rng([*seed, zlib.crc32(names[row].encode()), number - _first(columns, row)])
            dropped = round(groups * per_group * rng.uniform(*share))
            which = rng.permutation(groups * per_group)[:dropped]
            kept[begin : begin + groups].view(-1)[torch.from_numpy(which)] = False
        begin += groups
    return kept.flatten()


def _first(columns: Columns, row: int) -> int:
    """The number of a row's first clip."""
    return int((columns.clip_rows < row).sum())


def kept_columns(columns: Columns, kept: Tensor | None) -> Tensor:
    """The columns of each row that stay, int64 ``(rows, longest)``, -1 behind a shorter row's last.

    kept: bool, one a visual token; None keeps all. A stamp stays while its group has a token. A row's padding behind
    its last learned token, which nothing looks at, goes first.
    """
    stays = torch.ones_like(columns.ids, dtype=torch.bool)
    if kept is not None and columns.num_groups:
        alive = kept.view(columns.num_groups, -1).any(dim=1)
        stays = torch.where(columns.visual >= 0, kept[columns.visual.clamp_min(0)], stays)
        is_stamp = (columns.group >= 0) & (columns.visual < 0)
        stays = torch.where(is_stamp, alive[columns.group.clamp_min(0)], stays)
    learned = (columns.labels != IGNORE).flip(1).cumsum(1).flip(1) > 0
    rows = [(row & needed).nonzero().flatten() for row, needed in zip(stays, learned, strict=True)]
    rows = [row if len(row) else torch.zeros(1, dtype=torch.int64) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


def taken(values: Tensor, at: Tensor, fill: int) -> Tensor:
    """Values ``(rows, length)`` at the columns that stay, ``fill`` where there is none."""
    return torch.where(at >= 0, values.gather(1, at.clamp_min(0)), fill)
