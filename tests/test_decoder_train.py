"""The decoder's training: rows by hand, rows against prompts asked one by one, targets by hand, resumed runs."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import tiny
import world
from longtake.backbones.base import Prompt
from longtake.backbones.own import OwnVideoLLM
from longtake.data.probe_world.bank import BankRecipe, Mix, Mixer, Placed, bank_video, cut_units
from longtake.data.probe_world.needles import COLOURS, Card, Mover
from longtake.data.probe_world.probe import Event, ProbeVideo
from longtake.data.probe_world.questions import TASKS, Question, ask_all
from longtake.models import VideoLLM
from longtake.models.processor import VideoLLMProcessor
from longtake.recipes import make_embedded as embedded
from longtake.train import checkpoint
from longtake.train.checkpoint import Cycle
from longtake.train.embedded import decoder as decoder_stage
from longtake.train.embedded.decoder import (
    DecoderRecipe,
    Phase,
    answers_right,
    draw_lessons,
    draw_rows,
    fill,
    question_states,
    scorer_loss,
    thinned,
    through_scores,
    train_decoder,
    train_step,
)
from longtake.train.embedded.grounding import answer_rows, grounding_loss, row_attention
from longtake.train.embedded.ledger import (
    CLOCK,
    NOTED,
    Ledger,
    asked_loss,
    clock_digits,
    noted_loss,
    noted_targets,
    seen_colours,
    seen_loss,
    stamp_loss,
)
from longtake.train.embedded.lookback import look_back
from longtake.train.embedded.optimiser import Optimiser
from longtake.train.embedded.rows import (
    HEAD,
    TAIL,
    Batch,
    Text,
    attention_mask,
    event_groups,
    looked_at_groups,
    make_row,
    relevant_groups,
    states_of,
)
from longtake.train.embedded.tokenizer import train_tokenizer
from longtake.types import IGNORE, LongtakeError, VisualTokens

PER_GROUP = 4
X = IGNORE
NOTES = {f"noted_{name}" for name in (*NOTED, "count", "answers_count")}


def event(what: Card | Mover | None, first: int, stop: int, frame_seconds: float = 1.0) -> Event:
    return Event(what=what, start_seconds=first * frame_seconds, stop_seconds=stop * frame_seconds, seed=0)


def mix(events: list[Event], groups: int, frame_seconds: float = 1.0) -> Mix:
    video = ProbeVideo(seed=0, split="train", fps=1 / frame_seconds, num_frames=4 * groups, size=(0, 0), shots=(),
                       events=tuple(events), foreign=())  # fmt: skip
    placed = tuple(
        Placed(what=e.what, first=round(e.start_seconds / frame_seconds), stop=round(e.stop_seconds / frame_seconds),
               centres=((0.2, 0.7),) * 40)
        for e in events
    )  # fmt: skip
    return Mix(groups=np.arange(groups), video=video, frame_seconds=frame_seconds, start_seconds=0.0, placed=placed)


RED, BLUE, PINK = (Card(content="7", colour=colour, outline="round") for colour in ("red", "blue", "pink"))
MOVER = Mover(shape="star", colour="red", direction="up")
EVENTS = [event(RED, 2, 5), event(None, 6, 8), event(BLUE, 9, 11), event(MOVER, 12, 18), event(PINK, 18, 22)]
QUESTION = Question(task="what", text="What?", answer="7")
ANOTHER = Question(task="count", text="How many?", answer="12")


@pytest.fixture(scope="module")
def text() -> Text:
    return Text(tiny.tokenizer(), tiny.ID["<|vision_pad|>"])


def plain(groups: int) -> tuple[np.ndarray, np.ndarray]:
    return np.ones((groups, PER_GROUP), bool), np.zeros(groups, np.int64)


def test_a_row_by_hand(text):
    kept = np.array([[1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]], bool)
    row = make_row(text, mix([], 3, 2.0), [QUESTION, ANOTHER], PER_GROUP, kept, np.array([0, 50, 100]))
    pad, head = tiny.ID["<|vision_pad|>"], text.ids(HEAD)
    asked = [text.ids("\nWhat?" + TAIL), text.ids("\nHow many?" + TAIL)]
    answers = [[*text.ids("7"), tiny.ID["<|im_end|>"]], [*text.ids("12"), tiny.ID["<|im_end|>"]]]
    # groups begin at 0, 8 and 16 s; the second keeps no token, so it has no stamp and its leap is not made
    video = [*text.ids("0:"), pad, pad, pad, pad, *text.ids("16:"), pad, pad]
    assert row.ids.tolist() == head + video + asked[0] + answers[0] + asked[1] + answers[1]
    h = len(head)
    assert row.visual[h : h + 11].tolist() == [-1, -1, 0, 1, 2, 3, -1, -1, -1, 9, 11]
    assert set(row.visual[:h].tolist()) == set(row.visual[h + 11 :].tolist()) == {-1}
    first, second = len(asked[0]) + 2, len(asked[1]) + 3
    assert row.turn.tolist() == [0] * (h + 11) + [1] * first + [2] * second
    place = h + 11 + 100  # the leap before the third group
    assert row.positions.tolist() == [
        *range(h + 6), *range(h + 106, h + 111), *range(place, place + first), *range(place, place + second),
    ]  # fmt: skip
    assert row.labels.tolist() == [X] * (h + 11 + len(asked[0])) + answers[0] + [X] * len(asked[1]) + answers[1]


def test_rows_are_padded_after_video_and_questions_and_padding_is_seen_by_none(text):
    questions = [[QUESTION, QUESTION], [QUESTION]]
    rows = [make_row(text, mix([], n), asked, PER_GROUP, *plain(n)) for n, asked in zip((1, 3), questions, strict=True)]
    batch = Batch(rows)
    short, long = (int((row.turn == 0).sum()) for row in rows)
    most, least = (len(row.ids) - own for row, own in zip(rows, (short, long), strict=True))
    assert batch.video == long
    assert batch.ids.shape == (2, long + most)
    for place, own in enumerate([[*range(short), *range(long, long + most)], range(long + least)]):
        empty = torch.ones(long + most, dtype=torch.bool)
        empty[list(own)] = False
        for name in ("ids", "visual", "turn", "positions", "labels"):
            assert torch.equal(getattr(batch, name)[place][~empty], getattr(rows[place], name)), name
        assert set(batch.turn[place][empty].tolist()) == set(batch.visual[place][empty].tolist()) == {-1}
        assert set(batch.labels[place][empty].tolist()) == {X}
        mask = attention_mask(batch.turn)[place, 0]
        assert not mask[~empty][:, empty].any()
        assert mask.any(1).all()  # a row of nothing would make not-a-numbers


def test_the_mask_by_hand():
    seen = attention_mask(torch.tensor([[0, 0, 1, 1, 2, 2, -1]]))[0, 0].int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("dropped", [0.0, 0.5])
def test_a_packed_row_equals_each_question_asked_alone(dropped):
    """Training and answering agree token for token: ids, positions and logits, with the backbone's own ``prepare``."""
    model, same = tiny.video_llm(), tiny.video_llm()  # two, because the backbone changes its model's attention
    backbone = OwnVideoLLM(same, VideoLLMProcessor.from_config(tiny.tokenizer(), same.config))
    text = Text(tiny.tokenizer(), model.config.video_token_id)
    video = mix(EVENTS, 6, 2.0)
    questions = ask_all(video.video, np.random.default_rng(0), 6)
    rng = np.random.default_rng(1)
    kept = rng.random((6, PER_GROUP)) >= dropped
    kept[2] = dropped == 0  # a whole group goes
    tokens = torch.randn(6 * PER_GROUP, 32, generator=torch.Generator().manual_seed(0))
    leaps = np.zeros(6, np.int64)
    longer = make_row(text, mix(EVENTS, 7), questions[:2], PER_GROUP, *plain(7))  # the other row is padded to it
    batch = Batch([make_row(text, video, questions, PER_GROUP, kept, leaps), longer])
    padded = torch.cat([tokens, torch.randn(PER_GROUP, 32)])[None].expand(2, -1, -1)
    with torch.no_grad():
        embeddings = fill(model, batch, padded)
        into, last = states_of(model.language_model.model, batch, embeddings, (0, 1))
        packed = model.language_model.lm_head(last[0])
        whole = model.language_model.model(
            inputs_embeds=embeddings, position_ids=batch.positions, attention_mask=attention_mask(batch.turn),
            use_cache=False, output_hidden_states=True,
        )  # fmt: skip
    own = batch.turn >= 0
    for layer, states in enumerate(into):
        torch.testing.assert_close(states[own], whole.hidden_states[layer][own], rtol=1e-4, atol=1e-4)
    position = torch.cartesian_prod(torch.arange(6), torch.arange(2), torch.arange(2))
    visual = VisualTokens(features=tokens, position=position, seconds=position[:, 0].double() * 8,
                          weight=torch.ones(24), grid=(6, 2, 2))[torch.from_numpy(kept.ravel())]  # fmt: skip
    for number, question in enumerate(questions, start=1):
        alone = backbone.prepare([Prompt(question=question.text, tokens=visual, answer=question.answer)])
        columns = (batch.turn[0] == 0) | (batch.turn[0] == number)
        assert torch.equal(batch.ids[0][columns], alone.ids[0])
        assert torch.equal(batch.positions[0][columns], alone.positions[0])
        assert torch.equal(batch.labels[0][columns], alone.labels[0])
        with torch.no_grad():
            states = backbone.decoder(inputs_embeds=alone.embeddings, position_ids=alone.positions, use_cache=False)
            logits = backbone.head(states.last_hidden_state)[0]
        asked, before = columns[batch.video :], int(columns[: batch.video].sum())
        torch.testing.assert_close(packed[asked], logits[before:], rtol=1e-4, atol=1e-4)


def test_a_blind_row_equals_the_questions_asked_without_a_video():
    model = tiny.video_llm()
    backbone = OwnVideoLLM(model, VideoLLMProcessor.from_config(tiny.tokenizer(), model.config))
    text = Text(tiny.tokenizer(), model.config.video_token_id)
    video = mix(EVENTS, 6, 2.0)
    questions = ask_all(video.video, np.random.default_rng(0), 3)
    recipe = DecoderRecipe(phases=(PHASE,), cycles=(Cycle(until_step=2),), blind=1.0)
    batch = draw_rows(recipe, text, [(video, questions)], PER_GROUP, 99, 2000, np.random.default_rng(0))
    assert not (batch.visual >= 0).any()
    for number, question in enumerate(questions, start=1):
        alone = backbone.prepare([Prompt(question=question.text, answer=question.answer)])
        columns = (batch.turn[0] == 0) | (batch.turn[0] == number)
        assert torch.equal(batch.ids[0][columns], alone.ids[0])
        assert torch.equal(batch.positions[0][columns], alone.positions[0])
        assert torch.equal(batch.labels[0][columns], alone.labels[0])


def test_asked_loss_is_the_cross_entropy_of_the_colour_in_the_question(text):
    video = mix(EVENTS, 7)
    named = Question(task="is_there", text="Is there a green card?", answer="no")
    row = make_row(text, video, [named], PER_GROUP, np.ones((7, PER_GROUP), bool), np.zeros(7, np.int64))
    batch, ledger = Batch([row]), Ledger(32)
    states = torch.randn(*batch.ids.shape, 32, generator=torch.Generator().manual_seed(0))
    colour = list(COLOURS).index("green")
    columns = [c - 1 for c in range(len(row.ids)) if int(row.labels[c]) != IGNORE]
    by_hand = -torch.stack([ledger.asked(normed(states[0, c])).log_softmax(0)[colour] for c in columns]).mean()
    torch.testing.assert_close(asked_loss(ledger, batch, states, [(video, [named])]), by_hand)


def test_row_attention_equals_the_decoder_own_in_eager_mode_and_grounds_the_asked_event():
    model = tiny.video_llm()
    text = Text(tiny.tokenizer(), model.config.video_token_id)
    video = mix(EVENTS, 6, 2.0)
    lesson = (video, ask_all(video.video, np.random.default_rng(0), 8))
    rows = [make_row(text, *lesson, PER_GROUP, np.ones((6, PER_GROUP), bool), np.zeros(6, np.int64))] * 2
    batch = Batch(rows)
    embedded = torch.randn(*batch.ids.shape, 32, generator=torch.Generator().manual_seed(0))
    model.language_model.set_attn_implementation("eager")
    mask = torch.where(attention_mask(batch.turn), 0.0, torch.finfo(torch.float32).min)
    out = model.language_model.model(
        inputs_embeds=embedded, position_ids=batch.positions, attention_mask=mask, use_cache=False,
        output_hidden_states=True, output_attentions=True,
    )  # fmt: skip
    places, columns, wanted = answer_rows(batch, [lesson] * 2, PER_GROUP, text.comma)
    attention = row_attention(model.language_model, 1, out.hidden_states[1], batch, places, columns)
    eager = out.attentions[1][places, :, columns]
    torch.testing.assert_close(attention, eager, rtol=1e-5, atol=1e-6)
    mass = (eager.mean(1) * wanted).sum(1)
    loss = grounding_loss(model.language_model, 1, out.hidden_states[1], batch, [lesson] * 2, PER_GROUP, text.comma)
    torch.testing.assert_close(loss, -mass.log().mean(), rtol=1e-5, atol=1e-6)
    for place, column, seen in zip(places.tolist(), columns.tolist(), wanted, strict=True):
        question = lesson[1][int(batch.turn[place, column]) - 1]
        if question.task == "order":
            continue  # part by part, in a test of its own
        if question.answer in ("no", "nothing"):
            assert torch.equal(seen, batch.visual[place] < 0)
            continue
        groups = set((batch.visual[place][seen] // PER_GROUP).tolist())
        assert groups == set(np.flatnonzero(looked_at_groups(video, question)[0]).tolist())


def test_an_order_is_read_card_by_card(text):
    video = mix(EVENTS, 7)
    order = Question(task="order", text="?", answer="red, blue, pink")
    batch = Batch([make_row(text, video, [order], PER_GROUP, *plain(7))])
    _, columns, wanted = answer_rows(batch, [(video, [order])], PER_GROUP, text.comma)
    answer = [*text.ids("red, blue, pink"), *text.end]
    first = int((batch.labels[0] != X).nonzero()[0])
    assert columns.tolist() == list(range(first - 1, first - 1 + len(answer)))  # the end is read too
    groups, part = [{0, 1}, {2}, {4, 5}, set()], 0
    for token, seen in zip(answer, wanted, strict=True):
        part = 3 if token == text.end[0] else part + (token == text.comma)
        assert set((batch.visual[0][seen] // PER_GROUP).tolist()) - {-1} == groups[part]
    assert torch.equal(wanted[-1], batch.visual[0] < 0)


def normed(states: torch.Tensor) -> torch.Tensor:
    return states / states.square().mean(-1, keepdim=True).sqrt()


def test_what_tokens_note_by_hand():
    targets = noted_targets(mix(EVENTS, 7), PER_GROUP)
    assert targets.shape == (7, PER_GROUP, len(NOTED))
    assert (targets == targets[:, :1]).all()  # no group shows two things
    # groups: 0 red; 1 red and a cut; 2 blue; 3 the mover; 4 the mover, then pink; 5 pink
    shared, targets = targets[4, 0], np.delete(targets[:, 0], 4, axis=0)
    assert targets[:, 0].tolist() == [8, 8, 0, X, 5, X]
    # kind, tens, units, letter, symbol, colour, direction, onset
    seven, none = [1, 10, 7, X, X], [0] + [X] * 7
    red, blue, pink = [*seven, 0, X, 2], [*seven, 5, X, 1], [*seven, 7, X, 4]
    red_later, mover = [*seven, 0, X, 4], [4, X, X, X, 3, 0, 2, 0]
    assert targets[:, 1:9].tolist() == [red, red_later, blue, mover, pink, none]
    assert shared[:9].tolist() == [X] * 9  # both have their middle in the same token


def test_of_two_cards_in_a_group_each_is_noted_where_it_is():
    video = mix([event(RED, 0, 2), event(BLUE, 3, 6)], 2)
    upper, lower = (
        dataclasses.replace(thing, centres=(middle,) * 3)
        for thing, middle in zip(video.placed, ((0.9, 0.1), (0.3, 0.8)), strict=True)
    )
    video = dataclasses.replace(video, placed=(upper, lower))
    targets = noted_targets(video, PER_GROUP)[:, :, [0, 6, 8]]  # the card before, the colour, the onset
    nothing = [X, X, X]
    assert targets[0].tolist() == [nothing, [8, 0, 0], [0, 5, 3], nothing]  # rows of two
    assert targets[1].tolist() == [[0, 5, 4]] * 4


def test_the_clock_tells_the_digits_of_the_stamp():
    empty = 10
    assert clock_digits(mix([], 2)).tolist() == [[0] + [empty] * 4, [4] + [empty] * 4]
    late = clock_digits(mix([], 2600, 1.0))
    assert late.shape == (2600, len(CLOCK))
    assert late[26].tolist() == [4, 0, 1, empty, empty]  # 104 s
    assert late[2599].tolist() == [6, 9, 3, 0, 1]  # 10,396 s


def test_the_notes_loss_is_the_sum_of_its_heads_means(text):
    torch.manual_seed(0)
    ledger, video = Ledger(32), mix(EVENTS, 7)
    batch = Batch([make_row(text, video, [QUESTION], PER_GROUP, *plain(7))])
    states = torch.randn(*batch.ids.shape, 32)
    loss, right = noted_loss(ledger, batch, states, [(video, [QUESTION])], PER_GROUP)
    terms: dict[str, list[float]] = {}
    hits: dict[str, list[bool]] = {}
    for column, visual in enumerate(batch.visual[0].tolist()):
        if visual < 0:
            continue
        told = noted_targets(video, PER_GROUP)[visual // PER_GROUP, visual % PER_GROUP].tolist()
        for (name, head), wanted in zip(ledger.noted.items(), told, strict=True):
            if wanted != X:
                log = head(normed(states[0, column])).log_softmax(0)
                terms.setdefault(name, []).append(-log[wanted].item())
                hits.setdefault(name, []).append(int(log.argmax()) == wanted)
    assert len(terms["before"]) == 4 * PER_GROUP  # groups with one card and nothing else
    assert len(terms["thousands"]) == 7 * PER_GROUP  # every group has a time
    assert loss.item() == pytest.approx(sum(np.mean(values) for values in terms.values()), rel=1e-4)
    assert right == pytest.approx({name: np.mean(values) for name, values in hits.items()})


def test_seen_colours_by_hand():
    table = seen_colours(mix(EVENTS, 7))
    red, blue, pink = (list(COLOURS).index(colour) for colour in ("red", "blue", "pink"))
    sets = [set(np.flatnonzero(row).tolist()) for row in table]
    assert sets == [{red}, {red}, {red, blue}, set(), {red, blue, pink}, {red, blue, pink}, set(), {red, blue, pink}]
    shared = seen_colours(mix([event(RED, 0, 2), event(BLUE, 3, 6)], 2))
    assert [row.sum() for row in shared] == [2, 2, 2]


def test_the_seen_loss_by_hand(text):
    """Cards and answers, each a mean over its columns of the count's and the eight colours' cross-entropies."""
    torch.manual_seed(0)
    ledger, video = Ledger(32), mix(EVENTS, 7)
    blind = make_row(text, video, [QUESTION], PER_GROUP, np.zeros((7, PER_GROUP), bool), np.zeros(7, np.int64))
    batch = Batch([make_row(text, video, [QUESTION], PER_GROUP, *plain(7)), blind])
    before, states = torch.randn(2, *batch.ids.shape, 32)
    lessons = [(video, [QUESTION])] * 2
    table = seen_colours(video)

    @torch.no_grad()
    def cross_entropies(column: int, colours: np.ndarray) -> float:
        bits = ledger.seen(normed(before[0, column])).sigmoid()
        of_bits = -torch.where(torch.from_numpy(colours), bits, 1 - bits).log().sum()
        return float(of_bits - ledger.count(normed(states[0, column])).log_softmax(0)[int(colours.sum())])

    cards, answers = [], []
    for column, visual in enumerate(batch.visual[0].tolist()):
        if visual >= 0 and table[visual // PER_GROUP].any():
            cards.append(cross_entropies(column, table[visual // PER_GROUP]))
        if column + 1 < batch.labels.shape[1] and int(batch.labels[0, column + 1]) != X:
            answers.append(cross_entropies(column, table[-1]))
    assert (len(cards), len(answers)) == (5 * PER_GROUP, 2)
    loss, right = seen_loss(ledger, batch, before, states, lessons, PER_GROUP)
    assert loss.item() == pytest.approx(np.mean(cards) + np.mean(answers), rel=1e-4)
    assert set(right) == {"count", "answers_count"}


def test_the_first_layer_looks_back_and_keeps_doing_so():
    """Head n gives most of its weight to the token n + 1 places back, at any length, by the decoder's own attention."""
    torch.manual_seed(0)
    decoder = VideoLLM(embedded.model_config(train_tokenizer())).language_model.model
    look_back(decoder)
    for start, length in ((0, 40), (7000, 1100)):
        states, positions = torch.randn(1, length, 256), start + torch.arange(length)[None]
        with torch.no_grad():
            rotary = decoder.rotary_emb(states, positions)
            decoder.set_attn_implementation("eager")
            mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
            _, weights = decoder.layers[0].self_attn(states, rotary, mask)
        for head in range(4):
            assert weights[0, head].diagonal(-head - 1).mean() > 0.95
    decoder(inputs_embeds=torch.randn(1, 9, 256)).last_hidden_state.square().sum().backward()
    attention = decoder.layers[0].self_attn
    parts = {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert {name for name in parts if getattr(attention, name).weight.grad is None} == {"q_proj", "k_proj"}
    with pytest.raises(ValueError, match="its own"):
        look_back(tiny.video_llm().language_model.model)


def test_the_stamps_clock_is_learned_at_the_last_token_before_a_group(text):
    torch.manual_seed(0)
    ledger, video = Ledger(32), mix(EVENTS, 7)
    kept = np.ones((7, PER_GROUP), bool)
    kept[1] = kept[2, :3] = False  # the second group has no stamp left, the third one token
    batch = Batch([make_row(text, video, [QUESTION], PER_GROUP, kept, np.zeros(7, np.int64))])
    states = torch.randn(*batch.ids.shape, 32)
    colons = [c for c, token in enumerate(batch.ids[0].tolist()) if token == text.ids("8:")[-1]][:6]
    digits = [clock_digits(video)[group] for group in (0, 2, 3, 4, 5, 6)]
    terms = [
        [-head(normed(states[0, c])).log_softmax(0)[d].item() for c, d in zip(colons, column, strict=True)]
        for head, column in zip(ledger.stamp.values(), np.transpose(digits).tolist(), strict=True)
    ]
    loss = stamp_loss(ledger, batch, states, [(video, [QUESTION])], PER_GROUP)
    assert loss.item() == pytest.approx(sum(np.mean(values) for values in terms), rel=1e-4)


@pytest.mark.parametrize(
    ("task", "about", "groups"),
    [
        ("what", EVENTS[0], [0, 1]),
        ("when", EVENTS[4], [4, 5]),
        ("direction", EVENTS[3], [3, 4]),
        ("is_there", EVENTS[2], [2]),
        ("is_there", None, []),
        ("order", None, [0, 1, 2, 4, 5]),
        ("count", None, [0, 1, 2, 4, 5]),
        ("after", EVENTS[0], [0, 1, 2, 4, 5]),
    ],
)
def test_relevant_groups_by_hand(task, about, groups):
    mask = relevant_groups(mix(EVENTS, 7), Question(task=task, text="?", answer="", event=about))
    assert np.flatnonzero(mask).tolist() == groups


@pytest.mark.parametrize(
    ("task", "about", "parts"),
    [
        ("what", EVENTS[0], [[0, 1]]),
        ("when", EVENTS[0], [[0]]),
        ("is_there", None, [[]]),
        ("direction", EVENTS[3], [[3, 4]]),
        ("after", EVENTS[0], [[2]]),
        ("after", EVENTS[2], [[4, 5]]),
        ("after", EVENTS[4], [[]]),
        ("count", None, [[4, 5]]),
        ("order", None, [[0, 1], [2], [4, 5], []]),
    ],
)
def test_what_an_answer_is_read_from(task, about, parts):
    masks = looked_at_groups(mix(EVENTS, 7), Question(task=task, text="?", answer="", event=about))
    assert [np.flatnonzero(mask).tolist() for mask in masks] == parts
    empty = looked_at_groups(mix([], 2), Question(task="count", text="?", answer="0"))
    assert [mask.tolist() for mask in empty] == [[False, False]]


def test_answers_are_right_when_every_token_is(text):
    video = mix([], 1)
    questions = [QUESTION, ANOTHER, dataclasses.replace(ANOTHER, answer="3")]
    batch = Batch([make_row(text, video, questions, PER_GROUP, *plain(1))])
    at = batch.labels[:, 1:] != X
    wanted = batch.labels[:, 1:][at]
    logits = torch.nn.functional.one_hot(wanted, tiny.VOCABULARY).float()
    assert answers_right(batch, at, logits, wanted, [(video, questions)]) == {"what": 1.0, "count": 1.0}
    logits[3] = 0  # the second token of "12"
    logits[3, 5] = 1
    assert answers_right(batch, at, logits, wanted, [(video, questions)]) == {"what": 1.0, "count": 0.5}


def test_scores_pass_gradient_to_the_scorer_and_change_no_value(text):
    model = tiny.video_llm()
    lessons = [(mix(EVENTS, 7), [QUESTION])]
    tokens = torch.randn(1, 28, 32)
    through = through_scores(model, text, tokens, lessons)
    assert torch.equal(through, tokens)
    (through * torch.randn(28, 32)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.scorer.query.parameters())
    assert model.get_input_embeddings().weight.grad is None


def test_the_scorers_loss_by_hand(text):
    model, video = tiny.video_llm(), mix(EVENTS, 7)
    tokens = torch.randn(1, 28, 32)
    about = dataclasses.replace(QUESTION, event=EVENTS[2])  # group 2
    absent = Question(task="is_there", text="Is there?", answer="no")
    loss = scorer_loss(model, text, tokens, [(video, [about, absent])], PER_GROUP)
    with torch.autocast("cpu", torch.bfloat16):
        scores = model.scorer(tokens[0], question_states(model, text, about)).float().tolist()
    chosen, every = (sum(math.exp(s) for s in part) for part in (scores[8:12], scores))
    assert loss.item() == pytest.approx(-math.log(chosen / every), rel=1e-4)
    assert scorer_loss(model, text, tokens, [(video, [absent])], PER_GROUP).item() == 0


@pytest.fixture(scope="module")
def mixer() -> Mixer:
    rows = []
    for number in range(60):
        video = bank_video(BankRecipe(seed=4), world.clips(), number)
        spans = [(e.start_seconds * video.fps, e.stop_seconds * video.fps) for e in video.events]
        placed = [
            Placed(what=e.what, first=math.ceil(first), stop=math.ceil(stop))
            for e, (first, stop) in zip(video.events, spans, strict=True)
        ]
        rows.append((video.fps, placed))
    return Mixer(cut_units(rows, 10), "train")


PHASE = Phase(until_step=2, groups=(2, 5), cards=2, tasks=TASKS, tokens=400, questions=4)


def test_phases_and_cycles_end_together():
    with pytest.raises(LongtakeError, match="cycles end at step 3 and phases at 2; both must end at the same"):
        DecoderRecipe(phases=(PHASE,), cycles=(Cycle(until_step=3),))


def test_lessons_keep_to_their_phase(mixer):
    for seed in range(30):
        phase = dataclasses.replace(PHASE, tasks=("what", "count"), tokens=1000)
        lessons, columns = draw_lessons(debug(), phase, mixer, np.random.default_rng(seed), PER_GROUP)
        (groups,) = {len(video.groups) for video, _ in lessons}
        assert 2 <= groups <= 5
        assert len(lessons) == 1000 // (groups * 8 + 4 * 22)
        assert columns >= groups * 8
        for video, questions in lessons:
            assert 1 <= len(questions) <= 4
            assert {q.task for q in questions} <= {"what", "count"}
            assert len(video.video.cards) <= 2


def test_rows_drop_tokens_in_every_other_batch_and_leap_within_the_context(text):
    recipe = DecoderRecipe(phases=(PHASE,), cycles=(Cycle(until_step=2),), jumps=0.5, blind=0.0)
    lessons = [(mix([], 40), [QUESTION])]
    shares, furthest = [], []
    for seed in range(100):
        batch = draw_rows(recipe, text, lessons, PER_GROUP, 999, 2000, np.random.default_rng(seed))
        shares.append(1 - float((batch.visual >= 0).sum()) / 160)
        furthest.append(int(batch.positions.max()))
        assert torch.equal(batch.positions[0, : len(text.head)], torch.arange(len(text.head)))
    dropped = [share for share in shares if share > 0]
    assert 35 <= len(dropped) <= 65
    assert 0.01 < min(dropped) < max(dropped) < 0.42
    assert np.mean(dropped) == pytest.approx(0.175, abs=0.04)
    unmoved = [place for place in furthest if place < 400]
    assert 35 <= len(unmoved) <= 65
    assert 1000 < max(furthest) < 2000


def test_longer_videos_are_thinned_to_their_columns_but_keep_their_cards(mixer, text):
    recipe, phase = debug(), dataclasses.replace(PHASE, groups=(30, 40), tokens=1000, thin=1.0, stretch=8.0)
    lengths, filled, seen = [], [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        lessons, columns = draw_lessons(recipe, phase, mixer, rng, PER_GROUP)
        (groups,) = {len(video.groups) for video, _ in lessons}
        lengths.append(groups)
        batch = draw_rows(dataclasses.replace(recipe, blind=0.0), text, lessons, PER_GROUP, columns, 2000, rng)
        filled.append(batch.video / columns)
        for place, (video, _) in enumerate(lessons):
            left = set((batch.visual[place] // PER_GROUP).tolist())
            for _, about in video.video.cards:
                seen.append(bool(left & set(range(*event_groups(video, about).indices(groups)))))
    assert 40 < max(lengths) <= 320
    assert np.median(filled) < 1.25
    assert np.mean(seen) > 0.9  # of a card's four tokens all may go
    alive = [thinned(np.random.default_rng(seed), mix([], 2000), 16, 8000).any(1).sum() for seed in range(60)]
    assert min(alive) < 500 < 1000 < max(alive) < 1700  # 400 whole groups, or 1,600 with one token and a stamp each
    few = thinned(np.random.default_rng(0), mix(EVENTS, 200), PER_GROUP, 200)
    assert 0.02 < few[7:].mean() < 0.3
    assert few[[0, 2, 3, 4]].mean() > 0.4
    assert thinned(np.random.default_rng(0), mix(EVENTS, 7), PER_GROUP, 99).all()


def debug(**changes) -> DecoderRecipe:
    phases = (PHASE, dataclasses.replace(PHASE, until_step=4, groups=(3, 6), cards=4))
    cycles = (Cycle(until_step=3), Cycle(until_step=4))
    recipe = DecoderRecipe(phases=phases, cycles=cycles, grounded_layer=2, warmup=1, log_every=2, save_every=2)
    return dataclasses.replace(recipe, **changes)


def tokens(channels: int = 32) -> torch.Tensor:
    return torch.randn(600, PER_GROUP, channels, generator=torch.Generator().manual_seed(3)).bfloat16()


@pytest.mark.slow
def test_decoder_resumed_is_bit_equal(mixer, tmp_path):
    whole = train_decoder(debug(), tiny.video_llm(), tiny.tokenizer(), tokens(), mixer, tmp_path / "whole")
    save = checkpoint.save

    def save_and_stop(folder, step, modules, optimiser):
        save(folder, step, modules, optimiser)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train_decoder(debug(), tiny.video_llm(), tiny.tokenizer(), tokens(), mixer, tmp_path / "parts")
    parts = train_decoder(debug(), tiny.video_llm(seed=9), tiny.tokenizer(), tokens(), mixer, tmp_path / "parts")
    trained = [name for name, _ in parts.named_parameters() if name.split(".")[0] not in ("vision_tower", "dts")]
    for name in trained:
        assert torch.equal(whole.get_parameter(name), parts.get_parameter(name)), name
    assert not torch.equal(whole.projector[0].weight, tiny.video_llm().projector[0].weight)


def test_tower_and_compressor_stay_as_they_are(mixer, tmp_path):
    trained = train_decoder(debug(), tiny.video_llm(), tiny.tokenizer(), tokens(), mixer, tmp_path)
    for name, value in tiny.video_llm().named_parameters():
        if name.split(".")[0] in ("vision_tower", "dts"):
            assert torch.equal(trained.get_parameter(name), value), name


def test_the_last_layers_learn_alone_where_a_phase_says_so(mixer, tmp_path):
    phases = tuple(dataclasses.replace(phase, learns_from=2) for phase in debug().phases)
    before, tokenizer = tiny.video_llm(), tiny.tokenizer()
    trained = train_decoder(debug(phases=phases), tiny.video_llm(), tokenizer, tokens(), mixer, tmp_path / "last")
    changed = {name for name, value in before.named_parameters() if not torch.equal(trained.get_parameter(name), value)}
    layers = {name.split(".")[3] for name in changed if ".layers." in name}
    assert layers == {str(layer) for layer in range(2, len(before.language_model.model.layers))}
    rest = {name.removeprefix("language_model.") for name in changed if ".layers." not in name}
    assert rest == {"model.norm.weight", "lm_head.weight"}  # not tied in this tiny model
    mixed = (dataclasses.replace(debug().phases[0], learns_from=2), debug().phases[1])
    whole = train_decoder(debug(phases=mixed), tiny.video_llm(), tokenizer, tokens(), mixer, tmp_path / "mixed")
    for name in ("projector.0.weight", "language_model.model.layers.0.mlp.up_proj.weight"):
        assert not torch.equal(whole.get_parameter(name), before.get_parameter(name)), name


def test_a_phase_decides_how_many_rows_are_blind(mixer, tmp_path, monkeypatch):
    seen = []
    step = decoder_stage.train_step

    def noting(recipe, *more):
        seen.append(recipe.blind)
        return step(recipe, *more)

    monkeypatch.setattr(decoder_stage, "train_step", noting)
    phases = (debug().phases[0], dataclasses.replace(debug().phases[1], blind=0.5))
    train_decoder(debug(phases=phases), tiny.video_llm(), tiny.tokenizer(), tokens(), mixer, tmp_path)
    assert seen == [0.03, 0.03, 0.5, 0.5]


@pytest.mark.slow
def test_a_step_learns(mixer):
    """Twenty steps on one batch: the loss falls and every trained part has a gradient."""
    torch.manual_seed(0)
    model = tiny.video_llm()
    torch.nn.init.normal_(model.language_model.lm_head.weight, std=0.02)
    ledger, text, bank = Ledger(32), Text(tiny.tokenizer(), model.config.video_token_id), tokens()
    lessons, columns = draw_lessons(debug(), PHASE, mixer, np.random.default_rng(7), PER_GROUP)  # of every kind
    modules = {"p": model.projector, "d": model.language_model, "l": ledger, "s": model.scorer}
    optimiser = Optimiser(modules, 3e-3, 3e-3, 0.0)
    losses = []
    for _ in range(20):
        rng = np.random.default_rng(0)
        loss, figures = train_step(debug(noise=0.0), model, ledger, text, bank, 1.0, lessons, columns, rng)
        optimiser.update(loss, 1.0)
        losses.append(figures["lm"])
    assert losses[-1] < 0.65 * losses[0]
    assert set(figures) <= {"lm", "seen", "noted", "asked", "stamp", "scorer", "grounding", *NOTES, *TASKS}
    for module in modules.values():
        assert [name for name, p in module.named_parameters() if p.grad is None] == []


def test_the_embedded_recipe_says_what_is_promised():
    """The sizes that the design promises: tower about 2M, decoder 4 to 6M, 8,192 positions, 20 MB in bf16."""
    tokenizer = train_tokenizer()
    model = VideoLLM(embedded.model_config(tokenizer))
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert 1.5e6 < sizes["vision_tower"] < 2.5e6
    assert 4e6 <= sizes["language_model"] <= 6e6
    assert 2 * sum(p.numel() for p in model.parameters()) < 20e6
    assert model.config.context_tokens == 8192
    assert model.config.tokens_per_group == 16
    assert len(tokenizer) <= model.config.text_config.vocab_size
