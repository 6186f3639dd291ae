"""The command line: what it prints where, and one line with a non-zero exit for every bad input."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

import longtake.model
from fakes import FakeBackbone, write_video
from longtake import cli
from longtake.backbones.tower import Tower
from longtake.cli import ask
from longtake.memory import load_memory
from longtake.model import Model
from longtake.types import LongtakeError

QUESTION = "When is it bright?"
LEVELS = [200 if 60 <= i < 68 else 20 for i in range(120)]


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and both streams."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "grey.mp4", LEVELS)


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., Done]:
    """Run a command with the fake model; a given model's path is its name."""

    def load(path: str | None = None, **_: object) -> Model:
        return Model(backbone=FakeBackbone(name=path or "fake-1"))

    monkeypatch.setattr(longtake.model, "load", load)

    def run_command(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["longtake", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        streams = capsys.readouterr()
        return Done(code=left.value.code or 0, out=streams.out, err=streams.err)

    return run_command


def assert_one_line(done: Done, *parts: str) -> None:
    assert done.code == 1
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    for part in parts:
        assert part in done.err


def test_ask_a_video_as_json(run, video):
    done = run("ask", video, QUESTION, "--json")
    assert (done.code, done.err) == (0, "")
    assert done.out.count("\n") == 1
    fields = json.loads(done.out)
    assert set(fields) == {"answer", "evidence", "usage"}
    assert set(fields["usage"]) == {"frames", "visual_tokens", "prompt_tokens", "seconds"}
    assert set(fields["usage"]["seconds"]) == {"read", "encode", "compress", "select", "prefill", "generate"}
    (span,) = fields["evidence"]
    assert set(span) == {"start_seconds", "stop_seconds", "score"}
    assert (span["start_seconds"], span["stop_seconds"]) == (60.0, 68.0)
    assert fields["usage"]["frames"] == 120


def test_ask_a_video_in_words(run, video):
    done = run("ask", video, QUESTION)
    assert done.code == 0
    answer, seen, used = done.out.splitlines()
    assert answer.startswith("column ")
    assert seen.startswith("seen at  1:00.0-1:08.0 (0.")
    assert "120 frames, 120 visual tokens" in used


def test_ask_several_questions(run, video, tmp_path):
    others = ["--also", "When is it dark?", "--also", "Is it ever green at all?"]
    done = run("ask", video, QUESTION, *others, "--json")
    assert (done.code, done.err) == (0, "")
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [fields.pop("question") for fields in found] == [QUESTION, *others[1::2]]
    alone = json.loads(run("ask", video, others[3], "--json").out)
    assert (found[2]["answer"], found[2]["evidence"]) == (alone["answer"], alone["evidence"])
    assert found[2]["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]
    blocks = run("ask", video, QUESTION, *others).out.split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == [QUESTION, *others[1::2]]
    assert all(block.splitlines()[1].startswith("column ") for block in blocks)
    assert_one_line(run("ask", tmp_path / "none.mp4", QUESTION, "--also", " "), "the question is empty; ask something")
    shown = run("ask", video, QUESTION, *others, "--show-latents", tmp_path / "a.png")
    assert_one_line(shown, "for one question; ask the others without it")


def test_watch_then_ask_the_memory(run, video, tmp_path):
    memory = tmp_path / "grey.memory"
    done = run("watch", video, "-o", memory, "--fps", "0.5", "--start", "40")
    assert (done.code, done.out) == (0, f"{memory}: 40 frames, 40 tokens\n")
    assert os.listdir(tmp_path) == ["grey.memory"]
    assert load_memory(memory).start_seconds == 40.0
    fields = json.loads(run("ask", memory, QUESTION, "--json").out)
    assert (fields["evidence"][0]["start_seconds"], fields["evidence"][0]["stop_seconds"]) == (56.0, 72.0)


def test_selection_options(run, video):
    for choice in ("uniform", "random"):
        fields = json.loads(run("ask", video, QUESTION, "--select", choice, "--budget", "8", "--json").out)
        assert fields["usage"]["visual_tokens"] == 8
    assert_one_line(run("ask", video, QUESTION, "--budget", "8"), "no trained scorer", "--select uniform")


def test_info(run, video):
    fields = json.loads(run("info", video, "--json").out)
    assert (fields["width"], fields["height"], fields["fps"], fields["num_frames"]) == (64, 64, 1.0, 120)
    assert fields["duration_seconds"] == pytest.approx(120)
    lines = run("info", video).out.splitlines()
    assert "codec              mpeg4" in lines


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--fps", "0"], ["fps is 0.0", "must be a positive", "1.0"]),
        (["--fps", "-2"], ["fps is -2.0", "must be a positive"]),
        (["--fps", "nan"], ["fps is nan", "must be a positive"]),
        (["--max-frames", "0"], ["max_frames is 0", "at least 1"]),
        (["--start", "nan"], ["start is nan s", "must be a number"]),
        (["--stop", "nan"], ["stop is nan s", "must come after"]),
        (["--start", "-1"], ["start is -1.0 s", "must not be negative"]),
        (["--start", "20", "--stop", "10"], ["stop is 10.0 s and start 20.0 s", "must come after"]),
        (["--start", "5000"], ["5000", "120"]),
    ],
    ids=lambda value: "_".join(value) if value[0].startswith("--") else "",
)
@pytest.mark.parametrize("command", ["ask", "watch"])
def test_bad_samplings(run, video, tmp_path, command, options, parts):
    rest = [QUESTION] if command == "ask" else ["-o", tmp_path / "m"]
    assert_one_line(run(command, video, *rest, *options), *parts)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("question", ["", "   "])
def test_empty_question_is_refused_before_watching(run, tmp_path, question):
    assert_one_line(run("ask", tmp_path / "missing.mp4", question), "the question is empty; ask something")


def test_question_longer_than_the_context(run, video):
    done = run("ask", video, "why " * 5000)
    assert_one_line(done, "the question is 5003 tokens", "context of 4096", "shorten it")


def test_a_question_that_is_no_text(run, tmp_path):
    assert_one_line(run("ask", tmp_path / "missing.mp4", "what is \udcff?"), "which is not UTF-8 text")


@pytest.mark.usefixtures("permissions")
def test_what_may_not_be_read_or_written(run, video, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir()
    for name in ("a.mp4", "puzzles.jsonl", "samples.jsonl", "config.json"):
        (closed / name).write_bytes(video.read_bytes())
    (closed / "a.mp4").chmod(0)
    assert_one_line(run("ask", closed / "a.mp4", QUESTION), "a.mp4: Permission denied; check the path, its permissions")
    assert_one_line(run("info", closed / "a.mp4"), "a.mp4: Permission denied; check the path and its permissions")
    closed.chmod(0)
    for asked in (
        ["watch", video, "-o", closed / "m"],
        ["ask", closed / "a.mp4", QUESTION],
        ["info", closed / "a.mp4"],
        ["inspect", closed],
        ["samples", closed],
        ["synth", "scenes", closed, "--count", 1, "--seconds", 4, "--fps", 1],
        ["eval", "probe", "--frames", 16, "--haystack", video.parent, "--cache", closed / "cache"],
        ["eval", "probe", "--frames", 16, "--haystack", closed],
    ):
        assert_one_line(run(*asked), str(closed), "Permission denied")
    closed.chmod(0o700)
    with pytest.raises(PermissionError):
        (closed / "a.mp4").read_bytes()


@pytest.mark.parametrize("command", ["ask", "info"])
def test_a_name_that_no_file_can_have(run, tmp_path, command):
    rest = [QUESTION] if command == "ask" else []
    assert_one_line(run(command, tmp_path / ("v" * 300), *rest), "File name too long")


def test_files_in_the_place_of_folders(run, video, tmp_path):
    (tmp_path / "text").touch()
    for asked in (
        ["train", "debug", "-o", tmp_path / "text"],
        ["eval", "probe", "--frames", 16, "--haystack", video.parent, "--cache", tmp_path / "text"],
    ):
        assert_one_line(run(*asked), str(tmp_path / "text"))


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["eval", "probe", "--frames", 16, "--seed", -1], "--seed"),
        (["eval", "hops", "--seed", -1], "--seed"),
        (["samples", ".", "--last", -2], "--last"),
        (["synth", "mvp", ".", "-o", "out", "--size", 100000], "--size"),
    ],
)
def test_values_out_of_range_are_mistakes_in_form(run, asked, told):
    done = run(*asked)
    assert (done.code, done.out) == (2, "")
    assert told in done.err


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["synth", "mvp", ".", "-o", "out", "--per-minute", "inf"], "per_minute is inf; it must be above 0 and up"),
        (["synth", "mvp", ".", "-o", "out", "--per-minute", "1e12"], "per_minute is 1e+12; it must be above 0"),
        (["synth", "scenes", "out", "--seconds", "nan"], "seconds nan"),
        (["synth", "scenes", "out", "--fps", "inf"], "fps inf"),
    ],
)
def test_values_that_are_no_numbers(run, tmp_path, monkeypatch, asked, told):
    monkeypatch.chdir(tmp_path)
    assert_one_line(run(*asked), told)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["missing", "directory", "empty", "text", "image"])
@pytest.mark.parametrize("command", ["ask", "watch", "info"])
def test_what_is_no_video(run, tmp_path, command, kind):
    folder = tmp_path / "out"
    folder.mkdir()
    path = tmp_path / {"image": "a.png", "text": "a.txt"}.get(kind, "a.mp4")
    if kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("not a video\n" * 100)
    elif kind == "image":
        Image.new("RGB", (32, 32)).save(path)
    rest = {"ask": [QUESTION], "watch": ["-o", folder / "m"], "info": []}[command]
    assert_one_line(run(command, path, *rest), str(path))
    assert os.listdir(folder) == []


def test_bad_targets(run, video, tmp_path):
    assert_one_line(run("watch", video, "-o", tmp_path / "none" / "m"), "does not exist; make it first")
    assert_one_line(run("watch", video, "-o", tmp_path), "is not a plain file; give another name")
    assert_one_line(run("watch", video, "-o", ""), "is not a plain file; give another name")
    assert_one_line(run("watch", video, "-o", video), "is there and is no memory; give another name")
    assert os.listdir(tmp_path) == []


def test_bad_memories(run, video, tmp_path):
    memory = tmp_path / "m"
    run("watch", video, "-o", memory)
    assert_one_line(run("ask", memory, QUESTION, "--model", "fake-2"), "made by fake-1, the model is fake-2")
    assert_one_line(run("ask", memory, QUESTION, "--fps", "2"), "--fps", "is a watched memory; give the video")
    memory.write_bytes(memory.read_bytes()[:-5])
    assert_one_line(run("ask", memory, QUESTION), "is not a whole memory file", "watch the video again")


def test_a_replaced_video_is_warned_of_in_one_line(run, video, tmp_path):
    copy = tmp_path / "a.mp4"
    copy.write_bytes(video.read_bytes())
    run("watch", copy, "-o", tmp_path / "m")
    write_video(copy, LEVELS[::-1])
    done = run("ask", tmp_path / "m", QUESTION, "--json")
    assert done.code == 0
    assert json.loads(done.out)["evidence"][0]["start_seconds"] == 60.0
    assert done.err.startswith(f"warning: {copy} has changed since it was watched; the answer is about the earlier")
    assert done.err.count("\n") == 1


def test_mistakes_in_form_exit_with_two(run, video):
    for arguments in (["ask"], ["nothing"], ["ask", video, QUESTION, "--fps", "fast"], ["watch", video]):
        done = run(*arguments)
        assert (done.code, done.out) == (2, "")


def test_an_interruption_is_no_traceback(run, video, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeBackbone, "encode", stop)
    done = run("ask", video, QUESTION)
    assert done.code == 130
    assert "Traceback" not in done.err


def test_the_real_loader_refuses_what_is_no_model(tmp_path):
    with pytest.raises(LongtakeError) as missing:
        longtake.load(tmp_path / "nothing-here")
    assert "nothing-here" in str(missing.value)
    assert "\n" not in str(missing.value)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    with pytest.raises(LongtakeError, match="bert") as foreign:
        longtake.load(tmp_path)
    assert "\n" not in str(foreign.value)


def test_the_real_loader_refuses_devices_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(LongtakeError, match="device is 'abacus'; torch knows none of that name"):
        longtake.load(tmp_path, device="abacus")
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    for device in ("cuda:0", "meta", "mps", "xpu", "hpu", "xla", "vulkan", "privateuseone", "cpu:1"):
        with pytest.raises(LongtakeError, match=f"device is '{device}', but torch finds here only 1 cpu; give one of"):
            longtake.load(tmp_path, device=device)
    with pytest.raises(LongtakeError, match="device is 'meta', but torch finds here only 1 cpu"):
        Tower.load(tmp_path, "meta")


@pytest.mark.parametrize("path", ["", "nothing", "./nothing", "some/folder/nothing", "home/nothing"])
def test_what_can_be_no_hub_id_is_refused_without_asking_the_hub(tmp_path, monkeypatch, path):
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.PreTrainedConfig.get_config_dict", asked_the_hub)
    with pytest.raises(LongtakeError, match=f"'{path}' is no folder; give a model's folder or hub id"):
        longtake.load(path)


def test_a_hub_id_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.PreTrainedConfig.get_config_dict", asked_the_hub)
    with pytest.raises(LongtakeError, match="owner/name: neither a readable model folder nor a hub id"):
        longtake.load("owner/name")


def asked_the_hub(*_: object) -> None:
    raise OSError("no connection")


def test_what_is_wrong_is_said_before_a_model_is_loaded(run, tmp_path, video, monkeypatch):
    def load(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(longtake.model, "load", load)
    assert_one_line(run("ask", tmp_path / "missing.mp4", QUESTION), "missing.mp4")
    assert_one_line(run("ask", video, QUESTION, "--fps", "0"), "fps is 0.0")
    assert_one_line(run("watch", video, "-o", tmp_path / "m", "--stop", "0"), "stop is 0.0 s")


def test_the_installed_command_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-m", "longtake.cli", "info", str(tmp_path / "missing.mp4")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_every_command_has_its_help(run):
    for name in ("ask", "watch", "info", "convert", "prune"):
        done = run(name, "--help")
        assert done.code == 0
        assert "Usage: longtake" in done.out


def test_times_are_written_as_clocks():
    assert [ask._clock(seconds) for seconds in (0, 59.96, 61.25, 3599.97, 36000)] == [
        "0:00.0",
        "1:00.0",
        "1:01.2",
        "1:00:00.0",
        "10:00:00.0",
    ]
