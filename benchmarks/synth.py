"""How fast puzzles are made: from cached embeddings, and end to end from files against reading them alone.

Run: python benchmarks/synth.py FOLDER [--every N] [--embedder tower|pixels] [--tower FOLDER] [--lines 720] [--join]
Seconds are processor time of this one process, one thread, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import longtake.video
from longtake.cli.synth import make_gatherer
from longtake.data.files import read_chunks
from longtake.data.puzzles.draws import seeds_of
from longtake.data.puzzles.footage import CHUNK_FRAMES, Footage, find_footage, fps_of
from longtake.data.puzzles.framefile import FrameFile
from longtake.data.puzzles.likeness import Likeness
from longtake.data.puzzles.mvp import LEVELS, Rules, make_puzzles
from longtake.data.puzzles.synth import STATISTICS, Source, Synthesis, make_of_source, synthesise
from longtake.types import Frames, Sampling, VideoError

SIZE = 320
PER_MINUTE = (6, 60)
JOINED_SIZE, JOINED_FPS = (720, 1280), 25.0


def seconds_of(work: Callable[[], object]) -> float:
    """Processor time."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def lines_of(path: Path) -> int:
    """Pixels on a video's shorter side; 0 where it cannot be opened."""
    try:
        info = longtake.video.open(path)
    except VideoError:
        return 0
    return min(info.height, info.width)


def frames_of(footage: list[Footage]) -> Iterator[Frames]:
    """All that can be read, as one video."""
    for one in footage:
        try:
            yield from read_chunks(one.path, Sampling(fps=JOINED_FPS), size=JOINED_SIZE, chunk_frames=CHUNK_FRAMES)
        except VideoError as error:
            print(f"{one.name}: {error}")


def read_alone(footage: list[Footage]) -> None:
    """What the synthesis reads, and nothing done with it."""
    for one in footage:
        try:
            info = longtake.video.open(one.path)
            scale = SIZE / max(info.height, info.width)
            size = round(info.height * scale), round(info.width * scale)
            sampling = Sampling(fps=fps_of(info.duration_seconds, info.fps, 1.0))
            for _ in read_chunks(one.path, sampling, size=size, chunk_frames=CHUNK_FRAMES, threads=1):
                pass
        except VideoError:
            continue


def from_embeddings(folder: Path, kappa: float, per_minute: float) -> tuple[int, float]:
    """Puzzles of all levels from the frame files of a synthesis, and seconds; reading them is not counted."""
    made, spent = 0, 0.0
    rules = Rules(kappa=kappa, near=kappa)
    for file in sorted((folder / "frames").glob("*.zip")):
        with FrameFile(file) as held:
            units, fps = held.embeddings(), held.index.fps
        tries = max(1, round(len(units) / fps / 60 * per_minute))
        begun = time.process_time()
        likeness = Likeness(units=units)
        made += sum(len(make_puzzles(likeness, rules, lv, seeds_of((file.name, lv.name), tries))[0]) for lv in LEVELS)
        spent += time.process_time() - begun
    return made, spent


def to_lines(footage: list[Footage], folder: Path, kappa: float, per_minute: float) -> tuple[int, float]:
    """The same with the frame files read and the lines of the puzzle file made, as the synthesis does."""
    rules, settings = Rules(kappa=kappa, near=kappa), Synthesis(per_minute=per_minute)
    sources = [Source(footage=footage[0], path=file) for file in sorted((folder / "frames").glob("*.zip"))]
    begun = time.process_time()
    made = sum(sum(make_of_source(settings, rules, source).made.values()) for source in sources)
    return made, time.process_time() - begun


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take every so manyth video")
    parser.add_argument("--lines", type=int, default=0, help="only videos whose shorter side has so many pixels")
    parser.add_argument("--join", action="store_true", help="all as one H.264 video of 1280 by 720, 25 frames a second")
    parser.add_argument("--embedder", choices=("tower", "pixels"), default="tower")
    parser.add_argument("--tower", type=Path, default=None, help="a tower by itself, as of stage eyes")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    chosen = find_footage([asked.folder])[:: asked.every]
    footage = [one for one in chosen if lines_of(one.path) >= asked.lines]
    with TemporaryDirectory() as scratch:
        if asked.join:
            longtake.video.write(Path(scratch) / "joined.mp4", frames_of(footage), JOINED_FPS)
            footage = find_footage([Path(scratch) / "joined.mp4"])
        reading = seconds_of(partial(read_alone, footage))
        output = Path(scratch) / "out"
        make = partial(make_gatherer, None, "cpu", asked.embedder, output, 1.0, SIZE, "jpeg", asked.tower)
        gatherer = make()  # loading the model is not counted
        done = []
        whole = seconds_of(lambda: done.append(synthesise(footage, output, Synthesis(), lambda: gatherer)))
        told = done[0].statistics
        print(f"{told['videos']} videos, {told['minutes']:.1f} minutes, {told['frames']} frames ({STATISTICS})")
        by = asked.tower or asked.embedder
        print(f"reading alone {reading:.2f} s; synthesis {whole:.2f} s, {whole / reading - 1:+.0%} ({by})")
        for per_minute in PER_MINUTE:
            made, spent = from_embeddings(output, told["kappa"], per_minute)
            print(f"{per_minute} a minute and level: {made} puzzles in {spent:.3f} s, {made / spent:.0f} a second")
            made, spent = to_lines(footage, output, told["kappa"], per_minute)
            print(f"    with files read and lines made: {spent:.3f} s, {made / spent:.0f} a second")


if __name__ == "__main__":
    main()
