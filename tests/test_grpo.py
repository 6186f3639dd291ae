"""The loop on tiny models: exact gradients of the shared prompt, a reward that rises, resuming, every method."""

import dataclasses
import json
import re

import pytest
import torch
from peft.tuners.lora import LoraLayer

import tiny
from grpo_runs import Letters, own, puzzles, qwen, recipe, run_grpo, sampled_logprobs
from longtake.backbones import load_backbone
from longtake.backbones.attention import Branches, branched_attention, causal_attention
from longtake.backbones.language import nucleus
from longtake.cli.samples import samples
from longtake.data.puzzles.draws import another_order
from longtake.train import checkpoint, lora, viewer
from longtake.train.grpo import train_grpo
from longtake.train.grpo_recipe import prepare
from longtake.train.judging import experience, judge, judge_by_teacher
from longtake.train.losses import Objective, policy_loss
from longtake.train.methods import METHODS, Method, Segments, Teaching
from longtake.train.policy import Policy
from longtake.train.puzzles import QuestionPuzzle
from longtake.train.rollouts import Draw, Experience, Group, answer_greedily, roll, shuffled, split_after
from longtake.train.run import gathered
from longtake.types import LongtakeError, Rollout
from stage_runs import logged

DRAW = Draw(group=3, max_new_tokens=6)


pytestmark = pytest.mark.usefixtures("one_thread")


def made_of(backbone, *, featured=False) -> Experience:
    """A sampled group of unequal lengths, with advantages and the log-probabilities of a policy a little different."""
    (puzzle,) = puzzles(backbone, 1, featured=featured)
    group = roll(backbone, puzzle, DRAW, (3,))
    first, second, third = group.rollouts
    short = dataclasses.replace(second, ids=second.ids[:2], logprobs=second.logprobs[:2])
    group = Group(puzzle=puzzle, rollouts=(first, short, third))
    noise = 0.3 * torch.randn(group.mask.shape, generator=torch.Generator().manual_seed(0))
    return Experience(
        group=group,
        advantages=torch.tensor([1.0, -0.5, 0.3]),
        mask=group.mask,
        old=sampled_logprobs(group) + noise * group.mask,
    )


def naive_loss(backbone, own_: Experience, objective: Objective) -> torch.Tensor:
    """Every completion runs its whole prompt again."""
    prompts = [own_.group.puzzle.prompt(backbone)] * len(own_.ids)
    logprobs = backbone.logprobs(backbone.prepare(prompts), own_.ids)
    assert own_.old is not None
    return policy_loss(
        logprobs, own_.old, own_.advantages, own_.mask, objective, longest=DRAW.max_new_tokens
    ).loss


def gradients(backbone) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in backbone.model.named_parameters() if p.grad is not None}
    backbone.model.zero_grad()
    return found


@pytest.mark.parametrize("rank", [0, 2], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["own", "qwen"])
def test_gradients_are_those_of_whole_prompts(family, rank):
    backbone = own() if family == "own" else qwen()
    prepare(recipe(lora_rank=rank), backbone)
    if rank:
        for name, parameter in backbone.model.named_parameters():
            if "lora_B" in name:  # zero at first, which would leave the others without a gradient
                torch.nn.init.normal_(parameter, std=0.05)
    own_, objective = made_of(backbone), Objective()
    loss = naive_loss(backbone, own_, objective)
    loss.backward()
    expected = gradients(backbone)
    shared = Policy(backbone, objective, DRAW)(own_)[0]
    shared.backward()
    found = gradients(backbone)
    assert float(shared.detach()) == pytest.approx(float(loss.detach()), abs=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-4)
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-2


@pytest.mark.parametrize("family", ["own", "qwen"])
@pytest.mark.parametrize("method", ["grpo", "dapo", "gspo"])
def test_several_groups_in_one_pass_have_the_sums_and_gradients_of_each(family, method):
    """Prompts and completions of unequal lengths, with a reference."""
    backbone = own() if family == "own" else qwen()
    prepare(recipe(), backbone)
    one = made_of(backbone)
    asked = QuestionPuzzle(name="b", question="which of all these?", answers=("a",), tokens=one.group.puzzle.tokens)
    group = roll(backbone, asked, dataclasses.replace(DRAW, max_new_tokens=4), (5,))
    other = dataclasses.replace(
        one,
        group=group,
        mask=group.mask,
        advantages=torch.tensor([-1.0, 0.5, 0.7]),
        old=sampled_logprobs(group) - 0.1 * group.mask,
    )
    parts = [dataclasses.replace(part, reference=part.old) for part in (one, other)]
    policy = Policy(backbone, dataclasses.replace(METHODS[method].objective, kl=0.1), DRAW)
    apart = torch.stack([torch.stack(policy(part)) for part in parts]).sum(0)
    apart[0].backward()
    expected = gradients(backbone)
    together = torch.stack(policy(*parts))
    together[0].backward()
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients(backbone).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["own", "qwen"])
def test_passes_of_several_groups_train_alike(family, tmp_path):
    """Dropped groups leave a short last pass; steps, figures and weights stay."""
    weights = []
    for size in (1, 3):
        backbone = own() if family == "own" else qwen()
        told = recipe(method="dapo", steps=2, **{"lr": 1e-3})
        told = dataclasses.replace(told, fit=dataclasses.replace(told.fit, micro_batch=size))
        train_grpo(told, backbone, puzzles(backbone), tmp_path / f"{size}")
        weights.append(torch.cat([p.detach().flatten() for p in backbone.model.parameters()]))
    assert logged(tmp_path / "1", "tokens") == logged(tmp_path / "3", "tokens")
    torch.testing.assert_close(weights[1], weights[0], atol=2e-5, rtol=1e-4)


def test_a_prompt_without_gradient_has_the_loss_and_not_the_gradients():
    """What the shared prompt must not be: the naive loss from detached states of the prompt, as a cache gives them."""
    backbone = own()
    prepare(recipe(), backbone)
    own_, objective = made_of(backbone), Objective()
    naive_loss(backbone, own_, objective).backward()
    expected = gradients(backbone)
    inputs = backbone.prepare([own_.group.puzzle.prompt(backbone)])
    cache = backbone.prefill(inputs)
    total = torch.zeros(())
    for row, ids in enumerate(own_.ids):
        cut = backbone.prefill(inputs, cache)
        embedded = backbone.embed(torch.tensor([ids]))
        places = inputs.next_position[:, None] + torch.arange(len(ids))
        states = backbone.run(embedded, places, None, cut.key_values)
        logits = torch.cat([cut.logits[:, None], backbone.head(states[:, :-1])], dim=1)
        logprobs = backbone._log_softmax(logits).gather(-1, torch.tensor([ids])[..., None])[..., 0]
        one = slice(row, row + 1)
        total = total + policy_loss(
            logprobs, own_.old[one, : len(ids)], own_.advantages[one], own_.mask[one, : len(ids)], objective, longest=6
        ).loss
    total.backward()
    assert float(total.detach()) == pytest.approx(float(naive_loss(backbone, own_, objective).detach()), abs=1e-5)
    found = gradients(backbone)
    name = "language_model.model.layers.0.self_attn.v_proj.weight"
    assert float((found[name] - expected[name]).abs().max()) > 0.05 * float(expected[name].abs().max())


def test_the_parts_before_the_language_model_learn_from_stored_features():
    backbone = own()
    prepare(recipe(train_video=True), backbone)
    own_, objective = made_of(backbone, featured=True), Objective()
    naive_loss(backbone, own_, objective).backward()
    expected = gradients(backbone)
    Policy(backbone, objective, DRAW)(own_)[0].backward()
    found = gradients(backbone)
    assert found.keys() == expected.keys()
    assert float(expected["projector.0.weight"].abs().max()) > 1e-6
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-4)


def test_features_stand_for_their_frames():
    for backbone in (own(), qwen()):
        shown = tiny.frames(4, 32, 32)
        with torch.no_grad():
            made = backbone.encode_features(backbone.tower_features(shown), torch.from_numpy(shown.seconds))
            if backbone.video_parts:
                expected = backbone.encode(shown)
                torch.testing.assert_close(made.features, expected.features)
                assert torch.equal(made.position, expected.position)
                assert torch.equal(made.seconds, expected.seconds)
            else:
                assert made.grid == (4, *backbone.encode(shown).grid[1:])  # a group a frame
                assert made.seconds.unique().tolist() == [0, 1, 2, 3]


def test_checkpointing_changes_no_gradient():
    found = []
    for on in (False, True):
        backbone = own()
        prepare(recipe(checkpointing=on), backbone)
        own_ = made_of(backbone)
        policy = Policy(backbone, Objective(), DRAW).train()
        with pytest.raises(AssertionError, match="eval mode"):  # with layers computed again there is no cache
            roll(backbone, own_.group.puzzle, DRAW, (1,))
        policy(own_)[0].backward()
        found.append(gradients(backbone))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_branches_by_full_attention():
    """Stem of 5, 3 branches of 4, one row padded: against rows of their own."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 17, 8, generator=generator) for heads in (4, 2, 2))
    mask = torch.ones(2, 17, dtype=torch.bool)
    mask[1, :2] = False
    for seen in (None, mask):
        found = branched_attention(query, key, value, seen, Branches(stem=5, count=3), scaling=0.3)
        for branch in range(3):
            columns = [*range(5), *range(5 + 4 * branch, 9 + 4 * branch)]
            q, k, v = (part[:, :, columns] for part in (query, key, value))
            expected = causal_attention(q, k, v, None if seen is None else seen[:, columns], scaling=0.3)
            first = 0 if seen is None else 2
            torch.testing.assert_close(found[:, :, columns][:, :, first:], expected[:, :, first:])


def test_logits_are_made_a_part_at_a_time(monkeypatch):
    backbone = own()
    prepare(recipe(), backbone)
    policy, own_ = Policy(backbone, Objective(), DRAW), made_of(backbone)
    policy(own_)[0].backward()
    expected = gradients(backbone)
    monkeypatch.setattr("longtake.backbones.language.LOGITS", 1)
    policy(own_)[0].backward()
    for name, gradient in gradients(backbone).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5)


def test_the_nucleus_by_hand():
    logprobs = torch.tensor([[0.5, 0.1, 0.3, 0.1]]).log()
    assert nucleus(logprobs, 0.7).exp().tolist() == [pytest.approx([0.625, 0, 0.375, 0])]
    assert nucleus(logprobs, 0.1).exp().tolist() == [[1, 0, 0, 0]]
    torch.testing.assert_close(nucleus(logprobs, 1.0), logprobs)


def test_a_nucleus_is_sampled_from():
    backbone = own()
    (puzzle,) = puzzles(backbone, 1)
    group = roll(backbone, puzzle, Draw(group=6, top_p=1e-6, max_new_tokens=4), (1,))
    greedy = answer_greedily(backbone, puzzle, 4)
    assert all(rollout.ids == greedy.ids for rollout in group.rollouts)
    assert group.rollouts[0].logprobs == pytest.approx([0.0] * len(greedy.ids))


@pytest.mark.parametrize("family", ["own", "qwen"])
def test_scores_are_of_the_distribution_that_was_sampled_from(family):
    """At the sampling temperature, and with placeholders banned in both."""
    backbone = own() if family == "own" else qwen()
    (puzzle,) = puzzles(backbone, 1)
    draw = Draw(group=4, temperature=0.7, max_new_tokens=6)
    group = roll(backbone, puzzle, draw, (2,))
    assert not {token for rollout in group.rollouts for token in rollout.ids} & set(backbone._banned.tolist())
    with torch.no_grad():
        given = Policy(backbone, Objective(), draw).logprobs(group)
    torch.testing.assert_close(given, sampled_logprobs(group), atol=1e-4, rtol=1e-4)


def test_a_group_depends_on_its_seed_only():
    backbone = own()
    (puzzle,) = puzzles(backbone, 1)
    one, again, other = (roll(backbone, puzzle, DRAW, seed) for seed in ((1, 2), (1, 2), (1, 3)))
    assert [r.ids for r in one.rollouts] == [r.ids for r in again.rollouts] != [r.ids for r in other.rollouts]


def test_the_reference_is_the_adapter_switched_off():
    backbone = own()
    (puzzle,) = puzzles(backbone, 1)
    policy = Policy(backbone, Objective(kl=0.1), DRAW)
    group = roll(backbone, puzzle, DRAW, (1,))
    with torch.no_grad():
        before = policy.logprobs(group)
    prepare(recipe(lora_rank=2), backbone)
    for name, parameter in backbone.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        assert not torch.allclose(policy.logprobs(group), before, atol=1e-3)
    torch.testing.assert_close(policy.reference_logprobs(group), before)
    assert any(p.requires_grad for p in backbone.model.parameters())
    lora.merge(backbone.decoder)
    assert not [name for name, _ in backbone.model.named_parameters() if "lora" in name]


def rollout(text: str = "", finished: bool = True, ids: tuple[int, ...] = (1, 2), **rewards: float) -> Rollout:
    return Rollout(text=text, ids=ids, logprobs=(0.0,) * len(ids), finished=finished, rewards=rewards)


def test_truncated_completions_are_masked_and_still_compared():
    group = Group(puzzle=None, rollouts=(rollout(exact=1.0), rollout(finished=False, exact=0.0)))
    verdict = judge([group.parts(["exact"])], ["exact"], {"exact": 1.0}, METHODS["dr_grpo"])
    made = experience(group, verdict, 0, METHODS["dr_grpo"], None, old=None)
    assert made.mask.tolist() == [[True, True], [False, False]]
    assert made.advantages.tolist() == [0.5, -0.5]


def test_segments_are_judged_apart():
    method = Method(segments=Segments(marker="</fps>", before={"sampling": 1.0}))
    tokenizer = tiny.tokenizer()
    texts = ("ab</fps>c", "no span")
    rollouts = tuple(
        rollout(text, ids=tuple(tokenizer(text)["input_ids"]), sampling=1.0 - n, exact=float(n))
        for n, text in enumerate(texts)
    )
    group = Group(puzzle=None, rollouts=rollouts)
    names = ["sampling", "exact"]
    verdict = judge([group.parts(names)], names, {"exact": 1.0}, method)
    made = experience(group, verdict, 0, method, own(), old=None)
    up = pytest.approx(0.7070, abs=1e-3)
    assert made.advantages[0, :8].tolist() == [up] * 8  # sampled well
    assert made.advantages[0, 8:].tolist() == [pytest.approx(-0.7070, abs=1e-3)]  # and answered wrongly
    assert made.advantages[1, :7].tolist() == [up] * 7
    assert split_after(rollouts[1], "</fps>", tokenizer.decode) == 0


def test_another_order_is_never_their_own():
    assert [another_order(2, seed).tolist() for seed in range(20)] == [[1, 0]] * 20
    assert another_order(5, (3, 1)).tolist() == [1, 4, 0, 2, 3]


def test_shuffled_frames_keep_their_times():
    backbone = own()
    with torch.no_grad():
        tokens = backbone.encode(tiny.frames(12, 32, 32))
    mixed = shuffled(tokens, (1,))
    assert torch.equal(mixed.seconds, tokens.seconds)
    groups = {tuple(part.flatten().tolist()) for part in tokens.features.split(4)}
    assert {tuple(part.flatten().tolist()) for part in mixed.features.split(4)} == groups
    assert not torch.equal(mixed.features, tokens.features)
    with pytest.raises(LongtakeError, match="kept 3 of"):
        shuffled(tokens[torch.arange(3)], (1,))


def test_tvdf_masks_what_teaches_little():
    """Reliable where the teacher answers in letters; of the samples, the half that it disagrees with most stays."""
    student, teacher = own(), own()
    with torch.no_grad():
        for parameter in teacher.decoder.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    policy = Policy(student, Objective(), DRAW)
    made = {}
    for place, puzzle in enumerate(puzzles(student, 2)):
        group = roll(student, puzzle, DRAW, (place,))
        with torch.no_grad():
            old = policy.logprobs(group)
        made[place] = Experience(group=group, advantages=torch.zeros(3), mask=group.mask, old=old)
    every = judge_by_teacher(made, policy, teacher, Teaching(share=0.0), {"letters": 1.0})
    half = judge_by_teacher(made, policy, teacher, Teaching(least=0.0, share=0.5), {"letters": 1.0})
    none = judge_by_teacher(made, policy, teacher, Teaching(least=2.0, share=0.5), {"letters": 1.0})
    assert all(torch.equal(every[place].mask, made[place].mask) for place in made)
    assert sum(int(half[place].mask.any(1).sum()) for place in made) == 3
    assert not any(none[place].mask.any() for place in made)
    with torch.no_grad():
        given = teacher.logprobs(teacher.prepare([made[0].group.puzzle.prompt(teacher)]), made[0].ids)
    torch.testing.assert_close(every[0].advantages, (given - made[0].old) * made[0].mask)


@pytest.mark.slow
def test_the_reward_rises(tmp_path):
    """From a tenth to above a third in a few seconds, and greedy answers learn it too; puzzles of both levels."""
    changes = {"steps": 20, "lr": 1e-2, "group": 8, "eval_every": 100, "save_every": 100}
    run_grpo(tmp_path / "run", held=True, **changes)
    rewards = list(logged(tmp_path / "run", "reward_letters").values())
    assert sum(rewards[:3]) / 3 < 0.15
    assert sum(rewards[-3:]) / 3 > 0.35
    assert logged(tmp_path / "run", "held_letters")[20] > 0.6
    assert set(logged(tmp_path / "run", "clipped").values()) == {0.0}  # one update: on policy
    loaded = load_backbone(str(tmp_path / "run" / "model"))
    (puzzle,) = puzzles(loaded, 1)
    assert answer_greedily(loaded, puzzle, 6).rewards["letters"] > 0.6


MANY = {
    "dr_grpo": {"method": "dr_grpo"},
    "dapo, four updates": {"method": "dapo", "updates": 4},
    "gspo": {"method": "gspo", "updates": 2},
    "cispo": {"method": "cispo"},
    "rloo": {"method": "rloo"},
    "gdpo": {"method": "gdpo"},
    "opd": {"method": "opd"},
    "lora and kl": {"lora_rank": 2, "kl": 0.04, "updates": 2},
    "t-grpo": {"contrast": 0.3},
    "qwen": {"family": "qwen"},
    "qwen, lora": {"family": "qwen", "lora_rank": 2},
    "features": {"featured": True, "train_video": True},
    "bf16": {"precision": "bf16"},
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", MANY.values(), ids=MANY)
def test_every_method_runs(tmp_path, changes):
    run_grpo(tmp_path, steps=2, held=True, controls=("blind", "shuffled"), **changes)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert {"reward", "flat", "truncated", "entropy", "norm"} <= rows[1].keys()
    assert {"held_exact", "blind_exact", "shuffled_exact"} <= rows[2].keys()
    assert rows[1]["norm"] > 0
    if changes.get("kl"):
        assert rows[1]["kl"] > 0
    if "contrast" in changes:
        assert "reward_temporal" in rows[1]
    if changes.get("updates") == 4:
        assert rows[1]["clipped"] > 0


def test_groups_that_do_not_differ_are_dropped(tmp_path):
    """All of them: nothing moves, the step says so, and training goes on."""
    dull = dataclasses.replace(METHODS["dapo"], mask_truncated=False)
    run_grpo(tmp_path, steps=2, method=dull, weights={"letters": 1e-9})
    assert list(logged(tmp_path, "skipped").values()) == [1.0, 1.0]
    assert list(logged(tmp_path, "flat").values()) == [1.0, 1.0]


@pytest.mark.slow
def test_resuming_is_exact(tmp_path):
    """Weights, optimiser, curriculum and sampling go on as if nothing had happened."""
    settings = {"held": True, "eval_every": 3, "lora_rank": 2}
    run_grpo(tmp_path / "whole", **settings)
    run_grpo(tmp_path / "short", **settings)
    (tmp_path / "short" / "checkpoint-00000006.pt").unlink()
    assert checkpoint.last_step(tmp_path / "short") == 4
    run_grpo(tmp_path / "short", **settings)
    for name in ("loss", "norm", "reward", "p_easy", "held_reward", "entropy"):
        assert logged(tmp_path / "short", name) == logged(tmp_path / "whole", name), name
    samples = [(tmp_path / run / viewer.FILE).read_text() for run in ("whole", "short")]
    assert samples[0] == samples[1]


def test_samples_can_be_read(tmp_path, capsys):
    run_grpo(tmp_path, steps=2)
    rows = viewer.read(tmp_path)
    assert [row["step"] for row in rows] == [2]
    assert len(rows[0]["completions"]) == 4
    text = viewer.as_text(rows)
    assert "step 2" in text
    assert "letters" in text
    samples(tmp_path)
    assert "step 2" in capsys.readouterr().out
    samples(tmp_path, output=tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == viewer.as_html(rows)
    with pytest.raises(LongtakeError, match="samples.jsonl ends in '.jsonl'; give a name that ends in .html"):
        samples(tmp_path, output=tmp_path / viewer.FILE)
    with (tmp_path / viewer.FILE).open("a") as sink:
        sink.write('{"step": 4, "puz')  # as a run leaves it that is writing, or was killed
    assert viewer.read(tmp_path) == rows
    (tmp_path / viewer.FILE).write_bytes(b"\xff\n")
    with pytest.raises(LongtakeError, match=r"samples\.jsonl:1: no sample .*; remove the line, or the file"):
        viewer.read(tmp_path)
    with pytest.raises(LongtakeError, match="does not exist; make it first"):
        samples(tmp_path, output=tmp_path / "none" / "page.html")
    hostile = rollout("<script>alert(1)</script>", finished=False, exact=0.5)
    group = Group(puzzle=Letters(name="a<b", tokens=None), rollouts=(hostile,))
    page = viewer.as_html([viewer.row_of(1, "what <b>?", group, [0.25])])
    assert "&lt;script&gt;" in page
    assert "[cut off]" in page
    assert not re.search(r"<script|<b>|https?:", page)
    with pytest.raises(LongtakeError, match=r"holds no samples\.jsonl"):
        viewer.read(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard": True}, "shard is true; sampling needs whole weights"),
        ({"zero": True}, "zero is true"),
        ({"kl": 0.1}, "kl is 0.1, but the reference is the model without its LoRA"),
        ({"kl": 0.1, "lora_rank": 2, "train_video": True}, "kl is 0.1 and train_video is true"),
        ({"lora_rank": 2, "lora_alpha": 0.0}, "lora_alpha is 0.0; it must be above 0"),
        ({"group": 1}, "group is 1; it must be at least 2"),
        ({"weights": {"letters": 0.0}}, "all weights are 0"),
        ({"updates": 0}, "updates 0"),
        ({"weights": {"speed": 1.0}}, "names 'speed'; the rewards have the parts letters, exact, short"),
        ({"success": "speed"}, "names 'speed'"),
        ({"family": "qwen", "train_video": True}, "train_video is true"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path, changes, message):
    with pytest.raises(LongtakeError, match=message):
        run_grpo(tmp_path, **changes)


def test_teachers_and_puzzles_are_checked(tmp_path):
    backbone = own()
    with pytest.raises(LongtakeError, match="a teacher and a method with teaching go together"):
        train_grpo(recipe(), backbone, puzzles(backbone), tmp_path, teacher=own())
    tokens = backbone.encode(tiny.frames(4, 32, 32))
    asked = QuestionPuzzle(name="which", question="which?", answers=("a",), tokens=tokens)
    exact = recipe(method="opd", weights={"exact": 1.0})
    with pytest.raises(LongtakeError, match="which has tokens of one model, and the teacher would be shown them"):
        train_grpo(exact, backbone, [asked], tmp_path, teacher=own())
    with pytest.raises(LongtakeError, match="there are no puzzles"):
        train_grpo(recipe(), backbone, [], tmp_path)
    for name, message in {"temperature": "temperature is 0", "top_p": "top_p 0", "group": "group is 0"}.items():
        with pytest.raises(LongtakeError, match=message):
            Draw(**{name: 0})


def test_a_teacher_may_see_more_than_the_student(tmp_path):
    short, long = tiny.frames(4, 32, 32), tiny.frames(8, 32, 32)
    student, teacher = own(), own()
    shown = {student: short, teacher: long}
    asked = QuestionPuzzle(
        name="which", question="which?", answers=("a",), watched=lambda backbone: backbone.encode(shown[backbone])
    )
    assert len(asked.prompt(teacher).tokens) == 2 * len(asked.prompt(student).tokens)
    steps = recipe(method="opd", weights={"exact": 1.0}, steps=1, batch=1)
    train_grpo(steps, student, [asked], tmp_path, teacher=teacher)
    (row,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert row["step"] == 1


def test_the_scale_of_lora_may_be_a_fraction():
    backbone = own()
    lora.add(backbone.decoder, 2, 0.5)
    scales = [m.scaling["default"] for m in backbone.decoder.modules() if isinstance(m, LoraLayer)]
    assert scales
    assert set(scales) == {0.25}


def test_gathering_alone_sorts():
    assert gathered({2: "c", 0: "a", 1: "b"}) == ["a", "b", "c"]
