"""``longtake synth mvp`` and ``longtake inspect``: files, statistics, workers, interruptions, mistakes."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import make_videos
import tiny
from fakes import write_video
from longtake import cli
from longtake.backbones import load_backbone
from longtake.cli.synth import make_gatherer, read_levels
from longtake.data.puzzles.footage import find_footage, fps_of, frames_folder, pixel_features, small_pictures, source_of
from longtake.data.puzzles.framefile import FrameFile, encoded
from longtake.data.puzzles.mvp import LEVELS
from longtake.data.puzzles.puzzle_file import PuzzleRecord, read_records
from longtake.data.puzzles.sheets import choose, contact_page
from longtake.data.puzzles.synth import Outcome, Synthesis, claimed, synthesise
from longtake.types import Frames, LongtakeError
from processes import environment

EASY = Synthesis(levels=LEVELS[:3], frames=8, per_minute=20.0)
FILES = ("puzzles.jsonl", "statistics.json", "settings.json")


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """Three videos that change all the time (one in a folder), a copy, a still one, a torn one, and no videos."""
    folder = tmp_path_factory.mktemp("media")
    (folder / "more").mkdir()
    make_videos.make(folder / "a.mp4", count=120, fps=2)
    make_videos.make(folder / "b.mp4", count=60, fps=5, size=(64, 48))
    make_videos.make(folder / "more" / "c.mkv", count=90, fps=1)
    (folder / "more" / "copy.mp4").write_bytes((folder / "a.mp4").read_bytes())
    write_video(folder / "still.mp4", [90] * 40)
    (folder / "torn.mp4").write_bytes(b"no video at all" * 100)
    (folder / "notes.txt").write_text("not tried")
    (folder / ".hidden.mp4").write_bytes(b"not tried either")
    return folder


Run = Callable[..., Outcome]


@pytest.fixture
def run(media, tmp_path) -> Run:
    def run_synth(output: str = "out", settings: Synthesis = EASY, encoding: str = "jpeg", **options) -> Outcome:
        make = partial(make_gatherer, None, "cpu", "pixels", tmp_path / output, 1.0, 64, encoding)
        return synthesise(find_footage([media]), tmp_path / output, settings, make, **options)

    return run_synth


def held(folder: Path) -> dict[str, bytes]:
    """Every file in a folder but the page."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".html"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# -- what is written ------------------------------------------------------------------------------------------------


def test_footage_is_found(media):
    found = [one.name for one in find_footage([media, media / "a.mp4", media / "more"])]
    assert found == ["a.mp4", "b.mp4", "more/c.mkv", "more/copy.mp4", "still.mp4", "torn.mp4"]
    with pytest.raises(LongtakeError, match="none: no such file or folder; check the path"):
        find_footage([media / "none"])
    (media / "empty").mkdir(exist_ok=True)
    with pytest.raises(LongtakeError, match="empty: no videos in it; give files, or folders with some"):
        find_footage([media / "empty"])


def test_short_clips_are_read_more_densely():
    assert fps_of(600, 30, 1.0) == 1.0
    assert fps_of(24, 30, 1.0) == 2.0
    assert fps_of(2, 30, 1.0) == 5.0
    assert fps_of(2, 3, 1.0) == 3.0
    assert fps_of(0, 0, 1.0) == 1.0
    assert fps_of(2, 30, 10.0) == 10.0


def test_puzzles_can_be_followed_back_to_the_video(run, media, tmp_path):
    done = run()
    records = list(read_records(tmp_path / "out"))
    told = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert told == done.statistics
    assert told["puzzles"] == len(records) > 60
    assert told["videos"] == 4
    assert list(told["unreadable"]) == ["torn.mp4"]
    assert "torn.mp4" in told["unreadable"]["torn.mp4"]
    assert told["duplicates"] == {"more/copy.mp4": "a.mp4"}
    assert {record.video for record in records} == {"a.mp4", "b.mp4", "more/c.mkv"}
    assert len({record.id for record in records}) == len(records)
    for name, level in told["levels"].items():
        assert level["tried"] == level["made"] + sum(level["rejects"].values())
        assert level["made"] == sum(record.level == name for record in records)
        assert level["made_per_minute"] == pytest.approx(level["made"] / told["minutes"], rel=1e-3)
        assert level["rejects"]["too few distinct frames"] >= 14  # the still video's
    assert 0 < told["keep_rate"] < 1
    assert told["calibration"]["quantile"] == 0.7
    for record in records[:: max(1, len(records) // 20)]:
        check_record(record, tmp_path / "out", media)


def check_record(record: PuzzleRecord, folder: Path, media: Path) -> None:
    """A record's frames are those the video shows at its times; its candidates say nothing of them."""
    assert record.path == (media / record.video).as_posix()
    assert record.frames == f"frames/{source_of(record.identity)}.zip"
    assert not set(record.context) & set(record.candidates)
    missing = [record.candidates[number - 1] for number in record.truth]
    assert list(record.truth_seconds) == sorted(record.truth_seconds)
    assert list(record.context_seconds) == sorted(record.context_seconds)
    ((begin, end),) = record.gaps_seconds
    assert begin < record.truth_seconds[0]
    assert record.truth_seconds[-1] < end
    assert not any(begin < second < end for second in record.context_seconds)
    assert record.beside() == (
        record.context[record.context_seconds.index(begin)],
        record.context[record.context_seconds.index(end)],
    )
    with FrameFile(folder / record.frames) as frames:
        assert frames.index.identity == record.identity
        seconds = dict(zip(frames.index.names, frames.index.seconds, strict=True))
        assert [seconds[name] for name in missing] == list(record.truth_seconds)
        assert [seconds[name] for name in record.context] == list(record.context_seconds)
        pixels = frames.pictures(missing)
    assert max(pixels.shape[2:]) == 64
    fps = {"a.mp4": 2, "b.mp4": 5, "more/c.mkv": 1}[record.video]
    assert make_videos.numbers_in(pixels) == [round(second * fps) for second in record.truth_seconds]


def test_frame_files_say_nothing_of_time_beside_the_index(run, tmp_path):
    run(encoding="png")
    for file in (tmp_path / "out" / "frames").iterdir():
        with FrameFile(file) as frames:
            assert frames.entry_dates() == {(1980, 1, 1, 0, 0, 0)}
            names = frames.index.names
            assert all(len(name) == 20 and name.endswith(".png") for name in names)
            assert sorted(names) != list(names)
            assert frames.embeddings().shape == (len(names), 769)
            info = Image.open(io.BytesIO(frames.picture_bytes(names[0]))).info
        assert info == {}


def test_stored_pictures_are_the_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 8), dtype=np.uint8)
    shown = Image.open(io.BytesIO(encoded(pixels, "png")))
    assert np.array_equal(np.asarray(shown).transpose(2, 0, 1), pixels)
    assert encoded(pixels, "jpeg") == encoded(pixels, "jpeg")


def test_extrapolation_and_scattered_masks(run, tmp_path):
    for mask in ("before", "after", "scattered"):
        run(settings=Synthesis(levels=LEVELS[:2], frames=9, per_minute=10, mask=mask))
        records = list(read_records(tmp_path / "out"))
        assert len(records) > 5
        for record in records:
            assert record.mask == mask
            assert len(record.gaps_seconds) == (1 + sum(np.diff(record.masked) > 1))
            before, after = record.beside()
            assert (before is None, after is None) == (mask == "before", mask == "after")
            assert (record.gaps_seconds[0][0] is None) == (mask == "before")
            assert (record.gaps_seconds[-1][1] is None) == (mask == "after")


def test_another_seed_gives_other_puzzles_of_the_same_frames(run, tmp_path):
    run()
    first = held(tmp_path / "out")
    again = run(settings=Synthesis(levels=LEVELS[:3], frames=8, per_minute=20.0, seed=1))
    second = held(tmp_path / "out")
    assert again.reused == 4
    assert first["puzzles.jsonl"] != second["puzzles.jsonl"]
    frames = {name for name in first if name.startswith("frames/")}
    assert len(frames) == 4
    assert all(first[name] == second[name] for name in frames)
    given = run(settings=Synthesis(levels=LEVELS[:1], frames=8, kappa=0.9, near=0.8)).statistics
    assert (given["kappa"], given["near"], given["calibration"]) == (0.9, 0.8, None)


# -- interruptions and workers --------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_and_gives_the_same_bytes(run, tmp_path):
    run("whole")

    class Stopped(BaseException):
        pass

    def stop(what: str, done: int, planned: int) -> None:
        assert (what, planned) == ("reading videos", 6)
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run(progress=stop)
    assert len(held(tmp_path / "out")) == 2 + 2  # settings and lock, and two videos' frames
    (tmp_path / "out" / "frames" / ".x.zip.ab.part").write_bytes(b"half")
    calls: list[tuple[str, int, int]] = []
    done = run(progress=lambda *call: calls.append(call))
    assert done.reused == 2
    assert calls[-1] == ("making puzzles", 4, 4)
    assert held(tmp_path / "out") == held(tmp_path / "whole")


@pytest.mark.slow
def test_one_worker_and_two_give_the_same_bytes(run, tmp_path):
    run("one")
    run("two", workers=2)
    assert held(tmp_path / "one") == held(tmp_path / "two")


@pytest.mark.slow
def test_a_killed_command_goes_on(media, tmp_path):
    more = ["-o", str(tmp_path / "out"), "--embedder", "pixels", "--frames", "8", "--level", "L1", "--workers", "2"]
    command = [sys.executable, "-m", "longtake.cli", "synth", "mvp", str(media), *more]
    running = subprocess.Popen(command, env=environment(), start_new_session=True, stderr=subprocess.DEVNULL)
    frames = tmp_path / "out" / "frames"
    while not list(frames.glob("*.zip")) and running.poll() is None:
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    subprocess.run(command, env=environment(), check=True, capture_output=True)
    killed = held(tmp_path / "out")
    command[command.index(str(tmp_path / "out"))] = str(tmp_path / "whole")
    subprocess.run(command[:-2], env=environment(), check=True, capture_output=True)
    assert held(tmp_path / "whole") == killed
    assert not list(frames.glob(".*"))


def test_frames_of_other_settings_are_refused(run, tmp_path):
    run()
    before = held(tmp_path / "out")
    with pytest.raises(LongtakeError, match="out holds frames with encoding jpeg, but now it is png; give the former"):
        run(encoding="png")
    assert held(tmp_path / "out") == before
    (tmp_path / "out" / "settings.json").write_text("{")
    with pytest.raises(LongtakeError, match="settings.json is there and holds no settings"):
        run()


@pytest.mark.usefixtures("permissions")
def test_a_video_that_may_not_be_read_is_left_out(media, tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes((media / name).read_bytes())
    (folder / "b.mp4").chmod(0)
    make = partial(make_gatherer, None, "cpu", "pixels", tmp_path / "out", 1.0, 64, "jpeg")
    done = synthesise(find_footage([folder]), tmp_path / "out", EASY, make)
    assert list(done.problems) == ["b.mp4"]
    assert "Permission denied" in done.problems["b.mp4"]


def test_a_folder_is_written_by_one_run_at_a_time(run, tmp_path):
    run()
    part = tmp_path / "out" / "frames" / ".of-the-other-run.part"
    puzzles, page = (tmp_path / "out" / f".{name}.ab.part" for name in ("puzzles.jsonl", "inspect.html"))
    with claimed(tmp_path / "out"):
        for file in (part, puzzles, page):
            file.touch()
        with pytest.raises(LongtakeError, match="out is written by another run now; wait for it, or give another"):
            run()
        assert part.exists()
    run()
    assert [file.exists() for file in (part, puzzles, page)] == [False, False, True]  # inspect may be writing a page


def test_a_damaged_frame_file_is_named(run, tmp_path):
    run()
    file = sorted((tmp_path / "out" / "frames").iterdir())[0]
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(LongtakeError, match=f"{file.name} cannot be read .*; remove it and run the synthesis again"):
        run()


@pytest.mark.parametrize("save", [tiny.save_video_llm, tiny.save_qwen_vl])
def test_real_towers_embed(save, media, tmp_path):
    model = str(save(tmp_path / "model"))
    make = partial(make_gatherer, model, "cpu", "tower", tmp_path / "out", 1.0, 64, "jpeg")
    done = synthesise(find_footage([media / "b.mp4"]), tmp_path / "out", EASY, make)
    told = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert told["device"] == "cpu"
    assert told["model"] != "pixels"
    assert done.statistics["frames"] == 48
    assert done.statistics["kappa"] <= 0.999999


def test_a_tower_by_itself_embeds_as_in_its_model(media, tmp_path):
    """Frame files are the same but for the name."""
    tiny.save_video_llm(tmp_path / "model", vision_norm=True)
    model = load_backbone(str(tmp_path / "model"), "cpu").model
    model.vision_tower.save_pretrained(tmp_path / "tower")
    held = {}
    for name, folder in (("model", None), ("tower", tmp_path / "tower")):
        frames_folder(tmp_path / name).mkdir(parents=True)
        make = make_gatherer(str(tmp_path / "model"), "cpu", "tower", tmp_path / name, 1.0, 64, "jpeg", folder)
        gathered = make(find_footage([media / "b.mp4"])[0])
        with FrameFile(gathered.file) as frames:
            held[name] = frames.embeddings(), frames.index.settings["model"]
    assert np.array_equal(held["tower"][0], held["model"][0])
    assert held["tower"][1].startswith("siglip_vision_model-")
    assert held["model"][1] != held["tower"][1]


@pytest.mark.parametrize("size", [(180, 320), (7, 9), (16, 16), (33, 50), (101, 16)])
def test_small_pictures_are_those_of_adaptive_pooling(size):
    pixels = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8).transpose(0, 3, 1, 2)
    for shown in (pixels, np.ascontiguousarray(pixels)):
        expected = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(shown.copy()).float(), 16)
        torch.testing.assert_close(small_pictures(shown, 16), expected, rtol=0, atol=1e-4)


def test_pixel_features_of_grey_have_a_direction():
    grey = Frames(pixels=np.full((1, 3, 20, 30), 128, np.uint8), seconds=np.zeros(1))
    assert float(pixel_features(grey).norm()) >= 1


# -- the page -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags that are open at the end, pictures, and references to anything outside the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[tuple[int, int, Image.Image]] = []
        self.outside: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag == "img":
            kind, _, data = (told["src"] or "").partition(",")
            assert kind == "data:image/jpeg;base64"
            picture = Image.open(io.BytesIO(base64.b64decode(data)))
            self.pictures.append((int(told["width"] or 0), int(told["height"] or 0), picture))
        elif tag not in ("meta", "br", "!doctype"):
            self.open.append(tag)
        self.outside += [f"{tag} {name}" for name in told if name in ("href", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_shows_each_puzzle_whole(run, tmp_path):
    run()
    shown = choose(list(read_records(tmp_path / "out")), 6)
    assert [record.level for record in shown] == ["L1", "L1", "L2", "L2", "L3", "L3"]
    page = Page()
    page.feed(contact_page(tmp_path / "out", 6))
    assert page.open == page.outside == []
    assert len(page.pictures) == sum(len(r.context) + len(r.candidates) + len(r.truth) for r in shown)
    assert all(picture.size == (width, height) for width, height, picture in page.pictures)
    assert page.text.count("Truth") == 6
    first = shown[0]
    assert f"{first.truth[0]}, {first.truth_seconds[0]:.2f} s" in page.text
    assert f"{len(first.masked)} missing" in page.text
    begin = len(first.context) + len(first.candidates)
    for place, number in enumerate(first.truth):  # what stands under the truth is the candidate of that number
        truth, candidate = page.pictures[begin + place], page.pictures[len(first.context) + number - 1]
        assert np.array_equal(np.asarray(truth[2]), np.asarray(candidate[2]))


# -- the commands ---------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    def run_command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["longtake", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        streams = capsys.readouterr()
        return left.value.code or 0, streams.out, streams.err

    return run_command


def test_the_commands_say_what_they_did(command, media, tmp_path):
    asked = ["synth", "mvp", media, "-o", tmp_path / "out", "--embedder", "pixels", "--frames", 8, "--level", "L1"]
    code, out, err = command(*asked)
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split()[:5] == ["level", "missing", "pool", "tried", "made"]
    assert lines[1].split()[:3] == ["L1", "2", "4"]
    assert "quantile 0.7 of" in lines[2]
    assert " puzzles of 4 videos (0 read before), " in lines[3]
    assert err.splitlines()[0].startswith("left out: torn.mp4: ")
    assert err.splitlines()[1] == "copy: more/copy.mp4: a.mp4"
    code, out, _ = command(*asked, "--json")
    found = json.loads(out)
    assert (code, found["videos"], found["frames_reused_of"]) == (0, 4, 4)
    assert set(found["seconds"]) == {"all", "read", "embed", "store", "puzzles"}
    code, out, _ = command("inspect", tmp_path / "out", "--count", 2)
    assert (code, out.strip()) == (0, str(tmp_path / "out" / "inspect.html"))
    assert (tmp_path / "out" / "inspect.html").read_text().count("<section>") == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--level", "L6"], "--level L6: there is no such level; name one of L1, L2, L3, L4, L5"),
        (["--frames", "8"], "frames is 8; level L5 needs 9, give more or leave the level out"),
        (["--per-minute", "0"], "per_minute is 0; it must be above 0"),
        (["--quantile", "70"], "quantile is 70; it must be a share, 0 to 1"),
        (["--kappa", "2"], "the kappa threshold is 2; it must be a cosine"),
        (["--tower", "eyes"], "--tower is eyes, but pixels compare frames"),
        (["--engine", "ray"], "the engine ray needs Ray: pip install"),
    ],
)
def test_bad_options_are_one_line(command, media, tmp_path, options, told):
    if "ray" in options:
        try:
            import ray  # noqa: F401
        except ModuleNotFoundError:
            pass
        else:
            pytest.skip("Ray is installed")
    code, out, err = command("synth", "mvp", media, "-o", tmp_path / "out", "--embedder", "pixels", *options)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: ")
    assert told in err


def test_bad_files_are_one_line(command, media, tmp_path):
    for asked, told in (
        (["synth", "mvp", media / "torn.mp4", "-o", tmp_path / "out", "--embedder", "pixels"], "none of the 1 videos"),
        (["synth", "mvp", media / "none", "-o", tmp_path / "out", "--embedder", "pixels"], "no such file or folder"),
        (["synth", "mvp", media, "-o", media / "notes.txt", "--embedder", "pixels"], "notes.txt"),
        (["inspect", tmp_path / "none", "-o", tmp_path / "puzzles.jsonl"], "give a name that ends in .html"),
        (["inspect", tmp_path / "none"], "give the folder that longtake synth mvp wrote"),
    ):
        code, out, err = command(*asked)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert told in err
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "puzzles.jsonl").write_text('{"id": 1}\n')
    code, _, err = command("inspect", tmp_path / "bad")
    assert code == 1
    assert "puzzles.jsonl:1: no puzzle" in err
    (tmp_path / "bad" / "puzzles.jsonl").write_bytes(b'{"id": "\xff"}\n')
    code, out, err = command("inspect", tmp_path / "bad")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "puzzles.jsonl:1: no puzzle" in err


def test_levels_are_named():
    assert read_levels([]) == LEVELS
    assert [level.name for level in read_levels(["L4", "L1"])] == ["L1", "L4"]
