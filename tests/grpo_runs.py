"""Policy optimisation on tiny models and a toy reward, for tests in this process and in others."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import tiny
from longtake.backbones.base import Backbone, Prompt
from longtake.backbones.own import OwnVideoLLM
from longtake.backbones.qwen_vl import QwenVL
from longtake.models.processor import VideoLLMProcessor
from longtake.train.grpo import train_grpo
from longtake.train.grpo_recipe import GrpoRecipe
from longtake.train.imitate import ImitateRecipe, train_imitation
from longtake.train.methods import METHODS, Method
from longtake.train.rollouts import Draw, Group
from longtake.types import VisualTokens
from stage_runs import fit, fresh_model


def sampled_logprobs(group: Group) -> torch.Tensor:
    """Under the distribution that was sampled from, ``(group, longest)``, 0 on padding."""
    rows = [torch.tensor(rollout.logprobs) for rollout in group.rollouts]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


@dataclass(frozen=True, kw_only=True)
class Letters:
    """Pays for the share of small letters in a completion, about a tenth of what a random model says."""

    name: str
    tokens: VisualTokens
    level: str = "easy"
    features: torch.Tensor | None = None

    def prompt(self, backbone: Backbone) -> Prompt:
        tokens = self.tokens
        if self.features is not None:
            tokens = backbone.encode_features(self.features, torch.arange(len(self.features), dtype=torch.float64))
        return Prompt(question="say", tokens=tokens)

    def reward(self, completion: str) -> dict[str, float]:
        letters = sum("a" <= letter <= "z" for letter in completion)
        share = letters / max(1, len(completion))
        return {"letters": share, "exact": float(share > 0.5), "short": float(len(completion) < 6)}

    def varied(self, seed: Sequence[int]) -> "Letters":
        return self


@dataclass(frozen=True, kw_only=True)
class Spelled(Letters):
    """Letters with a completion that is right."""

    def solution(self) -> str:
        return self.name

    def guess(self, rng: np.random.Generator) -> str:
        return "".join(rng.permutation(list("abcdef")))


def own(**changes: object) -> OwnVideoLLM:
    """Small weights, as a trained model's: a large random model is sure of nonsense and hard to move."""
    model = fresh_model(scorer=None, **changes)
    return OwnVideoLLM(model.eval(), VideoLLMProcessor.from_config(tiny.tokenizer(), model.config))


def qwen() -> QwenVL:
    model = tiny.qwen_vl()
    model.apply(model._init_weights)
    return QwenVL(model, tiny.tokenizer(), min_tokens=4, max_tokens=24)


def puzzles(backbone: Backbone, count: int = 6, *, featured: bool = False) -> list[Letters]:
    made = []
    for number in range(count):
        shown = tiny.frames(4, 32, 32, seed=number)
        with torch.no_grad():
            tokens = backbone.encode(shown)
            features = backbone.tower_features(shown) if featured else None
        level = ("easy", "hard")[number % 2]
        made.append(Letters(name=f"puzzle{number}", tokens=tokens, level=level, features=features))
    return made


def recipe(*, method: str | Method = "grpo", group: int = 4, kl: float | None = None, **changes: object) -> GrpoRecipe:
    """Six steps of four puzzles, saved at every second. changes: of the recipe, or of its fit."""
    chosen = METHODS[method] if isinstance(method, str) else method
    chosen = dataclasses.replace(chosen, mask_truncated=False)
    if kl is not None:
        chosen = dataclasses.replace(chosen, objective=dataclasses.replace(chosen.objective, kl=kl))
    own_changes = {name: changes.pop(name) for name in list(changes) if name in GrpoRecipe.__dataclass_fields__}
    settings: dict[str, object] = {
        "weights": {"letters": 1.0, "short": 0.1},
        "draw": Draw(group=group, max_new_tokens=6),
        "samples_every": 2,
    }
    return GrpoRecipe(fit=fit(micro_batch=1, **changes), method=chosen, **(settings | own_changes))


def run_grpo(
    output: Path, *, family: str = "own", held: bool = False, featured: bool = False, **changes: object
) -> Backbone:
    backbone = own() if family == "own" else qwen()
    made = puzzles(backbone, featured=featured)
    teacher = None
    if changes.get("method") == "opd":
        teacher = own() if family == "own" else qwen()
        torch.manual_seed(5)
        for parameter in teacher.decoder.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    train_grpo(recipe(**changes), backbone, made, output, held=made[:3] if held else (), teacher=teacher)
    return backbone


def run_imitation(output: Path, *, featured: bool = False, held: bool = False, **changes: object) -> Backbone:
    """Six steps of supervised learning on spelled puzzles. changes: of the recipe, or of its fit."""
    backbone = own()
    made = [Spelled(**vars(puzzle)) for puzzle in puzzles(backbone, featured=featured)]
    own_changes = {name: changes.pop(name) for name in list(changes) if name in ImitateRecipe.__dataclass_fields__}
    recipe = ImitateRecipe(fit=fit(**changes), weights={"letters": 1.0}, max_new_tokens=6, **own_changes)
    train_imitation(recipe, backbone, made, output, held=made[:3] if held else ())
    return backbone
