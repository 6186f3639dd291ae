"""Cards in real files: burnt into footage by another drawing library, written as H.264, read back and asked about.

    python benchmarks/real_files.py --footage FOLDER [--videos 5] [--seed 0] [--model FOLDER] [--folder OUT] [--json]

Takes clips of the haystack's test split, each of another source, at their full size; a clip that is shorter than the
file to be written is looped, which the output says. Three cards go into each: a number, a letter and a symbol of
different colours, all of the needles' test split. Matplotlib draws them, not Pillow, and with fonts that the probe
world does not have: STIX and Computer Modern from matplotlib's own folder (its DejaVu is one that is trained on). Sizes
and frame rates are odd ones. The files are watched and asked as ``longtake ask FILE "question"`` does, in the test's
wordings; ``blind`` answers the same questions without a video. The files stay in the folder and are used again by a
further run with the same seed; after a change to the drawing, empty it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties
from matplotlib.patches import BoxStyle
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D
from numpy.typing import NDArray

import longtake
from longtake import video
from longtake.data.probe_world.haystack import Clip, group_by_source, load_clips
from longtake.data.probe_world.needles import COLOURS, Card, draw_card_choice
from longtake.data.probe_world.probe import Event, ProbeVideo
from longtake.data.probe_world.questions import Question, ask_all, score
from longtake.eval.probe import ask_blind, evidence
from longtake.types import Answer, Frames, Sampling

TASKS = ("what", "is_there", "when")
SIZES = ((238, 426), (470, 854), (574, 322), (362, 640), (718, 1278))  # (height, width): even, as H.264 wants, but odd
RATES = (24000 / 1001, 30000 / 1001, 12.5, 25.0, 7.0)
CARD_SECONDS = (2.0, 4.0)
MIN_SECONDS = 20.0  # three cards and the time between them fit
MIN_CLIP_SECONDS = 5.0
CARD_SHARE = (0.45, 0.8)  # a card's height over the frame's shorter side
FONT_FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FONTS = ("STIXGeneral.ttf", "STIXGeneralBol.ttf", "cmr10.ttf", "cmb10.ttf", "cmss10.ttf")
ROOM = {"square": 0.78, "round": 0.64, "hexagon": 0.62}  # the content's height or width over the card's
DARK_INK = ("yellow", "cyan", "pink", "orange")  # the colours that are written on in black


def symbol(name: str) -> Outline:
    """One of the probe world's symbols, within 1 of the origin, y upwards."""
    if name == "circle":
        return Outline.unit_circle()
    if name == "star":
        return Outline.unit_regular_star(5, innerCircle=0.42)
    if name == "heart":
        right = [(0.02, -0.66), (0.92, -0.25), (0.92, 0.24), (0.92, 0.69), (0.14, 0.91), (0.0, 0.29)]
        left = [(-x, y) for x, y in reversed(right[:-1])]
        return Outline([(0.0, -0.97), *right, *left, (0.0, -0.97)], [Outline.MOVETO] + 12 * [Outline.CURVE4])
    if name == "moon":
        outer = Outline.arc(63, 297)
        inner = Outline.arc(90, 270).transformed(Affine2D().scale(0.75, 0.9).translate(0.45, 0))
        codes = [*outer.codes, Outline.LINETO, *inner.codes[1:]]
        return Outline(np.concatenate([outer.vertices, inner.vertices[::-1]]), codes)
    cross = [(0.3, 0.9), (0.3, 0.3), (0.9, 0.3), (0.9, -0.3), (0.3, -0.3), (0.3, -0.9)]
    corners = {
        "square": [(0.75, 0.75), (0.75, -0.75), (-0.75, -0.75), (-0.75, 0.75)],
        "triangle": [(0.0, 0.95), (0.9, -0.7), (-0.9, -0.7)],
        "diamond": [(0.0, 1.0), (0.65, 0.0), (0.0, -1.0), (-0.65, 0.0)],
        "cross": [*cross, *((-x, -y) for x, y in cross)],
    }[name]
    return Outline([*corners, corners[0]], closed=True)


def text(content: str, font: str) -> Outline:
    """A text in one of ``FONTS``, centred, its longer side from -1 to 1."""
    path = TextPath((0, 0), content, size=100, prop=FontProperties(fname=FONT_FOLDER / font))
    box = path.get_extents()
    centred = Affine2D().translate(-(box.x0 + box.x1) / 2, -(box.y0 + box.y1) / 2)
    return path.transformed(centred.scale(2 / max(box.width, box.height)))


def draw_card(card: Card, side: int, font: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The card as straight-alpha RGBA ``(side, side, 4)``, turned by up to 8 degrees, which may cut its corners."""
    shapes = {
        "square": BoxStyle("round", pad=0, rounding_size=float(rng.uniform(0.0, 0.4)))(-1, -1, 2, 2, 1),
        "round": Outline.unit_circle(),
        "hexagon": Outline.unit_regular_polygon(6).transformed(Affine2D().rotate_deg(30 * int(rng.integers(2)))),
    }
    shape, content = shapes[card.outline], symbol(card.content) if card.kind == "shape" else text(card.content, font)
    rim = (250, 250, 250) if rng.random() < 0.5 else (25, 25, 25)
    ink = (15, 15, 15) if card.colour in DARK_INK else (248, 248, 248)
    inside = 1 - 2 * rng.uniform(0.01, 0.04)
    turn = rng.uniform(-8, 8)
    renderer = RendererAgg(side, side, 72)
    layers = ((shape, 1.0, rim), (shape, inside, COLOURS[card.colour]), (content, ROOM[card.outline], ink))
    for path, scale, colour in layers:
        onto = Affine2D().scale(scale * side / 2).rotate_deg(turn).translate(side / 2, side / 2)
        pen = renderer.new_gc()
        pen.set_linewidth(0)
        renderer.draw_path(pen, path, onto, tuple(level / 255 for level in colour))
    return np.array(renderer.buffer_rgba())


def place_card(event: Event, size: tuple[int, int]) -> tuple[NDArray[np.uint8], int, int, str]:
    """A card's RGBA picture, its left and top edge in a frame of (height, width), and its font, by the event's seed."""
    assert isinstance(event.what, Card)
    rng = np.random.default_rng(event.seed)
    side = math.ceil(min(size) * rng.uniform(*CARD_SHARE))
    font = FONTS[int(rng.integers(len(FONTS)))]
    left, top = int(rng.integers(size[1] - side + 1)), int(rng.integers(size[0] - side + 1))
    return draw_card(event.what, side, font, rng), left, top, font


def make_truth(seed: int, seconds: float, fps: float, size: tuple[int, int]) -> ProbeVideo:
    """Which cards are shown when: a number, a letter and a symbol in random order, at least a second apart."""
    rng = np.random.default_rng([seed, 6])
    lengths = rng.uniform(*CARD_SECONDS, 3)
    at = 1 + np.sort(rng.uniform(0, seconds - lengths.sum() - 4, 3))
    at += np.array([0, lengths[0] + 1, lengths[0] + lengths[1] + 2])
    colours, kinds = rng.permutation(list(COLOURS))[:3], rng.permutation(["number", "letter", "shape"])
    events = []
    for start, length, colour, kind in zip(at, lengths, colours, kinds, strict=True):
        card = draw_card_choice(rng, "test", colour=str(colour))
        while card.kind != kind:
            card = draw_card_choice(rng, "test", colour=str(colour))
        start, stop = float(start), float(start + length)
        events.append(Event(what=card, start_seconds=start, stop_seconds=stop, seed=int(rng.integers(2**31))))
    return ProbeVideo(
        seed=seed, split="test", fps=fps, num_frames=int(seconds * fps), size=size,
        shots=(), events=tuple(events), foreign=(),
    )  # fmt: skip


def footage(path: Path, fps: float, size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """Pictures ``(3, height, width)`` of a video at a rate, for ever, cut around the middle to fill ``size``."""
    info = video.open(path)
    height, width = size
    scale = max(height / info.height, width / info.width)
    covering = (math.ceil(info.height * scale - 1e-6), math.ceil(info.width * scale - 1e-6))
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    while True:
        for frames in video.read(path, Sampling(fps=fps, exact=True), size=covering):
            yield from frames.pixels[:, :, top : top + height, left : left + width]


def burn(pictures: Iterable[NDArray[np.uint8]], truth: ProbeVideo) -> Iterator[Frames]:
    """The pictures with the cards on them, a frame at a time."""
    cards = [(event, *place_card(event, truth.size)[:3]) for _, event in truth.cards]
    for index, picture in enumerate(islice(pictures, truth.num_frames)):
        at = index / truth.fps
        for event, card, left, top in cards:
            if event.start_seconds <= at < event.stop_seconds:
                picture = paste(picture, card, left, top)
        yield Frames(pixels=picture[None], seconds=np.array([at]))


def paste(picture: NDArray[np.uint8], card: NDArray[np.uint8], left: int, top: int) -> NDArray[np.uint8]:
    """A copy of a picture ``(3, height, width)`` under an RGBA card ``(side, side, 4)``."""
    shown = picture.copy()
    box = shown[:, top : top + len(card), left : left + len(card)]
    alpha = card[None, :, :, 3] / 255
    box[:] = np.rint(alpha * card[:, :, :3].transpose(2, 0, 1) + (1 - alpha) * box)
    return shown


def choose_clips(rng: np.random.Generator, clips: Sequence[Clip], count: int) -> list[Clip]:
    """Clips of at least 5 seconds in random order, one of each source."""
    long_enough = [clip for clip in clips if clip.duration_seconds >= MIN_CLIP_SECONDS]
    sources = group_by_source(long_enough)
    chosen = {sources[long_enough[i].name]: long_enough[i] for i in rng.permutation(len(long_enough))}
    if len(chosen) < count:
        raise longtake.LongtakeError(f"videos is {count}; the test split here has {len(chosen)} sources, ask for fewer")
    return list(chosen.values())[:count]


def write_files(
    clips: list[Clip], footage_folder: Path, target: Path, seed: int, seconds: tuple[float, float]
) -> list[tuple[dict[str, Any], ProbeVideo]]:
    """A file from each clip, unless it is there; what is in it, as a JSON-ready object and as the truth to ask about.

    A file's name carries a hash of its truth, so a file of other cards, times or sizes is never taken for it.
    """
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for number, clip in enumerate(clips):
        place = seed * 100_003 + number
        size, fps = SIZES[number % len(SIZES)], RATES[(number + number // len(SIZES)) % len(RATES)]
        truth = make_truth(place, float(np.random.default_rng([place, 7]).uniform(*seconds)), fps, size)
        digest = hashlib.blake2b(repr(truth).encode(), digest_size=4).hexdigest()
        path = target / f"cards-{seed}-{number}-{Path(clip.name).stem}-{digest}.mp4"
        if not path.exists():
            print(f"writing {path}", file=sys.stderr, flush=True)
            video.write(path, burn(footage(footage_folder / clip.name, fps, size), truth), fps)
        written.append((describe(path, clip, truth), truth))
    return written


def describe(path: Path, clip: Clip, truth: ProbeVideo) -> dict[str, Any]:
    """A written file as a JSON-ready object."""
    info = video.open(path)
    cards = []
    for card, event in truth.cards:
        drawn, left, top, font = place_card(event, truth.size)
        cards.append({
            "content": card.content, "colour": card.colour, "outline": card.outline,
            "start_seconds": round(event.start_seconds, 2), "stop_seconds": round(event.stop_seconds, 2),
            "left": left, "top": top, "side": len(drawn), "font": None if card.kind == "shape" else font,
        })  # fmt: skip
    return {
        "file": str(path), "clip": clip.name, "loops": round(truth.num_frames / truth.fps / clip.duration_seconds, 2),
        "seconds": round(info.duration_seconds, 2), "width": info.width, "height": info.height,
        "fps": round(info.fps, 3), "cards": cards,
    }  # fmt: skip


def ask_file(model: longtake.Model, path: str, truth: ProbeVideo) -> list[dict[str, Any]]:
    """Watch a file, and ask what is on each card, when it appears, and whether cards there and not there are there."""
    memory = model.watch(path)
    questions = [q for q in ask_all(truth, np.random.default_rng([truth.seed, 8]), 100) if q.task in TASKS]
    questions.sort(key=lambda question: TASKS.index(question.task))
    blind = ask_blind(model, [question.text for question in questions])
    answers = [model.ask(memory, question.text) for question in questions]
    return [reply(truth, *each) for each in zip(questions, answers, blind, strict=True)]


def reply(truth: ProbeVideo, question: Question, answer: Answer, blind: str) -> dict[str, Any]:
    """A question with its answer and the truth as a JSON-ready object."""
    best = answer.evidence[0] if answer.evidence else None
    return {
        "task": question.task, "question": question.text, "answer": answer.text, "truth": question.answer,
        "right": score(question, answer.text), "blind": blind, "blind_right": score(question, blind),
        "top_span": None if best is None else [best.start_seconds, best.stop_seconds, best.score],
        "evidence_hit": evidence(truth, question, answer)[0],
    }  # fmt: skip


def totals(replies: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """By task and over all: questions, right answers, and, of what is there, how often the top span overlaps it."""
    found = {}
    for task in (*TASKS, "all"):
        some = [r for r in replies if task in (r["task"], "all")]
        there = [r["evidence_hit"] for r in some if r["evidence_hit"] is not None]
        found[task] = {
            "questions": len(some),
            "right": sum(r["right"] for r in some), "blind": sum(r["blind_right"] for r in some),
            "there": len(there), "evidence_hits": sum(there),
        }  # fmt: skip
    return found


def show(file: dict[str, Any]) -> None:
    """A file and its questions as text."""
    again = f"looped: shown {file['loops']} times" if file["loops"] > 1 else f"its first {file['loops']:.0%}"
    print(f"\n{file['file']}: {file['seconds']:.0f} s, {file['width']}x{file['height']} at {file['fps']:g} frames/s")
    print(f"  footage {file['clip']}, {again}")
    for card in file["cards"]:
        share = card["side"] / min(file["width"], file["height"])
        print(
            f"  card    {card['content']} on {card['colour']} ({card['outline']}), {card['start_seconds']:.1f} to "
            f"{card['stop_seconds']:.1f} s, {share:.0%} of the shorter side, {card['font'] or 'no font'}"
        )
    for r in file["replies"]:
        span = "nowhere" if r["top_span"] is None else "{:.0f}-{:.0f} s ({:.2f})".format(*r["top_span"])
        verdict = "right" if r["right"] else "wrong"
        print(f"  {verdict}   {r['question']:48} said {r['answer']!r}, truth {r['truth']!r}; seen at {span}")


def show_totals(found: dict[str, dict[str, int]]) -> None:
    """The totals as a table."""
    print(f"\n{'':10}{'right':>10}{'blind':>10}{'top span on the card':>24}")
    for task, cell in found.items():
        hits = f"{cell['evidence_hits']}/{cell['there']}"
        print(f"{task:10}{cell['right']:>6}/{cell['questions']:<3}{cell['blind']:>6}/{cell['questions']:<3}{hits:>24}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--footage", type=Path, required=True, help="folder of videos")
    parser.add_argument("--videos", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, nargs=2, default=(60, 180), help="shortest and longest file")
    parser.add_argument("--model", help="folder of a model; the one in the package if not given")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "longtake-benchmarks/real-files")
    parser.add_argument("--cache", type=Path, default=Path(".cache/haystack"), help="where decoded footage is kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if not MIN_SECONDS <= options.seconds[0] <= options.seconds[1]:
        parser.error(f"--seconds is {options.seconds}; give the shortest, at least {MIN_SECONDS:g}, and the longest")
    clips = load_clips("test", options.footage, options.cache)
    chosen = choose_clips(np.random.default_rng([options.seed, 5]), clips, options.videos)
    written = write_files(chosen, options.footage, options.folder, options.seed, tuple(options.seconds))
    model = longtake.load(options.model)
    files = []
    for file, truth in written:
        files.append(file | {"replies": ask_file(model, file["file"], truth)})
        if not options.json:
            show(files[-1])
    found = totals([r for file in files for r in file["replies"]])
    first = files[0]
    command = f"longtake ask {shlex.quote(first['file'])} {shlex.quote(first['replies'][0]['question'])}"
    command += f" --model {shlex.quote(options.model)}" if options.model else ""
    if options.json:
        run = {"seed": options.seed, "model": options.model, "command": command}
        print(json.dumps(run | {"files": files, "totals": found}))
        return
    show_totals(found)
    print(f"\ntry it: {command}")


if __name__ == "__main__":
    main()
