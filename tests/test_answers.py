"""The loss that align and sft learn from, held against the model's own forward, and what dropping tokens leaves."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lessons
import tiny
from longtake.data.conversations.batches import Batch, collate
from longtake.data.features import Features
from longtake.models import VideoLLM
from longtake.models.processor import stamp_text
from longtake.train.answers import AnswerLoss
from longtake.train.columns import Columns, columns_of, draw_kept, kept_columns, taken
from longtake.types import IGNORE

PAD = tiny.ID["<|endoftext|>"]


def columns(model: VideoLLM, batch: Batch) -> Columns:
    made_by = lessons.processor(model)
    config = model.config
    return columns_of(
        batch,
        config.video_token_id,
        config.frames_per_group,
        config.tokens_per_group,
        lambda seconds: len(made_by.text_ids(stamp_text(seconds, config.stamp_style))),
    )


def loss(model: VideoLLM, batch: Batch, kept: torch.Tensor | None = None) -> torch.Tensor:
    return AnswerLoss(model)(batch, columns(model, batch), kept)


def model_s_own(model: VideoLLM, batch: Batch) -> torch.Tensor:
    """The summed loss by ``VideoLLM.forward`` on the same rows."""
    logits = model(
        input_ids=batch.ids, pixel_values_videos=lessons.pixels(batch) or None, attention_mask=batch.mask
    ).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum")


ROWS = {"videos": ([8], [6]), "mixed": ([1], [5, 1], []), "text": ([], [])}  # frames of each row's clips


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_the_loss_is_the_model_s_own(rows):
    model = tiny.video_llm()
    batch = lessons.batch(model, *rows)
    with torch.no_grad():
        torch.testing.assert_close(loss(model, batch), model_s_own(model, batch))


def test_features_stand_for_their_frames():
    """bfloat16 features, as a store keeps them, give the loss of a tower that computes the same values."""
    model = tiny.video_llm()
    batch = lessons.batch(model, [6], [1])
    rounded = [model.encode_frames(clip).detach().bfloat16() for clip in lessons.pixels(batch)]
    stored = tuple(Features(features=f, seconds=c.seconds) for f, c in zip(rounded, batch.clips, strict=True))
    waiting = iter(rounded)

    def encode(pixels):
        return torch.cat([f.float() for f in waiting])

    model.encode_frames = encode  # type: ignore[method-assign]
    from_frames = loss(model, batch)
    model.encode_frames = None  # type: ignore[assignment]  # nothing is encoded where features are given
    torch.testing.assert_close(loss(model, dataclasses.replace(batch, clips=stored)), from_frames)


def test_columns_by_hand():
    """Five frames at 0, 7, .. s and an image: stamps "0:" and "28:", four tokens a group."""
    model = tiny.video_llm()
    batch = lessons.batch(model, [5, 1])
    found = columns(model, batch)
    assert found.clip_groups == (2, 1)
    groups = found.group[0].tolist()
    assert [groups.count(g) for g in (0, 1, 2)] == [2 + 4, 3 + 4, 2 + 4]
    where = [groups.index(g) for g in (0, 1, 2)]
    text = [bytes(batch.ids[0, at : at + 3].clamp_max(255).tolist()) for at in where]
    decoded = [tiny.tokenizer().decode(batch.ids[0, at : at + n]) for at, n in zip(where, (2, 3, 2), strict=True)]
    assert decoded == ["0:", "28:", "0:"], text
    assert found.visual[0][found.visual[0] >= 0].tolist() == list(range(12))
    assert torch.equal(found.visual[0] >= 0, batch.ids[0] == model.config.video_token_id)


def test_a_batch_of_another_model_is_refused():
    model = tiny.video_llm()
    batch = lessons.batch(model, [5])
    with pytest.raises(ValueError, match="8 places for visual tokens, but 3 groups of 4"):
        columns(model, dataclasses.replace(batch, clips=(tiny.frames(9, 32, 32),)))


def test_dropping_by_hand():
    """Group 0 keeps two of four tokens, group 1 none: its stamp goes too, and what is left closes up."""
    model = tiny.video_llm()
    batch = lessons.batch(model, [8])
    found = columns(model, batch)
    kept = torch.tensor([True, False, True, False] + [False] * 4)
    at = kept_columns(found, kept)
    ids = taken(batch.ids, at, PAD)[0].tolist()
    before = tiny.tokenizer()("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n")
    video = tiny.ID["<|vision_pad|>"]
    stamp = tiny.tokenizer()("0:")["input_ids"]
    after = tiny.tokenizer()("\nwhat?<|im_end|>\n<|im_start|>assistant\nanswer<|im_end|>")["input_ids"]
    assert ids == [*before["input_ids"], *stamp, video, video, *after]
    labels = taken(batch.labels, at, IGNORE)[0]
    assert tiny.tokenizer().decode(labels[labels != IGNORE]) == "answer<|im_end|>"


def test_dropped_tokens_count_for_nothing():
    """A video that has lost its second group has the loss of the shorter video."""
    model = tiny.video_llm()
    model.scorer = None
    made_by = lessons.processor(model)
    whole, half = (collate([lessons.example(made_by, "row", [count])], PAD) for count in (8, 4))
    shown = whole.clips[0]
    first = dataclasses.replace(shown, pixels=shown.pixels[:4], seconds=shown.seconds[:4])
    half = dataclasses.replace(half, clips=(first,))
    with torch.no_grad():
        kept = torch.tensor([True] * 4 + [False] * 4)
        torch.testing.assert_close(loss(model, whole, kept), loss(model, half))
        assert not torch.isclose(loss(model, whole), loss(model, half))


def test_videos_lose_their_share_and_images_nothing():
    model = tiny.video_llm()
    batch = lessons.batch(model, [80, 1], [40])
    found = columns(model, batch)
    kept = draw_kept(batch.names, batch.clips, found, 4, (0.05, 0.3), (7, 1))
    long, image, short = kept.split([80, 4, 40])
    assert image.all()
    for video in (long, short):
        assert 0.7 <= video.float().mean() <= 0.95
    again = draw_kept(batch.names, batch.clips, found, 4, (0.05, 0.3), (7, 1))
    other = draw_kept(batch.names, batch.clips, found, 4, (0.05, 0.3), (7, 2))
    assert torch.equal(kept, again)
    assert not torch.equal(kept, other)
    alone = lessons.batch(model, [40])
    alone = dataclasses.replace(alone, names=("row1",))
    assert torch.equal(draw_kept(alone.names, alone.clips, columns(model, alone), 4, (0.05, 0.3), (7, 1)), short)


def test_shares_are_spread_evenly():
    model = tiny.video_llm()
    batch = lessons.batch(model, [100])
    found = columns(model, batch)
    shares = [
        1 - draw_kept(batch.names, batch.clips, found, 4, (0.05, 0.3), (n,)).float().mean().item() for n in range(200)
    ]
    assert min(shares) < 0.07
    assert max(shares) > 0.28
    assert np.mean(shares) == pytest.approx(0.175, abs=0.02)


@pytest.mark.parametrize("scorer", ["faithful", "legacy", None])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_every_trained_weight_has_a_gradient(rows, scorer):
    """Also where a batch has nothing to see, or is idle: processes must agree on what has one."""
    model = tiny.video_llm(scorer=scorer, vision_norm=True)
    batch = lessons.batch(model, *rows)
    kept = torch.ones(columns(model, batch).num_groups * 4, dtype=torch.bool)
    loss(model, batch, kept).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())
    seen = bool(batch.clips)
    parts = ["projector", "dts", "vision_tower"] + (["scorer"] if scorer else [])
    for part in parts:
        largest = max(float(p.grad.abs().max()) for p in model.get_submodule(part).parameters())
        assert (largest > 0) == seen, part


def test_an_idle_batch_costs_nothing():
    model = tiny.video_llm(vision_norm=True)
    idle = collate([], PAD)
    total = loss(model, idle)
    total.backward()
    assert total == 0.0
    assert all(p.grad is not None and (p.grad == 0).all() for p in model.parameters())


def test_the_legacy_selector_is_added_as_in_forward():
    """One video a row: training's loss is that of the model's own forward, but for the answer that scores there."""
    model = tiny.video_llm(scorer="legacy", stamp_style="legacy")
    batch = lessons.batch(model, [8])
    config = model.config
    found = columns(model, batch)
    with torch.no_grad():
        ours = loss(model, batch)
        stop = int((batch.labels[0] != IGNORE).nonzero()[0])
        places = (found.visual[0] >= 0).nonzero().flatten()
        config.legacy_stamp_tokens = int(places[0] - found.group[0].tolist().index(0))
        mask = batch.mask.clone()
        mask[:, stop:] = 0  # the answer, which the released code lets score too
        embedded = model.get_input_embeddings()(batch.ids)
        tokens = torch.cat([model.video_tokens(clip) for clip in lessons.pixels(batch)])
        embedded = embedded.masked_scatter((found.visual >= 0)[..., None], tokens)
        embedded = model.embed_as_released(embedded, found.visual >= 0, mask)
        logits = model(inputs_embeds=embedded).logits
        expected = F.cross_entropy(logits[0, :-1], batch.labels[0, 1:], reduction="sum")
    torch.testing.assert_close(ours, expected)


def test_checkpointing_changes_no_gradient():
    gradients = []
    for on in (False, True):
        model = tiny.video_llm(vision_norm=True).train()
        if on:
            model.activation_checkpointing_enable({"use_reentrant": False})
            model.disable_input_require_grads()
        batch = lessons.batch(model, [8], [1])
        loss(model, batch).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_checkpointing_keeps_less():
    """What the backward pass needs is kept once a layer and no more: counted in saved tensors' bytes."""
    kept = []
    for on in (False, True):
        model = tiny.video_llm().train()
        if on:
            model.activation_checkpointing_enable({"use_reentrant": False})
            model.disable_input_require_grads()
        batch, total = lessons.batch(model, [40]), [0]

        def count(tensor: torch.Tensor, total: list[int] = total) -> torch.Tensor:
            total[0] += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss(model, batch)
        kept.append(total[0])
    assert kept[1] < 0.5 * kept[0]
