"""A backbone without a network, for tests of everything above the adapter, and the small videos to show it.

It sees brightness only: a group of four frames becomes 2x2 tokens whose first feature is a quadrant's mean brightness.
Its "language model" answers with the second of the brightest group in the prompt and attends in proportion to
brightness cubed; its keys and values are the embeddings themselves, so a cache of another prompt is noticed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import torch

from longtake.backbones.base import Cache, Inputs, Prompt
from longtake.types import Frames, Query, Rollout, VisualTokens

DIM = 4
SINK = 0.25  # attention that falls on the first column of text, as real models do


@dataclass
class FakeBackbone:
    name: str = "fake-1"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    frames_per_group: int = 4
    context_tokens: int = 4096
    evidence_threshold: float = 0.5
    frame_size: tuple[int, int] | None = (16, 16)
    scorer: str | None = None
    latent: None = None
    encoded_frames: list[float] = field(default_factory=list)  # the times of all frames ever encoded
    prefilled_columns: int = 0

    def encode(self, frames: Frames) -> VisualTokens:
        self.encoded_frames += frames.seconds.tolist()
        num_groups = -(-len(frames) // self.frames_per_group)
        shown = torch.from_numpy(np.ascontiguousarray(frames.pixels)).float() / 255
        height, width = shown.shape[-2] // 2 * 2, shown.shape[-1] // 2 * 2
        quadrants = shown[..., :height, :width].mean(1).unflatten(2, (2, -1)).unflatten(1, (2, -1)).mean((2, 4))
        features, position, seconds = [], [], []
        for group in range(num_groups):
            mean = quadrants[group * self.frames_per_group : (group + 1) * self.frames_per_group].mean(0)
            for row in range(2):
                for column in range(2):
                    features.append([float(mean[row, column]), float(row), float(column), 1.0])
                    position.append([group, row, column])
                    seconds.append(frames.seconds[group * self.frames_per_group])
        return VisualTokens(
            features=torch.tensor(features),
            position=torch.tensor(position),
            seconds=torch.tensor(seconds, dtype=torch.float64),
            weight=torch.full((len(features),), 4.0),
            grid=(num_groups, 2, 2),
        )

    def encode_query(self, text: str) -> Query:
        return Query(text=text, embeddings={"fake": torch.ones(len(text.split()), DIM)})

    def score(self, tokens: VisualTokens, query: Query) -> torch.Tensor:
        assert self.scorer in query.embeddings
        return tokens.features[:, 0]

    def prompt_tokens(self, prompt: Prompt) -> int:
        return self.prepare([prompt]).ids.shape[1]

    def prepare(self, prompts: Sequence[Prompt], *, shared: bool = False) -> Inputs:
        assert shared or len(prompts) == 1
        rows = [self._columns(prompt) for prompt in prompts]
        (before,) = {before for _, before in rows}
        length = max(len(columns) for columns, _ in rows)
        gap = [(0.0, -1)]
        rows = [columns[:before] + gap * (length - len(columns)) + columns[before:] for columns, _ in rows]
        lengths = [sum(column != gap[0] for column in row) for row in rows]
        return Inputs(
            embeddings=torch.tensor([[value for value, _ in row] for row in rows])[..., None].expand(-1, -1, DIM),
            positions=torch.arange(length).expand(len(rows), -1),
            mask=torch.tensor([[column != gap[0] for column in row] for row in rows]),
            source=torch.tensor([[source for _, source in row] for row in rows]),
            ids=torch.zeros(len(rows), length, dtype=torch.long),
            prefix=before,
            next_position=torch.tensor(lengths),
        )

    def _columns(self, prompt: Prompt) -> tuple[list[tuple[float, int]], int]:
        """What stands in each column, and which visual token it is; and how many do not depend on the question."""
        columns = [(0.5, -1), (0.25, -1)]
        if prompt.tokens is not None:
            last = -1
            for index, group in enumerate(prompt.tokens.position[:, 0].tolist()):
                if group != last:
                    stamp = f"{int(prompt.tokens.seconds[index])}|"
                    columns += [(float(ord(letter)), -1) for letter in stamp]
                    last = group
                columns.append((float(prompt.tokens.features[index, 0]), index))
        before = len(columns)
        columns += [(float(sum(map(ord, word))), -1) for word in [*prompt.question.split(), "Answer:"]]
        return columns, before

    def prefill(self, inputs: Inputs, cache: Cache | None = None, *, stop: int | None = None) -> Cache:
        start = 0 if cache is None else cache.length
        stop = inputs.embeddings.shape[1] if stop is None else stop
        self.prefilled_columns += int(inputs.mask[:, start:stop].sum())
        seen = inputs.embeddings[:, :stop].clone()
        return Cache(key_values=seen, length=stop, logits=torch.zeros(1, 2), attention=torch.zeros(1, stop))

    def generate(self, inputs: Inputs, cache: Cache | None = None, **settings: object) -> list[Rollout]:
        if cache is not None:
            for row in inputs.embeddings:
                assert torch.equal(cache.key_values[0], row[: cache.length]), "a cache of another prompt"
        self.prefill(inputs, cache)
        return [self._rollout(inputs, row) for row in range(len(inputs.ids))]

    def _rollout(self, inputs: Inputs, row: int) -> Rollout:
        visual = inputs.source[row] >= 0
        attention = torch.where(visual, inputs.embeddings[row, :, 0] ** 3, 0.0)
        text = f"column {int(attention.argmax())}"
        attention = attention / attention.sum().clamp_min(1e-9) * (1 - SINK)
        attention[0] = SINK
        return Rollout(text=f" {text}\n", ids=(1,), logprobs=(0.0,), finished=True, attention=attention)

    def logprobs(self, inputs: Inputs, completions: Sequence[Sequence[int]]) -> torch.Tensor:
        raise AssertionError("nothing here is trained")


def grey_frames(brightness: Sequence[int], fps: float = 1.0, size: int = 16) -> Frames:
    """One plain frame for each brightness (0 to 255), the first at 0 s."""
    values = np.asarray(brightness, dtype=np.uint8)
    pixels = np.broadcast_to(values[:, None, None, None], (len(values), 3, size, size))
    return Frames(pixels=pixels, seconds=np.arange(len(values), dtype=np.float64) / fps)


def write_video(path: Path, brightness: Sequence[int], fps: int = 1, size: int = 64) -> Path:
    """An MPEG-4 file of plain frames."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width = stream.height = size
        for value in brightness:
            picture = av.VideoFrame.from_ndarray(np.full((size, size, 3), value, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path
