"""``longtake train``: the debug recipe end to end, settings by name, and refusals in one line."""

import dataclasses
import errno
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import tiny
from longtake.backbones import load_backbone
from longtake.cli import app
from longtake.cli.train import data_files, weighted_file
from longtake.models import VideoLLM
from longtake.recipes import settings, stages
from longtake.recipes.costs import estimate
from longtake.recipes.debug import debug
from longtake.recipes.recipe import DataFiles
from longtake.recipes.video_xl_pro import Published, video_xl_pro_3b
from longtake.train.run import Fit
from longtake.train.saving import load_model
from longtake.types import LongtakeError
from stage_runs import logged, write_set

SHORT = ["start.videos=4", "start.held_videos=2", "recot.fit.steps=2", "align.fit.steps=2", "sft.fit.steps=2"]
SHORT += ["latent.fit.steps=2"]
SHORT += ["recot.held_clips=4"]


def short(*more: str):
    recipe = debug()
    for assignment in (*SHORT, *more):
        recipe = settings.changed(recipe, assignment)
    return recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short debug run of all stages."""
    output = tmp_path_factory.mktemp("debug")
    stages.run(short(), stages.STAGES, None, output)
    return output


def test_each_stage_begins_where_the_one_before_ended(finished):
    start, align, sft = (load_model(finished / name)[0] for name in ("start/model", "align/model", "sft/model"))
    assert json.loads((finished / "align/settings.json").read_text())["from"] == "start and recot"
    assert json.loads((finished / "sft/settings.json").read_text())["from"] == "align"

    def same(one: VideoLLM, other: VideoLLM, part: str) -> bool:
        pairs = zip(one.get_submodule(part).parameters(), other.get_submodule(part).parameters(), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    assert not same(start, align, "dts")  # by recot
    assert not same(start, align, "projector")
    assert same(start, align, "language_model")
    assert not same(align, sft, "language_model")
    assert not same(align, sft, "dts")
    assert same(start, sft, "vision_tower")
    assert json.loads((finished / "latent/settings.json").read_text())["from"] == "sft"
    assert [len(logged(finished / stage)) for stage in stages.STAGES] == [2, 2, 2, 2]
    assert len(logged(finished / "sft", "held_loss")) == 1


def test_a_medium_is_encoded_once_for_all_stages(finished):
    media = [file for file in (finished / "data").iterdir() if file.suffix in (".mp4", ".png")]
    assert len(media) == 12
    assert len(list((finished / "features").rglob("*.safetensors"))) == 12


def test_the_trained_folder_answers(finished):
    found = CliRunner().invoke(
        app, ["ask", str(finished / "data/000.mp4"), "What?", "--model", str(finished / "sft/model"), "--json"]
    )
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout.splitlines()[-1])["usage"]["frames"] == 8


def test_a_thinking_folder_answers_and_shows_its_latents(finished, tmp_path):
    options = ["--model", str(finished / "latent/model"), "--json", "--show-latents", str(tmp_path / "looks.png")]
    found = CliRunner().invoke(app, ["ask", str(finished / "data/000.mp4"), "What?", *options])
    assert found.exit_code == 0, found.output
    assert len(json.loads(found.stdout.splitlines()[-1])["latents"]["each"]) == 4


def test_a_finished_run_is_left_as_it_is(finished):
    before = {file: file.read_bytes() for file in finished.rglob("log.jsonl")}
    stages.run(short("sft.fit.log_every=1", "sft.fit.keep=3"), ["sft"], None, finished)
    assert before == {file: file.read_bytes() for file in finished.rglob("log.jsonl")}


def test_other_settings_are_refused(finished):
    with pytest.raises(LongtakeError, match=r"sft holds a run with fit\.lr = 0\.003, not 0\.1; .* another --output"):
        stages.run(short("sft.fit.lr=0.1"), ["sft"], None, finished)
    with pytest.raises(LongtakeError, match=r"start holds a run with seed = 0, not 1"):
        stages.run(short("start.seed=1"), ["sft"], None, finished)
    data = DataFiles(files=((finished / "data/held.jsonl", 1.0),), media=finished / "data")
    with pytest.raises(LongtakeError, match=r"align holds a run with data\."):
        stages.run(short(), ["align"], data, finished)


def test_what_a_later_stage_needs_is_known_before_the_first_runs(tmp_path):
    with pytest.raises(LongtakeError, match="shard needs several processes; start with torchrun"):
        stages.run(short("sft.fit.shard=true"), stages.STAGES[:3], None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_models_that_are_there_are_told(tmp_path):
    arguments = ["train", "debug", "--output", str(tmp_path), *(part for text in SHORT for part in ("--set", text))]
    found = CliRunner().invoke(app, [*arguments, "--stage", "recot"])
    assert found.stdout.endswith(": done; what was trained is a part of a model; the stages after it begin with it\n")
    found = CliRunner().invoke(app, [*arguments, "--stage", "recot", "--stage", "align"])
    assert found.stdout.endswith(f"answers with longtake ask VIDEO QUESTION --model {tmp_path}/align/model\n")


def given(folder: Path, held: str | None) -> DataFiles:
    """Ten conversations, and to measure on those of them that have ``held`` in their line."""
    file = write_set(folder)
    lines = [line for line in file.read_text().splitlines() if held is not None and held in line]
    (folder / "held.jsonl").write_text("\n".join(lines))
    return DataFiles(files=((file, 1.0),), media=folder, held=folder / "held.jsonl")


@pytest.mark.parametrize("kind", ["<image>", "<video>"])
def test_pre_training_is_measured_on_what_is_held(tmp_path, kind):
    stages.run(short(), ["recot"], given(tmp_path / "set", kind), tmp_path / "out")
    assert len(logged(tmp_path / "out/recot", "held_loss")) == 1


def test_a_stage_that_never_began_can_be_started_otherwise(tmp_path):
    data = given(tmp_path / "set", "nothing")
    with pytest.raises(LongtakeError, match="have no media to measure recot on; run it without --held"):
        stages.run(short(), ["recot"], data, tmp_path / "out")
    with pytest.raises(LongtakeError, match="set recot.frames=8"):
        stages.run(short("recot.frames=6"), ["recot"], dataclasses.replace(data, held=None), tmp_path / "out")
    stages.run(short(), ["recot"], dataclasses.replace(data, held=None), tmp_path / "out")
    assert len(logged(tmp_path / "out/recot")) == 2


def test_a_full_disk_has_no_room_for_settings(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(LongtakeError, match="the disk is full: the settings file does not fit"):
        stages.check_settings(tmp_path, {"lr": 1.0})


@pytest.mark.parametrize(
    ("earlier", "stage"), [("recot", "align"), ("recot", "sft"), ("align", "sft"), ("sft", "latent")]
)
@pytest.mark.parametrize("left", ["checkpoint-00000001.pt", "log.jsonl"])
def test_a_stage_does_not_begin_without_one_that_was_stopped(finished, tmp_path, earlier, stage, left):
    shutil.copytree(finished / "start", tmp_path / "start")
    (tmp_path / earlier).mkdir()
    (tmp_path / earlier / left).touch()
    with pytest.raises(LongtakeError, match=f"{earlier} holds a run that was stopped, .* run --stage {earlier} to"):
        stages.model_before(stage, tmp_path)
    (tmp_path / earlier / left).unlink()
    assert stages.model_before(stage, tmp_path)[2] == "start"


def test_given_data_are_trained_on(tmp_path):
    write_set(tmp_path / "set")
    arguments = ["train", "debug", "--stage", "align", "--data", str(tmp_path / "set/set.jsonl=2"), "--output"]
    arguments += [str(tmp_path / "out"), "--held", str(tmp_path / "set/set.jsonl")]
    found = CliRunner().invoke(app, [*arguments, *(part for text in SHORT for part in ("--set", text))])
    assert found.exit_code == 0, found.output
    assert "align: 2 steps of 8 rows" in found.stdout
    assert "1/2" not in found.stdout
    assert len(logged(tmp_path / "out/align", "held_loss")) == 1
    assert not (tmp_path / "out/recot").exists()
    assert not (tmp_path / "out/data").exists()


@pytest.mark.slow
@pytest.mark.parametrize("train_dts", [True, False])
def test_the_packaged_model_is_fine_tuned_on_given_data(tmp_path, train_dts):
    write_set(tmp_path / "set")
    output = tmp_path / "out"
    arguments = ["train", "embedded", "--data", str(tmp_path / "set/set.jsonl"), "--output", str(output)]
    arguments += ["--set", "sft.fit.steps=2", "--set", "sft.fit.batch=4", "--set", f"sft.train_dts={train_dts}"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    folders = ["features", "sft", "start"] if train_dts else ["features", "groups", "sft", "start"]
    assert sorted(path.name for path in output.iterdir()) == folders
    before, after = (load_model(output / name)[0].state_dict() for name in ("start/model", "sft/model"))
    changed = {name.split(".")[0] for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert "language_model" in changed
    assert ("dts" in changed) is train_dts
    assert not any(name.startswith("vision_tower") for name in changed)


def test_a_folder_without_a_model_cannot_be_fine_tuned(tmp_path):
    write_set(tmp_path / "set")
    arguments = ["train", "embedded", "--data", str(tmp_path / "set/set.jsonl"), "--output", str(tmp_path / "out")]
    found = CliRunner().invoke(app, [*arguments, "--set", f"start.folder={tmp_path}"])
    assert isinstance(found.exception, LongtakeError)
    assert "it must be a saved model's folder, with a config.json" in str(found.exception)
    other = tiny.save_qwen_vl(tmp_path / "qwen")
    arguments[-1] = str(tmp_path / "another")
    found = CliRunner().invoke(app, [*arguments, "--set", f"start.folder={other}"])
    assert isinstance(found.exception, LongtakeError)
    assert "start.folder holds a model of type qwen2_5_vl; recot, align and sft train a" in str(found.exception)


def test_a_model_of_another_family_learns_to_think(tmp_path):
    other, output = tiny.save_qwen_vl(tmp_path / "qwen"), tmp_path / "out"
    sets = [f"start.folder={other}", "start.videos=2", "start.held_videos=1", "latent.fit.steps=2"]
    sets += ["latent.fit.batch=4", "latent.settings.thinking.latents=2", "latent.settings.width=16"]
    arguments = ["train", "latent", "--output", str(output), *(part for own in sets for part in ("--set", own))]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    trained = load_backbone(str(output / "latent" / "model"))
    assert trained.latent is not None
    assert trained.latent.settings.thinking.latents == 2
    assert json.loads((output / "latent/settings.json").read_text())["from"] == load_backbone(str(other)).name
    assert CliRunner().invoke(app, arguments).exit_code == 0
    again = CliRunner().invoke(app, [*arguments, "--stage", "sft"])
    assert "recot, align and sft train a longtake" in str(again.exception)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("sft.fit.lr", "sets nothing; write name=value"),
        ("sft.fit.rate=1", "sft.fit.rate: there is no 'rate'; known here: lr, batch, micro_batch"),
        ("grpo.fit.lr=1", "there is no 'grpo'; known here: name, start, recot, align, sft, latent, stages"),
        ("sft.fit=1", "sft.fit is a group of settings; set one of its own: lr, batch"),
        ("sft.fit.lr.deep=1", "lr has no settings of its own; set sft.fit.lr"),
        ("sft.fit.lr=fast", "sft.fit.lr is 'fast'; it must be a number"),
        ("sft.fit.batch=1.5", "sft.fit.batch is '1.5'; it must be a whole number"),
        ("sft.fit.shard=yes", "it must be true or false"),
        ("sft.fit.precision=fp16", "it must be one of bf16, fp32"),
        ("sft.drop=0.1", "it must have 2 values"),
        ("sft.drop=0.5,0.1", "drop is"),
        ("sft.fit.batch=0", "batch is 0; it must be at least 1"),
        ("sft.fit.seed=-1", "seed is -1; it must not be negative"),
        ("sft.reading.threads=0", "threads is 0; it must be at least 1"),
        ("sft.reading.max_tokens=0", "max_tokens is 0; it must be at least 1"),
        ("align.reading.max_broken=2", "max_broken is 2.0; it is a share, from 0 to 1"),
        ("recot.image_share=2", "image_share is 2.0; it is a share, from 0 to 1"),
        ("recot.max_broken=-1", "max_broken is -1.0; it is a share"),
        ("recot.frames=0", "frames is 0; it must be at least 1"),
        ("recot.fps=0", "fps is 0.0; it must be a positive number"),
        ("recot.fit.checkpointing=true", "set recot.fit.checkpointing=false"),
        ("start.seed=-1", "seed is -1; it must be at least 0"),
        ("start.videos=0", "videos is 0; it must be at least 1"),
    ],
)
def test_wrong_settings_are_told_in_one_line(assignment, said):
    with pytest.raises(LongtakeError) as error:
        settings.changed(debug(), assignment)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_of_every_type():
    recipe = debug()
    for assignment in (
        "sft.fit.lr=1e-5", "sft.fit.steps=none", "sft.drop=0.1, 0.2", "sft.train_tower=true", "recot.policy=tube",
        "sft.reading.sampling.short_fps=1,2,3", "start.seed=4",
    ):  # fmt: skip
        recipe = settings.changed(recipe, assignment)
    assert recipe.sft.fit.lr == 1e-5
    assert recipe.sft.fit.steps is None
    assert recipe.sft.drop == (0.1, 0.2)
    assert recipe.sft.train_tower is True
    assert recipe.recot.policy == "tube"
    assert recipe.sft.reading.sampling.short_fps == (1.0, 2.0, 3.0)
    assert recipe.start.seed == 4
    assert recipe.align == debug().align


def test_flat_names_what_changed_reads():
    found = settings.flat(debug())
    assert found["sft.fit.lr"] == 3e-3
    assert found["sft.drop.1"] == 0.3
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "the recipe is 'nothing'; it must be one of debug, embedded, latent, video_xl_pro_3b"),
        (["debug", "--stage", "grpo"], "the stage is 'grpo'; it must be one of recot, align, sft, latent"),
        (["debug", "--data", "nowhere.jsonl"], "nowhere.jsonl is no file"),
        (["debug", "--media", "."], "--media and --held go with --data"),
        (["video_xl_pro_3b", "--stage", "align"], "the recipe video_xl_pro_3b makes no data; give --data FILE"),
    ],
)
def test_mistakes_of_the_command_line(tmp_path, arguments, said):
    found = CliRunner().invoke(app, ["train", *arguments, "--output", str(tmp_path)])
    assert isinstance(found.exception, LongtakeError)
    assert said in str(found.exception)


def test_files_and_weights(tmp_path):
    odd = tmp_path / "a=b.jsonl"
    odd.touch()
    assert weighted_file(str(odd)) == (odd, 1.0)
    assert weighted_file(f"{odd}=0.5") == (odd, 0.5)
    found = data_files([str(odd), f"{odd}=3"], None, None)
    assert found == DataFiles(files=((odd, 1.0), (odd, 3.0)), media=tmp_path)


def test_the_paper_s_recipe_has_the_paper_s_figures():
    recipe = video_xl_pro_3b()
    assert (recipe.align.fit.lr, recipe.align.fit.batch, recipe.align.fit.warmup) == (5e-4, 8, 0.03)
    fit = recipe.sft.fit
    assert (fit.lr, fit.batch, fit.warmup, fit.weight_decay, fit.epochs, fit.precision) == (
        1e-5, 64, 0.03, 0.0, 1, "bf16",
    )  # fmt: skip
    assert recipe.sft.drop == (0.05, 0.3)
    assert recipe.recot.fit.batch * recipe.recot.fit.steps == 1_000_000
    assert recipe.recot.fit.batch % (8 * recipe.recot.fit.micro_batch) == 0  # it is started with eight processes
    assert recipe.sft.reading.sampling.max_frames == 360


def test_published_parts_are_put_together(tmp_path):
    """At tiny size: a tower whose last layer is left out, a decoder, and both keep every weight."""
    from transformers import Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

    import tiny

    parts = tiny.video_llm()
    vision = SiglipVisionConfig(**(parts.config.vision_config.to_dict() | {"num_hidden_layers": 3}))
    tower, decoder = SiglipVisionModel(vision), Qwen2ForCausalLM(parts.config.text_config)
    tower.save_pretrained(tmp_path / "tower")
    decoder.save_pretrained(tmp_path / "decoder")
    tiny.tokenizer().save_pretrained(tmp_path / "decoder")
    start = Published(tower=str(tmp_path / "tower"), decoder=str(tmp_path / "decoder"), tower_layers=2, dts_grid=4)
    model, processor = start.model()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = tower(pixels, output_hidden_states=True).hidden_states[2]
        assert torch.equal(model.encode_frames(pixels).flatten(1, 2), expected)
    assert all(torch.equal(model.language_model.state_dict()[n], w) for n, w in decoder.state_dict().items())
    assert processor.tokens_per_group == 4
    begins_as_a_mean(model)


def begins_as_a_mean(model: VideoLLM) -> None:
    """But for the temporal encoding, which is small."""
    features = torch.randn(2, 4, 4, 4, model.config.vision_config.hidden_size)
    with torch.no_grad():
        torch.testing.assert_close(model.dts(features), features.mean(1), rtol=0, atol=0.1)


def test_pre_training_of_a_fresh_compressor_begins_near_the_means(finished):
    """Random weights begin at more than the features' variance."""
    begins_as_a_mean(load_model(finished / "start/model")[0])
    files = list((finished / "features").rglob("*.safetensors"))
    features = torch.cat([load_file(file)["features"].flatten(0, 2) for file in files]).float()
    assert logged(finished / "recot", "visible_error")[1] < 0.3 * features.var()


def test_an_estimate_counts_rows_by_weight(tmp_path):
    import tiny

    file = write_set(tmp_path)
    data = DataFiles(files=((file, 2.5),), media=tmp_path)
    recipe = dataclasses.replace(debug().sft, fit=Fit(lr=1.0, batch=4, epochs=2))
    line = estimate("sft", recipe, tiny.video_llm().config, stages.sources_of(data), 1)
    assert line.startswith("sft: 14 steps of 4 rows")  # 25 rows an epoch


def test_published_parts_that_are_not_there_are_one_line(tmp_path, monkeypatch):
    def offline(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to the hub\nand more")

    monkeypatch.chdir(tmp_path)
    with pytest.raises(LongtakeError, match="'no/such/tower' is no folder; give a model's folder or hub id"):
        Published(tower="no/such/tower").model()
    monkeypatch.setattr("transformers.SiglipVisionModel.from_pretrained", offline)
    with pytest.raises(LongtakeError, match=r"connect to the hub\); give folders of them with --set start.tower="):
        Published().model()


def test_estimates_grow_with_what_is_asked():
    import tiny

    config = tiny.video_llm().config
    recipe = debug().sft
    large = dataclasses.replace(recipe.fit, micro_batch=64)
    lines = [
        estimate("sft", dataclasses.replace(recipe, train_tower=on, fit=large), config, (), 1) for on in (False, True)
    ]
    assert all(line.startswith("sft: 20 steps of 8 rows of 8 frames: ") for line in lines)
    memory = [float(line.split("frames: ")[1].split(" GB on each device")[0]) for line in lines]
    assert memory[0] < memory[1]
    for fewer in ({"lora_rank": 2}, {"train_dts": False}):
        line = estimate("sft", dataclasses.replace(recipe, fit=large, **fewer), config, (), 1)
        assert float(line.split("frames: ")[1].split(" GB on each device")[0]) < memory[0]
    line = estimate("recot", debug().recot, config, (), 1)
    assert re.search(r"clips of 4 frames: 0\.\d\d GB on each device, about", line)
