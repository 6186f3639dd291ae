"""The real size on one GPU: rates of tower and compressor, time to first token by length, and training steps.

    python benchmarks/full_size.py --out docs/results/full-size.json
    python benchmarks/full_size.py --small [--device cuda]

SigLIP-so400m at 384 px, DTS 1152, Qwen2.5-3B's shape, all weights random: the recipe ``video_xl_pro_3b``'s model behind
the package's own watching, asking and training. Each part runs in a process of its own with a time limit, so that one
that fails leaves the others' rows; results and, beside them, a Markdown table are written after every row.

``tower`` and ``compressor``: frames a second by frames at a time, in bfloat16. ``ask``: ``longtake.ask.ask`` on random
memory tokens of the right shape (the tower does not run for them), all of them in the prompt: the context's declared
length is put aside, as random weights have nothing to forget; and, for the longest video, once as a real checkpoint
would be asked, with tokens chosen to fit its declared context. ``train``: float32 weights under bfloat16 autocast,
AdamW, layers computed again, one row at a time, no visual token dropped, ``longtake.train.run``'s step; and a ReCoT
step.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import stand_ins  # noqa: F401  # before the package
import torch
from arms import SIZES, chunks, limit_device, surroundings
from tokenizers import Tokenizer
from torch import Tensor

from longtake.ask import PrefixCache, ask
from longtake.backbones import language
from longtake.backbones.own import OwnVideoLLM
from longtake.model import EMBEDDED
from longtake.models import VideoLLM, VideoLLMConfig
from longtake.models.processor import VideoLLMProcessor
from longtake.outputs import replaced, write_json
from longtake.tables.ablations.selector import made_up_memory
from longtake.train.embedded.tokenizer import fast_tokenizer
from longtake.train.estimate import Workload, answering_flops, parameters, recot_flops, total, training_flops
from longtake.train.footprint import answering_memory, kv_bytes, recot_memory, training_memory
from longtake.types import IGNORE, Memory, Sampling
from longtake.watch import watch_frames

Row = dict[str, Any]

GIGABYTE = 1e9
ROW = "@row "  # before a row on a part's standard output
QUESTIONS = ("Which number is on the red card?", "What happens right after the dog leaves the room?")
UNBOUNDED = 1 << 21  # positions; more than any prompt here has
REPEATED_BELOW_SECONDS = 5.0  # a longer answer is timed once
ANSWER_TOKENS = 32  # learned of a training row, beside its end
LIMIT_SECONDS = {"tower": 90.0, "compressor": 90.0, "train": 150.0}  # asking, the last, has all that is left


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured.

    tower_frames, compressor_frames: at a time. watched: frames of the whole watching. asked, trained: of each length.
    tower_trained: frames of the step whose tower learns too. clips: ReCoT's (a step's, a micro-batch's).
    side: of the matrix product that rates are compared with. context: positions that the model is declared for.
    deadline: of the clock (``time.time``); asking begins nothing that would not have ended by then.
    """

    size: str
    device: str
    tower_frames: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    compressor_frames: tuple[int, ...] = (16, 32, 64, 128)
    watched: int = 512
    asked: tuple[int, ...] = (256, 1024, 4096, 8192, 16384)
    trained: tuple[int, ...] = (32, 64, 128, 240)
    tower_trained: int = 32
    clips: tuple[int, int] = (64, 16)
    side: int = 8192
    context: int = 32768
    deadline: float = math.inf

    @property
    def dtype(self) -> torch.dtype:
        """What the library answers in: float32 on a CPU, bfloat16 on an accelerator."""
        return torch.float32 if self.device == "cpu" else torch.bfloat16


def small(device: str) -> Plan:
    """Of no use but to see that the script runs."""
    return Plan(
        size="tiny",
        device=device,
        tower_frames=(4, 8),
        compressor_frames=(4, 8),
        watched=16,
        asked=(16, 64),
        trained=(4, 8),
        tower_trained=4,
        clips=(4, 2),
        side=256,
        context=96,
    )


# -- the model ---------------------------------------------------------------------------------------------------------


def model_config(size: str) -> VideoLLMConfig:
    """The recipe's choices on ``arms.py``'s sizes: compact stamps, the pool before the projector, a query scorer."""
    config = SIZES[size]()
    config.pool_after_projector = False
    config.stamp_style = "compact"
    config.scorer = "faithful"
    return config


def build_model(plan: Plan, dtype: torch.dtype) -> VideoLLM:
    """Random weights, made where they are to stand."""
    torch.manual_seed(0)
    with torch.device(plan.device):
        return VideoLLM._from_config(model_config(plan.size), dtype=dtype)


def processor_of(config: VideoLLMConfig) -> VideoLLMProcessor:
    """With the package's tokenizer, which writes stamps in as many tokens as Qwen's: a digit each, and the colon."""
    return VideoLLMProcessor.from_config(fast_tokenizer(Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))), config)


def build_backbone(plan: Plan) -> OwnVideoLLM:
    """The model behind its adapter."""
    model = build_model(plan, plan.dtype).eval()
    return OwnVideoLLM(model, processor_of(model.config))


# -- clocks and peaks --------------------------------------------------------------------------------------------------


def wait(device: str) -> None:
    """Until the device has done its work."""
    if device != "cpu":
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], object], device: str, repeats: int = 5, warm_up: int = 2) -> float:
    """Median wall seconds of a call and all that it started."""
    spent = []
    for _ in range(warm_up + repeats):
        wait(device)
        begun = time.perf_counter()
        run()
        wait(device)
        spent.append(time.perf_counter() - begun)
    return statistics.median(spent[warm_up:])


def reset_peak(device: str) -> None:
    """Give unused memory back and begin a new peak."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> Row:
    """Gigabytes (1e9 bytes) of tensors at their most, what the allocator held for them, and how often it began anew."""
    if device == "cpu":
        return {}
    return {
        "peak_gb": torch.cuda.max_memory_allocated() / GIGABYTE,
        "reserved_gb": torch.cuda.max_memory_reserved() / GIGABYTE,
        "allocator_retries": torch.cuda.memory_stats().get("num_alloc_retries", 0),
    }


def product_flops_per_second(plan: Plan) -> float:
    """The rate of a large matrix product in the library's type."""
    matrix = torch.randn(plan.side, plan.side, device=plan.device, dtype=plan.dtype)
    return 2 * plan.side**3 / seconds_of(lambda: matrix @ matrix, plan.device, repeats=10, warm_up=5)


def guarded(device: str, named: Row, measure: Callable[[], Row]) -> Row:
    """A row with what was measured, or with why it was not; memory of a failure is given back."""
    print(f"  {named} ...", flush=True)
    reset_peak(device)
    begun = time.perf_counter()
    try:
        row = named | measure() | peak(device)
    except torch.OutOfMemoryError as error:
        row = named | {"out_of_memory": first_line(error)} | peak(device)
    except Exception as error:
        traceback.print_exc()
        row = named | {"error": f"{type(error).__name__}: {first_line(error)}"}
    reset_peak(device)  # after the handlers: an error holds the tensors of the frames it came through
    return row | {"spent_seconds": time.perf_counter() - begun}


def first_line(error: BaseException) -> str:
    """Of what an error says, at most 300 letters."""
    return (str(error).strip().split("\n")[0] or "no message")[:300]


# -- tower and compressor ----------------------------------------------------------------------------------------------


def tower_rows(plan: Plan) -> Iterator[Row]:
    """The tower alone on normalised pixels, by frames at a time."""
    rate = product_flops_per_second(plan)
    yield {"what": "product", "side": plan.side, "tflops_per_second": rate / 1e12}
    model = build_model(plan, plan.dtype).eval()
    config, side = model.config, model.config.vision_config.image_size
    flops = answering_flops(config, Workload(frames=1, text_tokens=0))["tower"].total
    for frames in plan.tower_frames:

        def measure(frames: int = frames) -> Row:
            pixels = torch.randn(frames, 3, side, side, device=plan.device, dtype=plan.dtype)
            with torch.no_grad():
                spent = seconds_of(lambda: model.encode_frames(pixels), plan.device)
            return {"frames_per_second": frames / spent, "share": frames * flops / spent / rate}

        yield guarded(plan.device, {"what": "tower", "frames": frames}, measure)


def compressor_rows(plan: Plan) -> Iterator[Row]:
    """DTS and projector alone on tower features, by frames at a time; then all of watching."""
    backbone = build_backbone(plan)
    model = backbone.model
    config, grid = model.config, model.config.tower_grid
    for frames in plan.compressor_frames:

        def measure(frames: int = frames) -> Row:
            shape = (frames, *grid, config.vision_config.hidden_size)
            features = torch.randn(shape, device=plan.device, dtype=plan.dtype)
            with torch.no_grad():
                compressing = seconds_of(lambda: model.group_tokens(features), plan.device)
                groups = model.group_tokens(features)
                projecting = seconds_of(lambda: model.project(groups), plan.device)
            return {
                "frames_per_second": frames / compressing,
                "projector_frames_per_second": frames / projecting,
            }

        yield guarded(plan.device, {"what": "compressor", "frames": frames}, measure)

    def watching() -> Row:
        def watch() -> Memory:
            return watch_frames(backbone, chunks(config, plan.watched), Sampling(fps=1.0), num_planned=plan.watched)

        return {"frames_per_second": plan.watched / seconds_of(watch, plan.device, repeats=3, warm_up=1)}

    yield guarded(plan.device, {"what": "watch", "frames": plan.watched}, watching)


# -- asking ------------------------------------------------------------------------------------------------------------


def ask_rows(plan: Plan) -> Iterator[Row]:
    """Time to first token by length, first with nothing read, then a second question on the same memory.

    A length is left out where, at the square of the last one's time, it would not end within the limit.
    """
    if plan.size == "tiny":
        language.PREFILL_COLUMNS = 64  # so that prompts of this size are read in several pieces, too
    rate = product_flops_per_second(plan)
    yield {"what": "product", "side": plan.side, "tflops_per_second": rate / 1e12}
    backbone = build_backbone(plan)
    guarded(plan.device, {"what": "warm-up"}, lambda: asked(plan, backbone, plan.asked[0], UNBOUNDED, rate))
    last: tuple[int, float] | None = None  # frames and seconds of the last row
    for frames in plan.asked:
        if frames == max(plan.asked):
            named = {"what": "ask", "frames": frames, "context": plan.context}
            yield guarded(plan.device, named, lambda n=frames: asked(plan, backbone, n, plan.context, rate))
        named = {"what": "ask", "frames": frames, "context": None}
        left = plan.deadline - time.time()
        expected = 0.0 if last is None else last[1] * (frames / last[0]) ** 2
        if expected > left:
            yield named | {"left_out": f"left out: about {expected:.0f} s, and {left:.0f} s were left"}
            continue
        row = guarded(plan.device, named, lambda n=frames: asked(plan, backbone, n, UNBOUNDED, rate))
        yield row
        if "first_token_seconds" in row:
            last = frames, row["first_token_seconds"]


def asked(plan: Plan, backbone: OwnVideoLLM, frames: int, context: int, rate: float) -> Row:
    """Two questions about a memory of so many frames, one token each; medians where it is short."""
    config = backbone.model.config
    config.context_tokens = context
    memory = random_memory(plan, backbone, frames)
    reset_peak(plan.device)
    runs: list[list[Row]] = []
    while not runs or (len(runs) < 3 and runs[0][0]["seconds"] < REPEATED_BELOW_SECONDS):
        cache = PrefixCache(max_entries=1)
        runs.append([asked_once(plan, backbone, memory, question, cache) for question in QUESTIONS])
    first, second = (median_rows([run[turn] for run in runs]) for turn in (0, 1))
    positions, visual = int(first["positions"]), int(first["visual_tokens"])
    work = Workload(frames=0, text_tokens=positions, answer_tokens=1, precision="bfloat16")
    flops = answering_flops(config, work)["prefill"].total
    whole = Workload(
        frames=frames,
        text_tokens=positions - visual,
        stamp_tokens=0,
        answer_tokens=1,
        precision="bfloat16" if plan.dtype == torch.bfloat16 else "float32",
    )
    reading = first["prefill"] + first["generate"]
    number_bytes = torch.finfo(plan.dtype).bits // 8
    row = {
        "visual_tokens": visual,
        "positions": positions,
        "first_token_seconds": first["seconds"],
        "prompt_seconds": first["select"],
        "language_seconds": reading,
        "language_share": flops / reading / rate,
        "second_first_token_seconds": second["seconds"],
        "second_prompt_seconds": second["select"],
        "second_language_seconds": second["prefill"] + second["generate"],
        "runs": len(runs),
        "kv_gb": kv_bytes(config, positions, number_bytes) / GIGABYTE,
        "memory_tokens_gb": len(memory.tokens) * config.text_config.hidden_size * number_bytes / GIGABYTE,
    }
    if visual == len(memory.tokens):  # the estimate is of asking with all of them
        row["estimate_gb"] = answering_memory(config, whole).total_bytes / GIGABYTE
    return row


def asked_once(plan: Plan, backbone: OwnVideoLLM, memory: Memory, question: str, cache: PrefixCache) -> Row:
    """Wall seconds from the question to its first token, and of what."""
    wait(plan.device)
    begun = time.perf_counter()
    usage = ask(backbone, memory, question, max_new_tokens=1, cache=cache).usage
    wait(plan.device)
    spent = {name: usage.seconds[name] for name in ("select", "prefill", "generate")}
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "positions": usage.prompt_tokens, "visual_tokens": usage.visual_tokens} | spent


def median_rows(rows: list[Row]) -> Row:
    """Of each figure."""
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def random_memory(plan: Plan, backbone: OwnVideoLLM, frames: int) -> Memory:
    """What watching a video of so many frames at 1 a second would have kept, with random tokens; on the CPU, as it."""

    def draw(*shape: int) -> Tensor:
        return (torch.randn(shape, device=plan.device, dtype=plan.dtype) * 0.02).cpu()

    return made_up_memory(backbone, frames, draw)


# -- training ----------------------------------------------------------------------------------------------------------


def train_rows(plan: Plan) -> Iterator[Row]:
    """Fine-tuning on features of a store by length, then on frames with a tower that learns, then ReCoT."""
    rate = product_flops_per_second(plan)
    yield {"what": "product", "side": plan.side, "tflops_per_second": rate / 1e12}
    with tempfile.TemporaryDirectory() as folder:
        yield guarded(plan.device, recot_named(plan), lambda: recot_step(plan, Path(folder), rate))
        try:
            model = build_model(plan, torch.float32)
        except Exception as error:
            traceback.print_exc()
            yield {"what": "sft", "frames": plan.trained[0], "error": f"{type(error).__name__}: {first_line(error)}"}
            return
        for learns_tower, lengths in ((False, plan.trained), (True, (plan.tower_trained,))):
            trainer: Any = None
            for frames in lengths:
                named = {"what": "sft", "frames": frames, "tower": "learns" if learns_tower else "stored features"}
                try:
                    trainer = trainer or answer_trainer(plan, model, learns_tower, Path(folder))
                except Exception as error:
                    traceback.print_exc()
                    yield named | {"error": f"{type(error).__name__}: {first_line(error)}"}
                    break
                yield guarded(
                    plan.device,
                    named,
                    lambda t=trainer, n=frames, learns=learns_tower: answer_step(plan, t, n, learns, rate),
                )
            if trainer is not None:
                trainer.accelerator.free_memory()
                del trainer


def answer_trainer(plan: Plan, model: VideoLLM, learns_tower: bool, folder: Path) -> Any:
    """The package's ``Run`` on one row at a time, as the recipe's ``sft`` is without LoRA."""
    from longtake.train.answers import AnswerLoss
    from longtake.train.run import Fit, Run, start_processes
    from longtake.train.tuning import recompute_layers, train_only

    fit = Fit(lr=1e-5, batch=1, micro_batch=1, steps=100, checkpointing=True)
    accelerator = start_processes(fit)
    train_only(model, ["dts", "projector", "scorer", "language_model"] + ["vision_tower"] * learns_tower)
    if not hasattr(model, "activation_checkpointing_enable"):  # transformers 5.17, older than the package's own bound
        model.activation_checkpointing_enable = model.gradient_checkpointing_enable
    recompute_layers(model)
    return Run(fit, accelerator, AnswerLoss(model), folder)


def answer_step(plan: Plan, run: Any, frames: int, learns_tower: bool, rate: float) -> Row:
    """Seconds of a row (forward and backward) and of the optimiser's step, from steps of one row and of three."""
    from longtake.train.dialogues import Desk

    model = run.module.model
    config, processor = model.config, processor_of(model.config)
    batch = training_batch(plan, config, processor, frames, learns_tower)
    part, learned = Desk(processor).whole(batch), batch.num_learned
    run.module.zero_grad()  # of a row before that ran out of memory

    def step(rows: int) -> None:
        run.update([part] * rows, lambda inputs: run.module(*inputs), learned * rows, 1e-5)

    one = seconds_of(lambda: step(1), plan.device, repeats=3)
    three = seconds_of(lambda: step(3), plan.device, repeats=2, warm_up=0)
    row = (three - one) / 2
    parts = {"dts", "projector", "decoder"} | ({"tower"} if learns_tower else set())
    work = Workload(
        frames=frames,
        text_tokens=batch.ids.shape[1] - batch_groups(config, frames) * config.tokens_per_group,
        stamp_tokens=0,
        logit_tokens=learned,
        trainable=frozenset(parts),
        precision="autocast",
        checkpointing=True,
        stored_features=not learns_tower,
    )
    return {
        "positions": batch.ids.shape[1],
        "step_seconds": one,
        "row_seconds_each": row,
        "optimiser_seconds": one - row,
        "share": total(training_flops(config, work)) / row / rate,
        "estimate_gb": training_memory(config, work).total_bytes / GIGABYTE,
    }


def batch_groups(config: VideoLLMConfig, frames: int) -> int:
    """Time groups of a video."""
    return math.ceil(frames / config.frames_per_group)


def training_batch(
    plan: Plan, config: VideoLLMConfig, processor: VideoLLMProcessor, frames: int, as_frames: bool
) -> Any:
    """One video, a question and an answer of random tokens, as the package's loader would hand it over."""
    from longtake.data.conversations.batches import collate
    from longtake.data.conversations.examples import Example
    from longtake.data.features import Features
    from longtake.types import Frames

    seconds = np.arange(frames, dtype=np.float64)
    if as_frames:
        pixels = np.concatenate([chunk.pixels for chunk in chunks(config, frames)])
        clip: Frames | Features = Frames(pixels=pixels, seconds=seconds)
    else:
        clip = Features(features=random_features(plan, config, frames), seconds=seconds)
    before = processor.text_ids("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n")
    asking = processor.text_ids(QUESTIONS[0])
    after = processor.text_ids("<|im_end|>\n<|im_start|>assistant\n")
    answer = [*asking, *asking, *asking, *asking][:ANSWER_TOKENS] + [processor.tokenizer.eos_token_id]
    text = [*before, *processor.video_ids(seconds[:: config.frames_per_group]), *asking, *after]
    example = Example(
        name="row",
        ids=torch.tensor(text + answer),
        labels=torch.tensor([IGNORE] * len(text) + answer),
        clips=(clip,),
        question_ids=torch.tensor(asking),
    )
    return collate([example], processor.tokenizer.pad_token_id or 0)


def random_features(plan: Plan, config: VideoLLMConfig, frames: int) -> Tensor:
    """A tower's, as a store gives them: bfloat16 ``(frames, rows, columns, dim)`` on the CPU."""
    shape = (frames, *config.tower_grid, config.vision_config.hidden_size)
    return torch.randn(shape, device=plan.device).bfloat16().cpu()


def recot_named(plan: Plan) -> Row:
    return {"what": "recot", "clips": plan.clips[0], "micro_clips": plan.clips[1]}


def recot_step(plan: Plan, folder: Path, rate: float) -> Row:
    """Seconds of the recipe's step: 64 clips of 4 frames in micro-batches of 16, and AdamW."""
    from longtake.data.clips import Clips
    from longtake.train.recot import ClipLoss, ReCoTRecipe, new_recot
    from longtake.train.run import Fit, Run, start_processes

    config, (clips, micro) = model_config(plan.size), plan.clips
    recipe = ReCoTRecipe(fit=Fit(lr=1e-4, batch=clips, micro_batch=micro, steps=100))
    accelerator = start_processes(recipe.fit)
    torch.manual_seed(0)
    with torch.device(plan.device):
        recot = new_recot(recipe, config, None)
    features = random_features(plan, config, micro * recipe.frames).unflatten(0, (micro, recipe.frames))
    recot.start_at_means(features)
    run = Run(recipe.fit, accelerator, ClipLoss(recot, config.grid), folder)
    batch = Clips(features=features, is_image=torch.arange(micro) < recipe.image_share * micro)
    parts = [(batch, (0, 0, slot, 1)) for slot in range(clips // micro)]
    spent = seconds_of(
        lambda: run.update(parts, lambda part: run.module(*part), clips, 1e-4), plan.device, repeats=3, warm_up=1
    )
    flops = clips * total(recot_flops(config, recipe.frames, stored_features=True))
    estimate = recot_memory(config, recipe.frames, clips=micro).total_bytes
    tower = 4 * parameters(config)["tower"]
    run.accelerator.free_memory()
    return {
        "frames_per_clip": recipe.frames,
        "step_seconds": spent,
        "clips_per_second": clips / spent,
        "share": flops / spent / rate,
        "estimate_gb": (estimate - tower) / GIGABYTE,  # it counts the tower, which is not loaded here
    }


MEASURES: dict[str, Callable[[Plan], Iterator[Row]]] = {
    "tower": tower_rows,
    "compressor": compressor_rows,
    "train": train_rows,
    "ask": ask_rows,
}


# -- a part in a process of its own ------------------------------------------------------------------------------------


def measure_part(part: str, plan: Plan, budget_gigabytes: float) -> Iterator[Row]:
    """A part's rows, the first about the machine; an error that nothing else caught is a row too."""
    about: Row = {"what": "about", **surroundings(plan.device), "accelerate": version_of("accelerate")}
    if plan.device != "cpu":
        whole = torch.cuda.get_device_properties(0).total_memory / GIGABYTE
        budget = min(budget_gigabytes, whole)
        about |= {"memory_gb": round(whole, 1), "budget_gb": round(budget, 1), "cuda": torch.version.cuda}
        limit_device(budget_gigabytes)
    yield about
    try:
        yield from MEASURES[part](plan)
    except Exception as error:
        traceback.print_exc()
        yield {"what": part, "error": f"{type(error).__name__}: {first_line(error)}"}


def version_of(package: str) -> str:
    """Of an installed package."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def part_in_own_process(part: str, arguments: list[str], limit_seconds: float) -> Iterator[Row]:
    """A part's rows as they come, measured by another process that is stopped at its limit."""
    command = [sys.executable, __file__, *arguments, "--one", part, "--deadline", str(time.time() + limit_seconds)]
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        timer = threading.Timer(limit_seconds, process.kill)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(ROW):
                yield json.loads(line.removeprefix(ROW))
            else:
                print(line, end="", flush=True)
        code = process.wait()
        timer.cancel()
    spent = time.perf_counter() - begun
    if code:
        why = "stopped at its time limit" if spent >= limit_seconds else f"ended with code {code}"
        yield {"what": part, "error": f"{why} after {spent:.0f} s"}


# -- results -----------------------------------------------------------------------------------------------------------


def write_results(found: Row, out: Path) -> None:
    """JSON, and a Markdown table beside it; each appears whole."""
    write_json(out, found, indent=1)
    with replaced(out.with_suffix(".md")) as scratch:
        scratch.write_text(markdown(found))


def markdown(found: Row) -> str:
    """All rows as tables, with the command, the device and the versions."""
    about, rows = found["about"], found["rows"]
    versions = ", ".join(f"{name} {value}" for name, value in about.items() if name not in ("what", "device"))
    products = [row for row in rows if row["what"] == "product"]
    lines = [
        "# Full size on one device",
        "",
        f"Command: `{found['command']}`",
        "",
        f"Device: {about.get('device', 'unknown')}; {versions}. Random weights: nothing is said of answers.",
    ]
    if products:
        rates = ", ".join(f"{row['tflops_per_second']:.3g} ({row['part']})" for row in products)
        lines += [
            "",
            f"A matrix product of side {products[0]['side']} runs at {rates} TFLOP/s; each share is of its own part's "
            "rate, by operations of the package's formula.",
        ]
    lines += [*visual_lines(rows), *ask_lines(rows), *train_lines(rows)]
    failed = [row for row in rows if "error" in row]
    if failed:
        lines += ["", "Not measured:", "", *(f"- {label(row)}: {row['error']}" for row in failed)]
    lines += ["", f"Took {found['seconds']:.0f} s{'' if found['finished'] else ', not finished'}."]
    return "\n".join(lines) + "\n"


def best_rate(rows: list[Row], what: str) -> Row | None:
    """The row of a kind with most frames a second."""
    rated = [row for row in rows if row["what"] == what and "frames_per_second" in row]
    return max(rated, key=lambda row: row["frames_per_second"], default=None)


def visual_lines(rows: list[Row]) -> list[str]:
    """Tower, compressor and watching by frames at a time."""
    chosen = [row for row in rows if row["what"] in ("tower", "compressor", "watch") and "error" not in row]
    if not chosen:
        return []
    lines = ["", "## Tower and compressor", ""]
    for what, called in (("tower", "The tower"), ("compressor", "The DTS"), ("watch", "Watching")):
        if best := best_rate(rows, what):
            share = f", {best['share']:.0%} of the product's rate" if "share" in best else ""
            lines.append(f"- {called}: {best['frames_per_second']:.4g} frames/s at {best['frames']} frames{share}.")
    lines += ["", *table(chosen, [
        ("part", "what", ""),
        ("frames at a time", "frames", ",d"),
        ("frames/s", "frames_per_second", ",.1f"),
        ("of the product's rate", "share", ".0%"),
        ("projector, frames/s", "projector_frames_per_second", ",.0f"),
        ("peak GB", "peak_gb", ".2f"),
    ])]  # fmt: skip
    return [
        *lines,
        "",
        "`watch`: random frames of the model's own size, tower, DTS, pool, projector, tokens on the CPU.",
    ]


def ask_lines(rows: list[Row]) -> list[str]:
    """Time to first token by length."""
    chosen = [row for row in rows if row["what"] == "ask" and "error" not in row]
    if not chosen:
        return []
    watching = best_rate(rows, "watch")
    rate = None if watching is None else watching["frames_per_second"]
    shown = [
        row | {"chosen": f"to {row['context']:,d}" if row["context"] else "all"}
        | ({"watch_seconds": row["frames"] / rate} if rate else {})
        for row in chosen
    ]  # fmt: skip
    columns = [
        ("frames", "frames", ",d"),
        ("visual tokens", "visual_tokens", ",d"),
        ("tokens in context", "positions", ",d"),
        ("tokens chosen", "chosen", ""),
        ("first token s", "first_token_seconds", ".2f"),
        ("of that language model s", "language_seconds", ".2f"),
        ("of that prompt s", "prompt_seconds", ".2f"),
        ("of the product's rate", "language_share", ".0%"),
        ("second question, first token s", "second_first_token_seconds", ".2f"),
        ("of that language model s", "second_language_seconds", ".2f"),
        ("runs", "runs", "d"),
        ("peak GB", "peak_gb", ".2f"),
        ("package's estimate GB", "estimate_gb", ".2f"),
        ("keys and values GB by formula", "kv_gb", ".2f"),
        ("watching s, computed", "watch_seconds", ".0f"),
    ]
    return [
        "",
        "## Time to first token",
        "",
        "From kept memory tokens to the first token of the answer. The memory's tokens are random and of the right",
        "shape: the tower did not run for these videos, and the time of watching is frames over its measured rate.",
        "With all tokens chosen a long prompt outgrows the decoder's declared context: its cost is measured, not what",
        "a model would make of it. Peaks are of tensors and hold both questions; GB are 1e9 bytes.",
        "",
        *table(shown, columns),
    ]


def train_lines(rows: list[Row]) -> list[str]:
    """Training steps by length, and ReCoT's."""
    chosen = [row for row in rows if row["what"] in ("sft", "recot") and "error" not in row]
    if not chosen:
        return []
    shown = [
        row | ({"ratio": row["peak_gb"] / row["estimate_gb"]} if {"peak_gb", "estimate_gb"} <= row.keys() else {})
        for row in chosen
    ]
    columns = [
        ("stage", "what", ""),
        ("tower", "tower", ""),
        ("frames", "frames", ",d"),
        ("clips of 4 frames", "clips", "d"),
        ("tokens in context", "positions", ",d"),
        ("step s", "step_seconds", ".3f"),
        ("a row s", "row_seconds_each", ".3f"),
        ("optimiser s", "optimiser_seconds", ".3f"),
        ("of the product's rate", "share", ".0%"),
        ("peak GB", "peak_gb", ".2f"),
        ("package's estimate GB", "estimate_gb", ".2f"),
        ("peak / estimate", "ratio", ".2f"),
    ]
    return [
        "",
        "## Training",
        "",
        "`sft`: projector, DTS, scorer and decoder learn; float32 weights and AdamW states, bfloat16 autocast, layers",
        "computed again, all visual tokens kept. A step here is one row and one update; the recipe's is 64 rows and",
        "one update. `recot`: the recipe's step in micro-batches of 16 clips. The estimate leaves out what the",
        "optimiser needs for a moment, and the allocator's gaps.",
        "",
        *table(shown, columns),
    ]


def table(rows: list[Row], columns: list[tuple[str, str, str]]) -> list[str]:
    """Lines of a Markdown table; columns are (title, name, format), left out where no row has them.

    A row without its figures says why in a last column.
    """
    notes = ["out of memory" if "out_of_memory" in row else row.get("left_out") for row in rows]
    rows = [row | ({"note": note} if note else {}) for row, note in zip(rows, notes, strict=True)]
    used = [column for column in [*columns, ("note", "note", "")] if any(column[1] in row for row in rows)]
    lines = ["| " + " | ".join(title for title, _, _ in used) + " |", "| " + " | ".join("---" for _ in used) + " |"]
    lines += ["| " + " | ".join(cell(row, name, form) for _, name, form in used) + " |" for row in rows]
    return lines


def cell(row: Row, name: str, form: str) -> str:
    """A figure as text; empty where there is none."""
    value = row.get(name)
    if value is None:
        return ""
    return format(int(value) if form.endswith("d") else value, form)


def label(row: Row) -> str:
    """What a row is about."""
    return ", ".join([row["what"], *(f"{row[name]} {name}" for name in ("frames", "context") if row.get(name))])


def collect(options: argparse.Namespace, arguments: list[str]) -> Row:
    """All chosen parts' rows, written after each."""
    begun = time.perf_counter()
    command = shlex.join(["python", "benchmarks/full_size.py", *arguments])
    found: Row = {"command": command, "about": {}, "rows": [], "seconds": 0.0, "finished": False}
    if options.out is not None:
        write_results(found, options.out)
    for part in options.only:
        left = options.seconds - (time.perf_counter() - begun)
        limit = max(1.0, min(left, LIMIT_SECONDS.get(part, left)))
        print(f"{part}: at most {limit:.0f} s", flush=True)
        for row in part_in_own_process(part, arguments, limit):
            if row["what"] == "about":
                found["about"] |= row
                continue
            print(json.dumps(row), flush=True)
            found["rows"].append(row | {"part": part})
            found["seconds"] = time.perf_counter() - begun
            if options.out is not None:
                write_results(found, options.out)
    found |= {"seconds": time.perf_counter() - begun, "finished": True}
    if options.out is not None:
        write_results(found, options.out)
    return found


def parts(names: str) -> tuple[str, ...]:
    """``tower,ask`` as parts, in their own order."""
    chosen = [name.strip() for name in names.split(",")]
    if unknown := [name for name in chosen if name not in MEASURES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is no part; the parts are {', '.join(MEASURES)}")
    return tuple(name for name in MEASURES if name in chosen)


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a model of no use, in seconds on a CPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda; with --small cpu")
    parser.add_argument("--budget-gb", type=float, default=80.0, help="1e9 bytes of the accelerator to stay below")
    parser.add_argument("--only", type=parts, default=tuple(MEASURES), help="parts, separated by commas")
    parser.add_argument("--out", type=Path, help="FILE.json; a table is written beside it as FILE.md")
    parser.add_argument("--seconds", type=float, default=410.0, help="stop after so long")
    parser.add_argument("--one", choices=MEASURES, help=argparse.SUPPRESS)  # measure in this process
    parser.add_argument("--deadline", type=float, default=math.inf, help=argparse.SUPPRESS)  # of that
    options = parser.parse_args(arguments)
    device = options.device or ("cpu" if options.small else "cuda")
    plan = small(device) if options.small else Plan(size="3b", device=device)
    plan = replace(plan, deadline=options.deadline)
    if options.one is not None:
        for row in measure_part(options.one, plan, options.budget_gb):
            print(ROW + json.dumps(row), flush=True)
        return
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; give --small --device cpu")
    print(markdown(collect(options, arguments)))


if __name__ == "__main__":
    main()
