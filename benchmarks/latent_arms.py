"""What ``latent.py`` asks: questions with the files they are about, what is said of each, and the arms of one model."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import seconds_now
from grpo import FILE_SIZE, model_of, reader, tokens_of

from longtake import video
from longtake.backbones.base import Backbone, Prompt
from longtake.backbones.thinking import add_latents, think
from longtake.data.probe_world.haystack import load_clips
from longtake.data.probe_world.hops import MOST_HOPS, Hop, draw_hop, form_of, hop_video
from longtake.models.latent import LatentSettings, Thinking
from longtake.tables.operations import Operations
from longtake.train.puzzles import QuestionPuzzle
from longtake.types import Frames, VisualTokens

ARMS = ("answer", "latents", "autoregressive", "trace")
STAGES = ("read", "encode", "prefill", "thought", "answer")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A question about a file. thought, answer: ids of the trace up to its colon, and of the answer with its end."""

    hop: Hop
    file: Path
    read: Callable[[], Frames]
    thought: list[int]
    answer: list[int]

    def puzzle(self, tokens: VisualTokens, answer: str) -> QuestionPuzzle:
        """For training."""
        return QuestionPuzzle(name=self.file.stem, question=self.hop.text, answers=(answer,), tokens=tokens)


class Stages:
    """Seconds, passes of the language model and operations by stage; a stage ends where the next one is entered.

    Passes are counted at the decoder itself, whoever calls it.
    """

    def __init__(self, backbone: Backbone, device: str) -> None:
        self._device, self._name, self._counter = device, "", None
        backbone.decoder.register_forward_pre_hook(self._called, with_kwargs=True)
        self.start()

    def start(self, counter: Operations | None = None) -> None:
        """Begin anew. counter: of operations, active."""
        self._name, self._counter = "", counter
        self.seconds, self.passes, self.operations = (dict.fromkeys(STAGES, 0) for _ in range(3))

    def enter(self, name: str) -> str:
        """The name of the stage that this one ends; "" for none."""
        now, counted = seconds_now(self._device), self._counter.total if self._counter else 0
        last, self._name = self._name, name
        if last:
            self.seconds[last] += now - self._begun
            self.operations[last] += counted - self._counted
        self._begun, self._counted = seconds_now(self._device), counted
        return last

    def _called(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if self._name:
            self.passes[self._name] += 1


class Bench:
    """One model, its questions, and the arms."""

    def __init__(self, options: argparse.Namespace, num_frames: int) -> None:
        self.options = options
        self.backbone = model_of(options)
        self.settings = settings_of(options)
        add_latents(self.backbone, self.settings, seed=0)
        self.backbone.model.eval()
        self.stages = Stages(self.backbone, options.device)
        self.cases = cases_of(self.backbone, options, num_frames)
        parallel = self.settings.thinking
        one_by_one = dataclasses.replace(parallel, mode="autoregressive")
        self.thinking = dict.fromkeys(ARMS) | {"latents": parallel, "autoregressive": one_by_one}
        inner = self.backbone.read

        def read(*given: Any, **settings: Any) -> Any:
            if self.stages.passes["prefill"]:
                return inner(*given, **settings)
            before = self.stages.enter("prefill")
            made = inner(*given, **settings)
            self.stages.enter(before)
            return made

        self.backbone.read = read  # think and generate call it; an answer's first is of the prompt

    @torch.no_grad()
    def watch(self, case: Case) -> VisualTokens:
        """A file read and encoded."""
        self.stages.enter("read")
        frames = case.read()
        self.stages.enter("encode")
        tokens = self.backbone.encode(frames)
        self.stages.enter("")
        return tokens

    @torch.no_grad()
    def ask(self, arm: str, cases: Sequence[Case], tokens: Sequence[VisualTokens]) -> None:
        """Questions answered together; all is said that each is given to say."""
        thinking, words = self.thinking[arm], arm == "trace"
        said = [case.thought * words + case.answer for case in cases]
        self.stages.enter("prefill")
        pairs = zip(cases, tokens, strict=True)
        inputs = self.backbone.prepare([Prompt(question=case.hop.text, tokens=own) for case, own in pairs])
        if thinking is None:
            cache = self.backbone.prefill(inputs)
        else:
            self.stages.enter("thought")
            made = think(self.backbone, inputs, thinking=thinking)
            inputs, cache = made.inputs, made.cache
        turn = max(len(case.thought) for case in cases) if words else 0

        def at(column: int) -> None:
            if column in (0, turn):
                self.stages.enter("thought" if column < turn else "answer")

        with saying(self.backbone, said, at):
            rollouts = self.backbone.generate(inputs, cache, max_new_tokens=max(map(len, said)))
        self.stages.enter("")
        for ids, rollout in zip(said, rollouts, strict=True):
            assert list(rollout.ids[: len(ids)]) == ids, f"{arm} said {rollout.ids}, not {ids}"


@contextmanager
def saying(backbone: Backbone, rows: Sequence[Sequence[int]], at: Callable[[int], Any]) -> Iterator[None]:
    """The model's own generation made to say these tokens: it chooses as ever, and something else is written down.

    at: is told of each column before its tokens are chosen.
    """
    given = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(backbone.device)
    choose, columns = backbone._choose, itertools.count()

    def forced(*settings: Any) -> Any:
        column = next(columns)
        at(column)
        _, logprobs = choose(*settings)
        return given[:, column], logprobs

    backbone._choose = forced
    try:
        yield
    finally:
        backbone._choose = choose


def settings_of(options: argparse.Namespace) -> LatentSettings:
    """The recipe's module for the model in the package, the default one at real size."""
    thinking = Thinking(latents=options.latents, passes=options.passes)
    if options.size == "3b":
        return LatentSettings(thinking=thinking)
    return LatentSettings(thinking=thinking, width=128, heads=4)


def spoken(backbone: Backbone, hop: Hop) -> tuple[list[int], list[int]]:
    """Ids of a trace up to its colon, and of the answer as it is said alone, with the end."""
    thought = hop.trace.removesuffix(hop.answer).rstrip()
    return backbone.text_ids(thought).tolist(), [*backbone.text_ids(hop.answer).tolist(), backbone.end_id]


def cases_of(backbone: Backbone, options: argparse.Namespace, num_frames: int) -> list[Case]:
    """Questions of one to four hops in turn, the file of each made once."""
    options.folder.mkdir(parents=True, exist_ok=True)
    clips, cases, fps = [], [], options.film_fps
    for number in range(MOST_HOPS * options.questions):
        hop = draw_hop(np.random.default_rng([71, number]), "test", form_of(number), num_frames)
        file = options.folder / f"hops-{num_frames}-{fps:g}-{number}.mp4"
        if not file.exists():
            clips = clips or load_clips("test", None, options.folder)[:3]
            film = hop_video(hop, clips, num_frames, number)
            film = dataclasses.replace(film, fps=fps, num_frames=round(num_frames * fps), size=FILE_SIZE)
            video.write(file, film.frames(), fps)
        thought, answer = spoken(backbone, hop)
        read = reader(file, num_frames, backbone)
        cases.append(Case(hop=hop, file=file, read=read, thought=thought, answer=answer))
    return cases


def cached_tokens(backbone: Backbone, options: argparse.Namespace, case: Case) -> VisualTokens:
    """A file's tokens as a memory would hold them."""
    return tokens_of(backbone, case.read, case.file.with_suffix(f".{options.size}.pt"))
