"""Recipes of ablations: samples and pruning by hand, tables from made-up replies, and every command at its smallest."""

import json
import sys

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tiny
from longtake.backbones.own import OwnVideoLLM
from longtake.data.probe_world.bank import Placed, Unit
from longtake.data.probe_world.needles import COLOURS, Card, Mover
from longtake.data.probe_world.probe import Event, ProbeVideo, make_video, place_event
from longtake.data.probe_world.questions import Question
from longtake.eval.ablation_report import TaskStart, as_text
from longtake.model import EMBEDDED
from longtake.models.mean import TemporalMean
from longtake.models.processor import VideoLLMProcessor
from longtake.tables.ablations.__main__ import main
from longtake.tables.ablations.arms import Arm, Pretraining, base_arm, folder_of, new_compressor, pretraining_folder
from longtake.tables.ablations.cost import arm_cost
from longtake.tables.ablations.data import Dataset, SampleMixer, sampled, shares_by_cards
from longtake.tables.ablations.figures import reconstruction
from longtake.tables.ablations.jobs import Site, run_jobs
from longtake.tables.ablations.plans import PLANS, Costs
from longtake.tables.ablations.replies import Sight, remember
from longtake.tables.ablations.tables import Plan, run_plan, task_starts
from longtake.tables.ablations.world import FULL, SMALLEST, Exam, Size, World, needle_patches
from longtake.tables.compare import TOGETHER, WHEN, Measured, table_of
from longtake.tables.operations import Cost, Part
from longtake.tables.planned import Planned
from longtake.tables.replies import Replies
from longtake.tables.table_command import estimate_text
from longtake.types import LongtakeError, Sampling
from longtake.watch import watch_frames

RED, BLUE = (Card(content="7", colour=colour, outline="round") for colour in ("red", "blue"))
STAR = Mover(shape="star", colour="red", direction="up")


def placed(what: Card | Mover | None, first: int, stop: int) -> Placed:
    return Placed(what=what, first=first, stop=stop, centres=tuple((n / 10, 0.5) for n in range(first, stop)))


EVENTS = [(placed(RED, 2, 5),), (), (placed(STAR, 0, 8),), (placed(None, 3, 4), placed(BLUE, 6, 8)), ()]
BLOCKS = np.arange(40).reshape(5, 8)


def test_samples_as_they_are():
    blocks, events = sampled(BLOCKS, EVENTS, "as it is")
    assert np.array_equal(blocks, BLOCKS)
    assert events == EVENTS


def test_planted_stills_are_frames_without_anything():
    blocks, events = sampled(BLOCKS, EVENTS, "planted")
    assert np.array_equal(blocks[:5], BLOCKS)
    assert events == [*EVENTS, *[()] * 5]
    assert blocks.shape == (10, 8)
    for still in blocks[5:]:
        assert len(set(still.tolist())) == 1
        block, frame = divmod(int(still[0]), 8)
        assert not any(e.first <= frame < e.stop for e in EVENTS[block])


def test_adverse_data_has_needles_in_stills_alone():
    blocks, events = sampled(BLOCKS, EVENTS, "adverse")
    assert len(blocks) == len(events) == 4
    for still, held in zip(blocks[:2], events[:2], strict=True):
        assert len(set(still.tolist())) == 1
        block, frame = divmod(int(still[0]), 8)
        (event,) = held
        assert (event.first, event.stop, len(event.centres)) == (0, 8, 8)
        assert any(e.what == event.what and e.first <= frame < e.stop for e in EVENTS[block])
        assert event.centres[0] == (frame / 10, 0.5)
    assert sorted(block[0] // 8 for block in blocks[2:].tolist()) == [1, 4]  # the ones without any event
    assert events[2:] == [(), ()]


def test_samples_are_drawn_alike_and_go_together():
    cards = [Card(content=str(n % 10), colour=colour, outline="round") for n, colour in enumerate(COLOURS)]
    units = [Unit(first_group=n, groups=1, events=(placed(card, 2, 4),)) for n, card in enumerate(cards)]
    units += [Unit(first_group=8 + n, groups=1, events=(placed(STAR, 0, 8),)) for n in range(4)]
    units += [Unit(first_group=12 + n, groups=1, events=()) for n in range(12)]
    mixer, rng = SampleMixer(units, 8), np.random.default_rng(0)
    seen = np.zeros(24)
    for _ in range(300):
        mix = mixer.mix(rng, 3, 1, 0.0)
        assert mix.video.num_frames == 24
        assert mix.start_seconds == 0
        assert len({card.colour for card, _ in mix.video.cards}) == len(mix.video.cards)
        assert len(mix.video.movers) <= 1
        np.add.at(seen, mix.groups, 1)
    assert seen[12:].mean() == pytest.approx(300 * 3 / 24, rel=0.3)


def test_training_videos_are_counted_by_their_cards():
    cards = [Card(content=str(n % 10), colour=colour, outline="round") for n, colour in enumerate(COLOURS)]
    busy = [Unit(first_group=n, groups=1, events=(placed(card, 2, 4),)) for n, card in enumerate(cards)]
    plain = [Unit(first_group=9 + n, groups=1, events=()) for n in range(len(busy))]

    def shares(units, frames):
        return shares_by_cards(Dataset(blocks=BLOCKS, source=SampleMixer(units, 8)), frames)

    assert shares(busy, 16) == {"0": 0, "1": 0, "2": 1, "3": 0, "more": 0}
    assert shares(busy, 40)["more"] == shares(plain, 40)["0"] == 1
    found = shares([*busy, *plain], 16)  # a quarter, a half and a quarter, but for second cards of the first's colour
    assert sum(found.values()) == pytest.approx(1)
    assert found["0"] == pytest.approx(0.25, abs=0.1)
    assert found["1"] == pytest.approx(0.5, abs=0.1)


def test_patches_of_a_needle_by_hand():
    event = Event(what=RED, start_seconds=1.5, stop_seconds=3.0, seed=4)
    video = ProbeVideo(seed=0, split="train", fps=1.0, num_frames=5, size=(80, 160), shots=(), events=(event,),
                       foreign=())  # fmt: skip
    patches = needle_patches(video, 8)
    assert patches.any((1, 2)).tolist() == [False, False, True, False, False]
    picture, x, y = place_event(event, 2.0, (160, 80), "train")
    for row in range(8):
        for column in range(8):
            across, down = column * 20 + 10, row * 10 + 5
            inside = x <= across < x + picture.width and y <= down < y + picture.height
            assert patches[2, row, column] == inside


ASKED = [
    Question(task="what", text="?", answer="7", event=Event(what=RED, start_seconds=2, stop_seconds=4, seed=0)),
    Question(task="when", text="?", answer="2 s", event=Event(what=RED, start_seconds=2, stop_seconds=4, seed=0)),
    Question(task="count", text="?", answer="1"),
]


def exam(videos: int = 6) -> Exam:
    empty = ProbeVideo(seed=0, split="test", fps=1.0, num_frames=16, size=(8, 8), shots=(), events=(), foreign=())
    return Exam(features=torch.zeros(videos, 16, 4, 8), videos=(empty,) * videos, questions=(tuple(ASKED),) * videos)


def replies(what: str, when: str, count: str, span: tuple[float, float] | None, videos: int = 6) -> Replies:
    return Replies(answers=(what, when, count) * videos, spans=(None, span, None) * videos)


def test_replies_are_scored_and_kept(tmp_path):
    given = replies("7", "5 s", "1", (2.0, 6.0), 1)
    assert given.right(ASKED).tolist() == [1, 0, 1]
    assert given.overlaps(ASKED)[:2].tolist() == [0, 0.5]
    assert np.isnan(given.overlaps(ASKED)[2])
    given.save(tmp_path / "folder" / "replies.json")
    assert Replies.load(tmp_path / "folder" / "replies.json") == given


def test_a_table_by_hand():
    """The starting model: nothing of "what", half of "when", all of "count"; then as if "when" were open."""
    asked = exam().asked
    half = Replies(answers=("8", "2 s", "1", "8", "9 s", "1") * 3, spans=(None,) * 18)
    starts = task_starts(asked, half, replies("8", "9 s", "2", None))
    assert {task: start.standing for task, start in starts.items()} == {
        "what": "floor", "when": "floor", "count": "ceiling",
    }  # fmt: skip
    assert (starts["when"].start, starts["when"].majority) == (0.5, 1.0)  # always "2 s" would do
    open_when = {**starts, "when": TaskStart(start=0.5, blind=0.0, majority=0.2, standing="open")}
    plan = Plan(name="demo", title="t", notes=(), pairs=(("good", "bad"),),
                arms=(Planned(name="good", arm=Arm()), Planned(name="bad", arm=Arm(), starred=False)))  # fmt: skip
    assert plan.arms[0].seeds([4, 5]) == [4, 5]
    assert plan.arms[1].seeds([4, 5]) == [4]
    errors = {4: {"e": [0.5, 1.5]}, 5: {"e": [2.5, 3.5]}}
    good = Measured(exam(), {n: replies("7", "2 s", "1", (2.0, 4.0)) for n in (4, 5)}, errors)
    bad = Measured(exam(), {4: replies("7", "9 s", "1", (2.0, 6.0))}, {4: {"e": [0.0, 1.0], "f": [1.0]}})
    table = table_of(plan, {"good": good, "bad": bad}, open_when)
    cells = {row.arm: {name: cell.mean for name, cell in row.cells.items()} for row in table.rows}
    assert cells["good"] == {TOGETHER: 1, "what": 1, "when": 1, "count": 1, WHEN: 1, "R@0.3 of when": 1,
                             "R@0.5 of when": 1, "R@0.7 of when": 1, "e": 2}  # fmt: skip
    assert [cells["bad"][name] for name in (WHEN, "R@0.3 of when", "R@0.5 of when", "R@0.7 of when")] == [0.5, 1, 1, 0]
    assert {f.measure: f.found.mean for f in table.findings} == {TOGETHER: 1, "when": 1, WHEN: 0.5, "e": 0.5}
    assert {f.found.verdict for f in table.findings} == {"exploratory"}  # of the seed that both have


def test_names_tell_settings_apart(tmp_path):
    here = World(tmp_path, None, SMALLEST)
    arms = [Arm(steps=2), Arm(steps=3), Arm(steps=2, trainable=True), Arm(steps=2, pretraining=Pretraining(steps=2)),
            Arm(steps=2, pretraining=Pretraining(steps=3)), Arm(steps=2, kept="random half"), base_arm(SMALLEST)]
    folders = {folder_of(here, arm, seed) for arm in arms for seed in (0, 1)}
    assert len(folders) == 2 * len(arms)
    assert folder_of(here, arms[0], 0, forked=False) not in folders
    ways = [Pretraining(steps=2), Pretraining(steps=2, policy="tube"), Pretraining(steps=2, mask_ratio=0.25)]
    assert len({pretraining_folder(here, group, way, 0) for group in (2, 4) for way in ways}) == 6


def test_another_tower_has_another_work_folder_and_the_same_names(tmp_path):
    here, decoder, tower = (World(tmp_path, None, SMALLEST) for _ in range(3))
    with torch.no_grad():
        decoder.packaged.projector[0].weight.add_(1)
        next(tower.packaged.vision_tower.parameters()).add_(1)
    assert here.work.parent == tmp_path
    assert decoder.work == here.work != tower.work
    assert World(tmp_path, tmp_path, SMALLEST).work == here.work  # footage without a file is none
    (tmp_path / "a.mp4").touch()
    assert World(tmp_path, tmp_path, SMALLEST).work != here.work
    places = [World.exam_file, lambda at, n: folder_of(at, Arm(), n),
              lambda at, n: pretraining_folder(at, n, Pretraining(steps=2), 0)]  # fmt: skip
    for place in places:
        assert place(here, 4).name == place(tower, 4).name
        assert place(here, 4) != place(tower, 4)


def test_names_of_kept_work_stay(tmp_path):
    """Hours of training lie under these."""
    here = World(tmp_path, None, FULL)
    assert folder_of(here, base_arm(FULL), 0, forked=False).name == "base-mean-4-plain-900-0-60cd8de8d3"
    before = Pretraining(steps=400)
    assert pretraining_folder(here, 4, before, 0).name == "recot-4-semantic-400-0-0f73937504"
    assert folder_of(here, Arm(pretraining=before, steps=500), 0).name == "arm-DTS-4-recot-500-0-f01310873d"


def test_a_model_that_the_tables_cannot_use_is_refused(tmp_path):
    with pytest.raises(LongtakeError, match="no DTS to probe"):
        _ = World(tmp_path, None, SMALLEST, model=tiny.save_qwen_vl(tmp_path / "qwen")).packaged
    with pytest.raises(LongtakeError, match="width 32; these tables want 192"):
        _ = World(tmp_path, None, SMALLEST, model=tiny.save_video_llm(tmp_path / "own")).packaged


class FixedCosts(Costs):
    """Known operations: 10 a step for frozen arms, 40 for trainable ones, 30 a step of pre-training."""

    def arm(self, arm: Arm) -> Cost:
        once = 0.0 if arm.trainable or arm.kind == "mean" else arm.size * 1e12
        return Cost(operations=40.0 if arm.trainable else 10.0, seconds=1.0, once_operations=once)

    def pretraining(self, arm: Arm) -> Cost:
        return Cost(operations=30.0, seconds=1.0)


def test_equal_operations_by_hand(tmp_path):
    costs = FixedCosts(World(tmp_path, None, Size(most_steps=100)))
    with_recot = Arm(steps=20, pretraining=Pretraining(steps=10))
    assert costs.operations(with_recot) == 500
    assert costs.as_costly(Arm(), with_recot).steps == 50
    assert costs.as_costly(Arm(trainable=True), with_recot).steps == 12
    assert costs.as_costly(Arm(pretraining=Pretraining(steps=10)), with_recot).steps == 20
    assert costs.as_costly(Arm(pretraining=Pretraining(steps=99)), with_recot).steps == 1
    assert costs.as_costly(Arm(), Arm(steps=999)).steps == 100


@pytest.mark.parametrize("name", list(PLANS))
def test_plans_pair_arms_that_exist_and_differ(tmp_path, name):
    for plan in PLANS[name](FixedCosts(World(tmp_path, None, SMALLEST))):
        arms = {planned.name: planned for planned in plan.arms}
        assert len(arms) == len(plan.arms)
        for one, other in plan.pairs:
            assert arms[one].arm != arms[other].arm
        assert all(planned.arm.frames == plan.frames and planned.arm.steps >= 1 for planned in plan.arms)
    if name == "compression":
        context = plan
        assert any("stride 2 and 4 see frames 4 s and 2 s apart" in note for note in plan.notes)
        tokens = {planned.arm.frames // (planned.arm.size * planned.arm.every) for planned in context.arms}
        assert tokens == {4}  # groups of 16 tokens each


def test_notes_tell_what_equal_operations_leave_out_and_what_is_not_compared(tmp_path):
    costs = FixedCosts(World(tmp_path, None, SMALLEST))
    beside = {name: [" ".join(plan.notes) for plan in PLANS[name](costs)] for name in PLANS}
    assert all("once per compressor" in said and "2 (stride 2), 4 (stride 4), 8 (stride 8);" in said
               for said in beside["compression"])  # fmt: skip
    assert "in 10^12 operations 4 (stride 4);" in beside["pretraining"][0]
    assert "SGM 0.75 masks all of these, and draws nothing at random" in beside["masking"][0]
    told = {plan.name: '"error where masked" is over other tokens' in " ".join(plan.notes) for name in PLANS
            for plan in PLANS[name](costs)}  # fmt: skip
    assert told == {plan.name: plan.figures for name in PLANS for plan in PLANS[name](costs)}


@pytest.mark.slow
def test_tokenising_the_bank_is_counted_as_pytorch_counts_a_group(tmp_path):
    here = World(tmp_path, None, SMALLEST)
    dts = new_compressor(Arm(size=4), SMALLEST.dim, 0)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        dts(torch.randn(1, 4, *here.packaged.config.tower_grid, SMALLEST.dim))
    attention = 6 * 4 * 64 * 64 * 192  # of 4 frames, then 2: two products of 64 places; PyTorch counts none on a CPU
    groups = SMALLEST.bank_videos * 40 // 4
    assert arm_cost(here, Arm(size=4)).once_operations == groups * (counter.get_total_flops() + attention)
    assert arm_cost(here, Arm(kind="mean", size=4)).once_operations == 0
    assert arm_cost(here, Arm(size=4, trainable=True)).once_operations == 0


def test_arms_with_one_seed_start_equal():
    arm = Arm(size=4, start="random")
    first, again, other = (new_compressor(arm, 32, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stages.0.conv.weight"], other["stages.0.conv.weight"])


def test_estimates_add_up():
    text = estimate_text([Part(name="a", times=3, seconds=600.0), Part(name="b", times=0, seconds=9e9)])
    assert text.splitlines() == ["  3 x     600 core-seconds  a", "about 0.50 core-hours still to be done"]


def test_remembered_features_are_what_watching_keeps():
    model = tiny.video_llm(pool=2)
    backbone = OwnVideoLLM(model, VideoLLMProcessor.from_config(tiny.tokenizer(), model.config))
    frames = tiny.frames(16, 32, 32)
    watched = watch_frames(backbone, [frames], Sampling(fps=1.0), duration_seconds=16.0)
    with torch.no_grad():
        features = model.encode_frames(torch.from_numpy(frames.pixels).float() / 127.5 - 1).flatten(1, 2)
    kept = remember(backbone, model.dts, Sight(size=4), features)
    assert kept.tokens.grid == watched.tokens.grid
    assert torch.equal(kept.tokens.position, watched.tokens.position)
    assert torch.equal(kept.tokens.seconds, watched.tokens.seconds)
    assert (kept.group_seconds, kept.stop_seconds) == (watched.group_seconds, watched.stop_seconds)
    error = (kept.tokens.features - watched.tokens.features).norm() / watched.tokens.features.norm()
    assert error < 0.02  # bfloat16 in the compressor
    half = remember(backbone, TemporalMean(2), Sight(size=2, every=4), features)
    assert half.tokens.seconds.unique().tolist() == [0, 8]


TABLES = {
    "compression": ["compression-frames", "compression-context"],
    "pretraining": ["pretraining"],
    "masking": ["masking"],
    "pruning": ["pruning-as-it-is", "pruning-planted", "pruning-adverse"],
    "selector": ["selector"],
    "heatmap": ["heatmap"],
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("ablations")


@pytest.mark.slow
@pytest.mark.parametrize("table", list(TABLES))
def test_every_command_at_its_smallest(work, monkeypatch, capsys, table):
    pytest.importorskip("matplotlib")
    command = ["ablations", table, "--work", str(work), "--results", str(work / "results"), "--seeds", "0",
               "--size", "smallest", "--threads", "1"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    main()
    first = capsys.readouterr().out
    for name in TABLES[table]:
        kept = json.loads((work / "results" / f"{name}.json").read_text())
        assert kept["title"] in first
        assert kept["settings"]["command"].startswith(f"python -m longtake.tables.ablations {table} ")
        assert (work / "results" / f"{name}.md").read_text().startswith(f"# {kept['title']}")
        assert (work / "results" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    before = {file: file.stat().st_mtime_ns for file in work.rglob("*.pt")}
    results = {name: (work / "results" / f"{name}.json").read_text() for name in TABLES[table]}
    main()  # again: nothing is trained or asked anew
    again = capsys.readouterr().out
    assert "about 0.00 core-hours still to be done" in again
    assert {file: file.stat().st_mtime_ns for file in work.rglob("*.pt")} == before
    assert {name: (work / "results" / f"{name}.json").read_text() for name in TABLES[table]} == results


@pytest.mark.slow
def test_several_processes_make_the_same_table(tmp_path):
    arms = (Planned(name="plain", arm=Arm(steps=2)),
            Planned(name="ReCoT", arm=Arm(steps=2, pretraining=Pretraining(steps=2))))  # fmt: skip
    plan = Plan(name="two", title="", notes=(), arms=arms, pairs=(("ReCoT", "plain"),), figures=True)
    site = Site(folder=tmp_path / "jobs", footage=None, size=SMALLEST, model=EMBEDDED, device="cpu", threads=1)
    run_jobs(site, plan, [0], 2)
    written = {file: file.stat().st_mtime_ns for file in site.folder.rglob("*.*")}
    in_two = run_plan(World(site.folder, None, SMALLEST), plan, [0])
    assert {file: file.stat().st_mtime_ns for file in site.folder.rglob("*.*")} == written  # nothing was left to do
    alone = run_plan(World(tmp_path / "alone", None, SMALLEST), plan, [0])
    assert as_text(in_two) == as_text(alone)


@pytest.mark.slow
def test_a_reconstruction_is_measured_on_videos_that_training_never_saw(work):
    here = World(work, None, SMALLEST)
    figures = reconstruction(here, Arm(pretraining=Pretraining(steps=2)), 0)
    assert set(figures) == {"error", "error where masked", "AUROC"}
    assert all(0 < value < 1 for value in figures["AUROC"])
    assert min(figures["error"]) > 0.05  # two steps teach nothing
    assert "error where masked" not in reconstruction(here, Arm(pretraining=Pretraining(steps=2, policy="none")), 0)
    videos = here.exam(16).videos
    assert [video.split for video in videos] == ["test"] * SMALLEST.test_videos
    assert all(1 <= len(video.cards) <= 4 for video in videos)
    assert len({len(video.cards) for video in videos}) > 1
    same = [make_video(0, split="test", clips=here.clips("test"), num_frames=16, num_cards=n) for n in range(1, 5)]
    assert videos[0].events in [video.events for video in same]
