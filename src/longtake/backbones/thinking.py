"""Thinking in latents on the cache: prompt, a marker, the latents, a marker, and then the answer as ever.

``[prompt] start z1 ... zK end [answer]``. Latents are always put in and never sampled, so that all rows of a batch make
as many passes. The first are known before the prompt is read, and are run with it; behind it come T - 1 passes of K
columns and one of K + 1 ("parallel"), or K - 1 of one column and one of two ("autoregressive").
Ours; VideoLatent, arXiv 2606.22870, says that latents stand between question and answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.backbones.attention import Veil
from longtake.backbones.base import Backbone, Cache, Held, Inputs, Read
from longtake.backbones.begun import cached
from longtake.backbones.keys import crop, exchange
from longtake.models.latent import Injected, LatentInjection, LatentSettings, Seen, Thinking
from longtake.types import LongtakeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Thought:
    """A prompt with its latents, ready for ``generate(inputs, cache)``.

    latents: ``(batch, latents, dim)``.
    attended: float32 ``(batch, latents, columns of inputs)``, where latents looked: the mean over heads and evidence
        layers. reread: the same of what the module read again. None where it was not asked for, or is not there.
    """

    inputs: Inputs
    cache: Cache
    latents: Tensor
    attended: Tensor | None = None
    reread: Tensor | None = None


def add_latents(backbone: Backbone, settings: LatentSettings, *, seed: int) -> LatentInjection:
    """Give a model that has none a fresh module, saved with it from now on."""
    assert backbone.latent is None, "this model has latents"
    table = backbone.decoder.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = LatentInjection(table.shape[1], settings)
    module.match(table)
    module.to(table.device, table.dtype).train(backbone.model.training)
    backbone.model.config.latent = settings.as_config()
    backbone.model.latent = module
    return module


def thinking_of(backbone: Backbone, latents: int | None) -> Thinking | None:
    """How a model is to think with this many latents; None latents: as trained. None: not at all.

    Raises LongtakeError where latents are asked of a model that has none, or more than it has.
    """
    if backbone.latent is None:
        if latents:
            raise LongtakeError(f"latents is {latents}, but {backbone.name} has none; train it: longtake train latent")
        return None
    asked = backbone.latent.settings.asked(latents)
    return asked if asked.latents else None


def extended(inputs: Inputs, columns: Tensor) -> Inputs:
    """Inputs with columns ``(batch, n, dim)`` behind them, in every row; differentiable."""
    assert inputs.labels is None, "latents come before an answer, not behind it"
    count, pad = columns.shape[1], torch.nn.functional.pad
    places = inputs.next_position[:, None] + torch.arange(count, device=columns.device)
    return dataclasses.replace(
        inputs,
        embeddings=torch.cat([inputs.embeddings, columns.to(inputs.embeddings.dtype)], dim=1),
        positions=torch.cat([inputs.positions, places.expand(*inputs.positions.shape[:-1], -1)], dim=-1),
        mask=pad(inputs.mask, (0, count), value=True),
        source=pad(inputs.source, (0, count), value=-1),
        ids=pad(inputs.ids, (0, count), value=-1),
        next_position=inputs.next_position + count,
    )


def with_latents(inputs: Inputs, latents: Tensor, module: LatentInjection) -> Inputs:
    """A prompt, the marker, latents ``(batch, latents, dim)``, the other marker; differentiable."""
    start, end = (marker.expand(len(latents), 1, -1).to(latents.dtype) for marker in (module.start, module.end))
    return extended(inputs, torch.cat([start, latents, end], dim=1))


def visual_columns(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Each row's columns of visual tokens, int64 ``(batch, most)``, 0 on padding, and a mask, False there."""
    is_visual = inputs.source >= 0
    most = int(is_visual.sum(dim=1).max())
    columns = is_visual.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    mask = is_visual.gather(1, columns)
    return columns * mask, mask


def seen_by(module: LatentInjection, inputs: Inputs) -> Seen | None:
    """The prompt's visual tokens as the module reads them again; differentiable."""
    columns, mask = visual_columns(inputs)
    places = columns[..., None].expand(-1, -1, inputs.embeddings.shape[-1])
    return module.read(inputs.embeddings.gather(1, places), mask)


@torch.no_grad()
def think(
    backbone: Backbone,
    inputs: Inputs,
    cache: Cache | None = None,
    *,
    thinking: Thinking,
    given: Tensor | None = None,
    record: bool = False,
) -> Thought:
    """Run the prompt on, through its latents; a given cache (of the prefix) is extended in place.

    given: these latents in place of the model's own, ``(latents, dim)`` or ``(batch, latents, dim)``: a control. None
    of them, ``(0, dim)``, leaves the markers. record: whether to tell where latents look.
    """
    module, batch, length = backbone.latent, *inputs.ids.shape
    if module is None or (given is None and not thinking.latents):
        none = inputs.embeddings[:, :0]
        return Thought(inputs=inputs, cache=backbone.prefill(inputs, cache), latents=none)
    held: Held | None = cache
    if given is None:
        made, held = rolled(backbone, inputs, cache, thinking)
        latents = made.latents
    else:
        latents, made = given.expand(batch, -1, -1).to(inputs.embeddings), None
    whole = with_latents(inputs, latents, module)
    count = latents.shape[1]
    if record and held is not None:  # all latents are run once more, as where they look is told of one pass
        held = Held(key_values=held.key_values, length=min(held.length, length + 1))
    recorder = backbone.recorder(count + 1 if record else 1)
    read = backbone.read(whole, held, columns=recorder.columns, recorder=recorder)
    return Thought(
        inputs=whole,
        cache=cached(backbone, read, recorder),
        latents=latents,
        attended=recorder.means()[:, :count] if record else None,
        reread=None if made is None or made.looks is None or not record else on_columns(made.looks, whole),
    )


@torch.no_grad()
def with_columns_of(backbone: Backbone, thought: Thought, rows: Tensor) -> Thought:
    """Each row with the latents' columns of another: a control. Changes the cache in place.

    The keys and values there are what latents are to the answer, and were made on the other row's video. Given another
    video's latents alone (``think``), their columns still look at the own video.

    rows: int64 ``(batch,)``, whose columns each row gets; that row's prompt must be as long.
    """
    places = thought.inputs.next_position
    assert torch.equal(places[rows], places), "prompts of unequal length have their latents at other positions"
    key_values, last = thought.cache.key_values, thought.inputs.ids.shape[1] - 1
    crop(key_values, last)
    exchange(key_values, slice(last - thought.latents.shape[1], last), rows)
    cache = backbone.prefill(thought.inputs, dataclasses.replace(thought.cache, length=last))
    return dataclasses.replace(thought, cache=cache, latents=thought.latents[rows], attended=None, reread=None)


def on_columns(looks: Tensor, inputs: Inputs) -> Tensor:
    """Looks at visual tokens ``(batch, latents, tokens)`` as looks at columns ``(batch, latents, columns)``."""
    columns, _ = visual_columns(inputs)
    nothing = looks.new_zeros(*looks.shape[:2], inputs.ids.shape[1])
    return nothing.scatter_add(2, columns[:, None].expand_as(looks), looks)


def rolled(
    backbone: Backbone,
    inputs: Inputs,
    held: Held | None,
    thinking: Thinking,
    veil: Veil | None = None,
    *,
    through: bool = False,
) -> tuple[Injected, Held | None]:
    """The latents of a prompt, and what of prompt, marker and latents is held behind them; None: nothing.

    held: what is held before, None: nothing; latents that nothing is fed back to leave it so. The first latents are run
    together with what is left of the prompt. Where gradients are wanted they go through the last making of each latent,
    and with ``through`` on into the latents that it was made of; never into the prompt's keys and values.
    veil: over the prompt, its markers and its latents.
    """
    module = backbone.latent
    assert module is not None
    assert thinking.latents <= len(module.slots), f"{thinking.latents} latents, but slots for {len(module.slots)}"
    seen = seen_by(module, inputs)
    batch, length = inputs.ids.shape
    if thinking.mode == "autoregressive":
        return _one_by_one(backbone, inputs, held, thinking.latents, seen, veil, through=through)
    if thinking.mode == "pause":
        return module.pause(batch, thinking.latents), held
    wanted = torch.is_grad_enabled()
    with torch.set_grad_enabled(wanted and (through or not thinking.passes)):
        made = module.begin(batch, thinking.latents, seen)
    begun = extended(inputs, module.start.expand(batch, 1, -1))
    for number in range(thinking.passes):
        with torch.set_grad_enabled(wanted and (through or number == thinking.passes - 1)):
            read = _run_on(backbone, begun, made.latents, held, veil)
            made = module(read.states, seen)
        held = Held(key_values=read.key_values, length=length + 1)
    return made, held


def _one_by_one(
    backbone: Backbone,
    inputs: Inputs,
    held: Held | None,
    latents: int,
    seen: Seen | None,
    veil: Veil | None,
    *,
    through: bool,
) -> tuple[Injected, Held]:
    """Make the latents one by one, each from the state before it; all columns but the last latent are then held.

    Where gradients of the last making alone are wanted all are made once more, in one pass over the latents as they
    are: the same values.
    """
    module, (batch, length) = backbone.latent, inputs.ids.shape
    assert module is not None
    made: list[Injected] = []
    wanted, start = torch.is_grad_enabled(), module.start.expand(batch, 1, -1)
    with torch.set_grad_enabled(wanted and through):
        whole, column = inputs, start
        for slot in range(latents):
            held = read = _run_on(backbone, whole, column, held, veil)
            made.append(module(read.states, seen, first=slot))
            whole, column = extended(whole, column), made[-1].latents
    assert held is not None, "no latents"
    if through or not wanted:
        return _joined(made), held
    prompt = Held(key_values=held.key_values, length=length)
    before = torch.cat([start, *(each.latents for each in made[:-1])], dim=1)
    return module(_run_on(backbone, inputs, before, prompt, veil).states, seen), prompt


def _joined(made: list[Injected]) -> Injected:
    def cat(part: Callable[[Injected], Tensor]) -> Tensor:
        return torch.cat([part(each) for each in made], dim=1)

    looks = None if made[0].looks is None else torch.cat([each.looks for each in made if each.looks is not None], dim=1)
    return Injected(latents=cat(lambda each: each.latents), content=cat(lambda each: each.content), looks=looks)


def _run_on(backbone: Backbone, inputs: Inputs, columns: Tensor, held: Held | None, veil: Veil | None) -> Read:
    """States of columns ``(batch, n, dim)`` behind inputs, of which some are held.

    In one pass where no gradients are wanted. Else the inputs are read before, without gradient.
    """
    whole, count = extended(inputs, columns), columns.shape[1]
    if not torch.is_grad_enabled():
        return backbone.read(whole, held, veil=veil, columns=count)
    length = inputs.ids.shape[1]
    if held is None or held.length < length:
        held = backbone.read(inputs, held, veil=veil)
    crop(held.key_values, length)
    mask = None if bool(whole.mask.all()) else whole.mask
    states = backbone.run(columns, whole.positions[..., length:], mask, held.key_values, veil=veil)
    return Read(key_values=held.key_values, length=length + count, states=states)
