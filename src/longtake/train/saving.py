"""Save trained models in folders, which appear whole, and load them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from longtake.backbones.base import Backbone
from longtake.models.processor import VideoLLMProcessor
from longtake.models.video_llm import VideoLLM
from longtake.train import lora
from longtake.train.checkpoint import room_in
from longtake.train.run import Run

Prepare = Callable[[VideoLLM], None]  # what a stage does to a model before it trains it


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A name beside ``target`` to save a model under; that folder takes its place when the block ends.

    Raises LongtakeError on a full disk, with ``target`` as it was.
    """
    scratch = target.with_name(target.name + ".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with room_in(target.parent, "the model"):
        yield scratch
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)


def save_model(model: VideoLLM, processor: VideoLLMProcessor, target: Path) -> None:
    """Save a model in a folder that ``load_model`` and ``--model`` take. Raises as ``replaced_folder`` does."""
    with replaced_folder(target) as scratch:
        model.save_pretrained(scratch)
        processor.save_pretrained(scratch)


def load_model(folder: Path) -> tuple[VideoLLM, VideoLLMProcessor]:
    """Load a saved model, in float32, as it is trained, and its processor."""
    model: VideoLLM = VideoLLM.from_pretrained(folder, dtype=torch.float32)
    return model, VideoLLMProcessor.from_pretrained(folder)


def write_model(
    run: Run, model: VideoLLM, prepare: Prepare, finish: Prepare, processor: VideoLLMProcessor, target: Path
) -> None:
    """Save the trained model whole, with its processor. Every process must call it.

    prepare: as it was prepared for training; a sharded model is put together in a new one that is prepared the same.
    finish: what is done before it is saved.
    """
    state = run.whole_weights() if run.fit.shard else {}
    if run.is_main:
        if run.fit.shard:
            model = VideoLLM(model.config)
            prepare(model)
            model.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
        finish(model)
        save_model(model, processor, target)
    run.accelerator.wait_for_everyone()


def write_backbone(run: Run, backbone: Backbone, target: Path) -> None:
    """Save the trained model of either family whole, LoRA merged. Every process must call it."""
    lora.merge(backbone.decoder)
    if run.is_main:
        with replaced_folder(target) as scratch:
            backbone.save(scratch)
    run.accelerator.wait_for_everyone()
