"""Dataset pruning: scores and cuts by hand, kinds of questions, the loop with its files, resuming and workers."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import make_videos
import tiny
from fakes import write_video
from longtake import cli
from longtake.cli.prune import make_scorer as make_real_scorer
from longtake.data.conversations.conversations import Conversation, Turn
from longtake.data.pruning.prune import Pruning, prune
from longtake.data.pruning.redundancy import Cut, similarity
from longtake.data.pruning.samples import SUBSETS, cut_samples, read_samples, subset_of
from longtake.data.pruning.scorefile import ScoreFile
from longtake.data.pruning.scorer import Scorer, VideoPart, distinct_features
from longtake.eval import prune_pictures
from longtake.types import Frames, LongtakeError

SHARED = Path(__file__).parents[1] / "../shared/data/videos"
SETTINGS = {"model": "quarters", "device": "cpu", "frames": 20, "pairs": "adjacent", "feature": "pooled"}
HALF = dict.fromkeys(SUBSETS, Cut(keep=0.5))


def quarters(frames: Frames) -> torch.Tensor:
    """A tower that sees the mean colour of each quarter: ``(frames, 2, 2, 3)``."""
    shown = torch.from_numpy(np.ascontiguousarray(frames.pixels)).float() + 1
    return shown.unflatten(3, (2, -1)).unflatten(2, (2, -1)).mean(dim=(3, 5)).permute(0, 2, 3, 1)


def make_scorer(settings: dict[str, object] = SETTINGS) -> Scorer:
    return Scorer(encode=quarters, size=(16, 16), pairs="adjacent", feature="pooled", settings=settings)


class DyingScorer(Scorer):
    """Its process is killed at one video, as by a lack of memory, once another one's score is kept."""

    def score(self, part: VideoPart):  # noqa: ANN201
        if part.name == "busy1.mp4":
            scores, patience = Path(os.environ["KEPT_SCORES"]), time.monotonic() + 60
            while "busy0.mp4" not in scores.read_text() and time.monotonic() < patience:
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(part)


def make_dying_scorer() -> Scorer:
    return DyingScorer(encode=quarters, size=(16, 16), pairs="adjacent", feature="pooled", settings=SETTINGS)


# -- scores and cuts ------------------------------------------------------------------------------------------------


def test_scores_by_hand():
    axes = np.array([[[1.0, 0.0]], [[0.0, 2.0]], [[3.0, 4.0]]])  # angles of 90 degrees, then cosines of 0.8 and 0.6
    assert similarity(axes) == pytest.approx((0.0 + 0.8) / 2, abs=1e-15)
    assert similarity(axes, "all") == pytest.approx((0.0 + 0.6 + 0.8) / 3, abs=1e-15)
    assert similarity(np.array([[[1.0, 0.0]], [[-5.0, 0.0]]])) == -1.0


def test_patches_are_compared_with_themselves_and_pooled_ones_by_their_mean():
    swapped = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    assert similarity(swapped, feature="pooled") == 1.0
    assert similarity(swapped, feature="patch") == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("pairs", ["adjacent", "all"])
@pytest.mark.parametrize("feature", ["pooled", "patch"])
def test_equal_frames_score_exactly_one_and_others_less(pairs, feature):
    rng = np.random.default_rng(0)
    for dim in (3, 192, 1152):
        frame = rng.normal(size=(1, 9, dim)).astype(np.float32) * 10 ** rng.uniform(-6, 6)
        still = np.repeat(frame, 20, axis=0)
        assert similarity(still, pairs, feature) == 1.0
        still[7] *= np.float32(1.5)  # the same direction: rounding may take a bit, and never adds one
        assert 1 - 1e-12 < similarity(still, pairs, feature) <= 1.0
        still[7, :, 0] += 1e-3 * np.abs(frame).max()
        assert similarity(still, pairs, feature) < 1.0


def test_similarity_agrees_with_torch():
    features = np.random.default_rng(1).normal(size=(20, 4, 32))
    wide = torch.from_numpy(features)
    pooled = wide.mean(1)
    matrix = torch.nn.functional.cosine_similarity(pooled[:, None], pooled[None], dim=-1)
    every = matrix[torch.triu_indices(20, 20, offset=1).unbind()].mean()
    by_patch = torch.nn.functional.cosine_similarity(wide[1:], wide[:-1], dim=-1).mean()
    assert similarity(features) == pytest.approx(float(matrix.diagonal(1).mean()), abs=1e-12)
    assert similarity(features, "all") == pytest.approx(float(every), abs=1e-12)
    assert similarity(features, feature="patch") == pytest.approx(float(by_patch), abs=1e-12)


@pytest.mark.parametrize(
    "features", [np.zeros((20, 1, 4)), np.full((20, 1, 4), np.nan), np.ones((1, 1, 4)), np.ones((20, 4))]
)
def test_features_without_direction_are_refused(features):
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=r"no direction|at least 2 frames"):
        similarity(features)


def test_equal_frames_are_encoded_once():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)[[0, 1, 0, 0, 1]]
    seen = []

    def encode(frames: Frames) -> torch.Tensor:
        seen.append(len(frames))
        return quarters(frames)

    features = distinct_features(Frames(pixels=pixels, seconds=np.arange(5.0)), encode)
    assert seen == [2]
    assert features.shape == (5, 4, 3)
    assert np.array_equal(features, quarters(Frames(pixels=pixels, seconds=np.arange(5.0))).flatten(1, 2).numpy())


def test_the_quantile_rule():
    names = ["d", "c", "b", "a", "e"]
    scores = [0.5, 1.0, 0.9, 1.0, 0.1]
    assert Cut(keep=0.6).kept(scores, names) == [True, False, True, False, True]
    assert Cut(keep=0.8).kept(scores, names) == [True, True, True, False, True]  # of the equal ones "a" goes first
    assert Cut(keep=0.5).kept(scores, names) == [True, False, True, False, True]  # 2.5 of 5: rounded up
    assert Cut(keep=1.0).kept(scores, names) == [True] * 5
    assert Cut(keep=0.05).kept(scores, names) == [False] * 5
    assert Cut(keep=0.5).kept([], []) == []
    assert Cut(keep=0.6).line(scores, [True, False, True, False, True]) == 1.0
    assert Cut(keep=1.0).line(scores, [True] * 5) is None


def test_the_threshold_rule():
    scores = [0.5, 1.0, 0.9]
    assert Cut(threshold=0.9).kept(scores, ["a", "b", "c"]) == [True, False, False]
    assert Cut(threshold=1.0).kept(scores, ["a", "b", "c"]) == [True, False, True]  # stills only
    assert Cut(threshold=0.9).line(scores, [True, False, False]) == 0.9


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "exactly one of keep and threshold"),
        ({"keep": 0.5, "threshold": 0.9}, "exactly one of keep and threshold"),
        ({"keep": 0.0}, "keep is 0; it must be a share"),
        ({"keep": 1.5}, "keep is 1.5; it must be a share"),
        ({"keep": float("nan")}, "keep is nan; it must be a share"),
        ({"threshold": 1.01}, "threshold is 1.01; it must be a cosine"),
    ],
)
def test_bad_cuts(settings, told):
    with pytest.raises(LongtakeError, match=told):
        Cut(**settings)


# -- samples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "text", "subset"),
    [
        ("caption", "Which is it?\nA. one\nB. two", "caption"),
        ("multiple-choice", "Describe it.", "multiple-choice"),
        ("Open-Ended", "Describe it.", "open"),
        ("grounding", "When does it fall?", "open"),
        (None, "Which is it?\nA. one\nB. two", "multiple-choice"),
        (None, "Which is it? (A) one (B) two (C) three", "multiple-choice"),
        (None, "Is vitamin A. good for you?", "open"),
        (None, "Please describe what the man does.", "caption"),
        (None, "Write a short summary of this clip.", "caption"),
        (None, "What is happening here?", "caption"),
        (None, "", "caption"),
        (None, "What colour is the hat?", "open"),
        (None, "How many describers are there?", "open"),
    ],
)
def test_kinds_of_questions(task, text, subset):
    turns = (Turn(role="user", parts=(text,)), Turn(role="assistant", parts=("x",)))
    assert subset_of(Conversation(name="a", turns=turns, task=task)) == subset


def sample(name: str, video: str | list[str] | None, question: str = "What is it?", **more: object) -> dict:
    videos = [] if video is None else [video] if isinstance(video, str) else video
    said = [{"from": "human", "value": "<video>\n" * len(videos) + question}, {"from": "gpt", "value": "it"}]
    return {"id": name, **({} if video is None else {"video": video}), **more, "conversations": said}


def test_samples_keep_their_bytes(tmp_path):
    said = b'[ {"from":"human","value":"<video>x, {"},{"from":"gpt","value":"\\u00e4"}]'
    one = b'{"id":"\xc3\xa4 [}","conversations" : ' + said + b',"video":"a.mp4"}'
    two = b'{"id": 2, "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "1e3"}]}'
    lines, listed = tmp_path / "a.jsonl", tmp_path / "a.json"
    lines.write_bytes(b"\xef\xbb\xbf" + one + b"\r\n\n" + two)
    listed.write_bytes(b"\n[ " + one + b" ,\n\t" + two + b"\n]")
    assert cut_samples(lines.read_bytes()) == [one + b"\r", two]
    assert cut_samples(listed.read_bytes()) == [one, two]
    assert cut_samples(b"[]") == cut_samples(b"") == []
    for file in (lines, listed):
        first, second = read_samples(file, tmp_path)
        assert (first.name, second.name) == ("ä [}", "2")
        assert [part.name for part in first.parts] == ["a.mp4"]
        assert second.parts == ()


# -- the loop -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """Two still videos, four that change (one of them cut short), one damaged, and an image."""
    folder = tmp_path_factory.mktemp("media")
    write_video(folder / "still1.mp4", [90] * 12)
    write_video(folder / "still2.mp4", [200] * 3)  # three frames for twenty
    for number in range(3):
        make_videos.make(folder / f"busy{number}.mp4", count=10 + 60 * number, size=(32, 48))
    whole = make_videos.make(tmp_path_factory.mktemp("whole") / "whole.mkv", count=200)
    make_videos.cut(whole, folder / "busy3.mkv", keep=0.5)
    make_videos.damaged(whole, folder / "torn.mkv", start=0.5, stop=0.6)
    Image.new("RGB", (32, 32)).save(folder / "a.png")
    return folder


SAMPLES = [
    sample("text", None),
    sample("still-1", "still1.mp4"),
    sample("busy-0", "busy0.mp4"),
    sample("torn", "torn.mkv"),
    sample("busy-1", "busy1.mp4"),
    sample("gone", "gone.mp4"),
    sample("still-2", "still2.mp4"),
    sample("busy-2", "busy2.mp4", "Describe it."),
    sample("still-3", "still1.mp4", "Describe it."),
    sample("busy-3", "busy3.mkv", task="mc"),
    sample("pair", ["still1.mp4", "still2.mp4"], task="mc"),
]


@pytest.fixture
def data(tmp_path) -> Path:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row, indent=None) + "\n" for row in SAMPLES))
    return file


def read_rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


Run = Callable[..., Pruning]


@pytest.fixture
def run(data, media, tmp_path) -> Run:
    def run_prune(output: str = "out.jsonl", **options) -> Pruning:
        settings = {"cuts": HALF, "make": make_scorer} | options
        cuts, make = settings.pop("cuts"), settings.pop("make")
        return prune(data, media, tmp_path / output, cuts, make, **settings)

    return run_prune


def test_a_made_data_set_loses_its_stills(run, data, tmp_path):
    done = run()
    rows = {row["name"]: row for row in read_rows(tmp_path / "out.scores.jsonl")}
    assert [rows[n]["score"] for n in ("still-1", "still-2", "still-3", "pair")] == [1.0] * 4
    assert all(rows[f"busy-{n}"]["score"] < 1.0 for n in range(4))
    kept = ["text", "busy-0", "busy-1", "busy-2", "busy-3"]
    assert [name for name, row in rows.items() if row["kept"]] == kept
    lines = data.read_bytes().splitlines(keepends=True)
    assert (tmp_path / "out.jsonl").read_bytes() == b"".join(lines[i] for i in (0, 2, 4, 7, 9))
    assert {name: row["subset"] for name, row in rows.items()} == {
        **dict.fromkeys(("still-1", "busy-0", "torn", "busy-1", "gone", "still-2"), "open"),
        **dict.fromkeys(("busy-2", "still-3"), "caption"),
        **dict.fromkeys(("busy-3", "pair"), "multiple-choice"),
        "text": None,
    }
    assert list(done.problems) == ["torn.mkv", "gone.mp4"]
    assert "frames are damaged or build on damaged ones" in rows["torn"]["problem"] == done.problems["torn.mkv"]
    assert "gone.mp4" in rows["gone"]["problem"] == done.problems["gone.mp4"]
    assert list(done.warnings) == ["busy3.mkv"]
    assert done.warnings["busy3.mkv"].startswith("the header says 6.67 s but frames end at")
    assert rows["torn"]["score"] is rows["gone"]["score"] is None
    assert done.lines == {"open": 1.0, "caption": 1.0, "multiple-choice": 1.0}
    assert (done.videos, done.scored_before) == (8, 0)
    assert sorted(os.listdir(tmp_path)) == ["data.jsonl", "out.jsonl", "out.scores.jsonl", "out.videos.jsonl"]


def test_a_list_stays_a_list(run, data, tmp_path):
    data.write_text(json.dumps(SAMPLES, indent=1))
    run("out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == [SAMPLES[i] for i in (0, 2, 4, 7, 9)]


def test_spans_of_one_video_are_scored_apart(run, data, tmp_path, media):
    write_video(media / "halves.mp4", [50] * 10 + list(range(0, 250, 25)))
    parts = [sample("first", "halves.mp4", start=0.0, end=10.0), sample("last", "halves.mp4", start=10.0, end=20.0)]
    data.write_text("".join(json.dumps(row) + "\n" for row in parts))
    run()
    first, last = read_rows(tmp_path / "out.scores.jsonl")
    assert first["score"] == 1.0
    assert (first["kept"], last["kept"]) == (False, True)


def outputs(folder: Path, stem: str) -> tuple[bytes, bytes]:
    return (folder / f"{stem}.jsonl").read_bytes(), (folder / f"{stem}.scores.jsonl").read_bytes()


def test_a_killed_run_goes_on(run, tmp_path):
    run("whole.jsonl")

    class Killed(BaseException):
        pass

    def stop(done: int, planned: int) -> None:
        assert planned == 8
        if done == 4:
            raise Killed

    with pytest.raises(Killed):
        run(progress=stop)
    file = tmp_path / "out.videos.jsonl"
    assert len(file.read_text().splitlines()) == 1 + 4
    assert not (tmp_path / "out.jsonl").exists()
    with file.open("a") as sink:
        sink.write('{"video": "busy1.mp4", "start_sec')  # half a line
    calls: list[int] = []
    done = run(progress=lambda done, _: calls.append(done))
    assert (done.scored_before, calls) == (4, [5, 6, 7, 8])
    assert outputs(tmp_path, "out") == outputs(tmp_path, "whole")
    assert [row["video"] for row in read_rows(file)[1:]] == [
        row["video"] for row in read_rows(tmp_path / "whole.videos.jsonl")[1:]
    ]
    again = run(cuts=dict.fromkeys(SUBSETS, Cut(threshold=1.0)))  # another cut needs no new scores
    assert again.scored_before == 7  # a missing file is looked for again


def test_a_replaced_video_is_scored_again(run, tmp_path, media):
    target = media / "still2.mp4"
    held = target.read_bytes()
    run()
    write_video(target, range(0, 240, 20))
    try:
        done = run()
    finally:
        target.write_bytes(held)
    assert done.scored_before == 6
    scores = {row["name"]: row["score"] for row in read_rows(tmp_path / "out.scores.jsonl")}
    assert scores["still-2"] < 1.0
    assert scores["pair"] == (1.0 + scores["still-2"]) / 2


def test_scores_of_other_settings_are_refused(run, tmp_path):
    run()
    held = outputs(tmp_path, "out")
    with pytest.raises(LongtakeError, match=r"out\.videos\.jsonl holds scores with pairs adjacent, but now it is all"):
        run(make=partial(make_scorer, SETTINGS | {"pairs": "all"}))
    assert outputs(tmp_path, "out") == held
    (tmp_path / "out.videos.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(LongtakeError, match=r"out\.videos\.jsonl is there and holds no scores; give another output"):
        run()


def test_a_header_that_was_cut_is_written_again(tmp_path):
    file = tmp_path / "a.videos.jsonl"
    with ScoreFile(file, SETTINGS):
        pass
    whole = file.read_bytes()
    for length in (0, 1, len(whole) - 1, len(whole)):
        file.write_bytes(whole[:length])
        with ScoreFile(file, SETTINGS):
            pass
        assert file.read_bytes() == whole


@pytest.mark.slow
def test_one_worker_and_two_give_the_same_files(run, tmp_path):
    run("one.jsonl")
    run("two.jsonl", workers=2)
    assert outputs(tmp_path, "one") == outputs(tmp_path, "two")


@pytest.mark.slow
def test_a_killed_worker_is_reported_and_its_fellows_work_is_kept(run, tmp_path, monkeypatch):
    monkeypatch.setenv("KEPT_SCORES", str(tmp_path / "out.videos.jsonl"))
    told = r"busy1\.mp4: the process that worked on it was killed \(signal 9\); .* run again to go on"
    with pytest.raises(LongtakeError, match=told):
        run(make=make_dying_scorer, workers=2)
    assert "busy0.mp4" in {row["video"] for row in read_rows(tmp_path / "out.videos.jsonl")[1:]}
    assert not (tmp_path / "out.jsonl").exists()
    assert run(make=make_scorer).scored_before >= 2


def test_mistakes(run, data, media, tmp_path):
    with pytest.raises(LongtakeError, match=r"data.jsonl is one of the files that are read, which stay as they are"):
        run("data.jsonl")
    with pytest.raises(LongtakeError, match="does not exist; make it first"):
        run("none/out.jsonl")
    told = r"none of the 8 videos could be scored, the first: .*; is media \(--media\) their folder\?"
    with pytest.raises(LongtakeError, match=told):
        prune(data, tmp_path, tmp_path / "lost.jsonl", HALF, make_scorer)
    data.write_text('{"id": 1}\n')
    with pytest.raises(LongtakeError, match=r"data\.jsonl:1"):
        run()


def test_no_output_takes_the_place_of_what_is_read(media, tmp_path):
    for name in ("still1.mp4", "dd.examples.png"):
        (tmp_path / name).write_bytes((media / name.replace("dd.examples", "a")).read_bytes())
    rows = [sample("one", "still1.mp4", "What?"), {**sample("two", "dd.examples.png", "What?")}]
    rows[1] = json.loads(json.dumps(rows[1]).replace("video", "image"))
    held = "".join(json.dumps(row) + "\n" for row in rows)
    for data in ("dd.jsonl", "ee.scores.jsonl"):
        (tmp_path / data).write_text(held)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for data, output, told in (
        ("dd.jsonl", "still1.mp4", "still1.mp4 ends in '.mp4'; give a name that ends in .jsonl or .json"),
        ("ee.scores.jsonl", "ee.jsonl", "ee.scores.jsonl is one of the files that are read"),
        ("ee.scores.jsonl", "dd.json", "dd.examples.png is one of the files that are read"),
        ("dd.jsonl", "", "is not a plain file"),
    ):
        with pytest.raises(LongtakeError, match=told):
            prune(tmp_path / data, tmp_path, tmp_path / output, HALF, make_scorer)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("save", [tiny.save_video_llm, tiny.save_qwen_vl])
@pytest.mark.parametrize(("pairs", "feature"), [("adjacent", "pooled"), ("all", "patch")])
def test_a_still_scores_exactly_one_with_real_towers(save, pairs, feature, media, tmp_path):
    scorer = make_real_scorer(str(save(tmp_path / "model")), "cpu", pairs, feature)
    assert scorer.settings | {"model": ""} == SETTINGS | {"model": "", "pairs": pairs, "feature": feature}
    threads = torch.get_num_threads()
    still, busy = (scorer.score(VideoPart(name=name, path=media / name)) for name in ("still2.mp4", "busy2.mp4"))
    assert still.score == 1.0
    assert 0.0 < busy.score < 1.0
    assert torch.get_num_threads() == threads


def test_data_without_videos_stay_and_have_no_pictures(run, data, tmp_path):
    data.write_text(json.dumps(sample("text", None)) + "\n")
    done = run()
    prune_pictures.draw(done, tmp_path / "out.jsonl")
    assert done.lines == dict.fromkeys(SUBSETS)
    assert (tmp_path / "out.jsonl").read_bytes() == data.read_bytes()
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.slow
def test_pictures_show_both_sides(run, tmp_path):
    prune_pictures.draw(run(), tmp_path / "out.jsonl")
    for name in ("histogram", "examples"):
        with Image.open(tmp_path / f"out.{name}.png") as picture:
            pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        for colour in (prune_pictures.KEPT, prune_pictures.DROPPED):
            rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
            assert (pixels == rgb).all(axis=1).sum() > 50, f"{name} shows nothing in {colour}"


def test_a_strip_shows_frames_whole(media):
    shown = prune_pictures.strip(VideoPart(name="still1.mp4", path=media / "still1.mp4"))
    assert shown.shape == (90, 4 * 164 - 4, 3)
    for frame in range(4):
        cell = shown[:, 164 * frame : 164 * frame + 160]
        assert (cell[:, 35:125].max(), cell[:, :30].min()) == (cell[45, 80, 0], 235)
        assert abs(int(cell[45, 80, 0]) - 90) <= 3


# -- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run ``longtake prune`` with the tower that sees quarters; exit code and both streams."""
    monkeypatch.setattr("longtake.cli.prune.make_scorer", lambda model, device, pairs, feature: make_scorer())

    def run_command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["longtake", "prune", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        streams = capsys.readouterr()
        return left.value.code or 0, streams.out, streams.err

    return run_command


def test_the_command_says_what_it_did(command, data, media, tmp_path):
    output = tmp_path / "out.jsonl"
    asked = [data, "--media", media, "-o", output, "--no-pictures", "--threshold", "1", "--keep", "caption=1"]
    code, out, err = command(*asked)
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[:4] for line in lines[1:4]] == [
        ["caption", "2", "2", "0"],
        ["multiple-choice", "2", "1", "1"],
        ["open", "4", "2", "2"],
    ]
    assert lines[4].split() == ["without", "video", "1", "1", "0"]
    assert lines[5].split() == ["left", "out", "2", "0", "2"]
    assert lines[6].startswith("6 of 11 samples kept; 8 videos (0 scored before) in ")
    assert [line.split(": ")[:2] for line in err.splitlines()] == [
        ["left out", "torn.mkv"],
        ["left out", "gone.mp4"],
        ["odd", "busy3.mkv"],
    ]
    code, out, _ = command(*asked, "--json")
    found = json.loads(out)
    assert (found["samples"], found["kept"], found["left_out"], found["without_video"]) == (11, 6, 2, 1)
    assert found["subsets"]["open"]["dropped_from"] == 1.0
    assert found["subsets"]["open"]["scores"][2] == 1.0
    assert (found["videos"], found["scored_before"]) == (8, 7)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "nothing says where to cut caption, multiple-choice, open; give --keep 0.5"),
        (["--keep", "caption=0.5"], "nothing says where to cut multiple-choice, open"),
        (["--keep", "half"], "--keep half: 'half' is no number; give one"),
        (["--keep", "2"], "keep is 2; it must be a share above 0 and up to 1"),
        (["--threshold", "captions=0.9"], "'captions' is no subset; name one of caption, multiple-choice, open"),
        (["--keep", "0.5", "--threshold", "0.9"], "what has no cut of its own is cut twice"),
        (["--keep", "0.5", "--keep", "open=0.5", "--threshold", "open=0.9"], "open is cut twice"),
    ],
)
def test_bad_options_are_one_line(command, data, media, tmp_path, options, told):
    code, out, err = command(data, "--media", media, "-o", tmp_path / "out.jsonl", *options)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert told in err
    assert os.listdir(tmp_path) == ["data.jsonl"]


def test_bad_files_are_one_line(command, data, media, tmp_path):
    for given, told in ((tmp_path / "none.jsonl", "none.jsonl"), (media / "a.png", "a.png")):
        code, out, err = command(given, "--media", media, "--keep", "0.5", "-o", tmp_path / "out.jsonl")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert told in err
    code, out, err = command(data, "--media", tmp_path, "--keep", "0.5", "-o", tmp_path / "out.jsonl")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "none of the 8 videos could be scored" in err


def test_pictures_that_cannot_be_drawn_are_told_before_any_video_is_read(command, data, media, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    asked = [data, "--media", media, "--keep", "0.5", "-o", tmp_path / "out.jsonl"]
    code, out, err = command(*asked)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "needs matplotlib" in err
    assert "or draw none (--no-pictures)" in err
    assert os.listdir(tmp_path) == ["data.jsonl"]
    assert command(*asked, "--no-pictures")[0] == 0


@pytest.mark.slow
def test_the_shared_videos_with_the_model_in_the_package(capsys, monkeypatch, tmp_path):
    if not (SHARED / "manifest.csv").is_file():
        pytest.skip(f"the shared videos are not at {SHARED}")
    rows = list(csv.DictReader((SHARED / "manifest.csv").read_text().splitlines()))
    asked = [sample(row["name"], row["name"], "Describe the video.") for row in rows]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    files = [str(tmp_path / "data.jsonl"), "--media", str(SHARED), "-o", str(tmp_path / "out.jsonl")]
    monkeypatch.setattr(sys, "argv", ["longtake", "prune", *files, "--keep", "0.5", "--json"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    found = json.loads(capsys.readouterr().out)
    assert sorted(found["problems"]) == ["corrupt_test_card.mp4", "headerless_fragment.mp4"]
    scores = {row["name"]: row["score"] for row in read_rows(tmp_path / "out.scores.jsonl") if row["score"] is not None}
    assert len(scores) == len(rows) - 2
    assert (found["kept"], found["subsets"]["caption"]["dropped"]) == (-(-len(scores) // 2), len(scores) // 2)
    still = ("keyboard_rot90.mov", "laptop_rot270.mov", "fitness_plank.mp4", "speech_manifesto.mp4")
    busy = ("nextqa_6037747123_golf_cart.mp4", "bbb_long_270p.mp4", "wildlife_montage.mp4", "nature_cuts.mp4")
    assert min(scores[name] for name in still) > 0.999 > max(scores[name] for name in busy)
    dropped = {row["name"] for row in read_rows(tmp_path / "out.scores.jsonl") if not row["kept"]}
    assert {*still, *found["problems"]} <= dropped
    assert not dropped & {*busy}
