"""Learning to read needles: labels and losses by hand, and stages 0 to 2 at debug size, resumed or not bit-equal."""

import dataclasses
import json
import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import SiglipVisionConfig, SiglipVisionModel

import tiny
import world
from longtake.data.probe_world.bank import BankRecipe, Placed, build_bank
from longtake.data.probe_world.needles import Card, Mover
from longtake.models.dts import DynamicTokenSynthesizer
from longtake.models.preprocess import normalise
from longtake.models.video_llm import average_pool
from longtake.train import checkpoint
from longtake.train.checkpoint import Cycle, in_cycle
from longtake.train.embedded import tower
from longtake.train.embedded.compressor import (
    CompressorRecipe,
    FeatureBank,
    compress,
    compressor_loss,
    encode_groups,
    run_backwards,
    token_labels,
    train_compressor,
    window_labels,
)
from longtake.train.embedded.reading import (
    ATTRIBUTES,
    AttributeHeads,
    ReadingHead,
    labels,
    reading_accuracy,
    reading_loss,
)
from longtake.train.embedded.school import SchoolRecipe, draw_pool, train_school, windows
from longtake.train.embedded.sharpen import SharpenRecipe, distance, sharpen_tower
from longtake.train.embedded.tower import SingleFrames, TowerRecipe, train_tower
from longtake.types import IGNORE

X = IGNORE
NAMES = list(ATTRIBUTES)
VISION = SiglipVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                            image_size=32, patch_size=4, vision_use_head=False)  # fmt: skip
CYCLES = (Cycle(until_step=3), Cycle(until_step=5))
SCHOOL = SchoolRecipe(vision=VISION, cards=24, backgrounds=5, side=16, steps=1, batch=4, warmup=1)


def card(content: str, colour: str = "red", outline: str = "square") -> Card:
    return Card(content=content, colour=colour, outline=outline)


MOVER = Mover(shape="heart", colour="pink", direction="up")


@pytest.mark.parametrize(
    ("row", "expected"),
    [  # kind, tens, units, letter, symbol, colour, outline, direction, onset
        (labels(None), [0, X, X, X, X, X, X, X, X]),
        (labels(card("42", "green", "round")), [1, 4, 2, X, X, 3, 1, X, X]),
        (labels(card("7"), onset=2), [1, 10, 7, X, X, 0, 0, X, 2]),
        (labels(card("C", "pink", "hexagon"), onset=4), [2, X, X, 2, X, 7, 2, X, 4]),
        (labels(card("moon", "blue")), [3, X, X, X, 7, 5, 0, X, X]),
        (labels(MOVER), [4, X, X, X, 4, 7, X, X, X]),
        (labels(MOVER, onset=1, moving=True), [4, X, X, X, 4, 7, X, 2, 1]),
    ],
)
def test_labels_by_hand(row, expected):
    nowhere = [X] * 4
    assert dict(zip(NAMES, row, strict=True)) == dict(zip(NAMES, expected + nowhere, strict=True))


def test_places_are_eighths_of_the_frame():
    row = labels(MOVER, centres=[(0.0, 0.99), (0.3, 0.5), (0.51, 0.124)])
    assert row[NAMES.index("from_x") :] == [0, 7, 4, 0]


def test_the_label_of_j_counts_without_i():
    assert labels(card("J"))[NAMES.index("letter")] == 8


def test_a_windows_labels_by_hand():
    events = [
        Placed(what=card("7"), first=2, stop=5),  # groups 0 and 1
        Placed(what=None, first=5, stop=6),
        Placed(what=card("A", "blue"), first=6, stop=8),  # longer in group 1 than the 7
        Placed(what=card("B", "cyan"), first=8, stop=10),
        Placed(what=card("C", "green"), first=10, stop=12),  # as long in group 2 as the B
        Placed(what=MOVER, first=15, stop=21),  # one frame of group 3, all of 4, one of 5
    ]
    cards, movers = zip(*[window_labels(events, 4 * group) for group in range(7)], strict=True)
    assert cards[0] == labels(card("7"), onset=2)
    assert cards[1] == labels(card("A", "blue"), onset=2)
    assert cards[2] == [X] * len(NAMES)
    assert cards[3:] == (labels(None),) * 4
    assert movers[:3] == (labels(None),) * 3
    assert movers[3] == labels(MOVER, onset=3)  # one frame shows no direction
    assert movers[4] == labels(MOVER, onset=4, moving=True)
    assert movers[5] == labels(MOVER, onset=4)
    assert movers[6] == labels(None)
    assert window_labels([Placed(what=card("7"), first=0, stop=9)], 4)[0] == labels(card("7"), onset=4)
    path = tuple((0.1 * n, 0.5) for n in range(6))
    moving = [Placed(what=MOVER, first=2, stop=8, centres=path)]
    assert window_labels(moving, 0)[1] == labels(MOVER, onset=2, moving=True, centres=path[:2])
    assert window_labels(moving, 4)[1] == labels(MOVER, onset=4, moving=True, centres=path[2:])
    assert window_labels(moving, 1)[1] == labels(MOVER, onset=1, moving=True, centres=path[:3])  # not a group, a window


def test_a_tokens_labels_are_those_of_what_has_its_middle_there():
    seven, eight = card("7"), card("8", "blue")
    events = [
        Placed(what=seven, first=0, stop=3, centres=((0.2, 0.6),) * 3),  # row 1, column 0 of 2 x 2
        Placed(what=None, first=3, stop=4),
        Placed(what=eight, first=4, stop=7, centres=((0.7, 0.1),) * 3),
        Placed(what=MOVER, first=8, stop=14, centres=((0.1, 0.9), (0.3, 0.9), (0.6, 0.9), *[(0.9, 0.9)] * 3)),
    ]
    nothing = [X] * len(NAMES)
    one, two = labels(seven, onset=4, centres=((0.2, 0.6),) * 2), labels(eight, onset=3, centres=((0.7, 0.1),))
    assert token_labels(events, 1, 2).tolist() == [nothing, two, one, nothing]
    assert token_labels(events, 20, 2).tolist() == [nothing] * 4
    moving = labels(MOVER, onset=0, moving=True, centres=((0.1, 0.9), (0.9, 0.9)))
    assert token_labels(events, 8, 2).tolist() == [nothing, nothing, moving, moving]  # it crosses both
    late = token_labels([*events, Placed(what=seven, first=5, stop=9, centres=((0.9, 0.2),) * 4)], 4, 2)
    assert late.tolist() == [nothing] * 4  # two cards in one place


def test_loss_and_accuracy_by_hand():
    logits = {"kind": torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 3.0]]), "tens": torch.zeros(3, 4)}
    targets = torch.tensor([[0, X], [1, 3], [0, X]])
    kind = math.log1p(math.exp(-2)) + math.log(2) + math.log1p(math.exp(2))
    assert reading_loss(logits, targets).item() == pytest.approx((kind + math.log(4)) / 3)
    assert reading_accuracy(logits, targets) == {"kind": pytest.approx(1 / 3), "tens": 0.0}
    assert reading_accuracy(logits, torch.full((3, 2), X)) == {}


def test_heads_give_logits_for_every_attribute():
    torch.manual_seed(0)
    for logits in (ReadingHead(16)(torch.randn(3, 5, 16)), AttributeHeads(16)(torch.randn(3, 16))):
        shapes = {name: tuple(values.shape) for name, values in logits.items()}
        assert shapes == {name: (3, classes) for name, classes in ATTRIBUTES.items()}


def test_a_reading_head_does_not_mind_the_order_of_tokens():
    torch.manual_seed(0)
    head, tokens = ReadingHead(16), torch.randn(2, 6, 16)
    one, other = head(tokens), head(tokens.flip(1))
    torch.testing.assert_close(one["kind"], other["kind"])


def test_the_rate_warms_up_and_falls_to_its_floor():
    assert [checkpoint.cosine(s, 110, 10) for s in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert checkpoint.cosine(10, 110, 10) == 1.0
    assert checkpoint.cosine(60, 110, 10) == pytest.approx(0.51)
    assert checkpoint.cosine(110, 110, 10) == pytest.approx(0.02)
    assert checkpoint.cosine(999, 110, 10, floor=0.3) == pytest.approx(0.3)


def test_each_cycle_begins_anew():
    cycles = (Cycle(until_step=3), Cycle(until_step=5, peak=0.5))
    assert [in_cycle(cycles, step) for step in (0, 2, 3, 4)] == [(0, 3, 1.0), (2, 3, 1.0), (0, 2, 0.5), (1, 2, 0.5)]
    with pytest.raises(ValueError, match="step 5 is not in"):
        in_cycle(cycles, 5)


def test_the_flat_rate_warms_up_and_ends_at_zero():
    rates = [checkpoint.trapezoid(s, 100, 10, cooldown=0.2) for s in (0, 9, 50, 80, 90, 100, 120)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0])


def test_the_log_keeps_means_between_lines(tmp_path, capsys):
    log = checkpoint.Log(tmp_path / "log.jsonl", 10)
    log.add(loss=1.0, kind=0.5)
    log.add(loss=3.0)
    log.write(2)
    log.add(loss=4.0)
    log.write(3, held=0.25)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in rows] == [
        {"step": 2, "loss": 2.0, "kind": 0.5},
        {"step": 3, "loss": 4.0, "held": 0.25},
    ]
    assert capsys.readouterr().out.startswith("2/10")


def batches(start: int, workers: int = 0) -> list[tuple[torch.Tensor, ...]]:
    data = SingleFrames(world.clips(), "train", 32, 3, 7, start, easy=6)
    return list(islice(DataLoader(data, batch_size=None, num_workers=workers), 4))


def test_a_batch_depends_on_its_number_alone():
    first = batches(0)
    for others, shift in ((batches(2), 2), (batches(0, workers=2), 0)):
        for one, other in zip(first[shift:], others, strict=False):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
def test_pictures_carry_needles_where_patches_are_covered():
    pixels, targets, covered = next(iter(SingleFrames(world.clips(), "test", 32, 300, 1)))
    assert pixels.shape == (300, 3, 32, 32)
    assert pixels.dtype == torch.uint8
    kinds = targets[:, 0]
    assert (kinds == 0).float().mean().item() == pytest.approx(0.15, abs=0.06)
    assert (kinds == 4).float().mean().item() == pytest.approx(0.15, abs=0.06)
    assert covered[kinds > 0].any(1).all()
    assert covered[kinds == 0].float().mean().item() == pytest.approx(0.2, abs=0.04)  # anywhere: there is nothing
    square = covered.unflatten(1, (8, 8))
    box = square[kinds > 0]
    assert torch.equal(box, box.any(2, keepdim=True) & box.any(1, keepdim=True))
    cards = square[(kinds > 0) & (kinds < 4)]
    down, across = cards.any(2).sum(1), cards.any(1).sum(1)
    # the smallest card is 57 pixels: 3.2 patches of 144 pixels' sides and 1.8 of 256's; the largest 129: 7.2 of 144
    assert torch.minimum(down, across).min() == 1
    assert torch.maximum(down, across).min() == 3
    assert torch.maximum(down, across).max() in (7, 8)


@pytest.mark.slow
def test_small_cards_are_small():
    sizes = []
    for share in (0.0, 1.0):
        _, targets, covered = next(iter(SingleFrames(world.clips(), "train", 32, 200, 1, small=share)))
        cards = covered[(targets[:, 0] > 0) & (targets[:, 0] < 4)]
        sizes.append(cards.float().mean(1))
    # of a square frame at least 0.55 squared; of a wide one less: 144 of 256 in width
    assert sizes[1].max() <= (5 / 8) ** 2
    assert sizes[0].max() > 0.6
    assert sizes[1].mean() < 0.6 * sizes[0].mean()


def test_the_distance_from_another_tower_by_hand():
    before = torch.tensor([[[0.0, 2.0], [4.0, 6.0]]])  # variance 20 / 3
    states = before + torch.tensor([[[1.0, 1.0], [0.0, 2.0]]])
    found = distance(states, before, torch.tensor([[1.0, 0.1]]))
    assert found.item() == pytest.approx((1.0 + 0.1 * 2.0) / (20 / 3) / 2)


@pytest.mark.slow
def test_sharpened_bit_equal_and_heads_first(tmp_path):
    recipe = SharpenRecipe(cycles=CYCLES, batch=4, warmup=1, log_every=5, save_every=2, held_out=6, workers=1)
    torch.manual_seed(4)
    begin = SiglipVisionModel(VISION)
    as_it_was = {name: weight.clone() for name, weight in begin.state_dict().items()}

    def train(r: SharpenRecipe, folder: Path = tmp_path / "parts") -> torch.nn.Module:
        begin.load_state_dict(as_it_was)
        return sharpen_tower(r, begin, world.clips(), world.clips(90), folder)

    train(recipe, tmp_path / "whole")
    interrupted(recipe, 2, train)
    resting = checkpoint.modules_of(tmp_path / "parts")["tower"]
    assert all(torch.equal(as_it_was[name], resting[name]) for name in as_it_was)  # up to step 3 heads learn alone
    trained = train(recipe)
    assert any(not torch.equal(as_it_was[name], weight) for name, weight in trained.state_dict().items())
    assert_equal_weights(tmp_path / "whole", tmp_path / "parts")
    last = json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[-1])
    assert {"test_kind", "small_kind"} <= set(last)
    assert (tmp_path / "parts" / "model.safetensors").is_file()


def test_normalising_is_siglips():
    assert normalise(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([-1, -0.6, 1])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    modules = checkpoint.modules_of(folder)
    return {f"{module}.{name}": value for module, values in modules.items() for name, value in values.items()}


def assert_equal_weights(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_school_resumed_is_bit_equal(tmp_path):
    recipe = dataclasses.replace(SCHOOL, steps=4, batch=6, log_every=2, save_every=2)
    train_school(recipe, world.clips(), tmp_path / "whole")
    # the rate falls over all steps, so a stopped run is one that was told of them all
    interrupted(recipe, 2, lambda r: train_school(r, world.clips(), tmp_path / "parts"))
    train_school(recipe, world.clips(), tmp_path / "parts")
    assert_equal_weights(tmp_path / "whole", tmp_path / "parts")


def interrupted(recipe, step: int, train) -> None:
    """Run a stage until just after its checkpoint at ``step``, then stop it."""
    saved, save = [], checkpoint.save

    def save_and_stop(folder, at, modules, optimiser):
        save(folder, at, modules, optimiser)
        saved.append(at)
        if at == step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe)
    assert saved == [step]


def test_windows_are_a_card_before_a_background():
    pool = draw_pool(SCHOOL, world.clips())
    plain = dataclasses.replace(pool, backgrounds=torch.zeros_like(pool.backgrounds))
    pixels, targets, covered = windows(plain, 12, 8, torch.Generator().manual_seed(0))
    assert pixels.shape == (12, 3, 24, 24)
    assert targets.shape == (12, len(ATTRIBUTES))
    ink = (pixels.amax(1) > 0).unflatten(2, (3, 8)).unflatten(1, (3, 8)).any(4).any(2).flatten(1)
    assert (ink | ~covered).float().mean() > 0.9  # a patch whose middle is covered shows something
    assert covered.any(1).all()


@pytest.mark.slow
def test_tower_resumed_is_bit_equal(tmp_path):
    recipe = TowerRecipe(vision=VISION, cycles=CYCLES, whole_steps=1, batch=4, easy_steps=3,
                         part_patches=20, warmup=1, log_every=5, save_every=2, workers=1, held_out=6)  # fmt: skip
    train_school(SCHOOL, world.clips(), tmp_path / "school")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tower, "OLD_BATCHES", 2)  # so that some are already forgotten

        def train(r: TowerRecipe, folder: Path = tmp_path / "parts") -> torch.nn.Module:
            return train_tower(r, world.clips(), world.clips(90), folder, tmp_path / "school")

        whole = train(recipe, tmp_path / "whole")
        interrupted(recipe, 2, train)
        parts = train(recipe)
    assert_equal_weights(tmp_path / "whole", tmp_path / "parts")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    assert (tmp_path / "whole" / "model.safetensors").is_file()
    last = json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[-1])
    assert {"test_kind", "test_colour"} <= set(last)


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> FeatureBank:
    """Random features of 16 tokens and 32 channels, with real events."""
    folder = tmp_path_factory.mktemp("bank")
    generator = torch.Generator().manual_seed(0)

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return torch.randn(len(pixels), 16, 32, generator=generator).bfloat16()

    build_bank(BankRecipe(videos=20, frames=24, seed=5, side=8), world.clips(), encode, folder, workers=0)
    return FeatureBank(folder, 16, 32, 24, 2)


def test_the_feature_bank_is_what_was_written(features):
    generator = torch.Generator().manual_seed(0)
    for number in range(20):
        frames = torch.randn(24, 16, 32, generator=generator).bfloat16()
        assert torch.equal(features.read(features.groups[6 * number : 6 * number + 6]), frames.view(6, 4, 16, 32))
        windows = features.read(np.arange(21 * number, 21 * number + 21))
        assert torch.equal(windows, torch.stack([frames[n : n + 4] for n in range(21)]))
    assert len(features) == 420
    assert len(features.groups) == 120
    assert features.card_targets.shape == features.mover_targets.shape == (420, len(ATTRIBUTES))
    _, placed = features.events[7]
    assert features.card_targets[7 * 21 + 9].tolist() == window_labels(placed, 9)[0]
    _, movers, tokens = features.targets(np.array([3, 7 * 21 + 9]))
    assert movers[1].tolist() == window_labels(placed, 9)[1]
    assert tokens[1].tolist() == token_labels(placed, 9, 2).tolist()


def test_the_compressor_starts_as_a_mean():
    """Without its random part and attention, the DTS at its start gives the mean of a group's frames."""
    dts = DynamicTokenSynthesizer(32)
    with torch.no_grad():
        for stage in dts.stages:
            stage.conv.weight.zero_()
            stage.conv.bias.zero_()
            stage.spatial.proj_out.weight.zero_()
            stage.spatial.proj_out.bias.zero_()
        dts.temporal_encoding.zero_()
        dts.start_as_mean(alone=False)
        features = torch.randn(3, 4, 2, 2, 32)
        torch.testing.assert_close(dts(features), features.mean(dim=1))


def test_a_group_that_runs_backwards_moves_the_other_way():
    frames = torch.arange(12.0).view(3, 4, 1, 1)
    left = Mover(shape="star", colour="red", direction="left")
    down = Mover(shape="star", colour="red", direction="down")
    still = labels(down, onset=3)
    path = [(0.9, 0.2), (0.6, 0.3)]
    movers = torch.tensor(
        [labels(left, onset=1, moving=True, centres=path), labels(down, onset=4, moving=True, centres=path), still]
    )
    card = labels(Card(content="7", colour="red", outline="round"), onset=2)
    cards = torch.tensor([labels(None), card, labels(None)])
    which = torch.tensor([True, False, True])
    tokens = torch.stack([movers, cards], dim=1)
    turned, (card_targets, mover_targets, token_targets) = run_backwards(frames, (cards, movers, tokens), which)
    assert torch.equal(token_targets, torch.stack([mover_targets, card_targets], dim=1))
    assert turned.flatten(1).tolist() == [[3, 2, 1, 0], [4, 5, 6, 7], [11, 10, 9, 8]]
    column = {name: number for number, name in enumerate(ATTRIBUTES)}
    assert mover_targets[:, column["direction"]].tolist() == [1, 3, IGNORE]  # right, down, and still not moving
    assert mover_targets[:, column["onset"]].tolist() == [IGNORE, 4, IGNORE]
    assert card_targets[:, column["onset"]].tolist() == [IGNORE, 2, IGNORE]
    assert mover_targets[:, column["from_x"] :].tolist() == [[4, 2, 7, 1], [7, 1, 4, 2], [IGNORE] * 4]
    assert torch.equal(card_targets[1], cards[1])
    assert movers[0, column["direction"]] == 0  # the labels given stay as they are


@pytest.mark.slow
def test_compressor_resumed_is_bit_equal(features, tmp_path):
    recipe = CompressorRecipe(dim=32, cycles=CYCLES, batch=8, warmup=1, log_every=2, save_every=2)
    whole = train_compressor(recipe, features, tmp_path / "whole")
    interrupted(recipe, 2, lambda r: train_compressor(r, features, tmp_path / "parts"))
    parts = train_compressor(recipe, features, tmp_path / "parts")
    assert_equal_weights(tmp_path / "whole", tmp_path / "parts")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_the_compressor_goes_on_from_a_dts(features, tmp_path):
    begin = DynamicTokenSynthesizer(32).state_dict()
    recipe = CompressorRecipe(dim=32, cycles=CYCLES, batch=8, warmup=1, lr=0.0, muon_lr=0.0, weight_decay=0.0)
    trained = train_compressor(recipe, features, tmp_path / "on", begin=begin).state_dict()
    assert all(torch.equal(trained[name], value) for name, value in begin.items())


def test_a_loss_without_accuracies_is_the_same(features):
    torch.manual_seed(0)
    heads = {"card": ReadingHead(32), "mover": ReadingHead(32), "token": AttributeHeads(32)}
    modules = {"dts": DynamicTokenSynthesizer(32), **heads}
    some = features.groups[:6]
    told, figures = compressor_loss(modules, features.read(some), features.targets(some), 2)
    untold, none = compressor_loss(modules, features.read(some), features.targets(some), 2, told=False)
    assert torch.equal(told, untold)
    assert figures
    assert not none


def test_each_token_of_a_window_with_nothing_in_it_must_tell_that(features):
    """A token head that says "number" everywhere is wrong on all tokens of plain windows and right on numbers'."""
    torch.manual_seed(0)
    heads = {"card": ReadingHead(32), "mover": ReadingHead(32), "token": AttributeHeads(32)}
    with torch.no_grad():
        kind = heads["token"].heads["kind"]
        kind.weight.zero_()
        kind.bias.copy_(torch.tensor([0.0, 3, 0, 0, 0]))
    modules = {"dts": DynamicTokenSynthesizer(32), **heads}
    plain = np.flatnonzero((features.card_targets[:, 0] == 0) & (features.mover_targets[:, 0] == 0))[:3]
    loss, figures = compressor_loss(modules, features.read(plain), features.targets(plain), 2)
    assert figures["plain_kind"] == 0.0
    assert not [name for name in figures if name.startswith("token_")]
    with torch.no_grad():
        kind.bias.copy_(torch.tensor([3.0, 0, 0, 0, 0]))
    better, figures = compressor_loss(modules, features.read(plain), features.targets(plain), 2)
    assert figures["plain_kind"] == 1.0
    assert (loss - better).item() == pytest.approx(3.0, abs=1e-3)  # the difference of the two logits


def test_group_tokens_are_the_models_own(features):
    """What the decoder is trained on is what the model makes of the same features when it answers."""
    model = tiny.video_llm()
    some = features.read(features.groups[:5]).float()
    with torch.no_grad():
        own = average_pool(model.group_tokens(some.flatten(0, 1).unflatten(1, (4, 4))), model.config.pool)
        tokens = compress(model.dts, some, model.config.pool)
    torch.testing.assert_close(tokens, own.flatten(1, 2))
    assert tokens.shape == (5, 4, 32)
    every = encode_groups(model.dts, features, model.config.pool)
    assert every.shape == (120, 4, 32)
    assert every.dtype == torch.bfloat16
    error = (every[:5].float() - tokens).abs().mean() / tokens.abs().mean()
    assert error < 0.02  # bf16 keeps 8 bits
