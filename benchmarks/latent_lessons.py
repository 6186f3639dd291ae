"""What ``latent.py`` trains: a step of each way to learn to answer, on the same questions."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
from contextlib import nullcontext
from typing import Any

from arms import seconds_now
from grpo import model_of
from latent_arms import cached_tokens, cases_of, settings_of
from latent_formula import Decoder, grpo_flops, latent_flops, sft_flops

from longtake.backbones.base import Prompt
from longtake.tables.operations import Operations
from longtake.train import latent_recipe
from longtake.train.forcing import Forcing
from longtake.train.grpo import experiences, sample
from longtake.train.grpo import learn as learn_policy
from longtake.train.grpo_recipe import GrpoRecipe
from longtake.train.judging import judge
from longtake.train.latent import Queue, learn
from longtake.train.latent_recipe import LatentRecipe
from longtake.train.methods import METHODS
from longtake.train.policy import Policy
from longtake.train.rollouts import Draw
from longtake.train.run import Fit, Run, gathered, start_processes

LESSONS = ("answer", "trace", "latents", "grpo")


class School:
    """One model, and a step of each kind of training on the same questions."""

    def __init__(self, options: argparse.Namespace, num_frames: int) -> None:
        self.options, self.backbone = options, model_of(options)
        precision = "fp32" if options.device == "cpu" else "bf16"
        fit = Fit(lr=1e-5, batch=options.batch, micro_batch=options.batch, steps=1000, precision=precision)
        self.recipe = LatentRecipe(fit=fit, settings=settings_of(options), bottleneck=0.0)
        self.plain = dataclasses.replace(self.recipe, thinks=False)
        latent_recipe.prepare(self.recipe, self.backbone)
        every = cases_of(self.backbone, options, num_frames)
        self.cases = list(itertools.islice(itertools.cycle(every), options.batch))
        self.tokens = [cached_tokens(self.backbone, options, case) for case in self.cases]
        self.answers, self.traces = (
            [case.puzzle(own, text) for case, own, text in zip(self.cases, self.tokens, texts, strict=True)]
            for texts in ([case.hop.answer for case in self.cases], [case.hop.trace for case in self.cases])
        )
        self.length = round(statistics.fmean(len(case.thought) + len(case.answer) for case in self.cases))
        self.policy = GrpoRecipe(
            fit=dataclasses.replace(fit, micro_batch=1),
            method=dataclasses.replace(METHODS["grpo"], mask_truncated=False),  # completions never end
            draw=Draw(group=options.group, max_new_tokens=self.length),
            weights={"exact": 1.0},
        )
        accelerator = start_processes(fit)
        self.backbone.model.to(accelerator.device)
        modules = {
            "answer": Forcing(self.backbone, self.plain),
            "trace": Forcing(self.backbone, self.plain),
            "latents": Forcing(self.backbone, self.recipe),
            "grpo": Policy(self.backbone, self.policy.method.objective, self.policy.draw),
        }
        self.runs = {name: Run(fit, accelerator, module, options.folder / "run") for name, module in modules.items()}

    def step(self, lesson: str, number: int) -> None:
        """One step of the language model."""
        if lesson == "grpo":
            return self.policy_step(number)
        recipe, puzzles = self.plain, self.answers
        if lesson == "latents":
            recipe = self.recipe
        elif lesson == "trace":
            puzzles = self.traces
        rate = recipe.fit.rate(number, recipe.fit.steps or 1)
        learn(recipe, self.runs[lesson], self.backbone, puzzles, Queue(0), {}, veiled=False, rate=rate)

    def policy_step(self, number: int) -> None:
        """One step of ``train/grpo.py``: rollouts, rewards, one update."""
        recipe, run = self.policy, self.runs["grpo"]
        groups = sample(recipe, run, self.backbone, self.answers, number)
        parts = gathered({place: group.parts(("exact",)) for place, group in groups.items()})
        verdict = judge(parts, ("exact",), recipe.weights, recipe.method)
        made = experiences(recipe, run, self.backbone, None, groups, verdict)
        learn_policy(recipe, run, made, verdict, number, recipe.fit.steps or 1)

    def formula(self, lesson: str) -> float:
        """Operations of a step; rows of a batch are padded to the longest, but for GRPO's, which come one by one."""
        decoder = Decoder(config=self.backbone.decoder.config, skips_masked=False)
        pairs = list(zip(self.cases, self.tokens, strict=True))
        prompts = [self.backbone.prompt_tokens(Prompt(question=case.hop.text, tokens=own)) for case, own in pairs]
        if lesson == "grpo":
            return sum(grpo_flops(decoder, prompt, self.length, self.options.group) for prompt in prompts)
        texts = [case.hop.trace if lesson == "trace" else case.hop.answer for case in self.cases]
        learned = [len(self.backbone.text_ids(text)) + 1 for text in texts]
        prompt, said = max(prompts), max(learned)
        if lesson == "latents":
            visual, settings = len(self.tokens[0]), self.recipe.settings
            return sum(latent_flops(decoder, settings, prompt, visual, said, own) for own in learned)
        return sum(sft_flops(decoder, prompt + said, own) for own in learned)


def train_in_turn(school: School, repeats: int, watching: dict[str, float]) -> dict[str, Any]:
    """Each lesson's step: operations of a first round, median seconds of so many more.

    watching: seconds and operations of reading and encoding one video.
    """
    spent: dict[str, list[float]] = {lesson: [] for lesson in LESSONS}
    found: dict[str, Any] = {lesson: {} for lesson in LESSONS}
    for number in range(repeats + 1):
        for lesson in LESSONS:
            with (Operations() if number == 0 else nullcontext()) as counter:
                begun = seconds_now(school.options.device)
                school.step(lesson, number)
            if counter is None:
                spent[lesson].append(seconds_now(school.options.device) - begun)
            else:
                formula = school.formula(lesson)
                found[lesson] |= {"operations": counter.total, "apart": abs(counter.total / formula - 1)}
    batch = len(school.cases)
    for lesson, own in found.items():
        own["seconds"] = statistics.median(spent[lesson])
        own["ratio"] = statistics.median(a / b for a, b in zip(spent[lesson], spent["latents"], strict=True))
        own["operations_ratio"] = own["operations"] / found["latents"]["operations"]
        own["seconds_end_to_end"] = own["seconds"] + batch * watching["seconds"]
        own["operations_end_to_end"] = own["operations"] + batch * watching["operations"]
    for own in found.values():
        for name in ("seconds", "operations"):
            whole = found["latents"][f"{name}_end_to_end"]
            own[f"{name}_end_to_end_ratio"] = own[f"{name}_end_to_end"] / whole
    return {"batch": batch, "group": school.options.group, "completion_tokens": school.length, "lessons": found}
