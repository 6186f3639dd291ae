"""Puzzles of masked video prediction to train on: prompts, pictures, controls, split, figures, supervised learning."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from footage_puzzles import make_puzzles
from grpo_runs import own, qwen, run_imitation
from longtake.backbones.base import Part, Prompt
from longtake.backbones.own import OwnVideoLLM
from longtake.cli.samples import samples
from longtake.data.puzzles.framefile import FrameFile
from longtake.data.puzzles.puzzle_file import PuzzleRecord, read_records
from longtake.data.puzzles.puzzle_split import PuzzleSplit, split_by_source
from longtake.eval.mvp import CHANCE, Asked, by_size, chance_parts, report, table
from longtake.train import grpo, policy, viewer
from longtake.train.album import Album, Shelf, one_video
from longtake.train.exam import apply_control
from longtake.train.grpo import train_grpo
from longtake.train.grpo_recipe import GrpoRecipe, prepare
from longtake.train.imitate import ImitateRecipe, Imitation, draw_target, train_imitation
from longtake.train.mvp import MvpPuzzle, figures, foreign, under
from longtake.train.picture_store import PictureStore
from longtake.train.rendering import Rendering
from longtake.train.rewards import PuzzleReward
from longtake.train.rollouts import Draw
from longtake.types import LongtakeError
from processes import run_together
from stage_runs import fit, logged

BACKBONES = {"own": own, "qwen": qwen}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Puzzles of three scenes and a twin, levels L1 and L2."""
    return make_puzzles(tmp_path_factory.mktemp("footage"))


@pytest.fixture(scope="module")
def records(folder) -> list[PuzzleRecord]:
    return list(read_records(folder))


@pytest.fixture(scope="module")
def split(folder, records) -> PuzzleSplit:
    return split_by_source(folder, records)


@pytest.fixture(params=BACKBONES)
def backbone(request):
    made = BACKBONES[request.param]()
    made.model.requires_grad_(False)
    return made


def puzzle_of(folder: Path, record: PuzzleRecord, **changes) -> MvpPuzzle:
    return MvpPuzzle(**({"record": record, "album": Album(folder=folder), "shown": record} | changes))


# -- the prompt -----------------------------------------------------------------------------------------------------


def test_the_prompt_says_what_is_missing_and_no_candidate_has_a_time(backbone, folder, records):
    record = next(record for record in records if record.level == "L2")
    prompt = puzzle_of(folder, record).prompt(backbone)
    before = record.masked[0]
    assert [part.text for part in prompt.parts] == ["", "[3 missing]\n", "", *(f"Frame {n}: " for n in range(1, 7))]
    first, gap, rest, *pool = prompt.parts
    assert (first.tokens.grid[0], gap.tokens, rest.tokens.grid[0]) == (before, None, len(record.context) - before)
    assert first.timed
    assert rest.timed
    told = [*first.tokens.seconds.unique().tolist(), *rest.tokens.seconds.unique().tolist()]
    assert told == list(record.context_seconds)
    assert not any(part.timed or part.tokens.seconds.any() for part in pool)
    assert [part.tokens.grid[0] for part in pool] == [1] * 6
    assert prompt.question.startswith("3 frames are missing. Which of the frames 1 to 6 are they")
    assert prompt.question.endswith("<answer>number, number, number</answer>")
    untold = puzzle_of(folder, record, times=False).prompt(backbone)
    assert not any(part.timed for part in untold.parts if part.tokens is not None)


def test_stamps_stand_before_context_frames_only(folder, records):
    backbone, record = own(), records[0]
    inputs = backbone.prepare([puzzle_of(folder, record).prompt(backbone)])
    ids = [token for token in inputs.ids[0].tolist() if token != backbone.model.config.video_token_id]
    said = backbone.tokenizer.decode(ids)
    stamps = [f"{int(second + 0.5)}:" for second in record.context_seconds]
    before = record.masked[0]
    pool = "".join(f"Frame {n}: \n" for n in range(1, 1 + len(record.candidates)))
    assert "".join(stamps[:before]) + "\n[2 missing]\n" + "".join(stamps[before:]) + "\n" + pool in said


def test_a_picture_s_tokens_depend_on_the_picture_alone(backbone, folder, records):
    """Whether it is missing, a distractor or context, and whatever was encoded before it."""
    record = records[0]
    shown = puzzle_of(folder, record).prompt(backbone).parts
    pool = [part.tokens for part in shown if part.text.startswith("Frame")]
    reverse = dataclasses.replace(
        record,
        candidates=record.candidates[::-1],
        truth=tuple(len(pool) + 1 - number for number in record.truth),
    )
    again = puzzle_of(folder, reverse).prompt(backbone).parts
    turned = [part.tokens for part in again if part.text.startswith("Frame")][::-1]
    assert all(torch.equal(one.features, other.features) for one, other in zip(pool, turned, strict=True))
    in_context = dataclasses.replace(record, context=record.candidates, candidates=record.context)
    album = Album(folder=folder)
    one, other = (album.tokens(backbone, record.frames, names) for names in (in_context.context, record.candidates))
    assert all(torch.equal(a.features, b.features) for a, b in zip(one, other, strict=True))
    joined = one_video(one, [3.0, 5.0, 6.0, 9.0])
    assert joined.grid == (4, *one[0].grid[1:])
    assert torch.equal(joined.features, torch.cat([picture.features for picture in pool]))
    assert joined.seconds.unique().tolist() == [3.0, 5.0, 6.0, 9.0]
    with FrameFile(folder / record.frames) as frames:
        pixels = frames.pictures(record.candidates[:1])
    features = backbone.tower_features(tiny_frames(pixels))
    expected = backbone.encode_features(features, torch.zeros(1, dtype=torch.float64))
    assert torch.equal(expected.features, pool[0].features)


def tiny_frames(pixels: np.ndarray):
    return dataclasses.replace(tiny.frames(1, 8, 8), pixels=pixels)


def test_pictures_are_encoded_once(backbone, folder, records, monkeypatch):
    seen = []
    inner = type(backbone).tower_features
    monkeypatch.setattr(type(backbone), "tower_features", lambda self, f: seen.append(len(f)) or inner(self, f))
    record = records[0]
    puzzle = puzzle_of(folder, record)
    first = puzzle.prompt(backbone)
    assert seen == [1] * len({*record.context, *record.candidates})
    again = puzzle.prompt(backbone)
    assert len(seen) == len({*record.context, *record.candidates})
    pairs = zip(first.visuals, again.visuals, strict=True)
    assert all(torch.equal(one.features, other.features) for one, other in pairs)


def test_a_full_shelf_drops_what_was_used_longest_ago():
    shelf, one = Shelf(room_bytes=24), torch.zeros(3)
    for name in "ab":
        shelf.put(("f", name, False), one)
    assert shelf.get(("f", "a", False)) is one
    shelf.put(("f", "c", False), one)
    assert [name for _, name, _ in shelf.held] == ["a", "c"]
    assert shelf.taken_bytes == 24


def test_no_room_changes_no_prompt(folder, records):
    backbone = own()
    prompts = [
        puzzle_of(folder, records[0], album=Album(folder=folder, room_bytes=room)).prompt(backbone)
        for room in (0, 1 << 20)
    ]
    pairs = zip(prompts[0].visuals, prompts[1].visuals, strict=True)
    assert all(torch.equal(one.features, other.features) for one, other in pairs)


def test_tokens_stay_for_other_runs_of_models_that_see_alike(folder, records, tmp_path, monkeypatch):
    """Behind another language model only the picture that tells sights apart is encoded; with another projector all."""
    seen = []
    inner = OwnVideoLLM.tower_features
    monkeypatch.setattr(OwnVideoLLM, "tower_features", lambda self, f: seen.append(len(f)) or inner(self, f))
    record, pictures = records[0], len({*records[0].context, *records[0].candidates})

    def asked(change: str) -> list[torch.Tensor]:
        backbone = own()
        backbone.model.requires_grad_(False)
        for name, weight in backbone.model.named_parameters():
            if name.startswith(change):
                weight.mul_(1.5)
        seen.clear()
        album = Album(folder=folder, kept=tmp_path / "tokens")
        return [tokens.features for tokens in puzzle_of(folder, record, album=album).prompt(backbone).visuals]

    first = asked("nothing")
    assert len(seen) == pictures + 1
    again = asked("language_model")
    assert len(seen) == 1
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not torch.equal(asked("projector")[0], first[0])
    assert len(seen) == pictures + 1
    assert len(list((tmp_path / "tokens").iterdir())) == 2


def test_a_damaged_or_missing_picture_is_encoded_again(tmp_path):
    store = PictureStore(folder=tmp_path / "a")
    tokens = own().encode(tiny.frames(1, 32, 32)).cpu()
    assert store.get("frames/f.zip", "p.jpg") is None
    store.put("frames/f.zip", "p.jpg", tokens)
    kept = store.get("frames/f.zip", "p.jpg")
    assert kept.grid == tokens.grid
    for name in ("features", "position", "seconds", "weight"):
        assert torch.equal(getattr(kept, name), getattr(tokens, name))
    (file,) = (tmp_path / "a").rglob("*.safetensors")
    file.write_bytes(b"half")
    assert store.get("frames/f.zip", "p.jpg") is None
    (tmp_path / "file").write_text("")
    PictureStore(folder=tmp_path / "file").put("frames/f.zip", "p.jpg", tokens)  # no folder can be made there


def test_the_parts_behind_the_tower_learn_from_pictures(folder, records):
    backbone = own()
    prepare(GrpoRecipe(fit=fit(micro_batch=1), train_video=True), backbone)
    puzzle = puzzle_of(folder, records[0])
    for _ in range(2):  # what is kept are features of the tower, so that it works again
        said = draw_target(ImitateRecipe(fit=fit()), backbone, puzzle, (0,))
        Imitation(backbone)([said]).backward()
        assert float(backbone.model.projector[0].weight.grad.abs().max()) > 0
        assert float(backbone.model.dts.stages[0].conv.weight.grad.abs().max()) > 0
        backbone.model.zero_grad()


@pytest.mark.parametrize("mask", ["before", "after", "scattered"])
def test_every_gap_stands_in_its_place(tmp_path, mask):
    folder = make_puzzles(tmp_path, videos=1, levels=("L2",), mask=mask)
    backbone = own()
    for record in list(read_records(folder))[:4]:
        shown = []
        for part in puzzle_of(folder, record).prompt(backbone).parts[: -len(record.candidates)]:
            missing = int(part.text[1]) if part.text else 0
            shown += [True] * missing if missing else [False] * part.tokens.grid[0]
        assert [place for place, hidden in enumerate(shown) if hidden] == list(record.masked)
        assert len(shown) == len(record.context) + 3


# -- rendering ------------------------------------------------------------------------------------------------------


def shown_by(puzzle: MvpPuzzle, backbone) -> list[torch.Tensor]:
    """The tokens of all pictures of a prompt, each ``(tokens, dim)``."""
    videos = [part.tokens for part in puzzle.prompt(backbone).parts if part.tokens is not None]
    return [group for video in videos for group in video.features.view(video.grid[0], -1, video.features.shape[1])]


def test_context_and_candidates_are_rendered_together(backbone, folder, records):
    record = records[0]
    plain = torch.stack(shown_by(puzzle_of(folder, record), backbone))
    assert len(plain) == len(record.context) + len(record.candidates)
    relative = torch.stack(shown_by(puzzle_of(folder, record, rendering=Rendering(relative=True)), backbone))
    assert float(relative.mean(dim=0).abs().max()) < 1e-4 * float(relative.abs().max())
    rest = plain - plain.mean(dim=0)
    torch.testing.assert_close(relative, rest * (plain.square().mean() / rest.square().mean()).sqrt())
    small = shown_by(puzzle_of(folder, record, rendering=Rendering(side=1)), backbone)
    torch.testing.assert_close(torch.stack(small)[:, 0], plain.mean(dim=1), rtol=1e-4, atol=1e-5)
    pool = shown_by(puzzle_of(folder, record, control="candidates", rendering=Rendering(relative=True)), backbone)
    assert len(pool) == len(record.candidates)
    assert float(sum(pool).abs().max()) < 1e-4 * float(torch.stack(pool).abs().max())


@pytest.mark.parametrize("control", ["none", "blind"])
def test_candidates_told_by_the_size_of_their_tokens_are_a_baseline(control, folder, records, monkeypatch):
    """Planted: missing frames have the smallest tokens, in the order of time."""
    record = records[0]
    backbone = own()
    size = {name: 9.0 - place for place, name in enumerate(record.candidates)}
    size |= {record.candidates[number - 1]: 0.1 * place for place, number in enumerate(record.truth, start=1)}
    plain = Album.tokens

    def tokens(self, *asked):
        given = zip(plain(self, *asked), asked[-1], strict=True)
        return [dataclasses.replace(one, features=one.features * 0 + size.get(name, 1.0)) for one, name in given]

    monkeypatch.setattr(Album, "tokens", tokens)
    puzzle = dataclasses.replace(puzzle_of(folder, record), control=control)
    smallest, largest = by_size([puzzle], backbone)
    assert (smallest.row, largest.row) == ("smallest tokens", "largest tokens")
    assert smallest.parts[0]["exact"] == 1
    assert largest.parts[0]["selection"] == 0


def test_pictures_are_turned_in_training_alone(folder, records, tmp_path, monkeypatch):
    """By a rotation of its own at each step, the same for rollouts and update."""
    backbone = own()
    backbone.model.requires_grad_(False)
    puzzles = [puzzle_of(folder, record, rendering=Rendering(turned=1.0)) for record in records[:2]]
    plain = puzzle_of(folder, records[0])
    assert all(map(torch.equal, shown_by(puzzles[0], backbone), shown_by(plain, backbone)))
    lesson, _ = draw_target(ImitateRecipe(fit=fit()), backbone, puzzles[0], (0, 5, 1))
    turned, straight = (torch.stack(shown_by(one, backbone)).flatten(1) for one in (lesson, plain))
    assert float((turned - straight).norm()) > float(straight.norm())
    torch.testing.assert_close(turned @ turned.T, straight @ straight.T, rtol=1e-4, atol=0)
    rolled, learned = [], []
    inner_roll, inner_log = grpo.roll_each, policy.Policy.logprobs
    monkeypatch.setattr(grpo, "roll_each", lambda b, p, *rest: rolled.extend(p) or inner_roll(b, p, *rest))
    monkeypatch.setattr(
        policy.Policy, "logprobs", lambda self, group: learned.append(group.puzzle) or inner_log(self, group)
    )
    recipe = GrpoRecipe(fit=fit(steps=2, batch=2, micro_batch=1), draw=Draw(group=2, max_new_tokens=4))
    train_grpo(recipe, own(), puzzles, tmp_path)
    assert {one.turn for one in rolled} >= {one.turn for one in learned} > set()
    assert len({one.turn for one in rolled}) == len(rolled) == 4


# -- controls -------------------------------------------------------------------------------------------------------


def test_controls_hide_what_they_say(folder, records, split):
    backbone = own()
    some = [puzzle_of(folder, record) for record in records[:5]]
    for puzzle, plain in zip(under(some, "blind", records, split.sources), some, strict=True):
        assert puzzle.prompt(backbone) == Prompt(question=plain.question)
    for puzzle, plain in zip(under(some, "candidates", records, split.sources), some, strict=True):
        pool = plain.prompt(backbone).parts[-len(plain.record.candidates) :]
        assert [part.text for part in puzzle.prompt(backbone).parts] == [part.text for part in pool]
    for puzzle, plain in zip(under(some, "foreign", records, split.sources), some, strict=True):
        other = puzzle.shown
        assert split.sources[other.identity] != split.sources[plain.record.identity]
        assert other.level == plain.level
        parts, theirs = puzzle.prompt(backbone).parts, puzzle_of(folder, other).prompt(backbone).parts
        assert torch.equal(parts[0].tokens.features, theirs[0].tokens.features)
        assert torch.equal(parts[-1].tokens.features, plain.prompt(backbone).parts[-1].tokens.features)
    for puzzle, plain in zip(under(some, "shuffled", records, split.sources), some, strict=True):
        mixed, straight = (
            [part.tokens for part in one.prompt(backbone).parts if part.tokens is not None][:2]
            for one in (puzzle, plain)
        )
        assert [tokens.seconds.tolist() for tokens in mixed] == [tokens.seconds.tolist() for tokens in straight]
        rows = [Counter(map(tuple, torch.cat([t.features for t in side]).tolist())) for side in (mixed, straight)]
        assert rows[0] == rows[1]
        assert not torch.equal(mixed[0].features, straight[0].features) or not torch.equal(
            mixed[1].features, straight[1].features
        )


def test_another_level_s_context_stands_in_where_there_is_no_other(records, split):
    easy = [record for record in records if record.level == "L1"]
    source = split.sources[easy[0].identity]
    pool = [record for record in records if record.level == "L2" or split.sources[record.identity] == source]
    assert foreign(easy[:1], pool, split.sources)[0].level == "L2"
    with pytest.raises(LongtakeError, match=f"all puzzles on this side are of {source}"):
        foreign(easy[:1], [record for record in pool if split.sources[record.identity] == source], split.sources)


def test_general_controls_know_parts():
    tokens = one_video([own().encode(tiny.frames(1, 32, 32, seed=n)) for n in range(3)], [0.0, 1.0, 2.0])
    prompt = Prompt(question="q", parts=(Part(text="a", tokens=tokens), Part(text="b", tokens=tokens[:4], timed=False)))
    blind = apply_control(prompt, "blind", 0)
    assert [part.text for part in blind.parts] == ["a", "b"]
    assert blind.visuals == ()
    assert apply_control(prompt, "held", 0) is prompt
    alone = dataclasses.replace(tokens[:4], grid=(1, *tokens.grid[1:]))
    mixed = apply_control(Prompt(question="q", parts=(Part(tokens=tokens), Part(tokens=alone))), "shuffled", 0)
    assert not torch.equal(mixed.visuals[0].features, tokens.features)
    assert torch.equal(mixed.visuals[1].features, alone.features)


# -- answers and figures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["direct", "answer", "think"])
def test_solutions_are_right_and_guesses_have_the_form(folder, records, form):
    puzzle = puzzle_of(folder, records[0], scoring=PuzzleReward(form=form))
    right = puzzle.reward(puzzle.solution())
    assert {name: right[name] for name in ("format", "valid", "selection", "order", "exact", "kendall", "pairs")} == (
        dict.fromkeys(("format", "valid", "selection", "order", "exact", "kendall", "pairs"), 1.0)
    )
    rng = np.random.default_rng(0)
    guesses = [puzzle.guess(rng) for _ in range(300)]
    scores = [puzzle.reward(guess) for guess in guesses]
    assert all(score["valid"] and score["format"] for score in scores)
    assert len(set(guesses)) == 12  # 2 of 4, in order
    assert np.mean([score["exact"] for score in scores]) == pytest.approx(1 / 12, abs=0.05)
    assert puzzle.reward("nonsense")["kendall"] == 0


def test_figures_by_hand(folder, records):
    levels = [next(record for record in records if record.level == level) for level in ("L1", "L1", "L2")]
    puzzles = [puzzle_of(folder, record) for record in levels]
    parts = [
        {"exact": 1.0, "selection": 1.0, "pairs": 1.0, "kendall": 1.0},
        {"exact": 0.0, "selection": 0.5, "pairs": 0.0, "kendall": 0.0},
        {"exact": 0.0, "selection": 1.0, "pairs": 1.0, "kendall": -1 / 3},
    ]
    found = figures(puzzles, parts)
    assert found["exact"] == pytest.approx(1 / 3)
    assert found["L1_exact"] == 0.5
    assert found["L1_pairwise"] == 1.0  # of the one pair that was chosen
    assert found["L2_pairwise"] == pytest.approx(1 / 3)
    assert found["pairwise"] == pytest.approx((1 + 1 / 3) / 2)
    assert figures(puzzles[1:2], parts[1:2])["pairwise"] == 0.5


def test_the_report_sets_answers_beside_the_best_of_each_measure(folder, records):
    puzzles = [puzzle_of(folder, record) for record in records[:2]]
    wrong = {"valid": 1.0, "exact": 0.0, "selection": 1.0, "pairs": 1.0, "kendall": -1.0}
    right = {"valid": 1.0, "exact": 1.0, "selection": 0.5, "pairs": 1.0, "kendall": 1.0}
    asked = [
        Asked(row=CHANCE, parts=[chance_parts(puzzle.record) for puzzle in puzzles]),
        Asked(row="one", parts=[wrong, wrong]),
        Asked(row="other", parts=[right, right]),
        Asked(row="grpo", parts=[right, wrong]),
    ]
    told = report(puzzles, asked, ["one", "other"])
    rows = told["levels"]["L1"]
    assert rows["best baseline"] == {"valid": 1.0, "exact": 1.0, "selection": 1.0, "pairwise": 1.0, "kendall": 1.0}
    assert rows["grpo"] == {"valid": 1.0, "exact": 0.5, "selection": 0.75, "pairwise": 0.5, "kendall": 0.0}
    assert rows["chance"]["exact"] == pytest.approx(1 / 12, abs=1e-4)
    assert rows["chance"]["pairwise"] == 0.5
    shown = table(told)
    assert "L1, 2 held-out puzzles" in shown
    assert [line.split()[0] for line in shown.splitlines()[:4]] == ["L1,", "chance", "best", "grpo"]


# -- the split ------------------------------------------------------------------------------------------------------


def test_twins_stand_on_one_side(records, split):
    by_name = {record.video: split.sources[record.identity] for record in records}
    assert by_name["twin.mp4"] == by_name["scene0.mp4"] == "scene0.mp4"
    assert len(set(by_name.values())) == 3
    sides = {record.video: split.is_held(record) for record in records}
    assert sides["twin.mp4"] == sides["scene0.mp4"]
    assert set(sides.values()) == {True, False}


def test_one_source_cannot_be_split(folder, records):
    twins = [record for record in records if record.video in ("twin.mp4", "scene0.mp4")]
    with pytest.raises(LongtakeError, match=r"puzzles of one source only, scene0\.mp4; give footage of at least two"):
        split_by_source(folder, twins)


@pytest.mark.parametrize("side", ["train", "test"])
def test_each_side_has_a_source(folder, records, monkeypatch, side):
    monkeypatch.setattr("longtake.data.puzzles.puzzle_split.split_of_source", lambda source: side)
    held = split_by_source(folder, records).held
    assert held == ({"scene0.mp4"} if side == "train" else {"scene1.mp4", "scene2.mp4"})


# -- learning -------------------------------------------------------------------------------------------------------


def test_the_supervised_loss_is_that_of_the_answer_alone(backbone, folder, records):
    """Against each puzzle by itself, all columns run at once, softmax by hand."""
    recipe = ImitateRecipe(fit=fit())
    lessons = [draw_target(recipe, backbone, puzzle_of(folder, record), (0,)) for record in (records[0], records[-1])]
    assert backbone.tokenizer.decode(lessons[0][1][:-1]) == lessons[0][0].solution()
    found = float(Imitation(backbone)(lessons))
    expected = 0.0
    for puzzle, ids in lessons:
        prompt = dataclasses.replace(puzzle.prompt(backbone), answer=puzzle.solution())
        inputs = backbone.prepare([prompt])
        states = backbone.run(inputs.embeddings, inputs.positions, None)
        logits = backbone.head(states[0, -len(ids) - 1 : -1]).double()
        logits[:, backbone._banned] = float("-inf")
        chosen = logits.log_softmax(-1)[range(len(ids)), list(ids)]
        expected -= float(chosen.sum())
        assert inputs.labels[0, -len(ids) :].tolist() == list(ids)
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_form_alone_teaches_no_answer(folder, records):
    backbone, puzzle = own(), puzzle_of(folder, records[0])
    recipe = ImitateRecipe(fit=fit(), target="form")
    said = [draw_target(recipe, backbone, puzzle, (0, step, 0))[1] for step in range(40)]
    assert said[0] == draw_target(recipe, backbone, puzzle, (0, 0, 0))[1]
    assert len(set(said)) > 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "both"}, "target is 'both'"),
        ({"lora_rank": -1}, "lora_rank is -1"),
        ({"fit": fit(zero=True)}, "zero is true; held puzzles are sampled from whole weights"),
    ],
)
def test_wrong_recipes_are_told(changes, message):
    with pytest.raises(LongtakeError, match=message):
        ImitateRecipe(**({"fit": fit()} | changes))


@pytest.mark.slow
def test_both_families_learn_on_puzzles(backbone, folder, records, split, tmp_path):
    """Supervised, then by rewards, with figures by level; the loss falls."""
    train = [puzzle_of(folder, record) for record in records if not split.is_held(record)]
    held = [puzzle_of(folder, record) for record in records if split.is_held(record)][:4]
    held.append(puzzle_of(folder, next(record for record in records if record.level == "L2")))
    recipe = ImitateRecipe(fit=fit(steps=30, micro_batch=4, eval_every=30, lr=1e-2), target="form", max_new_tokens=30)
    train_imitation(recipe, backbone, train, tmp_path / "warm", held=held, summary=figures)
    losses = list(logged(tmp_path / "warm").values())
    assert np.mean(losses[-3:]) < 0.6 * losses[0]
    draw = Draw(group=3, max_new_tokens=30)
    grpo = GrpoRecipe(fit=fit(steps=2, batch=2, micro_batch=1), draw=draw, controls=("blind",), samples_every=1)
    train_grpo(grpo, backbone, train, tmp_path / "grpo", held=held, summary=figures)
    rows = [json.loads(line) for line in (tmp_path / "grpo/log.jsonl").read_text().splitlines()]
    assert {"reward_selection", "reward_kendall", "norm"} <= rows[0].keys()
    assert {"held_exact", "held_L1_pairwise", "held_L2_kendall", "blind_selection"} <= rows[-1].keys()


@pytest.mark.slow
def test_resumed_supervised_learning_is_exact(folder, records, tmp_path):
    """Weights and order of puzzles go on as if nothing had happened, pictures encoded anew."""
    for run in ("whole", "short", "short"):
        backbone = own()
        train = [puzzle_of(folder, record) for record in records]
        train_imitation(ImitateRecipe(fit=fit()), backbone, train, tmp_path / run)
        if run == "short":
            (tmp_path / run / "checkpoint-00000006.pt").unlink(missing_ok=True)
    assert logged(tmp_path / "short") == logged(tmp_path / "whole")
    assert logged(tmp_path / "short", "norm") == logged(tmp_path / "whole", "norm")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"featured": True, "train_video": True, "lora_rank": 2}], ids=["full", "lora"])
def test_two_processes_imitate_as_one(tmp_path, changes):
    run_imitation(tmp_path / "one", held=True, **changes)
    run_together(2, stage="imitate", output=tmp_path / "two", held=True, **changes)
    for name in ("loss", "norm", "learned", "held_reward"):
        one, two = (list(logged(tmp_path / run, name).values()) for run in ("one", "two"))
        assert two == pytest.approx(one, rel=1e-5), name


def test_what_two_processes_cannot_share_is_refused(tmp_path, monkeypatch):
    processes = dataclasses.make_dataclass("Processes", [("num_processes", int)])(4)
    monkeypatch.setattr("longtake.train.imitate.start_processes", lambda fit: processes)
    with pytest.raises(LongtakeError, match="batch is 6; it must be a multiple of 4, the number of processes"):
        run_imitation(tmp_path, batch=6)


# -- what was sampled, beside its pictures --------------------------------------------------------------------------


def test_samples_stand_below_the_pictures_of_their_puzzles(folder, records, tmp_path):
    shown, other = records[0], records[-1]
    answer = {"text": "<1, 2>", "finished": True, "tokens": 4, "rewards": {"exact": 0.0}, "advantage": 0.0}
    rows = [
        {"step": 5, "puzzle": name, "level": "L1", "prompt": "Which?", "completions": [answer]}
        for name in (shown.id, "a question")
    ]
    (tmp_path / viewer.FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples(tmp_path, output=tmp_path / "page.html", puzzles=folder)
    page = (tmp_path / "page.html").read_text()
    first, second = page.split("<h2>")[1:]
    pictures = len(shown.context) + len(shown.candidates) + len(shown.truth)
    assert (first.count("<img"), second.count("<img")) == (pictures, 0)
    assert first.index("Truth") < first.index("&lt;1, 2&gt;")
    assert other.id not in page
    with pytest.raises(LongtakeError, match="text has no pictures; give --output"):
        samples(tmp_path, puzzles=folder)
    (tmp_path / viewer.FILE).write_text(json.dumps(rows[1]) + "\n")
    with pytest.raises(LongtakeError, match="has no puzzle that was sampled; give the folder"):
        samples(tmp_path, output=tmp_path / "page.html", puzzles=folder)
