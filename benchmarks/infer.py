"""What compression saves in answering: each stage's seconds and peak memory, with the compressor and without it.

    python benchmarks/infer.py [--size embedded] [--frames 64 256 1024] [--answer 3 16] [--repeats 3] [--threads 1]
    python benchmarks/infer.py --size 3b --device cuda --frames 256 1024 4096 8192 16384 --budget-gb 80

Both arms have the same random weights and see the same frames (see ``arms.py``); the answers mean nothing. They take
turns in one process, so that a busy machine slows both, and the median of the repeats counts; peak memory is that of
one more process for each arm. ``language`` is the decoder's part: reading the prompt (``prefill``) and ``--answer``
tokens (the probe world's answers have 3 on average, their end included). ``ceiling`` is what the ratio end to end would
be if nothing but the tower took time. ``expected`` are the ratios of floating-point operations, by formula. Above
``--plain-frames`` only the compressed arm runs. ``--json`` prints a line of JSON for each row.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import torch
from arms import (
    ARMS,
    Arm,
    Clock,
    add_options,
    build_backbone,
    chunks,
    formula_config,
    group_tokens,
    in_arm,
    in_own_process,
    limit_device,
    peaks,
    surroundings,
)

from longtake.backbones.base import Prompt
from longtake.backbones.language import pixels_of
from longtake.backbones.own import OwnVideoLLM
from longtake.models.preprocess import normalised_pixels
from longtake.train.estimate import Workload, answering_flops, total
from longtake.types import VisualTokens

QUESTION = "Which number is on the red card?"
STAGES = ("tower", "compressor", "projector", "prefill", "generate")


@torch.no_grad()
def answer(backbone: OwnVideoLLM, arm: Arm, num_frames: int, answer_tokens: int, device: str) -> dict[str, float]:
    """One video watched and one question answered: seconds of each stage, and the prompt's length."""
    model, clock = backbone.model, Clock(device)
    clock.start()
    with in_arm(model, arm):
        features, seconds = [], []
        for frames in chunks(model.config, num_frames):
            pixels = normalised_pixels(pixels_of(frames, backbone.device), backbone.frame_size)
            seen = model.encode_frames(pixels.to(model.dtype))
            clock.lap("tower")
            groups = model.group_tokens(seen)
            clock.lap("compressor")
            features.append(model.project(groups).flatten(0, 2).cpu())
            seconds += frames.seconds[:: model.config.frames_per_group].tolist()
            clock.lap("projector")
    tokens = visual_tokens(backbone, arm, torch.cat(features), torch.tensor(seconds, dtype=torch.float64))
    inputs = backbone.prepare([Prompt(question=QUESTION, tokens=tokens)])
    cache = backbone.prefill(inputs)
    clock.lap("prefill")
    (rollout,) = backbone.generate(inputs, cache, max_new_tokens=answer_tokens)
    clock.lap("generate")
    assert len(rollout.ids) == answer_tokens, f"{len(rollout.ids)} tokens were generated, not {answer_tokens}"
    return {"prompt_tokens": inputs.ids.shape[1], **{f"{name}_seconds": clock.laps[name] for name in STAGES}}


def visual_tokens(backbone: OwnVideoLLM, arm: Arm, features: torch.Tensor, seconds: torch.Tensor) -> VisualTokens:
    """Tokens ``(tokens, dim)`` of groups that begin at ``seconds``; a plain group's frames stand below each other."""
    config = backbone.model.config
    rows, columns = config.token_grid
    rows *= group_tokens(config, arm) // config.tokens_per_group
    grid = (len(seconds), rows, columns)
    position = torch.cartesian_prod(*(torch.arange(length) for length in grid))
    return VisualTokens(
        features=features,
        position=position,
        seconds=seconds[position[:, 0]],
        weight=torch.ones(len(position)),
        grid=grid,
    )


def with_sums(stages: dict[str, float]) -> dict[str, float]:
    """Stages with their sums: the decoder's part, from the first frame to the first token, and all."""
    spent = {name: stages[f"{name}_seconds"] for name in STAGES}
    return stages | {
        "language_seconds": spent["prefill"] + spent["generate"],
        "first_token_seconds": sum(spent.values()) - spent["generate"],
        "total_seconds": sum(spent.values()),
    }


def times(size: str, num_frames: int, answer_tokens: int, repeats: int, device: str) -> dict[str, dict[str, float]]:
    """Each arm's median seconds by stage; a first short answer warms up."""
    backbone = build_backbone(size, device, dtype_of(device))
    runs: dict[Arm, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for arm in ARMS:
        answer(backbone, arm, backbone.frames_per_group, answer_tokens, device)
    for _ in range(repeats):
        for arm in ARMS:
            runs[arm].append(answer(backbone, arm, num_frames, answer_tokens, device))
    return {
        arm: with_sums({name: statistics.median(run[name] for run in found) for name in found[0]})
        for arm, found in runs.items()
    }


def memory(size: str, num_frames: int, answer_tokens: int, device: str, arm: Arm) -> dict[str, float]:
    """One answer's peak memory and, as it is one run, its seconds; run in a process of its own."""
    backbone = build_backbone(size, device, dtype_of(device))
    answer(backbone, arm, backbone.frames_per_group, answer_tokens, device)
    loaded = peaks()["peak_mb"]
    try:
        spent = with_sums(answer(backbone, arm, num_frames, answer_tokens, device))
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    return spent | peaks() | {"over_loaded_mb": peaks()["peak_mb"] - loaded}


def ratios(size: str, num_frames: int, answer_tokens: int, found: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The plain arm against the compressed one, and the compressor's share of the latter's time."""
    compressed, plain = found["compressed"], found["plain"]
    seen = plain["tower_seconds"]
    names = ("language", "prefill", "generate", "total")
    measured = {name: plain[f"{name}_seconds"] / compressed[f"{name}_seconds"] for name in names}
    expected = expected_ratios(size, num_frames, answer_tokens, found)
    return {
        **measured,
        "ceiling": plain["total_seconds"] / seen,
        "compressor_share": compressed["compressor_seconds"] / compressed["total_seconds"],
        "expected_language": expected["language"],
        "expected_total": expected["total"],
    }


def expected_ratios(
    size: str, num_frames: int, answer_tokens: int, found: dict[str, dict[str, float]]
) -> dict[str, float]:
    """Ratios of floating-point operations; the prompts are as long as they were."""
    parts = {}
    for arm in ARMS:
        config = formula_config(size, arm)
        visual = -(-num_frames // config.frames_per_group) * config.tokens_per_group
        work = Workload(
            frames=num_frames,
            text_tokens=int(found[arm]["prompt_tokens"]) - visual,
            stamp_tokens=0,
            answer_tokens=answer_tokens,
        )
        parts[arm] = answering_flops(config, work)
    language = {arm: sum(parts[arm][name].total for name in ("prefill", "decode", "head")) for arm in ARMS}
    return {
        "language": language["plain"] / language["compressed"],
        "total": total(parts["plain"]) / total(parts["compressed"]),
    }


def dtype_of(device: str) -> torch.dtype:
    """What the library computes in: float32 on a CPU, bfloat16 on an accelerator."""
    return torch.float32 if device == "cpu" else torch.bfloat16


def measure(options: argparse.Namespace, num_frames: int, answer_tokens: int) -> dict[str, Any]:
    """Everything of one video and one answer, each measurement in a process of its own."""
    common = ["--size", options.size, "--device", options.device, "--answer", answer_tokens]
    common += ["--threads", options.threads, "--repeats", options.repeats, "--frames", num_frames]
    common += ["--budget-gb", options.budget_gb] if options.budget_gb else []
    both = num_frames <= options.plain_frames
    found = {arm: in_own_process(__file__, *common, "--one", arm) for arm in (ARMS if both else ARMS[:1])}
    result = {"size": options.size, "frames": num_frames, "answer": answer_tokens, "arms": found}
    if both and not any("out_of_memory" in arm for arm in found.values()):
        together = in_own_process(__file__, *common, "--one", "both")
        result["arms"] = {arm: found[arm] | together[arm] for arm in ARMS}
        result["ratios"] = ratios(options.size, num_frames, answer_tokens, result["arms"])
    return result


def print_row(found: dict[str, Any]) -> None:
    length = f"{found['frames']:6d} frames, {found['answer']:2d} tokens "
    for arm, row in found["arms"].items():
        if "out_of_memory" in row:
            print(f"{length} {arm:10}  out of memory")
            continue
        stages = ", ".join(f"{name} {row[f'{name}_seconds']:.2f}" for name in STAGES)
        print(
            f"{length} {arm:10} {row['prompt_tokens']:7.0f} positions: {stages} s; first token "
            f"after {row['first_token_seconds']:.2f} s, tower {found['frames'] / row['tower_seconds']:.0f} frames/s; "
            f"peak {row['peak_mb']:.0f} MB, over loaded {row['over_loaded_mb']:.0f} MB, "
            f"on the device {row['device_peak_mb']:.0f} MB"
        )
    if "ratios" in found:
        r = found["ratios"]
        print(
            f"{length} the decoder {r['language']:.2f} times as fast (operations: "
            f"{r['expected_language']:.2f}), end to end {r['total']:.2f} (operations: {r['expected_total']:.2f}; "
            f"ceiling {r['ceiling']:.2f}); the compressor takes {100 * r['compressor_share']:.1f}%"
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--plain-frames", type=int, default=1024, help="most frames without the compressor")
    parser.add_argument("--answer", type=int, nargs="+", default=[3, 16], help="tokens generated")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.one is not None:
        limit_device(options.budget_gb)
        work = (options.size, options.frames[0], options.answer[0])
        if options.one == "both":
            print(json.dumps(times(*work, options.repeats, options.device)))
        else:
            print(json.dumps(memory(*work, options.device, options.one)))
        return
    print(json.dumps(surroundings(options.device)))
    for num_frames in options.frames:
        for answer_tokens in options.answer:
            found = measure(options, num_frames, answer_tokens)
            print(json.dumps(found), flush=True) if options.json else print_row(found)


if __name__ == "__main__":
    main()
