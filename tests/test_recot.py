"""ReCoT: the decoder's size, borders and frames; the loss by hand; what is masked; and that it learns."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from longtake.models.dts import DynamicTokenSynthesizer
from longtake.models.reconstructor import Doubling, FourfoldStage, Reconstructor, TwoFramesForOne
from longtake.models.recot import ReCoT, mean_frames, target_tokens, token_errors
from longtake.types import LongtakeError


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(seed: int = 0, shape: tuple[int, ...] = (3, 8, 2, 3, 32)) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


def recot(frames: int = 4, **changes) -> ReCoT:
    torch.manual_seed(1)
    return ReCoT(32, frames, **changes)


@pytest.mark.parametrize(
    ("frames", "decoder", "encoder"),
    [(2, 23_889_024, 46_763_136), (4, 46_763_136, 93_526_272), (8, 70_652_160, 140_291_712)],
)
def test_the_decoder_has_half_of_the_encoders_parameters(frames: int, decoder: int, encoder: int):
    with torch.device("meta"):
        assert count(Reconstructor(1152, frames)) == decoder
        assert count(DynamicTokenSynthesizer(1152, frames)) == encoder
    ratio = {2: 0.5109, 4: 0.5, 8: 0.5036}[frames]
    assert decoder / encoder == pytest.approx(ratio, abs=5e-5)
    assert (decoder * 2 == encoder) == (frames == 4)


@pytest.mark.parametrize("frames", [2, 4, 8, 16])
def test_one_frame_of_tokens_becomes_a_group(frames: int):
    torch.manual_seed(0)
    found = Reconstructor(32, frames)(torch.randn(3, 2, 5, 32))
    assert found.shape == (3, frames, 2, 5, 32)
    assert found.is_contiguous()
    assert len({tuple(frame.flatten().tolist()) for frame in found[0]}) == frames


@pytest.mark.parametrize("frames", [0, 1, 3, 6])
def test_groups_that_are_no_power_of_two_are_refused(frames: int):
    with pytest.raises(ValueError, match=f"frames_per_group is {frames}; it must be a power of two"):
        Reconstructor(32, frames)


def transposed(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Every place adds its tap to the places around it; the border is a copy, and one frame is copied behind."""
    frames, rows, columns, _ = x.shape
    found = np.tile(bias, (2 * frames, rows, columns, 1))
    taps = weight.shape[2]
    for t, i, j in itertools.product(range(frames + 1), range(-1, rows + 1), range(-1, columns + 1)):
        source = x[min(t, frames - 1), np.clip(i, 0, rows - 1), np.clip(j, 0, columns - 1)]
        for k, a, b in itertools.product(range(taps), range(3), range(3)):
            to = (2 * t + k - (taps == 3), i + a - 1, j + b - 1)
            if all(0 <= place < size for place, size in zip(to, found.shape[:3], strict=True)):
                found[to] += source @ weight[:, :, k, a, b]
    return found


def test_the_transposed_convolutions_are_those_of_a_loop():
    torch.manual_seed(0)
    stage, doubling = FourfoldStage(32).double(), Doubling(32).double()
    nn.init.zeros_(stage.spatial.proj_out.weight)
    nn.init.zeros_(stage.spatial.proj_out.bias)  # temporal attention starts as the identity, and now all is
    x = features(shape=(1, 2, 2, 3, 32)).double()
    with torch.no_grad():
        copies = (x[0, :, None] * stage.gains[:, None, None]).flatten(0, 1).numpy()
        quadrupled, doubled = stage(x)[0].numpy(), doubling(x)[0].numpy()
    weights = [p.detach().numpy() for p in (stage.conv.weight, stage.conv.bias)]
    np.testing.assert_allclose(quadrupled, transposed(copies, *weights), rtol=1e-10, atol=1e-12)
    weights = [p.detach().numpy() for p in (doubling.conv.weight, doubling.conv.bias)]
    # without a frame behind: of the loop's it would be the last, which gives nothing that is kept
    np.testing.assert_allclose(doubled, transposed(x[0].numpy(), *weights), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("taps", "behind"), [(3, 1), (2, 0)])
def test_two_frames_for_one_have_the_gradients_of_pytorch_s_transposed_convolution(taps, behind):
    torch.manual_seed(0)
    conv = TwoFramesForOne(3, taps).double()
    x = torch.randn(2, 3, 3 + behind, 6, 5, dtype=torch.float64, requires_grad=True)
    given = x, conv.weight, conv.bias
    ours, theirs = conv(x), nn.ConvTranspose3d.forward(conv, x)[:, :, :6]
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    wanted = torch.randn_like(ours)
    gradients = (torch.autograd.grad((found * wanted).sum(), given) for found in (ours, theirs))
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("frames", [2, 4, 8])
def test_a_picture_that_is_the_same_everywhere_stays_so(frames: int):
    torch.manual_seed(0)
    found = Reconstructor(32, frames)(torch.randn(2, 1, 1, 32).expand(-1, 3, 4, -1))
    torch.testing.assert_close(found, found[:, :, :1, :1].expand_as(found), rtol=1e-4, atol=1e-5)


def test_gains_tell_the_copies_apart():
    torch.manual_seed(0)
    decoder, tokens = Reconstructor(32), torch.randn(2, 2, 3, 32)
    assert not torch.allclose(decoder(tokens)[:, 0], decoder(tokens)[:, 2])
    nn.init.ones_(decoder.stages[0].gains)
    torch.testing.assert_close(decoder(tokens)[:, 0], decoder(tokens)[:, 2])


@pytest.mark.parametrize("policy", ["semantic", "none"])
def test_the_loss_is_the_mean_over_all_tokens(policy: str):
    model, x = recot(policy=policy), features()
    found = model(x, generator=generator())
    errors = (found.reconstruction.detach().numpy() - x.numpy()) ** 2
    np.testing.assert_allclose(found.loss.item(), errors.mean(), rtol=1e-5)
    mask = found.mask.numpy()
    np.testing.assert_allclose(found.visible_error.item(), errors[~mask].mean(), rtol=1e-5)
    if policy == "none":
        assert found.masked_error is None
        assert not mask.any()
    else:
        np.testing.assert_allclose(found.masked_error.item(), errors[mask].mean(), rtol=1e-5)
        assert mask.mean() == 0.5
    assert found.scores.shape == x.shape[:4]


def test_masked_tokens_alone_may_count():
    x = features()
    found = recot(weight="masked")(x, generator=generator())
    assert found.loss.item() == pytest.approx(found.masked_error.item(), rel=1e-6)
    assert abs(found.loss.item() / found.visible_error.item() - 1) > 1e-3
    every = recot(weight="masked", policy="none")(x)
    assert every.loss.item() == pytest.approx(every.visible_error.item(), rel=1e-6)
    whole = recot(mask_ratio=1.0, candidates=1.0)(x)
    assert whole.visible_error is None
    assert whole.loss.item() == pytest.approx(whole.masked_error.item(), rel=1e-6)


def test_a_normed_target_has_no_scale():
    x = features() * 5 + 3
    centred = x.numpy() - x.numpy().mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(target_tokens(x, "normed").numpy(), expected, rtol=1e-4, atol=1e-5)
    assert target_tokens(x, "raw") is x
    found = recot(target="normed", policy="none")(x)
    np.testing.assert_allclose(
        found.loss.item(), ((found.reconstruction.detach().numpy() - expected) ** 2).mean(), rtol=1e-5
    )


def test_in_eval_mode_nothing_is_masked_and_groups_are_apart():
    model, x = recot().eval(), features()
    found = model(x)
    assert not found.mask.any()
    assert found.masked_error is None
    for clip, group in itertools.product(range(3), range(2)):
        frames = slice(4 * group, 4 * group + 4)
        alone = model.reconstructor(model.dts(x[clip, frames][None]))[0]
        torch.testing.assert_close(found.reconstruction[clip, frames], alone, rtol=1e-4, atol=1e-5)


def test_the_mask_hides_tokens_from_the_compressor():
    """What stood at a masked place changes the reconstruction nowhere; scores must not see the change."""
    model, x = recot(policy="random"), features()
    found = model(x, generator=generator())
    changed = torch.where(found.mask[..., None], features(7), x)
    again = model(changed, generator=generator())
    assert torch.equal(again.mask, found.mask)
    torch.testing.assert_close(again.reconstruction, found.reconstruction)
    assert not torch.allclose(again.loss, found.loss)


@pytest.mark.parametrize("frames", [2, 4, 8])
def test_gradients_reach_every_part_at_every_stride(frames: int):
    model = recot(frames)
    images = torch.tensor([True, False, True])
    x = torch.where(images[:, None, None, None, None], features()[:, :1], features())
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(3):  # temporal attention lets the first gradient through its value table alone
        optimiser.zero_grad()
        model(x, images, generator=generator(step)).loss.backward()
        optimiser.step()
    # a key's bias shifts all logits of a softmax alike; Spatio and Temp Queries are among the rest
    still = [name for name, p in model.named_parameters() if not p.grad.any() and not name.endswith("k.bias")]
    assert still == []
    scores = model(x, images, generator=generator()).scores
    assert torch.equal(scores[0], scores[0, :1].expand_as(scores[0]))


def trained(model: ReCoT, batches: list[torch.Tensor], lr: float) -> ReCoT:
    """One step a batch, the rate falling to 0."""
    learned = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(learned, lr=lr)
    for step, batch in enumerate(batches):
        optimiser.param_groups[0]["lr"] = lr * (1 - step / len(batches))
        optimiser.zero_grad()
        model(batch, generator=generator(step)).loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
    return model.eval()


def beside_the_mean_frame(model: ReCoT, x: torch.Tensor) -> float:
    """Error of the reconstruction as a share of that of the best answer that is one for all frames of a group."""
    with torch.no_grad():
        return float(model(x).loss / token_errors(mean_frames(x, model.frames_per_group), x).mean())


@pytest.mark.slow
def test_it_learns_to_beat_the_mean_frame():
    """Two clips by heart."""
    x = features(3, (2, 4, 2, 2, 32))
    model = recot(policy="none")
    assert beside_the_mean_frame(model.eval(), x) > 1
    assert beside_the_mean_frame(trained(model.train(), [x] * 70, lr=3e-3), x) < 0.7


@pytest.mark.slow
def test_a_decoder_whose_copies_are_equal_cannot_tell_frames_apart():
    """Tokens of 6 dimensions of 64: four frames fit into one frame's tokens, and only gains let them out again."""
    spread = torch.randn(6, 64, generator=generator(5)) / 6**0.5
    batches = [torch.randn(8, 4, 4, 4, 6, generator=generator(seed)) @ spread for seed in range(301)]
    errors = {}
    for tied in (False, True):
        torch.manual_seed(0)
        model = ReCoT(64, policy="none")
        if tied:
            gains = model.reconstructor.stages[0].gains.requires_grad_(False)
            nn.init.ones_(gains)
        errors[tied] = beside_the_mean_frame(trained(model, batches[1:], lr=2e-3), batches[0])
    assert errors[False] < 0.3
    assert errors[True] > 0.6


def test_the_mean_frame_by_hand():
    x = torch.tensor([1.0, 3, 5, 9]).view(1, 4, 1, 1, 1)
    assert mean_frames(x, 2).flatten().tolist() == [2, 2, 7, 7]
    assert mean_frames(x, 4).flatten().tolist() == [4.5] * 4
    assert token_errors(mean_frames(x, 2), x).flatten().tolist() == [1, 1, 4, 4]


@pytest.mark.parametrize("frames", [2, 4, 8])
def test_a_start_at_means_rebuilds_the_mean_frame(frames: int):
    x = features(shape=(3, 8, 2, 3, 32)) + 5
    model = recot(frames)
    before = model.eval()(x).loss.item()
    model.start_at_means(x)
    for stage in model.reconstructor.stages:
        if isinstance(stage, FourfoldStage):
            nn.init.ones_(stage.gains)
    nn.init.zeros_(model.dts.temporal_encoding)
    found = model(x)
    torch.testing.assert_close(found.reconstruction, mean_frames(x, frames), rtol=0, atol=1e-4)
    assert found.loss.item() < before / 10
    torch.testing.assert_close(model.masking.mask_token.detach(), x.mean((0, 1, 2, 3)))


def test_a_start_at_means_leaves_a_dts_that_has_learned():
    dts = DynamicTokenSynthesizer(32)
    before = {name: weight.clone() for name, weight in dts.state_dict().items()}
    model = ReCoT(32, dts=dts)
    model.start_at_means(features(), keep_dts=True)
    assert all(torch.equal(weight, before[name]) for name, weight in dts.state_dict().items())
    assert not model.reconstructor.stages[0].conv.bias.any()


def test_a_given_dts_is_the_one_that_learns():
    dts = DynamicTokenSynthesizer(32)
    model = ReCoT(32, dts=dts)
    assert model.dts is dts
    with pytest.raises(LongtakeError, match="groups of 4 frames but frames_per_group is 8"):
        ReCoT(32, 8, dts=dts)


def test_half_precision_features_of_a_single_precision_model():
    x = features().bfloat16()
    found = recot()(x, generator=generator())
    assert found.loss.dtype == torch.float32
    same = recot()(x.float(), generator=generator())
    assert torch.equal(found.loss, same.loss)


def test_bad_choices_are_refused():
    with pytest.raises(LongtakeError, match="target is 'norm'; it must be one of raw, normed"):
        ReCoT(32, target="norm")
    with pytest.raises(LongtakeError, match="weight is 'some'; it must be one of all, masked"):
        ReCoT(32, weight="some")
    with pytest.raises(ValueError, match="clips have 6 frames; it must be a multiple of 4"):
        recot()(features(shape=(1, 6, 2, 2, 32)))
