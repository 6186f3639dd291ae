"""The benchmark on real files: its cards against the probe world's, its files read back, its figures by hand."""

import importlib.util
import json
from itertools import islice, pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

import world
from longtake import LongtakeError, video
from longtake.data.probe_world.haystack import Clip
from longtake.data.probe_world.needles import COLOURS, FONT_FOLDER, LETTERS, OUTLINES, SYMBOLS, Card, draw_symbol
from longtake.data.probe_world.probe import ProbeVideo
from longtake.data.probe_world.questions import WORDINGS, Question
from longtake.types import Answer, Evidence, Frames, Sampling, Usage

pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[1]
SHARED = ROOT / "../shared/data/videos"
NAMES = ("arm_wrestling.mp4", "batting_cage.mp4", "fitness_plank.mp4", "flipping_pancake.mkv", "nasa_suit_test.mp4")


def benchmark() -> ModuleType:
    """benchmarks/real_files.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("real_files", ROOT / "benchmarks" / "real_files.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


real_files = benchmark()


def mask(shape) -> np.ndarray:
    """Where matplotlib fills an outline within 1 of the origin: bool ``(200, 200)``."""
    renderer = real_files.RendererAgg(200, 200, 72)
    pen = renderer.new_gc()
    pen.set_linewidth(0)
    renderer.draw_path(pen, shape, real_files.Affine2D().scale(100).translate(100, 100), (1.0, 1.0, 1.0))
    return np.array(renderer.buffer_rgba())[:, :, 3] > 127


def share_of(picture: np.ndarray, colour: str) -> float:
    """Which share of an RGB picture ``(3, height, width)`` has about a colour."""
    off = np.abs(picture.astype(int) - np.array(COLOURS[colour])[:, None, None]).max(0)
    return float((off < 40).mean())


def shown(path: Path, seconds: float) -> np.ndarray:
    """The picture shown at a time."""
    (frames,) = video.read(path, Sampling(at_seconds=(seconds,), exact=True))
    return frames.pixels[0]


def moving_ramp(count: int, height: int, width: int) -> Frames:
    """A grey ramp that moves."""
    ramp = np.linspace(40, 140, width)[None, None, None] + np.arange(count)[:, None, None, None]
    pixels = np.broadcast_to(ramp, (count, 3, height, width)).astype(np.uint8)
    return Frames(pixels=pixels, seconds=np.arange(count, dtype=np.float64))


@pytest.mark.parametrize("name", SYMBOLS)
def test_a_symbol_is_the_probe_worlds(name):
    picture = Image.new("L", (200, 200))
    draw_symbol(ImageDraw.Draw(picture), name, (100, 100), 100, 255)
    one, other = np.asarray(picture) > 127, mask(real_files.symbol(name))
    assert (one & other).sum() / (one | other).sum() > 0.95


def test_the_fonts_are_not_the_probe_worlds():
    def family(font: str) -> str:
        return ImageFont.truetype(str(real_files.FONT_FOLDER / font)).getname()[0].replace(" ", "").lower()

    known = {path.stem.split("-", 1)[1].replace("-", "") for path in FONT_FOLDER.glob("*.[ot]tf")}
    assert family("DejaVuSans.ttf") in known
    assert not known & {family(font) for font in real_files.FONTS}


@pytest.mark.parametrize("font", real_files.FONTS)
def test_every_letter_and_digit_is_itself_and_centred(font):
    contents = [*LETTERS, *"0123456789", "10", "47"]
    outlines = {content: real_files.text(content, font) for content in contents}
    for outline in outlines.values():
        box = outline.get_extents()
        assert (box.x0 + box.x1, box.y0 + box.y1) == pytest.approx((0, 0), abs=1e-6)
        assert max(box.width, box.height) == pytest.approx(2)
    assert len({outline.vertices.tobytes() for outline in outlines.values()}) == len(contents)


@pytest.mark.parametrize("outline", OUTLINES)
def test_a_card_has_its_outline_colour_and_content(outline):
    drawn = real_files.draw_card(
        Card(content="circle", colour="blue", outline=outline), 101, "cmr10.ttf", np.random.default_rng(0)
    )
    assert drawn.shape == (101, 101, 4)
    assert drawn[50, 50].tolist() == [248, 248, 248, 255]
    # on a ray to the right: the content's radius, then the card's colour
    edge = int(50.5 + 50.5 * real_files.ROOM[outline])
    assert (drawn[50, edge - 3, :3] > 240).all()
    assert drawn[50, edge + 3, :3].tolist() == list(COLOURS["blue"])
    covered = {"square": (0.95, 1.0), "round": (0.77, 0.8), "hexagon": (0.63, 0.66)}[outline]
    assert covered[0] < (drawn[:, :, 3] > 127).mean() <= covered[1]


def test_what_is_shown_when():
    for seed in range(12):
        truth = real_files.make_truth(seed, 20.0 + seed, 7.0, (94, 166))
        cards, events = zip(*truth.cards, strict=True)
        assert truth == real_files.make_truth(seed, 20.0 + seed, 7.0, (94, 166))
        assert sorted(card.kind for card in cards) == ["letter", "number", "shape"]
        assert len({card.colour for card in cards}) == 3
        assert {card.split for card in cards} == {"test"}
        assert all(2 <= event.stop_seconds - event.start_seconds <= 4 for event in events)
        assert all(later.start_seconds - event.stop_seconds >= 1 for event, later in pairwise(events))
        assert events[0].start_seconds >= 1
        assert events[-1].stop_seconds <= truth.num_frames / truth.fps - 0.8
        for event in events:
            drawn, left, top, _ = real_files.place_card(event, truth.size)
            assert 0.45 * 94 <= len(drawn) <= 0.8 * 94 + 1
            assert 0 <= left <= 166 - len(drawn)
            assert 0 <= top <= 94 - len(drawn)


def test_footage_is_looped_and_cut_around_the_middle(tmp_path):
    pixels = np.zeros((5, 3, 60, 120), np.uint8)
    pixels[:, :, :, 60:] = 255
    pixels[:, :, :, 30:90] = (40 + 40 * np.arange(5, dtype=np.uint8))[:, None, None, None]
    video.write(tmp_path / "a.mp4", [Frames(pixels=pixels, seconds=np.arange(5.0))], 5.0, quality=5)
    pictures = list(islice(real_files.footage(tmp_path / "a.mp4", 5.0, (90, 60)), 12))
    assert {picture.shape for picture in pictures} == {(3, 90, 60)}
    levels = [float(picture.mean()) for picture in pictures]
    assert levels == pytest.approx([40, 80, 120, 160, 200] * 2 + [40, 80], abs=4)
    assert max(float(picture.std()) for picture in pictures) < 4


def test_cards_are_where_and_when_they_should_be(tmp_path):
    """At an odd frame rate and size: the card's colour in its place while it is on, on the exact frames, and only then;
    around it the footage."""
    fps, size = 24000 / 1001, (94, 166)
    video.write(tmp_path / "clip.mp4", [moving_ramp(60, 96, 128)], 12.5)
    truth = real_files.make_truth(3, 20.0, fps, size)
    target = tmp_path / "cards.mp4"
    video.write(target, real_files.burn(real_files.footage(tmp_path / "clip.mp4", fps, size), truth), fps)
    info = video.open(target)
    assert (info.height, info.width, info.num_frames, info.codec) == (94, 166, truth.num_frames, "h264")
    assert info.fps == pytest.approx(fps, abs=1e-3)
    plain = list(islice(real_files.footage(tmp_path / "clip.mp4", fps, size), truth.num_frames))
    for card, event in truth.cards:
        drawn, left, top, _ = real_files.place_card(event, size)
        box = (slice(None), slice(top, top + len(drawn)), slice(left, left + len(drawn)))
        first, stop = (int(np.ceil(at * fps)) for at in (event.start_seconds, event.stop_seconds))
        moments = {"on": (first, (first + stop) // 2, stop - 1),
                   "off": (first - 1, stop, first - round(fps), stop + round(fps))}  # fmt: skip
        for number in moments["on"]:
            picture = shown(target, (number + 0.5) / fps)
            assert share_of(picture[box], card.colour) > 0.2
            around = np.abs(picture.astype(int) - plain[number])
            around[box] = 0
            assert around.mean() < 3
        for number in moments["off"]:
            picture = shown(target, (number + 0.5) / fps)
            assert share_of(picture, card.colour) < 0.01
            assert np.abs(picture.astype(int) - plain[number]).mean() < 3


def test_one_clip_of_each_source():
    clips = world.clips()
    twin = Clip(name="twin", pixels=clips[0].pixels, fps=clips[0].fps)
    short = Clip(name="short", pixels=clips[1].pixels[:14], fps=clips[1].fps)
    for seed in range(5):
        chosen = real_files.choose_clips(np.random.default_rng(seed), [*clips, twin, short], 3)
        names = {clip.name for clip in chosen}
        assert len(names) == 3
        assert names >= {clips[1].name, clips[2].name}
    with pytest.raises(LongtakeError, match="videos is 4; the test split here has 3 sources"):
        real_files.choose_clips(np.random.default_rng(0), [*clips, twin, short], 4)


def test_figures_by_hand():
    truth: ProbeVideo = real_files.make_truth(0, 40.0, 7.0, (94, 166))
    (card, event), *_ = truth.cards
    usage = Usage(frames=1, visual_tokens=1, prompt_tokens=1, seconds={})
    here = Evidence(start_seconds=event.start_seconds, stop_seconds=event.stop_seconds, score=0.75)
    before = Evidence(start_seconds=0.0, stop_seconds=event.start_seconds, score=0.5)
    what = Question(task="what", text="?", answer=card.content, event=event)
    absent = Question(task="is_there", text="?", answer="no")
    replies = [
        real_files.reply(truth, what, Answer(text=f"{card.content}.", evidence=(here, before), usage=usage), "no"),
        real_files.reply(truth, what, Answer(text="nothing", evidence=(before, here), usage=usage), card.content),
        real_files.reply(truth, absent, Answer(text="No", evidence=(), usage=usage), "no"),
    ]
    assert [reply["right"] for reply in replies] == [True, False, True]
    assert [reply["top_span"] for reply in replies] == [
        [event.start_seconds, event.stop_seconds, 0.75],
        [0.0, event.start_seconds, 0.5],
        None,
    ]
    nothing = {"questions": 0, "right": 0, "blind": 0, "there": 0, "evidence_hits": 0}
    assert real_files.totals(replies) == {
        "what": {"questions": 2, "right": 1, "blind": 1, "there": 2, "evidence_hits": 1},
        "is_there": {"questions": 1, "right": 1, "blind": 1, "there": 0, "evidence_hits": 0},
        "when": nothing,
        "all": {"questions": 3, "right": 2, "blind": 2, "there": 2, "evidence_hits": 1},
    }


def test_too_short_files_are_refused(capsys):
    with pytest.raises(SystemExit):
        real_files.main(["--footage", "nowhere", "--seconds", "10", "30"])
    assert "give the shortest, at least 20, and the longest" in capsys.readouterr().err


@pytest.mark.slow
def test_the_benchmark_is_whole(tmp_path, capsys):
    """On five shared videos: every part of the JSON object and of the text is there; how good the answers are is not
    asked."""
    if not SHARED.is_dir():
        pytest.skip("the shared videos are not here")
    footage, target = tmp_path / "footage", tmp_path / "files"
    footage.mkdir()
    for name in NAMES:
        (footage / name).symlink_to((SHARED / name).resolve())
    options = ["--footage", str(footage), "--folder", str(target), "--cache", str(tmp_path / "cache")]
    options += ["--seconds", "20", "24"]
    real_files.main([*options, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert sorted(file["clip"] for file in found["files"]) == sorted(NAMES)
    for number, file in enumerate(found["files"]):
        info = video.open(file["file"])
        assert (info.height, info.width) == (file["height"], file["width"]) == real_files.SIZES[number]
        assert info.fps == pytest.approx(real_files.RATES[number], abs=1e-2)
        assert 19.8 <= info.duration_seconds <= 24.1
        check_replies(file)
    replies = [reply for file in found["files"] for reply in file["replies"]]
    assert [found["totals"][task]["questions"] for task in ("what", "is_there", "when", "all")] == [15, 30, 15, 60]
    assert found["totals"]["all"]["right"] == sum(reply["right"] for reply in replies)
    times = {path: path.stat().st_mtime_ns for path in target.iterdir()}
    assert len(times) == 5
    real_files.main([*options, "--videos", "1"])  # the first file is there already, and the answers are the same
    text = capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in target.iterdir()} == times
    first = found["files"][0]
    assert f"try it: {found['command']}" in text
    assert first["file"] in found["command"]
    assert all(f"{r['question']:48} said {r['answer']!r}, truth {r['truth']!r}" in text for r in first["replies"])


def check_replies(file: dict) -> None:
    """Each card of a file is asked about, in the test's wordings."""
    cards = {card["colour"]: card for card in file["cards"]}
    assert len(cards) == 3
    by_task = {task: [r for r in file["replies"] if r["task"] == task] for task in ("what", "is_there", "when")}
    assert sorted(r["truth"] for r in by_task["what"]) == sorted(card["content"] for card in cards.values())
    assert sorted(r["truth"] for r in by_task["is_there"]) == ["no"] * 3 + ["yes"] * 3
    for reply in file["replies"]:
        fits = [w for w in WORDINGS["test"][reply["task"]] for c in COLOURS for k in ("number", "letter", "shape")
                if w.format(colour=c, kind=k) == reply["question"]]  # fmt: skip
        assert fits
        start, stop, score = reply["top_span"]
        assert 0 <= start < stop <= file["seconds"] + 0.1
        assert 0 < score <= 1
    for reply in by_task["when"]:
        colour = next(c for c in cards if f" {c} " in reply["question"])
        assert float(reply["truth"].removesuffix(" s")) == pytest.approx(cards[colour]["start_seconds"], abs=1.01)
