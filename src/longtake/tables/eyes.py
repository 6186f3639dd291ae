"""Does a tower that was trained on unlabelled footage tell frames of other footage apart better than pixels do?

Run: python -m longtake.tables.eyes --footage FOLDER --work FOLDER [--seeds 0 1 2] [--fold 0]

Few sources are held out of one split, too few to tell a small difference. So all are measured, in parts: for each part
of the sources a tower is trained on the other ones, from that of the model in the package, once a seed. Towers stay in
the work folder, where a command that was stopped goes on; with ``--fold`` those of one part are trained and nothing
more, so that each may have a process of its own. Ours, as is the measure (``data/puzzles/neighbours.py``).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import SiglipVisionModel

from longtake.backbones import load_backbone
from longtake.backbones.tower import Tower, by_places, lower_part
from longtake.data.probe_world.haystack import Clip, footage_clips, group_by_source, part_of_source
from longtake.data.puzzles.footage import Embed
from longtake.data.threads import use_threads
from longtake.eval.leaks import embedders_of
from longtake.eval.neighbours import PIXELS, Hits, long_enough, look, table, told
from longtake.eval.plot import pyplot, save
from longtake.model import EMBEDDED
from longtake.models.video_llm import VideoLLM
from longtake.outputs import replaced, write_json
from longtake.recipes.one_line import errors_in_one_line
from longtake.train.embedded.eyes import EyesRecipe, train_eyes
from longtake.types import LongtakeError

TRAINED, SEED = "trained on other parts", "trained, seed "


@dataclass(frozen=True, slots=True, kw_only=True)
class Folds:
    """Footage in ``count`` parts by source. sources: of each clip, by its name."""

    clips: Sequence[Clip]
    sources: Mapping[str, str]
    count: int

    def __post_init__(self) -> None:
        if self.count < 2 or not all(self.split(fold)[side] for fold in range(self.count) for side in (0, 1)):
            found = f"{self.count} parts of {len(set(self.sources.values()))} sources"
            raise LongtakeError(f"{found}: each part and the rest must have a source; give other --folds, more footage")

    def split(self, fold: int) -> tuple[list[Clip], list[Clip]]:
        """The clips to learn from when a part is held out, and that part."""
        mine = {source for source in self.sources.values() if part_of_source(source, self.count) == fold}
        learned = [clip for clip in self.clips if self.sources[clip.name] not in mine]
        return learned, [clip for clip in self.clips if self.sources[clip.name] in mine]


def folds_of(footage: Path, cache: Path, count: int) -> Folds:
    """All clips in a folder, of both sides of the probe world's split, in parts."""
    clips = footage_clips("test", footage, cache) + footage_clips("train", footage, cache)
    return Folds(clips=clips, sources=group_by_source(clips), count=count)


def train_fold(recipe: EyesRecipe, folds: Folds, fold: int, folder: Path) -> None:
    """Train the tower of a part; nothing where it is trained already."""
    tower = VideoLLM.from_pretrained(EMBEDDED, dtype=torch.float32).vision_tower
    train_eyes(recipe, tower, *folds.split(fold), folder)


def measured(folds: Folds, recipe: EyesRecipe, work: Path, seeds: Sequence[int], fps: float = 1.0) -> dict[str, Hits]:
    """Hits at ``fps`` of pixels, of towers that footage did not train, and of each part by the tower of the others.

    ``TRAINED`` has those of all seeds together; where these are several, each has a row of its own, too.
    """
    backbone = load_backbone(str(EMBEDDED), "cpu", torch.float32)
    others = embedders_of(backbone)
    own: SiglipVisionModel = cast(VideoLLM, backbone.model).vision_tower
    others["own tower, lower part"] = Tower(model=lower_part(own, own.config.num_hidden_layers - recipe.head)).features
    others |= {name: _by(embed, recipe.places) for name, embed in others.items() if name != PIXELS}
    found: dict[str, Hits] = {}
    for fold in range(folds.count):
        towers = {f"{SEED}{seed}": Tower.load(folder_of(work, seed, fold), "cpu").features for seed in seeds}
        for name, hits in look(others | towers, long_enough(folds.split(fold)[1], fps), folds.sources).items():
            found.setdefault(name, {}).update(hits)
    by_seed = {name: found.pop(name) for name in list(found) if name.startswith(SEED)}
    together = {source: [row for own in by_seed.values() for row in own[source]] for source in found[PIXELS]}
    return found | (by_seed if len(by_seed) > 1 else {}) | {TRAINED: together}


def folder_of(work: Path, seed: int, fold: int) -> Path:
    """Where the tower of a part is kept."""
    return work / f"seed-{seed}" / f"fold-{fold}"


def over_pixels(found: Mapping[str, Hits], name: str) -> NDArray[np.float64]:
    """An embedder's share of hits less that of pixels, source by source: float64 ``(sources,)``."""
    own, pixels = (np.array([np.concatenate(rows).mean() for rows in found[one].values()]) for one in (name, PIXELS))
    return np.asarray(own - pixels)


def write(result: Mapping[str, Any], found: Mapping[str, Hits], results: Path) -> None:
    """The table as JSON and text, and a picture of the differences by source: ``eyes.json``, ``.md``, ``.png``."""
    write_json(results / "eyes.json", result, indent=1)
    with replaced(results / "eyes.md") as scratch:
        scratch.write_text(f"# Eyes\n\n{result['command']}\n\n```\n{table(result)}\n```\n\n![by source](eyes.png)\n")
    figure, axes = pyplot().subplots(figsize=(7, 4), layout="constrained")
    for name in [name for name in found if name not in ("chance", PIXELS)]:
        apart = np.sort(over_pixels(found, name))
        axes.plot(apart, ".-" if name == TRAINED else "-", label=f"{name}, mean {apart.mean():+.3f}")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="sources, by difference", ylabel="nearest is a neighbour: share over pixels")
    axes.legend(fontsize=8)
    save(figure, results / "eyes.png")


def _by(embed: Embed, places: int) -> Embed:
    """An embedder's features as one vector of means by so many places a side."""
    return lambda frames: by_places(embed(frames), places)[:, None, None]


@errors_in_one_line()
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--footage", type=Path, required=True, help="a folder of videos")
    parser.add_argument("--work", type=Path, default=Path(".cache/eyes"), help="clips and towers")
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--folds", type=int, default=4, help="parts of the sources")
    parser.add_argument("--fold", type=int, default=None, help="train the towers of this part, from 0, and stop")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of training")
    parser.add_argument("--steps", type=int, default=EyesRecipe().steps)
    parser.add_argument("--places", type=int, default=EyesRecipe().places, help="a side of a frame that are compared")
    parser.add_argument("--head", type=int, default=EyesRecipe().head, help="last layers that are dropped")
    parser.add_argument("--fps", type=float, default=1.0, help="frames a second that are compared")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    use_threads(options.threads)
    recipe = EyesRecipe(steps=options.steps, places=options.places, head=options.head)
    folds = folds_of(options.footage, options.work / "clips", options.folds)
    if options.fold is not None and not 0 <= options.fold < folds.count:
        raise LongtakeError(f"fold is {options.fold}; it must be from 0 to {folds.count - 1}")
    for fold in range(folds.count) if options.fold is None else [options.fold]:
        for seed in options.seeds:
            train_fold(replace(recipe, seed=seed), folds, fold, folder_of(options.work, seed, fold))
    if options.fold is None:
        found = measured(folds, recipe, options.work, options.seeds, options.fps)
        chosen = f"--steps {recipe.steps} --places {recipe.places} --head {recipe.head} --seeds"
        chosen += f" {' '.join(map(str, options.seeds))} --fps {options.fps:g} --folds {folds.count}"
        command = f"python -m longtake.tables.eyes --footage FOLDER {chosen}"
        write({"command": command, **told(found, options.fps, 0)}, found, options.results)
        print((options.results / "eyes.md").read_text())


if __name__ == "__main__":
    main()
