"""Tokens of a bank's groups: frozen and live agree, gradients reach a live compressor, and training along moves it."""

import dataclasses

import numpy as np
import pytest
import torch

import tiny
from longtake.data.probe_world.bank import Mixer, Placed, Unit
from longtake.data.probe_world.needles import COLOURS, Card
from longtake.data.probe_world.regroup import RegroupedMixer, group_frames
from longtake.models.dts import DynamicTokenSynthesizer
from longtake.models.mean import TemporalMean
from longtake.train import checkpoint
from longtake.train.checkpoint import Cycle
from longtake.train.embedded.decoder import DecoderRecipe, Phase, draw_lessons, train_decoder
from longtake.train.embedded.groups import BankGroups, LiveTokens, frozen_tokens

DIM, BLOCKS = 32, 30


def groups(size: int, every: int = 1) -> BankGroups:
    values = torch.randn(BLOCKS * 8, 16, DIM, generator=torch.Generator().manual_seed(1)).bfloat16()
    return BankGroups(values.view(torch.int16).numpy(), group_frames(np.arange(BLOCKS * 8).reshape(-1, 8), size, every))


def test_a_mean_over_time():
    frames = torch.arange(24.0).view(2, 3, 2, 2, 1)
    assert TemporalMean(3)(frames).flatten().tolist() == [4, 5, 6, 7, 16, 17, 18, 19]
    assert torch.equal(TemporalMean(1)(frames[:, :1]), frames[:, 0])
    with pytest.raises(ValueError, match="must hold 4"):
        TemporalMean(4)(frames)


def test_frozen_tokens_are_the_pooled_means_of_their_frames():
    bank = groups(4, every=2)
    tokens = frozen_tokens(bank, TemporalMean(4), 2)
    assert tokens.shape == (BLOCKS, 4, DIM)
    assert tokens.dtype == torch.bfloat16
    raw = torch.from_numpy(bank.features).view(torch.bfloat16).float().view(BLOCKS, 8, 4, 4, DIM)
    by_hand = raw[:, ::2].mean(1).view(BLOCKS, 2, 2, 2, 2, DIM).mean((2, 4)).flatten(1, 2)
    assert torch.allclose(tokens.float(), by_hand, atol=0.02)


def test_live_tokens_are_the_frozen_ones_with_a_gradient():
    torch.manual_seed(0)
    dts = DynamicTokenSynthesizer(DIM, 2)
    live = LiveTokens(groups(2), dts, 2)
    assert live.shape == frozen_tokens(live.groups, dts, 2).shape == (BLOCKS * 4, 4, DIM)
    chosen = torch.tensor([5, 70, 5])
    tokens = live[chosen]
    frozen = frozen_tokens(live.groups, dts, 2)[chosen]
    torch.testing.assert_close(tokens.bfloat16(), frozen, atol=0.01, rtol=0.02)  # with a gradient scores are rounded
    with torch.no_grad():
        assert torch.equal(live[chosen].bfloat16(), frozen)
    tokens.float().square().sum().backward()
    assert all(weight.grad is not None for weight in dts.parameters())


def mixer(size: int) -> RegroupedMixer:
    """Blocks of eight frames with a card in each, and plain ones."""
    cards = [Card(content=str(n), colour=colour, outline="round") for n, colour in enumerate(COLOURS)]
    seen = {"first": 2, "stop": 5, "centres": ((0.2, 0.7),) * 3}
    units = [Unit(first_group=n, groups=1, events=(Placed(what=card, **seen),)) for n, card in enumerate(cards)]
    units += [Unit(first_group=n, groups=1, events=()) for n in range(8, BLOCKS)]
    return RegroupedMixer(mixer=AnyMixer(units, "train", 8), size=size)


class AnyMixer(Mixer):
    """Without movers or cuts."""

    def __init__(self, units: list[Unit], split: str, frames_per_group: int) -> None:
        super().__init__(units, split, frames_per_group)
        self.moving = self.cuts = [Unit(first_group=0, groups=99, events=())]  # never fit


def recipe(steps: int) -> DecoderRecipe:
    phase = Phase(
        until_step=steps,
        groups=(2, 2),
        cards=2,
        tasks=("what", "is_there"),
        questions=3,
        late=0.0,
        thin=0.0,
        videos=3,
    )
    return DecoderRecipe(
        phases=(phase,),
        cycles=(Cycle(until_step=steps),),
        warmup=1,
        jumps=0.0,
        grounded_layer=2,
        log_every=1,
        save_every=1,
    )


def test_every_arm_sees_the_same_videos_and_questions():
    drawn = {}
    for size in (1, 4):
        lessons, columns = draw_lessons(recipe(1), recipe(1).phases[0], mixer(size), np.random.default_rng(3), 4)
        assert columns == 8192
        assert [len(mix.groups) for mix, _ in lessons] == [16 // size] * 3
        drawn[size] = [(mix.video, questions) for mix, questions in lessons]
    assert drawn[1] == drawn[4]


def test_a_compressor_trained_along_moves_and_is_kept(tmp_path):
    def run(seed: int) -> tuple[torch.nn.Module, torch.nn.Module]:
        torch.manual_seed(seed)
        dts, model = DynamicTokenSynthesizer(DIM, 4), tiny.video_llm(scorer=None, seed=seed)
        live = LiveTokens(groups(4), dts, 2)
        train_decoder(recipe(2), model, tiny.tokenizer(), live, mixer(4), tmp_path, along={"compressor": dts})
        return model.projector, dts

    torch.manual_seed(0)
    untrained = DynamicTokenSynthesizer(DIM, 4).state_dict()
    trained = run(0)
    assert not torch.equal(trained[1].state_dict()["stages.0.conv.weight"], untrained["stages.0.conv.weight"])
    assert set(checkpoint.modules_of(tmp_path)) == {"projector", "decoder", "ledger", "compressor"}
    for one, two in zip(trained, run(1), strict=True):  # the second run finds the first one's last checkpoint
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_a_training_may_begin_with_given_weights(tmp_path):
    bank = frozen_tokens(groups(4), TemporalMean(4), 2)
    model = tiny.video_llm(scorer=None)
    train_decoder(recipe(1), model, tiny.tokenizer(), bank, mixer(4), tmp_path / "base")
    base = checkpoint.modules_of(tmp_path / "base")
    fork = tiny.video_llm(scorer=None, seed=5)
    still = dataclasses.replace(recipe(1), lr=0.0, muon_lr=0.0)
    train_decoder(still, fork, tiny.tokenizer(), bank, mixer(4), tmp_path / "fork", begin={"decoder": base["decoder"]})
    begun = checkpoint.modules_of(tmp_path / "fork")
    assert all(torch.equal(base["decoder"][name], value) for name, value in begun["decoder"].items())
    assert not torch.equal(base["projector"]["0.weight"], begun["projector"]["0.weight"])
