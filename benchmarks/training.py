"""What the training stages' choices are worth: the optimiser, how layers are computed, and reading a video unmasked.

    python benchmarks/training.py optimiser [--footage FOLDER] [--steps 400] [--seed 0]
    python benchmarks/training.py attention
    python benchmarks/training.py compressor
    python benchmarks/training.py together
    python benchmarks/training.py by-heart --work FOLDER

``optimiser`` trains the first stage (``school``) for some steps with AdamW alone and with Muon at two rates, and reads
windows of the test split (other fonts, triples and footage). ``attention`` times forward and backward passes: the
tower's, fused and written out, by patches; one attention over a video's columns, with a mask and without; and one over
short rows, fused and as products. ``compressor`` times the same of layers of the DTS and the reconstructor, for 16
groups of 4 frames at the embedded width: norms, attention within frames, and the convolution that doubles frames.
``together`` times a step of latent self-forcing, and of answers alone, on 16 questions about 4 videos with the model in
the package: the video in every row, and once for its questions. ``by-heart`` reads numbers from the groups of a bank
with the compressor in a training's folder: groups of the videos that it was trained on, and of those held out, by the
number of frames that show the card.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import SiglipVisionModel

from longtake.backbones import load_backbone
from longtake.backbones.base import Backbone
from longtake.data.probe_world.haystack import clips_and_scenes
from longtake.data.probe_world.hops import draw_hops
from longtake.data.probe_world.needles import Card
from longtake.model import EMBEDDED
from longtake.models.dts import NORM_EPS, NUM_NORM_GROUPS, DynamicTokenSynthesizer, attend
from longtake.models.group_norm import group_norm
from longtake.models.latent import LatentSettings, Thinking
from longtake.models.products import by_products, causal
from longtake.models.reconstructor import TwoFramesForOne
from longtake.recipes import make_embedded as embedded
from longtake.train import checkpoint
from longtake.train.embedded import optimiser
from longtake.train.embedded.compressor import FeatureBank, compress, shown_in
from longtake.train.embedded.reading import ATTRIBUTES, ReadingHead, reading_accuracy
from longtake.train.embedded.school import Pool, draw_pool, train_school, window_states, windows
from longtake.train.forcing import Forcing, Rows
from longtake.train.latent import Queue, rows_of
from longtake.train.latent_recipe import LatentRecipe, prepare
from longtake.train.puzzles import QuestionPuzzle
from longtake.train.run import Fit
from longtake.types import Frames

SHOWN = ("letter", "symbol", "tens", "units")
TEST_CARDS = 3000
TEST_WINDOWS = 2000
BANK_GROUPS = 1500  # of each half
WIDTH = 192  # of the embedded tower


def compare_optimisers(footage: Path | None, steps: int, seed: int) -> None:
    """Train ``school`` with each optimiser from the same start on the same windows; print what is read."""
    recipe = dataclasses.replace(embedded.school(), steps=steps, seed=seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, test = (clips_and_scenes(split, footage, folder / "haystack") for split in ("train", "test"))
        pool = draw_pool(dataclasses.replace(recipe, cards=TEST_CARDS), test, "test")
        for muon_lr in (None, 2e-3, 5e-3):
            # with no matrix large enough for Muon, AdamW has them all
            smallest = 10**9 if muon_lr is None else optimiser.SMALLEST_MATRIX
            chosen = recipe if muon_lr is None else dataclasses.replace(recipe, muon_lr=muon_lr)
            work = folder / str(muon_lr)
            with patch.object(optimiser, "SMALLEST_MATRIX", smallest):
                tower = train_school(chosen, train, work)
            head = ReadingHead(recipe.vision.hidden_size)
            head.load_state_dict(checkpoint.modules_of(work)["head"])
            read = read_windows(tower, head, pool)
            called = f"AdamW {recipe.lr}" if muon_lr is None else f"Muon {muon_lr}"
            print(called, "on the test split:", {name: round(read[name], 3) for name in SHOWN}, flush=True)


@torch.no_grad()
def read_windows(tower: SiglipVisionModel, head: ReadingHead, pool: Pool) -> dict[str, float]:
    """Accuracy by attribute on ``TEST_WINDOWS`` windows of a pool."""
    generator = torch.Generator().manual_seed(5)
    config = tower.config
    pixels, targets, _ = windows(pool, TEST_WINDOWS, config.patch_size, generator)
    with torch.autocast("cpu", torch.bfloat16):
        states = window_states(tower, pixels, config.image_size // config.patch_size, generator)
        return reading_accuracy(head(states), targets)


def compare_attention() -> None:
    """Seconds of a forward and a backward pass, the best of five."""
    for batch, patches in ((384, 9), (128, 28), (64, 64)):
        for name in ("sdpa", "eager"):
            tower = SiglipVisionModel(embedded.vision_config())
            tower.set_attn_implementation(name)
            embedded_patches = torch.randn(batch, patches, tower.config.hidden_size)

            def run(tower: SiglipVisionModel = tower, states: Tensor = embedded_patches) -> Tensor:
                with torch.autocast("cpu", torch.bfloat16):
                    return tower.encoder(inputs_embeds=states).last_hidden_state

            print(f"tower, {batch} x {patches} patches, {name}: {best_seconds(run):.3f} s", flush=True)
    for batch, columns in ((10, 400), (1, 4000)):
        q, k, v = (torch.randn(batch, 4, columns, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        mask = torch.ones(columns, columns, dtype=torch.bool).tril().expand(batch, 1, -1, -1)
        masked = best_seconds(lambda q=q, k=k, v=v, mask=mask: F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        unmasked = best_seconds(lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
        told = f"{masked:.3f} s with a mask, {unmasked:.3f} s without"
        print(f"attention, {batch} x {columns} columns: {told}", flush=True)
    for batch, queries, keys in ((8, 81, 81), (8, 166, 247), (1, 588, 588), (8, 512, 512), (1, 1024, 1024)):
        q = torch.randn(batch, 4, queries, 64, dtype=torch.bfloat16, requires_grad=True)
        k, v = (torch.randn(batch, 4, keys, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
        seen = causal(queries, keys)
        mask = None if queries == keys else seen
        fused = best_seconds(
            lambda q=q, k=k, v=v, m=mask: F.scaled_dot_product_attention(q, k, v, m, is_causal=m is None)
        )
        plain = best_seconds(lambda q=q, k=k, v=v, m=seen: by_products(q, k, v, m, scaling=0.125))
        shape = f"{batch} rows, {queries} queries of {keys} keys"
        print(f"attention, {shape}: {fused:.4f} s fused, {plain:.4f} s as products", flush=True)


def compare_compressor() -> None:
    """Seconds of layers as they are written here and as PyTorch has them, the best of five.

    Norms in float32, attention in bfloat16, the convolution under autocast.
    """
    groups, places, dim = 16, 64, WIDTH
    norm = nn.GroupNorm(NUM_NORM_GROUPS, dim, eps=NORM_EPS)
    for batch, length in ((groups, 4 * places), (groups * places, 4)):
        x = torch.randn(batch, length, dim, requires_grad=True)
        ours = best_seconds(lambda x=x: group_norm(x, norm))
        theirs = best_seconds(lambda x=x: norm(x.transpose(1, 2)).transpose(1, 2))
        out = best_seconds(lambda x=x: written_out(x, norm))
        print(f"norm, {batch} x {length}: {ours:.4f} s, nn.GroupNorm {theirs:.4f} s, written out {out:.4f} s")
    q, k, v = (torch.randn(4 * groups, 1, places, dim, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    ours, theirs = (best_seconds(lambda f=f: f(q, k, v)) for f in (attend, F.scaled_dot_product_attention))
    print(f"attention within {4 * groups} frames: {ours:.4f} s, fused {theirs:.4f} s", flush=True)
    x = torch.randn(groups, dim, 3, 10, 10, requires_grad=True)
    conv = TwoFramesForOne(dim, taps=3)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (best_seconds(lambda f=f: f(x)) for f in (conv, partial(nn.ConvTranspose3d.forward, conv)))
    print(f"two frames for one: {ours:.4f} s, nn.ConvTranspose3d {theirs:.4f} s", flush=True)
    for frames in (4, 2):
        x, down = torch.randn(groups, dim, frames + 1, 10, 10, requires_grad=True), nn.Conv3d(dim, dim, 3, (2, 1, 1))
        rows = torch.randn(groups * frames // 2 * places, 27 * dim, requires_grad=True)
        product = nn.Linear(27 * dim, dim)  # of as many operations, once all neighbours stand in a row
        with torch.autocast("cpu", torch.bfloat16):
            spent, least = (best_seconds(partial(*what)) for what in ((down, x), (product, rows)))
        billions = 3 * 2 * len(rows) * 27 * dim**2 / 1e9
        print(
            f"one frame for two of {frames}: {spent:.4f} s, {billions / spent:.0f} GFLOP/s; a product of as many "
            f"operations {least:.4f} s",
            flush=True,
        )


def written_out(x_BLD: Tensor, norm: nn.GroupNorm) -> Tensor:
    """The norm of channels-last ``(batch, length, dim)`` in single operations, for autograd to go back through."""
    x_BLHE = x_BLD.unflatten(-1, (norm.num_groups, -1))
    centred = x_BLHE - x_BLHE.mean(dim=(1, 3), keepdim=True)
    variance = centred.square().mean(dim=(1, 3), keepdim=True)
    return (centred * torch.rsqrt(variance + norm.eps)).flatten(2) * norm.weight + norm.bias


def best_seconds(run: Callable[[], Tensor], times: int = 5) -> float:
    """Wall seconds of a forward and a backward pass, the best of several, after one to warm up."""
    spent = []
    for _ in range(times + 1):
        start = time.perf_counter()
        run().float().sum().backward()
        spent.append(time.perf_counter() - start)
    return min(spent[1:])


def compare_together() -> None:
    """Seconds of a forward and a backward pass over 16 questions about 4 videos, the best of five."""
    for frames in (16, 64, 256):
        for latents in (0, 8):
            backbone = load_backbone(str(EMBEDDED), dtype=torch.float32)
            settings = LatentSettings(thinking=Thinking(latents=max(1, latents)), width=128, heads=4)
            fit = Fit(lr=1e-4, batch=16, micro_batch=16, steps=1)
            recipe = LatentRecipe(fit=fit, settings=settings, thinks=latents > 0)
            prepare(recipe, backbone)
            forcing = Forcing(backbone, recipe)
            rows = rows_of(recipe, backbone, asked_of_noise(backbone, frames), Queue(0), {}, False)

            def run(together: int, forcing: Forcing = forcing, rows: Rows = rows) -> Tensor:
                with torch.autocast("cpu", torch.bfloat16):
                    loss: Tensor = forcing(dataclasses.replace(rows, together=together))[0]
                return loss

            apart, once = (best_seconds(partial(run, together)) for together in (1, 4))
            says = f"{latents} latents" if latents else "answers alone"
            told = f"{apart:.3f} s apart, {once:.3f} s together, {apart / once:.2f} times as fast"
            print(f"{frames} frames, {says}: {told}", flush=True)


@torch.no_grad()
def asked_of_noise(backbone: Backbone, frames: int) -> list[QuestionPuzzle]:
    """Four questions of one to four hops about each of four videos of noise."""
    asked = []
    for number in range(4):
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 256, (frames, 3, 128, 128), dtype=np.uint8)
        tokens = backbone.encode(Frames(pixels=pixels, seconds=np.arange(frames, dtype=np.float64)))
        for hop in draw_hops(rng, "train", number, 16):
            asked.append(QuestionPuzzle(name=hop.text, question=hop.text, answers=(hop.answer,), tokens=tokens))
    return asked


def compare_bank_halves(work: Path) -> None:
    """Print the share of groups with one number card whose digits are both right, seen in training and held out."""
    bank = embedded.feature_bank(work)
    state = checkpoint.modules_of(work / "compressor")
    dts, head = DynamicTokenSynthesizer(embedded.compressor().dim), ReadingHead(embedded.compressor().dim)
    dts.load_state_dict(state["dts"])
    head.load_state_dict(state["card"])
    seen = bank.groups < bank.first_held_out
    for name, chosen in (("trained on", seen), ("held out", ~seen)):
        rows, frames = number_groups(bank, bank.groups[chosen])
        right = torch.cat([read_numbers(dts, head, bank, part) for part in rows.split(64)])
        shares = [f"{count} frames {right[frames == count].float().mean():.3f}" for count in range(1, 5)]
        print(f"{name}: {right.float().mean():.3f} of {len(right)} groups; {', '.join(shares)}", flush=True)


def number_groups(bank: FeatureBank, groups: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """The first groups that show one card, a number, and on how many of their frames, int64 ``(groups,)`` each."""
    rows = []
    for window in groups.tolist():
        video, begin = divmod(window, bank.windows_per_video)
        cards = [(n, e.what) for n, e in shown_in(bank.events[video][1], begin) if isinstance(e.what, Card)]
        if len(cards) == 1 and cards[0][1].kind == "number":
            rows.append((window, cards[0][0]))
            if len(rows) == BANK_GROUPS:
                break
    window, frames = torch.tensor(rows).unbind(1)
    return window, frames


@torch.no_grad()
def read_numbers(dts: DynamicTokenSynthesizer, head: ReadingHead, bank: FeatureBank, windows: Tensor) -> Tensor:
    """Whether both digits of each group's card are told, bool ``(windows,)``."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(compress(dts, bank.read(windows.numpy()), embedded.compressor().pool))
    wanted = bank.card_targets[windows]
    places = [list(ATTRIBUTES).index(name) for name in ("tens", "units")]
    right = [logits[name].argmax(1) == wanted[:, place] for name, place in zip(("tens", "units"), places, strict=True)]
    return right[0] & right[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("optimiser", "attention", "compressor", "together", "by-heart"))
    parser.add_argument("--footage", type=Path, help="folder of videos for backgrounds; drawn scenes alone without it")
    parser.add_argument("--work", type=Path, default=Path(".cache/embedded"), help="the training's folder")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "attention":
        compare_attention()
    elif options.what == "compressor":
        compare_compressor()
    elif options.what == "together":
        compare_together()
    elif options.what == "by-heart":
        compare_bank_halves(options.work)
    else:
        compare_optimisers(options.footage, options.steps, options.seed)


if __name__ == "__main__":
    main()
