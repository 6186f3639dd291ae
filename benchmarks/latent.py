"""What thinking in latents costs beside a thought in words, of the same model at equal frames: asked, and trained.

    python benchmarks/latent.py [--size embedded] [--frames 16] [--questions 8] [--repeats 3] [--json]
    python benchmarks/latent.py --size 3b --device cuda --frames 64 --budget-gb 80
    python benchmarks/latent.py --small --json

Questions are those of one to four hops (``data/probe_world/hops.py``), each about a video of its own: H.264, 640x360,
25 frames a second, one second for each frame that is seen. What a model would say is given, so that every arm says the
same answer and pays what saying it costs: ``generate`` runs and chooses as ever, and then something else is written
down.

``answer``          the answer alone.
``latents``         K latents made anew T times, all at once, then the answer.
``autoregressive``  K latents one after the other, then the answer.
``trace``           the question's exact trace, token by token, then the answer.

Stages: ``read`` the file, ``encode`` its frames, ``prefill`` the prompt, ``thought`` (latents or words), ``answer``.
Passes of the language model are counted where it is called and must be those of the formula; operations are counted
by PyTorch's formulas in a first round, which warms up too, and must be near ours (``latent_formula.py``).

Training: one step on ``--batch`` questions with their videos' tokens, by the functions of the stages: answers alone,
traces, latents with their answers (after the bottleneck), and GRPO with ``--group`` completions as long as the mean
trace with its answer. All learn the whole language model; GRPO has no reference.

Batches are answered together, and end with the longest of what they say; a video is read and encoded alone.

Arms take turns; medians count. On a CPU seconds are processor time of one process, so that other work counts little.
Peak memory is that of one more process each. Weights of the latents are fresh: their values change no cost.
"""

from __future__ import annotations

import argparse
import itertools
import re
import statistics
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import add_options, in_own_process, peaks, run
from grpo import FILE_FPS
from latent_arms import ARMS, STAGES, Bench, Case, cached_tokens, spoken
from latent_formula import GROUP, Decoder, asking_flops, at_video_r1s_lengths, passes_of
from latent_lessons import LESSONS, School, train_in_turn

from longtake.backbones.base import Backbone, Prompt
from longtake.data.probe_world.hops import FORMS, MOST_HOPS, draw_hop
from longtake.models.latent import LatentSettings, Thinking
from longtake.tables.latent.world import hops_name
from longtake.tables.operations import Operations
from longtake.types import VisualTokens

OWN = ("watch", *(f"ask-{arm}" for arm in ARMS), *(f"learn-{lesson}" for lesson in LESSONS))  # measured by processes
SPANS = {"after the prompt": STAGES[3:], "of the language model": STAGES[2:], "end to end": STAGES}
TRACES = 400  # drawn questions whose traces' lengths are told
FEWER = 4.0  # times as few passes as the shortest trace of the most hops: the aim
MOST_APART = 0.05  # of counted operations from the formula's


def ask_in_turn(bench: Bench, repeats: int) -> list[dict[str, Any]]:
    """Every question in every arm: passes and operations of a first round, seconds of so many more.

    Raises AssertionError where passes are not the formula's, or operations not near it.
    """
    found = []
    for case in bench.cases:
        row: dict[str, Any] = {"hops": case.hop.hops, "arms": {arm: {"seconds": []} for arm in ARMS}}
        for number in range(repeats + 1):
            with (Operations() if number == 0 else nullcontext()) as counter:
                bench.stages.start(counter)
                tokens = bench.watch(case)
                watched = {name: getattr(bench.stages, name) for name in ("seconds", "operations")}
                for arm in ARMS:
                    bench.stages.start(counter)
                    bench.ask(arm, [case], [tokens])
                    if number:
                        row["arms"][arm]["seconds"].append(joined(watched["seconds"], bench.stages.seconds))
                    else:
                        row["arms"][arm] |= counted(bench, arm, case, tokens, watched["operations"])
        found.append(row)
    return found


def joined(watched: dict[str, float], asked: dict[str, float]) -> dict[str, float]:
    """Stages of a video that all arms were asked about, and of one arm's answer."""
    return {name: watched[name] + asked[name] for name in STAGES}


def counted(
    bench: Bench, arm: str, case: Case, tokens: VisualTokens, watched: dict[str, float]
) -> dict[str, Any]:
    """What was counted of an arm's answer, checked against the formulas."""
    stages, thinking, words = bench.stages, bench.thinking[arm], arm == "trace"
    thought, answer = len(case.thought) * words, len(case.answer)
    passes = stages.passes["thought"] + stages.passes["answer"]
    expected = passes_of(thinking, thought, answer)
    assert passes == expected, f"{arm} took {passes} passes, not {expected}"
    assert stages.passes["prefill"] == 1, f"the prompt took {stages.passes['prefill']} passes"
    prompt = bench.backbone.prompt_tokens(Prompt(question=case.hop.text, tokens=tokens))
    decoder = Decoder(config=bench.backbone.decoder.config, skips_masked=False)
    settings = bench.settings if thinking else None
    formula = asking_flops(
        decoder, prompt, len(tokens), answer, thought=thought, settings=settings, thinking=thinking
    )
    own = {name: stages.operations[name] for name in formula}
    apart = abs(sum(own.values()) / sum(formula.values()) - 1)
    assert apart < MOST_APART, f"{arm}: operations {own}, by formula {formula}"
    return {
        "tokens": thought + answer,
        "latents": thinking.latents if thinking else 0,
        "passes": passes,
        "most_passes": thinking.passes + 1 + answer if arm == "latents" and thinking else passes,
        "operations": joined(watched, stages.operations),
        "apart": apart,
        "prompt": prompt,
    }


def throughput(bench: Bench, cases: list[Case], repeats: int) -> dict[str, float]:
    """Median seconds of each arm for a batch of these questions, their videos watched before."""
    batch = list(itertools.islice(itertools.cycle(cases), bench.options.batch))
    tokens = [cached_tokens(bench.backbone, bench.options, case) for case in batch]
    spent: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for number in range(repeats + 1):
        for arm in ARMS:
            bench.stages.start()
            bench.ask(arm, batch, tokens)
            if number:
                spent[arm].append(sum(bench.stages.seconds.values()))
    return {arm: statistics.median(seconds) for arm, seconds in spent.items()}


def summary(rows: list[dict[str, Any]], arm: str) -> dict[str, Any]:
    """An arm's figures over some questions: medians, means of operations, and latencies of single answers."""
    own = [row["arms"][arm] for row in rows]
    runs = [run for each in own for run in each["seconds"]]
    found = {name: statistics.median(each[name] for each in own) for name in ("tokens", "passes")}
    found["operations"] = {name: statistics.fmean(each["operations"][name] for each in own) for name in STAGES}
    found["seconds"] = {name: statistics.median(run[name] for run in runs) for name in STAGES}
    for span, stages in SPANS.items():
        spent = [sum(run[name] for name in stages) for run in runs]
        found[span] = {"p50": float(np.quantile(spent, 0.5)), "p95": float(np.quantile(spent, 0.95))}
    return found


def ratios(rows: list[dict[str, Any]], arm: str) -> dict[str, float]:
    """How many times what an arm takes a trace takes, by denominator: medians over questions, and runs of them."""
    pairs = [(row["arms"]["trace"], row["arms"][arm]) for row in rows]
    found = {
        "tokens": statistics.median(trace["tokens"] / own["tokens"] for trace, own in pairs),
        "tokens and latents": statistics.median(t["tokens"] / (own["tokens"] + own["latents"]) for t, own in pairs),
        "passes": statistics.median(trace["passes"] / own["passes"] for trace, own in pairs),
    }
    for span, stages in SPANS.items():
        spent = [[sum(each["operations"][name] for name in stages) for each in pair] for pair in pairs]
        found[f"operations {span}"] = statistics.median(trace / own for trace, own in spent)
        found[f"seconds {span}"] = statistics.median(
            sum(run[name] for name in stages) / sum(other[name] for name in stages)
            for trace, own in pairs
            for run, other in zip(trace["seconds"], own["seconds"], strict=True)
        )
    return found


def shortest(backbone: Backbone, thinking: Thinking, num_frames: int) -> dict[int, dict[str, float]]:
    """By hops: how long exact traces with their answers are, and how many times the latents' passes they take.

    words: the same at a token for each word and mark, as large vocabularies have them.
    """
    found = {}
    for hops in range(1, MOST_HOPS + 1):
        forms = [name for name, form in FORMS.items() if form.hops == hops]
        lengths, fewer, words = [], [], []
        for number in range(TRACES // MOST_HOPS):
            rng = np.random.default_rng([72, hops, number])
            hop = draw_hop(rng, "test", forms[number % len(forms)], num_frames)
            thought, answer = map(len, spoken(backbone, hop))
            lengths.append(thought + answer)
            fewer.append(passes_of(None, thought, answer) / passes_of(thinking, 0, answer))
            whole = len(re.findall(r"\w+|[^\w\s]", hop.trace))
            words.append(passes_of(None, whole - 1, 2) / passes_of(thinking, 0, 2))
        found[hops] = {
            "fewest_tokens": min(lengths),
            "tokens": statistics.median(lengths),
            "most_tokens": max(lengths),
            "passes": statistics.median(fewer),
            "fewest_passes": min(fewer),
            "fewest_passes_words": min(words),
        }
    return found


def measure(options: argparse.Namespace, num_frames: int) -> dict[str, Any]:
    """Everything of one length."""
    common = ["--frames", num_frames, "--folder", options.folder, "--film-fps", options.film_fps]
    for name in ("size", "device", "threads", "questions", "batch", "group", "latents", "passes"):
        common += [f"--{name}", getattr(options, name)]
    common += ["--budget-gb", options.budget_gb] if options.budget_gb else []
    in_own_process(__file__, *common, "--one", "both")  # makes the files
    # before a model is here: a process's peak begins at what the one that starts it holds
    peak = {one: in_own_process(__file__, *common, "--one", one) for one in OWN}
    bench = Bench(options, num_frames)
    rows = ask_in_turn(bench, options.repeats)
    groups = grouped(bench, rows)
    traces = shortest(bench.backbone, bench.settings.thinking, num_frames)
    thoughts = [row["arms"]["latents"] for row in rows]
    mean = groups["all"]["arms"]["trace"]
    watching = {name: sum(mean[name][stage] for stage in STAGES[:2]) for name in ("seconds", "operations")}
    return {
        "size": options.size,
        "frames": num_frames,
        "questions": len(rows),
        "repeats": options.repeats,
        "batch": options.batch,
        "latents": options.latents,
        "passes": options.passes,
        "prompt_tokens": statistics.median(row["arms"]["answer"]["prompt"] for row in rows),
        "operations_apart": max(own["apart"] for row in rows for own in row["arms"].values()),
        "groups": groups,
        "traces": traces,
        "aims": {
            "at most T + 1 passes and one for each of the answer's tokens": all(
                own["passes"] <= own["most_passes"] for own in thoughts
            ),
            f"{FEWER:g} times fewer passes than the shortest trace of {MOST_HOPS} hops": (
                traces[MOST_HOPS]["fewest_passes"] >= FEWER
            ),
            "the same if each word and mark were one token": traces[MOST_HOPS]["fewest_passes_words"] >= FEWER,
        },
        "peaks": peak,
        "training": train_in_turn(School(options, num_frames), options.repeats, watching),
        "video_r1": at_video_r1s_lengths(LatentSettings(thinking=bench.settings.thinking)),
    }


def grouped(bench: Bench, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Each arm's figures, and how many times what it takes a trace takes, by hops and of all questions."""
    found: dict[str, Any] = {}
    numbers = {hops_name(n): [k for k, row in enumerate(rows) if row["hops"] == n] for n in range(1, MOST_HOPS + 1)}
    for name, own in (numbers | {"all": list(range(len(rows)))}).items():
        some = [rows[number] for number in own]
        arms = {arm: summary(some, arm) for arm in ARMS}
        against = {arm: ratios(some, arm) for arm in ARMS[:-1]}
        spent = throughput(bench, [bench.cases[number] for number in own], bench.options.repeats)
        watching = sum(arms["trace"]["seconds"][stage] for stage in STAGES[:2])
        whole = {arm: seconds + bench.options.batch * watching for arm, seconds in spent.items()}
        for arm in ARMS:
            arms[arm]["a_second"] = {
                "of the language model": bench.options.batch / spent[arm],
                "end to end": bench.options.batch / whole[arm],
            }
        for arm in against:
            against[arm]["seconds of a batch, of the language model"] = spent["trace"] / spent[arm]
            against[arm]["seconds of a batch, end to end"] = whole["trace"] / whole[arm]
        found[name] = {"arms": arms, "a_trace_takes": against}
    return found


def memory(options: argparse.Namespace) -> dict[str, float]:
    """Peak memory of a batch of the longest questions, or of a step, and how much of it came with that.

    Run in a process of its own. For "both" nothing is measured: the files are there afterwards.
    """
    what, _, which = options.one.partition("-")
    if what == "learn":
        school = School(options, options.frames[0])
    else:
        bench = Bench(options, options.frames[0])
        own = [case for case in bench.cases if case.hop.hops == MOST_HOPS]
        batch = list(itertools.islice(itertools.cycle(own), options.batch))
    if options.one == "both":
        for case in bench.cases:
            cached_tokens(bench.backbone, options, case)
        return {}
    tokens = [cached_tokens(bench.backbone, options, case) for case in batch] if what == "ask" else []
    if options.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    before = peaks()["peak_mb"]
    if what == "learn":
        school.step(which, 0)
    elif what == "ask":
        bench.ask(which, batch, tokens)
    else:
        bench.watch(own[0])
    return {**peaks(), "over_loaded_mb": peaks()["peak_mb"] - before}


def table(header: list[str], rows: list[list[str]]) -> None:
    """Rows under their header, the first column to the left."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  " + row[0].ljust(len(first)), *rest, sep="  ")


def show(found: dict[str, Any]) -> None:
    print(
        f"{found['frames']} frames, {found['prompt_tokens']:.0f} prompt tokens, K = {found['latents']}, "
        f"T = {found['passes']}: {found['questions']} questions, {found['repeats']} times; operations at most "
        f"{100 * found['operations_apart']:.1f}% from the formula's"
    )
    for name, group in found["groups"].items():
        show_group(name, group, found["batch"])
    print("traces with their answers, by hops")
    rows = [
        [str(hops), *(f"{own[name]:.0f}" for name in ("fewest_tokens", "tokens", "most_tokens")),
         *(f"{own[name]:.2f}" for name in ("fewest_passes", "passes", "fewest_passes_words"))]
        for hops, own in found["traces"].items()
    ]  # fmt: skip
    times = ["times the latents' passes at least", "median", "at least, a token a word"]
    table(["hops", "fewest tokens", "median", "most", *times], rows)
    for aim, met in found["aims"].items():
        print(f"aim: {aim}: {'met' if met else 'not met'}")
    print("peak memory, MB")
    names = ("peak_mb", "over_loaded_mb", "device_peak_mb")
    rows = [[one, *(f"{own[name]:.0f}" for name in names)] for one, own in found["peaks"].items()]
    table(["", "peak", "over loaded", "on the device"], rows)
    show_training(found["training"])
    show_video_r1(found["video_r1"])


def show_group(name: str, group: dict[str, Any], batch: int) -> None:
    print(f"{name}: medians in ms, p50/p95 of single answers, answers a second in batches of {batch}")
    rows = [
        [arm, f"{row['tokens']:.0f}", f"{row['passes']:.0f}",
         *(f"{1000 * row['seconds'][stage]:.1f}" for stage in STAGES),
         *(f"{1000 * row[span]['p50']:.1f}/{1000 * row[span]['p95']:.1f}" for span in SPANS),
         *(f"{value:.2f}" for value in row["a_second"].values())]
        for arm, row in group["arms"].items()
    ]  # fmt: skip
    spans = [*SPANS, "answers/s of the language model", "end to end"]
    table(["", "tokens", "passes", *STAGES, *spans], rows)
    print(f"{name}: millions of operations")
    rows = [
        [arm, *(f"{row['operations'][stage] / 1e6:.2f}" for stage in STAGES)] for arm, row in group["arms"].items()
    ]
    table(["", *STAGES], rows)
    print(f"{name}: a trace takes so many times what the arm takes")
    against = group["a_trace_takes"]
    names = list(against["latents"])
    table(["", *against], [[what, *(f"{own[what]:.2f}" for own in against.values())] for what in names])


def show_training(found: dict[str, Any]) -> None:
    print(
        f"a step on {found['batch']} questions, grpo with {found['group']} completions of "
        f"{found['completion_tokens']} tokens; times a step with latents; end to end is with reading and encoding"
    )
    rows = [
        [lesson, f"{own['seconds']:.3f}", f"{own['ratio']:.2f}", f"{own['operations'] / 1e9:.2f}",
         f"{own['operations_ratio']:.2f}", f"{100 * own['apart']:.1f}%", f"{own['seconds_end_to_end']:.3f}",
         f"{own['seconds_end_to_end_ratio']:.2f}", f"{own['operations_end_to_end_ratio']:.2f}"]
        for lesson, own in found["lessons"].items()
    ]  # fmt: skip
    whole = ["s end to end", "times", "times the operations"]
    table(["", "s", "times", "10^9 operations", "times", "from the formula", *whole], rows)


def show_video_r1(found: dict[str, Any]) -> None:
    print("computed at Qwen2.5-VL-7B's shape, lengths of Video-R1's completions: times what latents take")
    names = {kind: list(found["rows"][0][kind]) for kind in ("asked", "learned")}
    rows = [
        [str(row["frames"]), str(row["length"]), *(f"{row[k][name]:.2f}" for k, own in names.items() for name in own)]
        for row in found["rows"]
    ]
    table(["frames", "tokens", *(f"{kind}: {name}" for kind, own in names.items() for name in own)], rows)
    print("the shortest completion at which what is claimed is reached: 68 times asked, 6 times learned")
    rows = [[str(frames), *(str(n or "-") for n in own.values())] for frames, own in found["first"].items()]
    table(["frames", *next(iter(found["first"].values()))], rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, OWN)
    parser.set_defaults(frames=[16])
    parser.add_argument("--questions", type=int, default=8, help="of each number of hops")
    parser.add_argument("--batch", type=int, default=8, help="questions answered together, and of a training step")
    parser.add_argument("--group", type=int, default=GROUP, help="GRPO's completions of a prompt")
    parser.add_argument("--latents", type=int, default=8, help="K")
    parser.add_argument("--passes", type=int, default=2, help="T")
    parser.add_argument("--film-fps", type=float, default=FILE_FPS, help="frames a second of the files")
    parser.add_argument("--small", action="store_true", help="figures of no use, in a minute")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "longtake-benchmarks")
    options = parser.parse_args(arguments)
    if options.small:
        options.questions, options.batch, options.group, options.repeats, options.film_fps = 1, 2, 2, 1, 2.0
    run(options, memory, measure, show)


if __name__ == "__main__":
    main()
