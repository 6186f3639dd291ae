"""One step of policy optimisation on a video: what encoding it once and running its prompt once for a group save.

    python benchmarks/grpo.py [--size embedded] [--frames 64] [--group 8] [--answer 16] [--repeats 3] [--json]
    python benchmarks/grpo.py --size 3b --device cuda --budget-gb 80
    python benchmarks/grpo.py --small --json

A step is that of ``train/grpo.py`` on one question puzzle: rollouts, rewards, log-probabilities under the reference
(LoRA switched off), one update. All arms go through its functions and differ in puzzle and adapter alone:

``package``   the puzzle holds the video's tokens; the prompt is run once for its group, in each of the three passes.
``features``  the puzzle holds the tokens; every completion has a prompt of its own.
``frames``    the puzzle holds the frames and encodes them at every pass; every completion has a prompt of its own.
``decoded``   the puzzle reads the file and encodes it at every pass, as peers do (EasyR1 reads anew at every pass; with
              TRL every completion has its own copy of the pixels to encode, while this arm encodes once for all);
              every completion has a prompt of its own.

The file is H.264, 640x360, 25 frames a second, one second for each frame that is seen; answers are exactly ``--answer``
tokens long. Before anything is timed, losses and gradients of all arms are compared on the same completions, in float32
on a CPU. Arms take turns, from the same weights, with the same seeds; medians count. On a CPU seconds are processor
time of one process, so that other work on the machine counts little. Peak memory is that of one more process each.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from arms import add_options, build_backbone, in_own_process, peaks, run, seconds_now
from torch import Tensor

from longtake import video
from longtake.backbones import load_backbone
from longtake.backbones.base import Backbone, Inputs, Prompt
from longtake.data.probe_world.haystack import load_clips
from longtake.data.probe_world.probe import make_video
from longtake.data.probe_world.questions import ask_all
from longtake.model import EMBEDDED
from longtake.train.grpo import experiences, learn, sample
from longtake.train.grpo_recipe import GrpoRecipe, check, prepare
from longtake.train.judging import experience, judge
from longtake.train.methods import METHODS
from longtake.train.policy import Policy
from longtake.train.puzzles import Puzzle, QuestionPuzzle
from longtake.train.rollouts import Draw, Group, roll
from longtake.train.run import Fit, Run, gathered, start_processes
from longtake.types import Frames, Sampling, VisualTokens

ARMS = ("package", "features", "frames", "decoded")
PHASES = ("read", "encode", "prefill", "sampling", "rewards", "log-probabilities", "update")
FILE_FPS, FILE_SIZE = 25.0, (360, 640)
KL = 0.04  # DeepSeekMath's and Video-R1's
MOST_APART = 1e-4  # of gradients in float32, relative to the largest


class Phases:
    """Seconds by name; what is timed within another is not counted there."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.spent: dict[str, float] = {}
        self._inner = [0.0]

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begun = self._now()
        self._inner.append(0.0)
        yield
        whole = self._now() - begun
        self.spent[name] = self.spent.get(name, 0.0) + whole - self._inner.pop()
        self._inner[-1] += whole

    def _now(self) -> float:
        return seconds_now(self._device)


class RowEach:
    """An adapter that runs a prompt anew for each of its completions."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def generate(self, inputs: Inputs, *, num_rollouts: int, **settings: Any) -> list[Any]:
        """Completions of as many rows."""
        return self._backbone.generate(repeated(inputs, num_rollouts), **settings)

    def logprobs(self, inputs: Inputs, completions: list[Any], *, temperature: float) -> Tensor:
        """One completion a row."""
        return self._backbone.logprobs(repeated(inputs, len(completions)), completions, temperature=temperature)


def repeated(inputs: Inputs, times: int) -> Inputs:
    """A batch of one, ``times`` times over."""
    changes = {
        name: value.repeat_interleave(times, dim=1 if name == "positions" and value.ndim == 3 else 0)
        for name in ("embeddings", "positions", "mask", "source", "ids", "next_position")
        if (value := getattr(inputs, name)) is not None
    }
    return dataclasses.replace(inputs, prefix=0, **changes)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FilmPuzzle:
    """A question about a video that is encoded at every asking, and read at every asking where frames are not kept."""

    asked: QuestionPuzzle
    read: Callable[[], Frames]
    frames: Frames | None
    phases: Phases

    @property
    def name(self) -> str:
        return self.asked.name

    @property
    def level(self) -> str:
        return self.asked.level

    def prompt(self, backbone: Backbone) -> Prompt:
        """The question after the video's tokens as they are now."""
        frames = self.frames
        if frames is None:
            with self.phases("read"):
                frames = self.read()
        with self.phases("encode"), torch.no_grad():
            tokens = backbone.encode(frames)
        return Prompt(question=self.asked.question, tokens=tokens)

    def reward(self, completion: str) -> dict[str, float]:
        return self.asked.reward(completion)

    def varied(self, seed: Sequence[int]) -> FilmPuzzle:
        return self


class Bench:
    """One model, one file, and what each arm needs of the two."""

    def __init__(self, options: argparse.Namespace, num_frames: int) -> None:
        self.phases = Phases(options.device)
        self.backbone = model_of(options)
        self.recipe = recipe_of(options)
        path, question, answer = write_film(options.folder, num_frames, options.film_fps)
        read = reader(path, num_frames, self.backbone)
        asked = QuestionPuzzle(name="film", question=question, answers=(answer,))
        tokens = tokens_of(self.backbone, read, path.with_suffix(f".{options.size}.pt"))
        kept = dataclasses.replace(asked, tokens=tokens)
        self.puzzles: dict[str, Puzzle] = {"package": kept, "features": kept}
        self.puzzles["decoded"] = FilmPuzzle(asked=asked, read=read, frames=None, phases=self.phases)
        if options.one in (None, "frames"):
            self.puzzles["frames"] = FilmPuzzle(asked=asked, read=read, frames=read(), phases=self.phases)
        self.names = check(self.recipe, self.backbone, [kept], None, 1)
        prepare(self.recipe, self.backbone)
        torch.manual_seed(1)
        for name, weight in self.backbone.model.named_parameters():
            if "lora_B" in name:  # zero at first, when the policy is its own reference
                torch.nn.init.normal_(weight, std=0.02)
        inner = self.backbone.prefill

        def prefill(*given: Any, **settings: Any) -> Any:
            with self.phases("prefill"):
                return inner(*given, **settings)

        self.backbone.prefill = prefill  # generate calls it
        accelerator = start_processes(self.recipe.fit)
        self.backbone.model.to(accelerator.device)
        self.runs = {
            arm: Run(
                self.recipe.fit,
                accelerator,
                Policy(self.adapter(arm), self.recipe.method.objective, self.recipe.draw),
                options.folder / "run",
            )
            for arm in ARMS
        }
        self.begin = {name: p.detach().clone() for name, p in self.trained()}

    def trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, p) for name, p in self.backbone.model.named_parameters() if p.requires_grad]

    def adapter(self, arm: str) -> Backbone:
        return self.backbone if arm == "package" else cast(Backbone, RowEach(self.backbone))

    def step(self, arm: str, number: int) -> dict[str, Any]:
        """One step from the first weights: seconds by phase, loss, gradient norm and completions."""
        with torch.no_grad():
            for name, weight in self.trained():
                weight.copy_(self.begin[name])
        run, puzzle, recipe, backbone = self.runs[arm], self.puzzles[arm], self.recipe, self.adapter(arm)
        self.phases.spent = {}
        with self.phases("sampling"):
            groups = sample(recipe, run, backbone, [puzzle], number)
        with self.phases("rewards"):
            parts = gathered({place: group.parts(self.names) for place, group in groups.items()})
            verdict = judge(parts, self.names, recipe.weights, recipe.method)
        with self.phases("log-probabilities"):
            made = experiences(recipe, run, backbone, None, groups, verdict)
        with self.phases("update"):
            figures = learn(recipe, run, made, verdict, number, recipe.fit.steps or 1)
        spent = {name: self.phases.spent.get(name, 0.0) for name in PHASES}
        ids = [rollout.ids for rollout in groups[0].rollouts]
        return {"seconds": spent, "loss": figures["loss"], "norm": figures["norm"], "ids": ids}

    def gradients(self, arm: str, group: Group) -> tuple[float, Tensor]:
        """Loss and all gradients of one group whose advantages are made up, so that they are not zero."""
        own = dataclasses.replace(group, puzzle=self.puzzles[arm])
        rewards = [[[float(place % 3)] * len(self.names) for place in range(len(group.rollouts))]]
        verdict = judge(rewards, self.names, self.recipe.weights, self.recipe.method)
        policy = cast(Policy, self.runs[arm].accelerator.unwrap_model(self.runs[arm].module))
        made = experience(own, verdict, 0, self.recipe.method, self.backbone, old=None)
        made = dataclasses.replace(made, reference=policy.reference_logprobs(own))
        self.backbone.model.zero_grad()
        loss = policy(made)[0]
        loss.backward()
        gradients = [cast(Tensor, p.grad).flatten().float().cpu() for _, p in self.trained()]
        return float(loss.detach()), torch.cat(gradients)


def model_of(options: argparse.Namespace) -> Backbone:
    """The model in the package, or random weights of another size, in float32 on a CPU; its answers never end."""
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    if options.size == "embedded":
        backbone = load_backbone(str(EMBEDDED), options.device, dtype)
    else:
        backbone = build_backbone(options.size, options.device, dtype)
    backbone._ends = torch.tensor([-1])
    return backbone


def recipe_of(options: argparse.Namespace) -> GrpoRecipe:
    """GRPO with its divergence from a reference; completions count although they never end."""
    method = METHODS["grpo"]
    objective = dataclasses.replace(method.objective, kl=KL)
    precision = "fp32" if options.device == "cpu" else "bf16"
    return GrpoRecipe(
        fit=Fit(lr=1e-5, batch=1, steps=1000, precision=precision),
        method=dataclasses.replace(method, objective=objective, mask_truncated=False),
        draw=Draw(group=options.group, max_new_tokens=options.answer),
        weights={"exact": 1.0},
        lora_rank=16,
    )


def write_film(folder: Path, num_frames: int, fps: float) -> tuple[Path, str, str]:
    """A video of the probe world as a file, a question about it and the answer; made once."""
    path = folder / f"film-{num_frames}-{fps:g}.mp4"
    told = path.with_suffix(".json")
    if not told.exists():
        folder.mkdir(parents=True, exist_ok=True)
        clips = load_clips("test", None, folder)[:3]
        film = make_video(7, split="test", clips=clips, num_frames=round(num_frames * fps), fps=fps, size=FILE_SIZE)
        video.write(path, film.frames(), fps)
        asked = next(question for question in ask_all(film, np.random.default_rng(0), 40) if question.task == "what")
        told.write_text(json.dumps([asked.text, asked.answer]))
    question, answer = json.loads(told.read_text())
    return path, question, answer


def reader(path: Path, num_frames: int, backbone: Backbone) -> Callable[[], Frames]:
    """Reads the file's frames, 1 a second, at the model's size."""

    def read() -> Frames:
        chunks = list(video.read(path, Sampling(fps=1.0), size=backbone.frame_size, threads=1))
        frames = Frames(
            pixels=np.concatenate([chunk.pixels for chunk in chunks]),
            seconds=np.concatenate([chunk.seconds for chunk in chunks]),
        )
        assert len(frames) == num_frames, f"{path} gave {len(frames)} frames, not {num_frames}"
        return frames

    return read


@torch.no_grad()
def tokens_of(backbone: Backbone, read: Callable[[], Frames], file: Path) -> VisualTokens:
    """What a memory would hold; kept in a file, so that processes that measure memory need not encode."""
    names = ("features", "position", "seconds", "weight")
    if not file.exists():
        tokens = backbone.encode(read())
        torch.save({name: getattr(tokens, name) for name in names} | {"grid": tokens.grid}, file)
    return VisualTokens(**torch.load(file, map_location=backbone.device, weights_only=True))


def compare(bench: Bench, repeats: int) -> dict[str, Any]:
    """Medians of each arm's phases over steps that take turns; the first round warms up."""
    rounds = []
    for number in range(repeats + 1):
        rounds.append({arm: bench.step(arm, number) for arm in ARMS})
    same = [len({str(row["ids"]) for row in one.values()}) == 1 for one in rounds]
    apart = [abs(row["loss"] - one["package"]["loss"]) for one in rounds for row in one.values()]
    timed = rounds[1:]
    totals = {arm: [sum(one[arm]["seconds"].values()) for one in timed] for arm in ARMS}
    arms = {}
    for arm in ARMS:
        phases = {name: statistics.median(one[arm]["seconds"][name] for one in timed) for name in PHASES}
        whole = statistics.median(totals[arm])
        ratios = [own / package for own, package in zip(totals[arm], totals["package"], strict=True)]
        arms[arm] = {
            "seconds": whole,
            "phases": phases,
            "shares": {name: spent / sum(phases.values()) for name, spent in phases.items()},
            "ratio": statistics.median(ratios),
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
        }
    return {"arms": arms, "same_completions": sum(same), "rounds": len(rounds), "losses_apart": max(apart)}


def verify(bench: Bench) -> dict[str, float]:
    """How far each arm's loss and gradients lie from the package's, on completions that are drawn hot.

    A model that is sure of its answer has next to no gradient on it, and rounding would be all there is to compare.
    Raises AssertionError for gradients further apart than ``MOST_APART`` of the largest, on a CPU.
    """
    bench.backbone.model.eval()
    hot = dataclasses.replace(bench.recipe.draw, temperature=1.5)
    group = roll(bench.backbone, bench.puzzles["package"], hot, (0,))
    loss, gradient = bench.gradients("package", group)
    worst_loss = worst = 0.0
    for arm in ARMS[1:]:
        other_loss, other = bench.gradients(arm, group)
        worst_loss = max(worst_loss, abs(other_loss - loss))
        worst = max(worst, float((other - gradient).abs().max() / gradient.abs().max()))
    assert worst < MOST_APART or bench.backbone.device.type != "cpu", f"gradients differ by {worst:.2g}"
    return {"loss": loss, "norm": float(gradient.norm()), "loss_apart": worst_loss, "gradients_apart": worst}


def measure(options: argparse.Namespace, num_frames: int) -> dict[str, Any]:
    """Everything of one length."""
    common = ["--size", options.size, "--device", options.device, "--threads", options.threads, "--frames", num_frames]
    common += ["--group", options.group, "--answer", options.answer, "--film-fps", options.film_fps]
    common += ["--folder", options.folder]
    common += ["--budget-gb", options.budget_gb] if options.budget_gb else []
    in_own_process(__file__, *common, "--one", "both")  # makes the files
    # before a model is here: a process's peak begins at what the one that starts it holds
    peak = {arm: in_own_process(__file__, *common, "--one", arm) for arm in ARMS}
    bench = Bench(options, num_frames)
    checked = verify(bench)
    found = compare(bench, options.repeats)
    for arm in ARMS:
        found["arms"][arm] |= peak[arm]
    length = bench.backbone.prompt_tokens(bench.puzzles["package"].prompt(bench.backbone))
    about = {"size": options.size, "frames": num_frames, "group": options.group, "answer_tokens": options.answer}
    return {**about, "prompt_tokens": length, "checked": checked, **found}


def memory(options: argparse.Namespace) -> dict[str, float]:
    """Peak memory of one step, and how much of it came with the step; run in a process of its own.

    For "both" arms nothing is measured: the files are there afterwards.
    """
    bench = Bench(options, options.frames[0])
    if options.one == "both":
        return {}
    if options.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    before = peaks()["peak_mb"]
    bench.step(options.one, 0)
    return {**peaks(), "over_loaded_mb": peaks()["peak_mb"] - before}


def show(found: dict[str, Any]) -> None:
    checked = found["checked"]
    print(
        f"{found['frames']} frames, {found['prompt_tokens']} prompt tokens, group of {found['group']}, answers of "
        f"{found['answer_tokens']} tokens: gradients at most {checked['gradients_apart']:.1e} of the largest apart, "
        f"losses {checked['loss_apart']:.1e}; completions the same in {found['same_completions']} of "
        f"{found['rounds']} steps"
    )
    for arm, row in found["arms"].items():
        shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in row["shares"].items() if share >= 0.005)
        print(
            f"  {arm:9} {row['seconds']:6.2f} s a step, {row['ratio']:5.2f} times the package's "
            f"[{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]; peak {row['peak_mb']:.0f} MB, "
            f"{row['over_loaded_mb']:.0f} over loaded, {row['device_peak_mb']:.0f} on the device; {shares}"
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, ARMS)
    parser.set_defaults(frames=[64])
    parser.add_argument("--group", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--answer", type=int, default=16, help="tokens of a completion")
    parser.add_argument("--film-fps", type=float, default=FILE_FPS, help="frames a second of the file")
    parser.add_argument("--small", action="store_true", help="a step of no use, in seconds")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "longtake-benchmarks")
    options = parser.parse_args(arguments)
    if options.small:
        options.frames, options.group, options.answer, options.repeats, options.film_fps = [8], 4, 3, 1, 2.0
    run(options, memory, measure, show)


if __name__ == "__main__":
    main()
