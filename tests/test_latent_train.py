"""Latent self-forcing on tiny models: losses and gradients against ones written out, resuming, modes and teachers."""

import copy
import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

from latent_runs import coloured, made, questions, recipe, run_latent
from longtake.backbones import load_backbone
from longtake.backbones.base import Prompt
from longtake.backbones.thinking import think, visual_columns, with_latents
from longtake.train import checkpoint, latent_exam
from longtake.train.forcing import FIGURES, Forcing, Rows, bottleneck
from longtake.train.latent import Queue, draw_questions, groups_of, rows_of, train_latent
from longtake.train.latent_exam import Partner, latents_of, partners
from longtake.train.latent_losses import alike_within, disagreement
from longtake.train.latent_recipe import prepare
from longtake.train.puzzles import QuestionPuzzle
from longtake.train.run import Run, start_processes
from longtake.types import LongtakeError
from stage_runs import logged
from thoughts import FAMILIES

pytestmark = pytest.mark.usefixtures("one_thread")


def forcing(family="own", *, count=2, first=0, veiled=False, queue=None, **changes):
    """A module that is ready to learn, with an open gate, and a micro-batch."""
    backbone, chosen = made(family), recipe(**changes)
    prepare(chosen, backbone)
    if backbone.latent is not None and chosen.settings.reread:
        backbone.latent.gate.data.fill_(0.5)
    kept = queue or Queue(chosen.queue)
    rows = rows_of(chosen, backbone, questions(backbone, count, first), kept, {}, veiled)
    return Forcing(backbone, chosen), rows


def grads(module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


def written_out(module: Forcing, puzzle: QuestionPuzzle, veiled: bool) -> dict[str, float]:
    """One row's figures with eager attention, whole sequences and a mask of all pairs written by a loop."""
    backbone, chosen = module.backbone, module.recipe
    decoder, latent = copy.deepcopy(backbone.decoder), backbone.latent
    decoder.set_attn_implementation("eager")
    inputs = backbone.prepare([puzzle.prompt(backbone)])
    ids = [*backbone.text_ids(puzzle.answers[0]).tolist(), backbone.end_id]
    visual = [column for column, source in enumerate(inputs.source[0].tolist()) if source >= 0]
    length, count = inputs.ids.shape[1], latent.settings.thinking.latents

    def states(embeddings, positions):
        columns = embeddings.shape[1]
        allowed = torch.ones(columns, columns).tril().bool()
        for query in range(columns):
            if veiled and visual and query > visual[-1] and not length < query <= length + count:
                allowed[query, visual[0] : visual[-1] + 1] = False
        return decoder(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask=torch.zeros(1, 1, columns, columns).masked_fill(~allowed, float("-inf")),
            use_cache=False,
        ).last_hidden_state

    seen = latent.read(inputs.embeddings[:, visual], torch.ones(1, len(visual), dtype=torch.bool))
    now = latent(latent.slots[None, :count], seen)
    for _ in range(latent.settings.thinking.passes):
        whole = with_latents(inputs, now.latents, latent)
        now = latent(states(whole.embeddings, whole.positions)[:, length + 1 : length + 1 + count], seen)
    whole = with_latents(inputs, now.latents, latent)
    places = whole.next_position[:, None] + torch.arange(len(ids))
    final = states(
        torch.cat([whole.embeddings, backbone.embed(torch.tensor([ids]))], dim=1),
        torch.cat([whole.positions, places.expand(*whole.positions.shape[:-1], -1)], dim=-1),
    )
    stop = whole.ids.shape[1]
    logits = backbone.head(final[0, stop - 1 : -1])
    again = latent(final[:, length + 1 : length + 1 + count], seen).content
    return {
        "answer": float(F.cross_entropy(logits, torch.tensor(ids))),
        "align": 0.0 if veiled else float(disagreement(again, now.content)),
        "within": float(alike_within(now.content, chosen.margin)),
    }


@pytest.mark.parametrize("veiled", [False, True], ids=["open", "veiled"])
@pytest.mark.parametrize("family", ["own", "larger", "qwen"])
def test_the_loss_written_out(family, veiled):
    """Three rows of unequal length, one without a video, padded in one batch; and their weighted sum."""
    module, rows = forcing(family, count=3, first=4, veiled=veiled)
    expected = {name: 0.0 for name in ("answer", "align", "within")}
    with torch.no_grad():
        for puzzle in questions(module.backbone, 3, 4):
            for name, value in written_out(module, puzzle, veiled).items():
                expected[name] += value
        loss, figures, content = module(rows)
    found = dict(zip(FIGURES, figures.tolist(), strict=True))
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=2e-3), name
    weighted = found["answer"] + 0.1 * found["align"] + 0.1 * found["within"]
    assert float(loss) == pytest.approx(weighted, abs=1e-4)
    assert content.shape[:2] == (3, 3)


@pytest.mark.parametrize("mode", ["parallel", "autoregressive", "pause"])
def test_latents_that_spell(mode):
    """The loss is more by the weighted cross-entropy of words at the states that latents are made of."""
    module, rows = forcing(count=2, spell=0.7, align=0.0, mode=mode)
    backbone = module.backbone
    rows = dataclasses.replace(rows, steps=(("red",), ("blue", "a", "green", "red")))
    with torch.no_grad():
        loss, figures, _ = module(rows)
        module.recipe = dataclasses.replace(module.recipe, spell=0.0)
        without, _, _ = module(rows)
        expected = 0.0
        for prompt, text, words in zip(rows.prompts, rows.answers, rows.steps, strict=True):
            thinking = backbone.latent.settings.thinking
            inputs = backbone.prepare([prompt])
            thought = think(backbone, inputs, thinking=thinking)
            run = backbone.decoder(inputs_embeds=thought.inputs.embeddings, use_cache=False).last_hidden_state[0]
            first = int(backbone.text_ids(text)[0])
            said = [int(backbone.text_ids(" " + word)[0]) for word in words] + [first] * 3
            at = inputs.ids.shape[1] + (mode != "autoregressive")
            for column, word in enumerate(said[:3], start=at):
                expected -= float(backbone.head(run[column]).log_softmax(-1)[word]) / 3
    spelled = dict(zip(FIGURES, figures.tolist(), strict=True))["spelled"]
    assert spelled == pytest.approx(expected, rel=1e-4)
    assert float(loss - without) == pytest.approx(0.7 * spelled, rel=1e-3)


def test_what_is_injected_is_what_inference_makes():
    """The rollout in training, in train mode with layers computed again, and ``think`` give the same latents."""
    module, rows = forcing(checkpointing=True)
    module.train()
    _, _, content = module(rows)
    assert module.model.training
    module.eval()
    thinking = module.backbone.latent.settings.thinking
    thought = think(module.backbone, module.backbone.prepare(rows.prompts), thinking=thinking)
    slots = module.backbone.latent.slots
    made_again = content + slots
    made_again = made_again / made_again.square().mean(-1, keepdim=True).sqrt() * module.backbone.latent.rms
    torch.testing.assert_close(made_again.detach(), thought.latents, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["own", "qwen"])
def test_gradients_by_finite_differences(family):
    """With no pass nothing is detached but the prompt's cache, so that differences tell all of a latent's gradient."""
    queue = Queue(8)
    for number in range(3):
        content = torch.randn(3, 32, generator=torch.Generator().manual_seed(number))
        queue.put(f"other{number}", content)
    module, rows = forcing(family, passes=0, align=0.0, diverse=3.0, margin=-0.9, margin_across=-0.9, queue=queue)
    module.double()
    module.backbone.latent.double()
    rows = dataclasses.replace(rows, others=rows.others.double())
    module(rows)[0].backward()
    found = grads(module)
    parameters = dict(module.named_parameters())
    for name in ("slots", "slot_queries", "project.0.weight", "output.weight", "key_value.weight", "gate", "end"):
        flat = parameters[f"model.latent.{name}"].data.view(-1)
        place = int(found[f"model.latent.{name}"].abs().argmax())
        before, losses = float(flat[place]), []
        for shift in (1e-4, -1e-4):
            flat[place] = before + shift
            with torch.no_grad():
                losses.append(float(module(rows)[0]))
        flat[place] = before
        gradient = float(found[f"model.latent.{name}"].view(-1)[place])
        assert (losses[0] - losses[1]) / 2e-4 == pytest.approx(gradient, rel=2e-2, abs=1e-5), name
        assert abs(gradient) > 1e-6, name


@pytest.mark.parametrize("part", ["answer", "align"])
def test_which_way_gradients_go(part):
    """Answers teach the latents through the injected ones; alignment reaches what is predicted, not its target."""
    module, rows = forcing()
    backbone, latent = module.backbone, module.backbone.latent
    inputs = backbone.prepare(rows.prompts)
    thinking = latent.settings.thinking
    with torch.no_grad():
        own = think(backbone, inputs, thinking=thinking).latents
    leaf = own.clone().requires_grad_()
    whole = with_latents(inputs, leaf, latent)
    answers = [torch.cat([backbone.text_ids(text), torch.tensor([backbone.end_id])]) for text in rows.answers]
    states, _ = module.forced(whole, answers, None)
    if part == "answer":
        module.answer_loss(states, whole.ids.shape[1], answers).sum().backward()
        assert float(leaf.grad.abs().max()) > 1e-5
        assert latent.project[0].weight.grad is None  # nothing of the module but what was injected
        return
    target = latent.begin(2, 3, latent.read(*visual_of(module, inputs)))
    module.alignment(inputs, states, target).sum().backward()
    aligned = grads(module)
    assert "model.latent.project.0.weight" in aligned
    inputs = backbone.prepare(rows.prompts)
    again = latent.begin(2, 3, latent.read(*visual_of(module, inputs)))
    states, _ = module.forced(with_latents(inputs, own, latent), answers, None)
    detached = dataclasses.replace(again, content=again.content.detach())
    module.alignment(inputs, states, detached).sum().backward()
    for name, gradient in grads(module).items():
        torch.testing.assert_close(aligned[name], gradient, atol=1e-6, rtol=1e-4)


def visual_of(module, inputs):
    columns, mask = visual_columns(inputs)
    places = columns[..., None].expand(-1, -1, inputs.embeddings.shape[-1])
    return inputs.embeddings.gather(1, places).detach(), mask


@pytest.mark.parametrize("rank", [0, 2], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["own", "larger", "qwen"])
def test_checkpointing_changes_no_gradient(family, rank):
    found = []
    for on in (False, True):
        module, rows = forcing(family, checkpointing=on, lora_rank=rank)
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                torch.manual_seed(len(name))
                torch.nn.init.normal_(parameter, std=0.05)
        module.train()
        module(rows)[0].backward()
        found.append(grads(module))
    assert found[0].keys() == found[1].keys()
    assert any("q_proj" in name and float(gradient.abs().max()) > 1e-5 for name, gradient in found[0].items())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-5)


WAYS = {
    "parallel": {},
    "one by one": {"mode": "autoregressive"},
    "pause": {"mode": "pause"},
    "nothing read again": {"reread": False},
    "no pass": {"passes": 0},
    "video": {"teacher": "video"},
    "no latents": {"thinks": False},
    "through all": {"through": True},
    "through all, one by one": {"through": True, "mode": "autoregressive"},
    "lora": {"lora_rank": 2},
    "spelled": {"spell": 1.0},
}


@pytest.mark.parametrize("changes", WAYS.values(), ids=WAYS)
def test_every_trained_weight_has_a_gradient(changes):
    """As processes that share weights need it, in both stages."""
    for veiled in (False, True):
        module, rows = forcing(veiled=veiled, **changes)
        module(rows)[0].backward()
        trained = {name for name, p in module.named_parameters() if p.requires_grad}
        assert trained == set(grads(module))


@pytest.mark.parametrize(("hides", "other"), [("video", "Which?"), ("prompt", "What?")])
def test_in_the_bottleneck_an_answer_knows_the_latents_alone(hides, other):
    """Given the same latents another video, and with the prompt hidden another question, change nothing."""
    module, _ = forcing(count=1)
    backbone, latent = module.backbone, module.backbone.latent
    answers = [torch.tensor([5, backbone.end_id])]
    given = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    found = {}
    for veiled in (True, False):
        for video, question in enumerate(("Which?", other)):
            (puzzle,) = questions(backbone, 1, video)
            inputs = backbone.prepare([Prompt(question=question, tokens=puzzle.tokens)])
            veil = bottleneck(inputs, 3, 2, hides) if veiled else None
            if veil is not None:  # latents are given: what they see themselves is left out, too
                veil.blind[:, inputs.ids.shape[1] + 1 :] = True
            states, _ = module.forced(with_latents(inputs, given, latent), answers, veil)
            found[veiled, video] = states[0, -2:].detach()
    assert torch.allclose(found[True, 0], found[True, 1], atol=1e-6)
    assert float((found[False, 0] - found[False, 1]).abs().max()) > 1e-4


def test_the_bottleneck_by_hand():
    module, _ = forcing(count=1)
    (puzzle,) = questions(module.backbone, 1)
    inputs = module.backbone.prepare([puzzle.prompt(module.backbone), Prompt(question="Which?")])
    veil = bottleneck(inputs, 3, 2)
    length = inputs.ids.shape[1]
    visual = (inputs.source[0] >= 0).nonzero().flatten().tolist()
    assert veil.hidden[0].nonzero().flatten().tolist() == list(range(visual[0], visual[-1] + 1))
    after = [*range(visual[-1] + 1, length + 1), *range(length + 4, length + 7)]
    assert veil.blind[0].nonzero().flatten().tolist() == after
    assert not veil.hidden[1].any()
    assert not veil.blind[1].any()


def test_the_hidden_prompt_by_hand():
    module, _ = forcing(count=1)
    (puzzle,) = questions(module.backbone, 1)
    inputs = module.backbone.prepare([puzzle.prompt(module.backbone), Prompt(question="Which?")])
    veil, length = bottleneck(inputs, 3, 2, "prompt"), inputs.ids.shape[1]
    for row in range(2):
        assert veil.hidden[row].nonzero().flatten().tolist() == list(range(length + 1))
        assert veil.blind[row].nonzero().flatten().tolist() == [length + 4, length + 5, length + 6]


def test_questions_come_in_a_new_order_each_time():
    steps = [draw_questions(step, 4, 6, seed=1) for step in range(6)]
    flat = [number for step in steps for number in step]
    for epoch in range(4):
        assert sorted(flat[6 * epoch : 6 * epoch + 6]) == list(range(6))
    assert flat[:6] != flat[6:12]
    assert steps == [draw_questions(step, 4, 6, seed=1) for step in range(6)]


def test_the_queue_keeps_the_last_and_leaves_a_sample_out():
    queue = Queue(3)
    for number in range(5):
        queue.put(f"clip{number % 4}", torch.full((2, 4), float(number)))
    assert queue.names == ["clip2", "clip3", "clip0"]
    kept, counts = queue.beside(["clip3", "clip1"], torch.zeros(1, 2, 4))
    assert kept[:, 0, 0].tolist() == [2.0, 3.0, 4.0]
    assert counts.tolist() == [[True, False, True], [True, True, True]]
    nothing, none = Queue(0).beside(["a"], torch.zeros(1, 2, 4))
    assert nothing.shape == (0, 2, 4)
    assert none.shape == (1, 0)


def test_partners_have_the_same_question_and_another_answer_or_another_video():
    backbone = made("own")
    videos = [questions(backbone, 1, number)[0].tokens for number in range(3)]

    def puzzle(question, answer, video):
        return QuestionPuzzle(name="x", question=question, answers=(answer,), tokens=video)

    held = [puzzle("Which?", "red", videos[0]), puzzle("Which?", "red", videos[1]), puzzle("Which?", "blue", videos[2])]
    held += [puzzle("When?", "blue", videos[2]), puzzle("When?", "red", None)]
    strict = [Partner(number=2, strict=True), Partner(number=2, strict=True), Partner(number=0, strict=True)]
    assert partners(held) == [*strict, Partner(number=0, strict=False), None]
    assert partners(held[2:4]) == [None, None]  # one video


def test_what_a_swap_costs(monkeypatch, tmp_path):
    """The held figure by hand: right with one's own latents and wrong with the partner's, for one of two."""
    module, _ = forcing()
    backbone = module.backbone
    held = questions(backbone, 2)
    thinking = backbone.latent.settings.thinking
    own, foreign = (latents_of(backbone, "Which?", puzzle.tokens, thinking) for puzzle in held)
    assert not torch.allclose(own, foreign)
    seen = []

    def scored(backbone, puzzle, thinking, longest, given=None):
        seen.append(None if given is None else given)
        return float(given is None and puzzle is held[0])

    monkeypatch.setattr(latent_exam, "exact", scored)
    fit = recipe().fit
    run = Run(fit, start_processes(fit), module, tmp_path)
    assert latent_exam.held_figures(run, backbone, held, thinking, 3) == {
        "held_exact": 0.5, "held_lost": 0.5, "held_pairs": 2.0
    }  # fmt: skip
    assert torch.equal(seen[1], foreign)
    assert torch.equal(seen[3], own)


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_equal(tmp_path):
    run_latent(tmp_path / "whole", held=True)
    run_latent(tmp_path / "parts", held=True)
    for step in (4, 6):
        (tmp_path / "parts" / f"checkpoint-{step:08d}.pt").unlink()
    with pytest.raises(AssertionError):  # as if it had been killed after step 2: nothing later is left
        assert checkpoint.last_step(tmp_path / "parts") == 6
    run_latent(tmp_path / "parts", held=True)
    for name in ("loss", "norm", "across", "gate", "held_exact"):
        assert logged(tmp_path / "parts", name) == logged(tmp_path / "whole", name), name
    one, two = (load_backbone(str(tmp_path / run / "model")) for run in ("whole", "parts"))
    assert one.name == two.name


@pytest.mark.parametrize("changes", [{"family": "qwen", "lora_rank": 2}, {"precision": "bf16", "checkpointing": True}])
def test_a_trained_model_is_loaded_and_thinks(tmp_path, changes):
    trained = run_latent(tmp_path, steps=2, **changes)
    trained.model.eval()
    loaded = load_backbone(str(tmp_path / "model"), dtype=torch.float32)
    assert not [name for name in loaded.model.state_dict() if "lora" in name]
    assert loaded.latent.settings == trained.latent.settings
    (puzzle,) = questions(loaded, 1)
    thinking = loaded.latent.settings.thinking
    torch.testing.assert_close(
        *(latents_of(each, "Which?", puzzle.tokens, thinking) for each in (loaded, trained)), atol=1e-4, rtol=1e-3
    )
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {"loss", *FIGURES, "gate", "veiled", "norm", "rate"} <= set(rows[0])
    assert [row["veiled"] for row in rows] == [1.0, 0.0]
    assert rows[0]["align"] == 0.0
    assert rows[1]["align"] > 0


def test_a_model_that_thinks_goes_on_with_its_latents(tmp_path):
    run_latent(tmp_path / "one", steps=1)
    backbone = load_backbone(str(tmp_path / "one" / "model"), dtype=torch.float32)
    before = backbone.latent
    prepare(recipe(latents=5), backbone)
    assert backbone.latent is before
    assert before.settings.thinking.latents == 3
    without = dataclasses.replace(recipe(), thinks=False)
    with pytest.raises(LongtakeError, match="thinks is false, but the model has latents"):
        train_latent(without, backbone, questions(backbone), tmp_path / "two")


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_slots_that_begin_behind_the_prompt(family):
    """The markers are the embedding of the prompt's last word, the slots mostly."""
    backbone, drawn = made(family), made(family)
    prepare(recipe(begin="answer"), backbone)
    prepare(recipe(), drawn)
    inputs = backbone.prepare([Prompt(question="Which?")])
    last = backbone.embed(inputs.ids[0, -1:])[0]
    for marker in (backbone.latent.start, backbone.latent.end):
        assert torch.allclose(marker / marker.norm(), last / last.norm(), atol=1e-5)
        assert float(marker.square().mean().sqrt()) == pytest.approx(float(backbone.latent.rms), rel=1e-2)
    likeness = torch.cosine_similarity(backbone.latent.slots, last[None], dim=-1)
    assert likeness.min() > 0.95
    assert torch.cosine_similarity(drawn.latent.slots, last[None], dim=-1).max() < 0.7
    assert torch.pdist(backbone.latent.slots).min() > 0.1


class Columns:
    """Counts the columns that a decoder runs."""

    def __init__(self, decoder: torch.nn.Module) -> None:
        self.count = 0
        decoder.register_forward_pre_hook(self.more, with_kwargs=True)

    def more(self, decoder: torch.nn.Module, args: tuple, given: dict) -> None:
        self.count += given["inputs_embeds"].shape[:2].numel()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hides": "prompt"},
        {"mode": "autoregressive", "through": True},
        {"mode": "pause"},
        {"thinks": False},
        {"checkpointing": True, "spell": 0.5, "through": True},
        {"teacher": "video"},
    ],
    ids=lambda changes: ", ".join(map(str, changes)),
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_video_is_run_once_for_its_questions(family, changes):
    """The same loss, contents and gradients as with the video in every row, in and behind the bottleneck.

    Of two videos of unequal length, and of none.
    """
    for veiled in (False, True):
        module, rows = forcing(family, count=1, veiled=veiled, **changes)
        with torch.no_grad():
            long, short = (module.backbone.encode(coloured(number, frames)) for number, frames in ((0, 32), (1, 24)))
        texts = ("Which?", "What is it that is seen here?", "So?", "Say it?", "And?", "What is it, do you think?")
        rows = dataclasses.replace(
            rows,
            prompts=tuple(Prompt(question=text, tokens=(long, short, None)[n // 2]) for n, text in enumerate(texts)),
            answers=("red", "a green one", "blue", "red", "it is blue", "green"),
            counts=rows.counts.expand(6, -1),
            steps=(("red",), (), ("a", "blue"), (), (), ("red",)),
        )
        found, columns = [], Columns(module.backbone.decoder)
        for together in (1, 2):
            columns.count = 0
            module.train()
            loss, figures, content = module(dataclasses.replace(rows, together=together))
            loss.backward()
            found.append((loss.detach(), figures, content, grads(module), columns.count))
        (*apart, apart_grads, wide), (*once, once_grads, narrow) = found
        for one, other in zip(apart, once, strict=True):
            torch.testing.assert_close(other, one, atol=2e-5, rtol=2e-4)
        assert apart_grads.keys() == once_grads.keys()
        for name, gradient in apart_grads.items():
            torch.testing.assert_close(once_grads[name], gradient, atol=2e-5, rtol=2e-3)
        assert narrow < wide


def test_groups_of_questions():
    backbone = made("own")
    red, blue = (questions(backbone, 1, number)[0] for number in range(2))
    blind = dataclasses.replace(red, tokens=None)
    asked = [red, red, red, blue, red, blind, blind]
    assert groups_of(asked, 2) == [[0, 1], [2, 2], [3, 3], [4, 4], [5, 6]]
    assert groups_of(asked, 1) == [[number] for number in range(7)]
    assert groups_of(asked, 4) == [[0, 1, 2, 0], [3] * 4, [4] * 4, [5, 6, 5, 6]]


def test_a_step_of_questions_about_single_videos(tmp_path):
    """Two questions about each of two videos are a micro-batch, and all videos have their turn."""
    backbone = made("own")
    asked = [dataclasses.replace(puzzle, name=f"{puzzle.name}-{n}") for puzzle in questions(backbone, 4) for n in "abc"]
    chosen = recipe(together=2, batch=8, micro_batch=4, steps=2, queue=8)
    seen: list[Rows] = []
    run_forward = Forcing.forward

    def watching(self: Forcing, rows: Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        seen.append(rows)
        return run_forward(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forcing, "forward", watching)
        train_latent(chosen, backbone, asked, tmp_path)
    assert [(len(rows.prompts), rows.together) for rows in seen] == [(4, 2)] * 4
    pairs = [rows.prompts[at : at + 2] for rows in seen for at in (0, 2)]
    assert all(one.tokens is other.tokens for one, other in pairs)
    assert len({id(one.tokens) for one, _ in pairs}) == 4


def test_rates_of_parts(tmp_path):
    """The first step of AdamW moves a weight by its rate: the latents' by three times the decoder's."""
    backbone = run_latent(tmp_path, steps=1, warmup=0.0, bottleneck=0.0, clip=1e9)
    fresh = made("own")
    prepare(recipe(), fresh)
    moved = {
        name: float((value - dict(fresh.model.named_parameters())[name]).detach().abs().max())
        for name, value in backbone.model.named_parameters()
    }
    assert moved["language_model.model.layers.0.mlp.up_proj.weight"] == pytest.approx(3e-3, rel=1e-2)
    assert moved["latent.project.0.weight"] == pytest.approx(9e-3, rel=1e-2)
    assert moved["projector.0.weight"] == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard": True}, "shard is true; thinking needs whole weights"),
        ({"align": -0.1}, "align is -0.1"),
        ({"bottleneck": 1.5}, "bottleneck 1.5"),
        ({"batch": 3}, "batch is 3; it must be a multiple of 2"),
        ({"mode": "pause", "diverse": 0.1}, "in mode pause nothing is fed back"),
        ({"mode": "autoregressive", "teacher": "self"}, "the forced pass makes the very latents"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path, changes, message):
    with pytest.raises(LongtakeError, match=message):
        run_latent(tmp_path, **changes)


def test_a_dense_teacher_needs_denser_videos(tmp_path):
    backbone = made("own")
    with pytest.raises(LongtakeError, match="clip0 has no denser video"):
        train_latent(recipe(teacher="dense"), backbone, questions(backbone), tmp_path)
    with pytest.raises(LongtakeError, match="there are no questions"):
        train_latent(recipe(), backbone, [], tmp_path)


def test_one_by_one_the_forced_pass_makes_the_latents_again():
    """Why alignment to oneself is refused there: it is zero already."""
    module, rows = forcing(mode="autoregressive", teacher="video")
    module.recipe = dataclasses.replace(module.recipe, teacher="self")
    with torch.no_grad():
        figures = dict(zip(FIGURES, module(rows)[1].tolist(), strict=True))
    assert abs(figures["align"]) < 1e-5


LEARNING = {"steps": 120, "lr": 5e-3, "eval_every": 120, "save_every": 120, "times": 1.0, "batch": 8, "micro_batch": 8}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["own", "qwen"])
def test_it_learns_the_colours(tmp_path, family):
    run_latent(tmp_path, family=family, held=True, **LEARNING)
    loss = logged(tmp_path, "answer")
    assert loss[120] < 0.2 < 2.0 < loss[1]
    assert logged(tmp_path, "held_exact")[120] == 1.0


@pytest.mark.slow
def test_after_the_prompt_was_hidden_it_answers_openly(tmp_path):
    run_latent(tmp_path, held=True, bottleneck=0.5, hides="prompt", **LEARNING)
    assert logged(tmp_path, "held_exact")[120] == 1.0


@pytest.mark.slow
def test_under_the_bottleneck_answers_come_from_the_latents(tmp_path):
    """Then latents of another video lose every answer, though when asked the video is open to be seen."""
    run_latent(tmp_path, held=True, bottleneck=1.0, **LEARNING)
    for name, value in {"held_exact": 1.0, "held_lost": 1.0, "held_pairs": 3.0}.items():
        assert logged(tmp_path, name)[120] == value, name
