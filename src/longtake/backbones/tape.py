"""What has been generated so far, a column at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from longtake.types import Rollout


@dataclass(slots=True, kw_only=True)
class Tape:
    """Tokens, their log-probabilities and where the rows that predicted them looked.

    ends: ids that finish a row. looks: float32 ``(rows, prompt columns)``, zeros to begin with: summed attention.
    """

    ends: Tensor
    looks: Tensor
    ids: list[Tensor] = field(default_factory=list)
    logprobs: list[Tensor] = field(default_factory=list)
    finished: list[Tensor] = field(default_factory=list)  # bool (rows,), after each column
    counted: list[Tensor] = field(default_factory=list)  # bool (rows,): whether the column's look counts

    def write(self, ids: Tensor, logprobs: Tensor, look: Tensor) -> None:
        """Takes one token for each row. The end token is no part of the answer, unless there is nothing else."""
        ended = torch.isin(ids, self.ends)
        if self.finished:
            ended = ended | self.finished[-1]
        counted = ~ended if self.ids else torch.ones_like(ended)
        self.looks = self.looks + look[:, : self.looks.shape[1]] * counted[:, None]
        self.ids.append(ids)
        self.logprobs.append(logprobs)
        self.finished.append(ended)
        self.counted.append(counted)

    @property
    def all_finished(self) -> bool:
        return bool(self.finished[-1].all())

    def rollouts(self, tokenizer: PreTrainedTokenizerBase, *, attention: bool) -> list[Rollout]:
        """One Rollout a row, cut after its end token."""
        ids, logprobs = torch.stack(self.ids, dim=1).tolist(), torch.stack(self.logprobs, dim=1).tolist()
        finished = torch.stack(self.finished, dim=1)
        lengths = ((~finished).sum(dim=1) + 1).clamp(max=finished.shape[1]).tolist()
        looks = self.looks / torch.stack(self.counted).sum(dim=0)[:, None]
        return [
            Rollout(
                text=str(tokenizer.decode(ids[row][:length], skip_special_tokens=True)).strip(),
                ids=tuple(ids[row][:length]),
                logprobs=tuple(logprobs[row][:length]),
                finished=bool(finished[row, -1]),
                attention=looks[row] if attention else None,
            )
            for row, length in enumerate(lengths)
        ]
