"""What is left out: counted once, by all processes together, known after a stop, written down before a run ends."""

import dataclasses
import json
import shutil

import pytest

from longtake.data.left_out import Broken, LeftOut
from longtake.recipes import settings, stages
from longtake.recipes.debug import debug
from longtake.recipes.recipe import DataFiles
from longtake.types import LongtakeError
from processes import run_together
from stage_runs import READING, logged, run_stage, write_set
from test_stages import Killed, kill_at_save


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("healthy")
    write_set(folder)
    return folder


@pytest.fixture(scope="module")
def broken(healthy, tmp_path_factory):
    """One video of ten rows is none."""
    folder = tmp_path_factory.mktemp("broken")
    shutil.copytree(healthy, folder, dirs_exist_ok=True)
    (folder / "4.mp4").write_bytes(b"no video")
    return folder


def missing(name: str) -> LeftOut:
    return LeftOut(name=name, reason=f"{name}.mp4: no such file")


def test_the_share_counts_each_once_over_all_processes():
    book = Broken(count=200, share=0.01)
    for name in ("a", "b", "a", "b"):
        book.add(missing(name))
        book.check()
    book.merge([missing("a")])
    book.add(LeftOut(name="c", reason="long", too_long=True))
    book.check()
    assert [left_out.name for left_out in book.take()] == ["a", "b", "c"]
    book.add(missing("a"))
    assert book.take() == []
    book.merge([missing("d")])
    assert book.take() == []
    assert list(book.all) == ["a", "b", "d", "c"]
    with pytest.raises(LongtakeError, match=r"3 of 200 .* more than 1.0% \(first: a.mp4: no such file; b.mp4"):
        book.check()


def test_what_was_counted_is_put_back():
    book, again = Broken(count=9, share=1.0), Broken(count=9, share=1.0)
    book.add(missing("a"))
    book.add(LeftOut(name="c", reason="long", too_long=True))
    again.load(book.state())
    again.add(missing("a"))
    assert (again.names, again.too_long, again.take()) == (book.names, book.too_long, [])


def named(file) -> list[str]:
    return list(json.loads(file.read_text()))


def test_names_are_known_after_a_stop(broken, tmp_path):
    options = {"steps": 3, "reading": dataclasses.replace(READING, max_broken=0.1)}
    with pytest.MonkeyPatch.context() as patch:
        kill_at_save(patch, 3, before=False)
        with pytest.raises(Killed):
            run_stage("align", broken, tmp_path, **options)
    assert named(tmp_path / "left_out.json") == ["set/row4"]
    (tmp_path / "left_out.json").unlink()
    run_stage("align", broken, tmp_path, **options)
    assert named(tmp_path / "left_out.json") == ["set/row4"]


def test_names_are_written_before_the_share_stops_a_run(broken, tmp_path):
    with pytest.raises(LongtakeError, match=r"1 of 10 conversations .*4\.mp4.* or raise max_broken"):
        run_stage("align", broken, tmp_path, steps=3)
    assert named(tmp_path / "left_out.json") == ["set/row4"]


def small(*more: str):
    recipe = debug()
    for assignment in ("recot.fit.steps=6", "recot.held_clips=8", "align.fit.steps=2", *more):
        recipe = settings.changed(recipe, assignment)
    return recipe


def test_held_conversations_that_are_broken_are_named_too(healthy, broken, tmp_path):
    data = DataFiles(files=((healthy / "set.jsonl", 1.0),), media=healthy, held=tmp_path / "held.jsonl")
    bad = json.loads((broken / "set.jsonl").read_text().splitlines()[4]) | {"video": str(broken / "4.mp4")}
    data.held.write_text(json.dumps(bad))
    with pytest.raises(LongtakeError, match="1 of 1 conversations have broken"):
        stages.run(small(), ["align"], data, tmp_path / "out")
    assert named(tmp_path / "out" / "align" / "left_out_held.json") == ["held/row4"]
    stages.run(small("align.reading.max_broken=1"), ["align"], data, tmp_path / "out")  # the same run goes on
    assert not (tmp_path / "out" / "align" / "left_out.json").exists()


def test_pre_training_names_broken_files_and_stops_above_a_share(broken, tmp_path):
    data = DataFiles(files=((broken / "set.jsonl", 1.0),), media=broken)
    told = r"1 of 8 files are broken or missing, more than 1.0% \(first: .*4\.mp4.*\); .* or raise max_broken"
    with pytest.raises(LongtakeError, match=told):
        stages.run(small(), ["recot"], data, tmp_path)
    file = tmp_path / "recot" / "left_out.json"
    assert named(file) == [str(broken / "4.mp4")]
    file.unlink()
    stages.run(small("recot.max_broken=0.2"), ["recot"], data, tmp_path)
    assert named(file) == [str(broken / "4.mp4")]
    assert len(logged(tmp_path / "recot")) == 6


def test_thinking_names_broken_videos_and_stops_above_a_share(broken, healthy, tmp_path, capsys):
    data = DataFiles(files=((broken / "set.jsonl", 1.0),), media=broken, held=healthy / "set.jsonl")
    few = ("latent.fit.steps=2", "latent.fit.batch=4")
    with pytest.raises(LongtakeError, match=r"1 of 10 conversations have broken .*4\.mp4.* or raise max_broken"):
        stages.run(small(*few), ["latent"], data, tmp_path)
    file = tmp_path / "latent" / "left_out.json"
    assert named(file) == ["row4"]
    file.unlink()
    stages.run(small(*few, "latent.reading.max_broken=0.1"), ["latent"], data, tmp_path)
    assert named(file) == ["row4"]
    assert f"1 were left out; {file} names them" in capsys.readouterr().err
    assert len(logged(tmp_path / "latent")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["align", "sft"])
def test_processes_count_one_conversation_once(broken, tmp_path, stage):
    """In eight epochs both meet it."""
    run_together(2, stage=stage, data=broken, output=tmp_path, steps=24, max_broken=0.1)
    assert named(tmp_path / "left_out.json") == ["set/row4"]
    assert len(logged(tmp_path)) == 24
