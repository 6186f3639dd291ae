"""What the shared prefix saves: seconds a question, with and without the kept keys and values, and side by side.

    python benchmarks/ask.py [--model FOLDER] [--frames 256 1024] [--questions 5] [--threads 1]

``side by side`` is ``ask_all`` with the video's part read anew: all its seconds over the number of questions.

Frames are drawn, so the answers mean nothing; the times are those of real prompts of that length.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

import longtake
from longtake.ask import PrefixCache, ask, ask_all
from longtake.types import Frames, Memory, Sampling
from longtake.watch import watch_frames

QUESTIONS = ("What is on the red card?", "Is there a blue card?", "How many cards are there?", "What came first?")


def remember(model: longtake.Model, num_frames: int) -> Memory:
    height, width = model.backbone.frame_size or (144, 256)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 3, height, width), dtype=np.uint8)
    chunks = (
        Frames(pixels=pixels[: num_frames - first], seconds=np.arange(first, min(first + 64, num_frames), dtype=float))
        for first in range(0, num_frames, 64)
    )
    return watch_frames(model.backbone, chunks, Sampling(fps=1.0))


def seconds_per_question(model: longtake.Model, memory: Memory, count: int, cache: PrefixCache | None) -> list[float]:
    spent = []
    for index in range(count):
        start = time.perf_counter()
        ask(model.backbone, memory, QUESTIONS[index % len(QUESTIONS)], max_new_tokens=8, cache=cache)
        spent.append(time.perf_counter() - start)
    return spent


def seconds_side_by_side(model: longtake.Model, memory: Memory, count: int) -> float:
    """Seconds of each, the best of three times."""
    spent = []
    for _ in range(3):
        start = time.perf_counter()
        ask_all(model.backbone, memory, [QUESTIONS[n % len(QUESTIONS)] for n in range(count)], max_new_tokens=8)
        spent.append(time.perf_counter() - start)
    return min(spent) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a model; the one in the package if not given")
    parser.add_argument("--frames", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--questions", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of PyTorch; its own choice if not given")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = longtake.load(options.model)
    for num_frames in options.frames:
        memory = remember(model, num_frames)
        apart = seconds_per_question(model, memory, options.questions, None)
        first, *later = seconds_per_question(model, memory, options.questions, PrefixCache())
        print(
            f"{num_frames:6d} frames, {len(memory.tokens)} tokens: {statistics.median(apart):.3f} s a question apart; "
            f"shared: first {first:.3f} s, later {statistics.median(later):.3f} s; {options.questions} side by side: "
            f"{seconds_side_by_side(model, memory, options.questions):.3f} s each"
        )


if __name__ == "__main__":
    main()
