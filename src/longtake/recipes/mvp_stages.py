"""Runs the stages on puzzles in an output folder, and asks held-out puzzles of what they left.

``split.json`` says which sources are held out; each stage's folder holds its settings, log, checkpoints and model;
``report.json`` all figures by level, and ``answers.jsonl`` the score of every answer in it, for intervals over sources.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from longtake.backbones import load_backbone
from longtake.backbones.base import Backbone
from longtake.data.puzzles.dynamics import domain_of
from longtake.data.puzzles.puzzle_file import PUZZLES, PuzzleRecord, read_records
from longtake.data.puzzles.puzzle_split import PuzzleSplit, split_by_source
from longtake.data.puzzles.sheets import choose
from longtake.eval.leaks import embedders_of
from longtake.eval.mvp import ALONE, Asked, baselines, by_size, report
from longtake.outputs import replaced, write_json
from longtake.recipes.mvp import BEGINNINGS, PUZZLE_STAGES, Choice, MvpRecipe
from longtake.recipes.mvp_replay import replay_beside
from longtake.recipes.settings import flat
from longtake.recipes.stages import check_settings
from longtake.train.album import Album
from longtake.train.copies import copy_lessons
from longtake.train.easing import Easing, only_order
from longtake.train.exam import answers
from longtake.train.grpo import train_grpo
from longtake.train.imitate import train_imitation
from longtake.train.mvp import MvpPuzzle, PuzzleControl, figures, order_alone, under
from longtake.train.run import start_processes
from longtake.types import LongtakeError

if TYPE_CHECKING:
    from accelerate import Accelerator

TOKENS = "tokens"  # beside the pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """The puzzles of a run. held: of other sources than train; watched: some of them; controls: the same once more.

    digest: of the file they were read from. sources: by a video's identity.
    """

    folder: Path
    digest: str
    train: list[MvpPuzzle]
    watched: list[MvpPuzzle]
    held: list[MvpPuzzle]
    controls: dict[PuzzleControl, list[MvpPuzzle]]
    sources: dict[str, str]


def run_on_puzzles(
    recipe: MvpRecipe, stages: Sequence[str], puzzles: Path, output: Path
) -> dict[str, Any] | None:
    """Run these stages; one that was stopped goes on. The report, on the one process that speaks for all.

    puzzles: the folder that ``longtake synth mvp`` wrote.

    Raises LongtakeError for an unknown stage, the stage "order" under a control, a method without its teacher, for
    puzzles that cannot be split, and for an output folder that holds a run of other settings or puzzles.
    """
    if unknown := [stage for stage in stages if stage not in PUZZLE_STAGES]:
        raise LongtakeError(f"the stage is {unknown[0]!r}; it must be one of {', '.join(PUZZLE_STAGES)}")
    if "order" in stages and recipe.puzzles.control != "none":
        control = recipe.puzzles.control
        raise LongtakeError(f"puzzles.control is {control}; it must be none for the stage order, which needs context")
    taught = recipe.grpo.method.teaching is not None
    if "grpo" in stages and taught != bool(recipe.teacher):
        raise LongtakeError(
            f"teacher is {recipe.teacher!r} and grpo.method has {'a teacher' if taught else 'none'}; give "
            "teacher=FOLDER with grpo.method=opd, or neither"
        )
    processes = start_processes(recipe.grpo.fit)
    with processes.main_process_first():
        material = gather(recipe, puzzles, output)
    for stage in [stage for stage in PUZZLE_STAGES if stage in stages]:
        run_stage(recipe, stage, material, output, processes)
    return examine(recipe, material, output)


def gather(recipe: MvpRecipe, folder: Path, output: Path) -> Material:
    """Puzzles of the recipe's levels, split by source; the split is written down, and read again by whoever goes on."""
    choice = recipe.puzzles
    records = list(read_records(folder))
    digest = hashlib.blake2b((folder / PUZZLES).read_bytes(), digest_size=8).hexdigest()
    known = {record.level for record in records}
    if unknown := [level for level in choice.levels if level not in known]:
        raise LongtakeError(f"there are no puzzles of level {unknown[0]}; {folder} has {', '.join(sorted(known))}")
    split = split_of(folder, records, digest, output / "split.json")
    if choice.only_order:
        records = [only_order(record) for record in records]
    chosen = [record for record in records if not choice.levels or record.level in choice.levels]
    train = [record for record in chosen if not split.is_held(record)]
    held = choose([record for record in chosen if split.is_held(record)], choice.most_held)
    if not train or not held:
        side = "to learn from" if not train else "held out"
        raise LongtakeError(f"{folder} has no puzzles {side} at these levels; give more footage or other levels")
    album = Album(folder=folder, kept=folder / TOKENS)
    plain = [[puzzle_of(choice, record, album) for record in side] for side in (train, held)]
    own = [
        under(puzzles, choice.control, pool, split.sources)
        for puzzles, pool in zip(plain, (train, records), strict=True)
    ]
    others = choice.controls if choice.control == "none" else ()
    ids = {record.id for record in choose(held, choice.watched)}
    return Material(
        folder=folder,
        digest=digest,
        train=own[0],
        watched=[puzzle for puzzle in own[1] if puzzle.name in ids],
        held=own[1],
        controls={control: under(plain[1], control, records, split.sources) for control in others},
        sources=split.sources,
    )


def puzzle_of(choice: Choice, record: PuzzleRecord, album: Album) -> MvpPuzzle:
    """A record as it is asked, under no control."""
    return MvpPuzzle(
        record=record, album=album, shown=record, scoring=choice.scoring(), times=choice.times,
        rendering=choice.rendering,
    )  # fmt: skip


def split_of(folder: Path, records: Sequence[PuzzleRecord], digest: str, file: Path) -> PuzzleSplit:
    """The split of all puzzles in the folder, of whatever level; kept in ``file``."""
    if file.exists():
        told = json.loads(file.read_text())
        if told["puzzles"] == digest:
            return PuzzleSplit(sources=told["sources"], held=frozenset(told["held"]))
        raise LongtakeError(f"{file.parent} holds a run on other puzzles than {folder}; give another --output")
    split = split_by_source(folder, records)
    write_json(file, {"puzzles": digest, "held": sorted(split.held), "sources": split.sources}, indent=1)
    return split


def run_stage(recipe: MvpRecipe, stage: str, material: Material, output: Path, processes: Accelerator) -> None:
    """One stage, from the model before it."""
    folder, own = output / stage, getattr(recipe, stage)
    backbone, origin = model_before(recipe, stage, output)
    teacher = load_backbone(recipe.teacher, dtype=torch.float32) if stage == "grpo" and recipe.teacher else None
    if processes.is_main_process:
        settings = flat(own) | flat(recipe.puzzles, "puzzles") | {"file": material.digest}
        settings |= {"from": origin, "start": backbone.name}
        if recipe.replay.count:
            settings |= flat(recipe.replay, "replay")
        if teacher is not None:
            settings["teacher"] = teacher.name
        if stage == "compare":
            settings["copies"] = recipe.copies
        if stage == "order":
            settings["ease"] = recipe.ease
        check_settings(folder, settings)
    processes.wait_for_everyone()
    beside = None
    if recipe.replay.count:
        backbone.model.to(processes.device).eval()
        with processes.main_process_first():
            beside = replay_beside(recipe.replay, backbone, output / "replay")
    if stage == "grpo":
        train_grpo(
            recipe.grpo, backbone, material.train, folder,
            held=material.watched, beside=[beside] if beside else [], teacher=teacher, summary=figures,
        )  # fmt: skip
    elif stage == "compare":
        lessons = copy_lessons(recipe.copies, recipe.puzzles.rendering)
        train_imitation(own, backbone, lessons, folder, held=lessons, beside=beside)  # drawn anew in training
    elif stage == "order":
        left = of_order(recipe, material)
        train_imitation(own, backbone, left.train, folder, held=left.watched, beside=beside, summary=figures)
    else:
        train_imitation(own, backbone, material.train, folder, held=material.watched, beside=beside, summary=figures)


def of_order(recipe: MvpRecipe, material: Material) -> Material:
    """What the stage "order" leaves of all puzzles, those to learn from eased."""
    fit = recipe.order.fit
    easing = Easing(steps=max(1, round(recipe.ease * fit.steps_for(len(material.train)))))
    return replace(
        material,
        train=order_alone(material.train, easing),
        watched=order_alone(material.watched),
        held=order_alone(material.held),
        controls={control: order_alone(puzzles) for control, puzzles in material.controls.items()},
    )


def model_before(recipe: MvpRecipe, stage: str, output: Path) -> tuple[Backbone, str]:
    """The model a stage begins from, and which stage left it."""
    for before in reversed(BEGINNINGS[: PUZZLE_STAGES.index(stage)]):
        if (folder := output / before / "model").exists():
            return load_backbone(str(folder), dtype=torch.float32), before
    return recipe.start.backbone(), "start"


def examine(recipe: MvpRecipe, material: Material, output: Path) -> dict[str, Any] | None:
    """Ask held-out puzzles of every model that is there, those after the warm-up under the controls too.

    Writes ``report.json`` and ``answers.jsonl``, and the same in the folder of the stage "order" for what that leaves
    of the puzzles, which the report has as "order alone". Every process must call it; None on those that don't speak.
    """
    processes = start_processes(recipe.grpo.fit)
    trained = [stage for stage in PUZZLE_STAGES if (output / stage / "model").exists()]
    whole = [stage for stage in trained if stage not in ("compare", "order")]
    asked = [one for stage in whole for one in ask_stage(recipe, stage, material, output, processes)]
    found = tell(recipe, material, asked, output, processes)
    if "order" in trained:
        left = of_order(recipe, material)
        asked = ask_stage(recipe, "order", left, output, processes)
        alone = tell(recipe, left, asked, output / "order", processes)
        return None if found is None else found | {ALONE: alone}
    return found


def tell(
    recipe: MvpRecipe, material: Material, asked: Sequence[Asked], folder: Path, processes: Accelerator
) -> dict[str, Any] | None:
    """The report of some models' answers, with baselines beside, and its files; None on processes that don't speak."""
    if not processes.is_main_process:
        return None
    backbone = recipe.start.backbone()
    backbone.model.to(processes.device)
    backbone.model.requires_grad_(False)  # so that pictures' tokens are kept
    records = [puzzle.record for puzzle in material.held]
    unseeing = [*baselines(material.folder, records, embedders_of(backbone)), *by_size(material.held, backbone)]
    told = [*unseeing, *asked]
    rules = [one.row for one in unseeing[1:]]
    found = report(material.held, told, rules)
    write_json(folder / "report.json", found, indent=1)
    with replaced(folder / "answers.jsonl") as scratch, scratch.open("w") as sink:
        sink.writelines(lines(told, records, material.sources))
    return found


def ask_stage(
    recipe: MvpRecipe, stage: str, material: Material, output: Path, processes: Accelerator
) -> list[Asked]:
    """The held-out puzzles, asked of the model that a stage left; after the warm-up under the controls too."""
    backbone = load_backbone(str(output / stage / "model"), processes.device, torch.float32)
    backbone.model.requires_grad_(False)  # so that pictures' tokens are kept
    sets = {stage: material.held}
    if stage != "warm":
        sets |= {f"{stage}, {control}": puzzles for control, puzzles in material.controls.items()}
    longest = recipe.grpo.draw.max_new_tokens
    return [
        Asked(row=row, parts=answers(processes, backbone, puzzles, longest)) for row, puzzles in sets.items()
    ]


def lines(told: Sequence[Asked], records: Sequence[PuzzleRecord], sources: Mapping[str, str]) -> Iterator[str]:
    """A JSON line for each row and puzzle."""
    for one in told:
        for record, parts in zip(records, one.parts, strict=True):
            about = {"row": one.row, "puzzle": record.id, "level": record.level, "domain": domain_of(record.video)}
            yield json.dumps({**about, "source": sources[record.identity], **parts}) + "\n"
