"""How pictures of puzzles are shown as tokens: coarser, relative to each other, turned."""

import dataclasses

import pytest
import torch

from longtake.train.rendering import Rendering
from longtake.types import LongtakeError, VisualTokens


def picture(features: torch.Tensor, rows: int = 2, columns: int = 2) -> VisualTokens:
    """Tokens ``(rows x columns, dim)`` of one picture."""
    zero = torch.zeros(1, dtype=torch.int64)
    return VisualTokens(
        features=features,
        position=torch.cartesian_prod(zero, torch.arange(rows), torch.arange(columns)),
        seconds=torch.zeros(len(features), dtype=torch.float64),
        weight=torch.ones(len(features)),
        grid=(1, rows, columns),
    )


def drawn(count: int, dim: int = 8, seed: int = 0) -> list[VisualTokens]:
    features = torch.randn(count, 4, dim, generator=torch.Generator().manual_seed(seed))
    return [picture(own) for own in features]


def products(pictures) -> torch.Tensor:
    features = torch.stack([one.features.flatten() for one in pictures])
    return features @ features.T


def test_by_default_nothing_is_done():
    pictures = drawn(3)
    assert all(one is other for one, other in zip(Rendering().of(pictures), pictures, strict=True))


def test_a_coarser_picture_has_the_means_of_its_cells():
    features = torch.arange(12.0)[:, None] * torch.tensor([1.0, -1.0])
    (made,) = Rendering(side=2).of([picture(features, 2, 6)])
    assert made.features[:, 0].tolist() == [1.0, 4.0, 7.0, 10.0]
    assert made.features[:, 1].tolist() == [-1.0, -4.0, -7.0, -10.0]
    assert made.grid == (1, 2, 2)
    assert made.position.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert made.weight.tolist() == [3.0] * 4
    with pytest.raises(LongtakeError, match="side is 3, but pictures have 2 by 2 tokens; give a smaller one"):
        Rendering(side=3).of(drawn(1))


def test_what_pictures_have_in_common_goes_and_their_size_stays():
    """By hand: one cell, two pictures at 5 and 7 become -6.08 and 6.08, as the root of (25 + 49) / 2 is 6.08."""
    made = Rendering(relative=True).of([picture(torch.full((4, 1), value)) for value in (5.0, 7.0)])
    torch.testing.assert_close(made[1].features, torch.full((4, 1), 37.0**0.5))
    torch.testing.assert_close(made[0].features, -made[1].features)
    same = Rendering(relative=True).of([picture(torch.ones(4, 3))] * 2)
    assert all(not one.features.any() for one in same)


def test_pictures_of_one_size_differ_in_direction_alone():
    """By hand: (3, 4) has a size of 12.5 ** 0.5 and (0, 10) one of 50 ** 0.5."""
    made = Rendering(size=2.0).of([picture(torch.tensor([own]).expand(4, 2)) for own in ((3.0, 4.0), (0.0, 10.0))])
    torch.testing.assert_close(made[0].features[0], torch.tensor([6.0, 8.0]) / 12.5**0.5)
    torch.testing.assert_close(made[1].features[0], torch.tensor([0.0, 20.0]) / 50**0.5)
    both = Rendering(relative=True, size=2.0)
    far = [dataclasses.replace(one, features=one.features * 5**place) for place, one in enumerate(drawn(3))]
    sizes = torch.stack([one.features.square().mean(-1) for one in both.of(far)])
    torch.testing.assert_close(sizes, torch.full_like(sizes, 4.0))
    assert not any(one.features.any() for one in both.of([picture(torch.ones(4, 3))] * 2))


def test_on_own_axes_all_lies_in_the_first_dimensions_and_products_stay():
    """Three pictures of four tokens span at most 12 dimensions; in fewer the largest axes are kept, as SVD has them."""
    pictures = drawn(3, dim=64)
    for turn in (None, 7):
        made = Rendering(dims=16).of(pictures, turn=turn)
        assert all(not one.features[:, 16:].any() and one.features.shape == (4, 64) for one in made)
        torch.testing.assert_close(products(made), products(pictures), rtol=1e-4, atol=1e-4)
        assert bool(made[0].features[:, 12:16].abs().max() > 1e-3) == (turn is not None)
    tokens = torch.cat([one.features for one in pictures])
    left, sizes, right = torch.linalg.svd(tokens, full_matrices=False)
    nearest = left[:, :5] * sizes[:5] @ right[:5]
    fewer = torch.cat([one.features for one in Rendering(dims=5).of(pictures)])
    torch.testing.assert_close(fewer @ fewer.T, nearest @ nearest.T, rtol=1e-4, atol=1e-4)
    sized = Rendering(dims=16, size=2.0).of(pictures, turn=7)
    torch.testing.assert_close(sized[0].features.square().mean(-1), torch.full((4,), 4.0))
    assert Rendering(dims=16).of([]) == []
    with pytest.raises(LongtakeError, match="dims is 65, but a token has 64; give a smaller one, or 0"):
        Rendering(dims=65).of(pictures)


def test_another_background_makes_no_difference_to_relative_pictures():
    pictures, scene = drawn(4), torch.randn(4, 8)
    moved = [dataclasses.replace(one, features=one.features + scene) for one in pictures]
    own, other = (Rendering(relative=True).of(each) for each in (pictures, moved))
    ratio = products(own) / products(other)
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-3, atol=1e-3)


def test_pictures_of_another_shape_have_a_mean_of_their_own():
    """As another video's context beside a puzzle's own candidates may have."""
    wide = [picture(one.features.repeat(2, 1), 2, 4) for one in drawn(2, seed=1)]
    made = Rendering(relative=True).of([*drawn(3), *wide])
    for group in (made[:3], made[3:]):
        assert float(sum(one.features for one in group).abs().max()) < 1e-5


@pytest.mark.parametrize("dim", [8, 64])
def test_turned_pictures_are_as_like_as_before_and_otherwise_unlike(dim: int):
    """With fewer tokens than dimensions, too, where only their plane is turned."""
    pictures = drawn(5, dim=dim)
    turned, again, other = (Rendering().of(pictures, turn=turn) for turn in (7, 7, 8))
    torch.testing.assert_close(products(turned), products(pictures), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(one.features, two.features) for one, two in zip(turned, again, strict=True))
    for some in (pictures, other):
        assert float((turned[0].features - some[0].features).abs().max()) > 0.5
    assert Rendering().of([], turn=7) == []


def test_rotations_favour_no_direction():
    """Where one axis lands, over many turns: no coordinate has a mean, and all have the same square."""
    axis = [picture(torch.eye(8)[:1].expand(4, 8))]
    landed = torch.stack([Rendering().of(axis, turn=turn)[0].features[0] for turn in range(2000)])
    assert float(landed.mean(dim=0).abs().max()) < 4 * (1 / 8 / 2000) ** 0.5
    torch.testing.assert_close(landed.square().mean(dim=0), torch.full((8,), 1 / 8), rtol=0.12, atol=0)


def test_as_large_a_share_of_showings_is_turned_as_asked():
    rendering = Rendering(turned=0.75)
    turns = [rendering.drawn_turn((0, step, 3)) for step in range(400)]
    assert turns == [rendering.drawn_turn((0, step, 3)) for step in range(400)]
    drawn_turns = [turn for turn in turns if turn is not None]
    assert len(drawn_turns) == pytest.approx(300, abs=35)
    assert len(set(drawn_turns)) == len(drawn_turns)
    assert all(Rendering().drawn_turn((0, step, 3)) is None for step in range(20))
    for wrong in ({"turned": 1.5}, {"size": -1.0}, {"dims": -1}):
        with pytest.raises(LongtakeError, match="side, dims and size must be 0 or more, turned 0 to 1"):
            Rendering(**wrong)


def test_what_lies_behind_the_pictures_can_learn():
    features = torch.randn(3, 4, 8, requires_grad=True)
    made = Rendering(side=1, relative=True, dims=6, size=3.0).of([picture(own) for own in features], turn=3)
    (made[0].features * torch.arange(8.0)).sum().backward()
    assert bool(features.grad.abs().sum((1, 2)).gt(0).all())
