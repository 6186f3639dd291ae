"""What every ablation stands on: sizes, a bank of training footage, test videos, and a small decoder.

Features come from the tower of the model in the package, or of another one, frozen. Videos of the bank are mixed in
blocks of eight frames, the pairs of groups they were planned in, so that groups of 1, 2, 4 and 8 frames all see the
same videos.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config

from longtake.backbones.identity import weights_hash
from longtake.backbones.own import OwnVideoLLM
from longtake.data.probe_world.bank import BankRecipe, build_bank
from longtake.data.probe_world.haystack import Clip, clips_and_scenes, describe, footage_names
from longtake.data.probe_world.needles import Split
from longtake.data.probe_world.probe import ProbeVideo, make_video, place_event
from longtake.data.probe_world.questions import Question, ask_all
from longtake.eval.features import network_of
from longtake.model import EMBEDDED, load
from longtake.models.preprocess import normalised_pixels
from longtake.models.processor import VideoLLMProcessor
from longtake.models.video_llm import VideoLLM, VideoLLMConfig
from longtake.outputs import replaced
from longtake.tables.work_folder import named
from longtake.train.embedded.compressor import CPU
from longtake.train.embedded.lookback import look_back
from longtake.types import LongtakeError

BLOCK = 8  # frames
BANK_FRAMES = 40  # of a video
QUESTIONS = 20  # of a test video, at most
MOST_CARDS = 4  # of a test video; with fewer, "nothing" is nearly always what came after a card
GROUNDED_LAYER = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large an ablation is. Ours: chosen so that all tables take a few hours of two CPU cores.

    base_steps: of the decoder that all arms fork. steps: of an arm. most_steps: to which an arm is lengthened at most
    when it is given the FLOPs of another's pre-training. videos: a batch. clips: of eight frames, a pre-training batch.
    """

    bank_videos: int = 1500
    test_videos: int = 200
    base_steps: int = 900
    steps: int = 500
    most_steps: int = 1500
    videos: int = 8
    questions: int = 8
    pretraining_steps: int = 400
    clips: int = 8
    hidden: int = 192
    warmup: int = 50
    probe_samples: int = 600

    @property
    def dim(self) -> int:
        """Width of the tower's features."""
        return 192


FULL = Size()
SMALLEST = Size(
    bank_videos=30, test_videos=4, base_steps=2, steps=2, most_steps=3, videos=2, questions=4, pretraining_steps=4,
    clips=2, hidden=128, warmup=1,
    probe_samples=12,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    """Test videos, rendered afresh, with their tower features and questions.

    features: bf16 ``(videos, frames, tokens, dim)``.
    """

    features: Tensor
    videos: tuple[ProbeVideo, ...]
    questions: tuple[tuple[Question, ...], ...]

    @property
    def video_of(self) -> NDArray[np.int64]:
        """The video that each question is about, all questions in a row."""
        return np.repeat(np.arange(len(self.videos)), [len(asked) for asked in self.questions])

    @property
    def asked(self) -> list[Question]:
        """All questions in a row."""
        return [question for asked in self.questions for question in asked]


class World:
    """A work folder with all that arms share; what is missing is made, and kept.

    folder: the work folder; decoded footage lies in it, all else in a folder of its own for each tower (``work``).
    model: whose tower and words are used, and whose decoder the heat-map's arms fork.
    device: where weights are trained. Everything else, the answers too, is computed on the CPU.
    """

    def __init__(
        self, folder: Path, footage: Path | None, size: Size, device: torch.device = CPU, model: Path = EMBEDDED
    ) -> None:
        self.folder, self.footage, self.size, self.device, self.model = folder, footage, size, device, model

    @cached_property
    def packaged(self) -> VideoLLM:
        """The model whose tower is used. Raises LongtakeError where it has no DTS, or the tower another width."""
        found = network_of(load(self.model, device="cpu", dtype=torch.float32))
        width = found.config.vision_config.hidden_size
        if width != self.size.dim:
            raise LongtakeError(f"{self.model} has a tower of width {width}; these tables want {self.size.dim}")
        return found

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The words of that model."""
        tokenizer: PreTrainedTokenizerFast = VideoLLMProcessor.from_pretrained(self.model).tokenizer
        return tokenizer

    @cached_property
    def work(self) -> Path:
        """Where all is kept that was made with this tower, these words and this footage: another one, another folder.

        Names inside tell settings apart, and nothing of these.
        """
        words = self.tokenizer.get_vocab()
        seen = {"tower": weights_hash(self.packaged.vision_tower), "pool": self.pool, "footage": self.footage_names}
        return self.folder / named("tower", {**seen, "words": words})

    @cached_property
    def begun(self) -> Path:
        """The part of ``work`` for what goes on from the model's own decoder and is asked beside it."""
        return self.work / f"start-{weights_hash(self.packaged)}"

    @property
    def pool(self) -> int:
        """Side of the average pool after the compressor."""
        return int(self.packaged.config.pool)

    def clips(self, split: Split) -> list[Clip]:
        """Footage and drawn scenes of one split."""
        return clips_and_scenes(split, self.footage, self.folder / "haystack")

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 frames ``(frames, 3, height, width)`` to bf16 features ``(frames, tokens, dim)``."""
        side = self.packaged.config.vision_config.image_size
        with torch.autocast("cpu", torch.bfloat16):
            features = self.packaged.encode_frames(normalised_pixels(pixels, (side, side)))
        return features.bfloat16().flatten(1, 2)

    def bank_recipe(self) -> BankRecipe:
        """The bank's settings; a quarter of the blocks is plain, or training would see one background too often."""
        return BankRecipe(videos=self.size.bank_videos, frames=BANK_FRAMES, plain=0.25)

    @property
    def footage_names(self) -> list[str]:
        """Part of what names a bank and test videos: other footage, other files."""
        return footage_names(self.footage)

    @property
    def bank_folder(self) -> Path:
        """Where the bank is or will be."""
        key = {**dataclasses.asdict(self.bank_recipe()), "footage": self.footage_names}
        return self.work / named("bank", key)

    @property
    def bank_done(self) -> bool:
        """Whether the bank is whole."""
        lines = self.bank_folder / "videos.jsonl"
        return lines.exists() and len(lines.read_text().splitlines()) == self.size.bank_videos

    @cached_property
    def bank(self) -> Path:
        """The folder of the bank of training videos, built where it is not whole."""
        clips = self.clips("train")
        print(self.bank_folder.name, describe(clips), flush=True)
        build_bank(self.bank_recipe(), clips, self.encode, self.bank_folder, workers=0)
        return self.bank_folder

    @cached_property
    def features(self) -> NDArray[np.int16]:
        """The bank's features, memory-mapped, ``(frames, tokens, dim)``."""
        raw = np.memmap(self.bank / "features.bin", np.int16, "r")
        return raw.reshape(self.size.bank_videos * BANK_FRAMES, -1, self.size.dim)

    @property
    def blocks(self) -> NDArray[np.int64]:
        """The bank's frames by block, ``(blocks, 8)``."""
        return np.arange(self.size.bank_videos * BANK_FRAMES).reshape(-1, BLOCK)

    def exam_file(self, frames: int) -> Path:
        """Where the features of test videos of a length are or will be."""
        key = {"frames": frames, "videos": self.size.test_videos, "cards": MOST_CARDS, "footage": self.footage_names}
        return self.work / f"{named('exam', key)}.pt"

    def exam(self, frames: int) -> Exam:
        """Test videos of a length with one to four cards, rendered and encoded once."""
        clips = self.clips("test")
        videos, questions = [], []
        for number in range(self.size.test_videos):
            cards = int(np.random.default_rng([number, 5]).integers(1, 1 + MOST_CARDS))
            video = make_video(number, split="test", clips=clips, num_frames=frames, num_cards=cards)
            videos.append(video)
            questions.append(tuple(ask_all(video, np.random.default_rng([number, 4]), QUESTIONS)))
        file = self.exam_file(frames)
        if not file.exists():
            print(f"exam: {len(videos)} videos of {frames} frames", flush=True)
            encoded = [torch.cat([self.encode(torch.from_numpy(f.pixels)) for f in v.frames()]) for v in videos]
            with replaced(file, make_folder=True) as scratch, scratch.open("wb") as sink:
                torch.save(torch.stack(encoded), sink)
        features = torch.load(file, weights_only=True)
        return Exam(features=features, videos=tuple(videos), questions=tuple(questions))

    def fresh_model(self, seed: int) -> VideoLLM:
        """A decoder of four layers and its projector, from a seed; the tower and the DTS in it are not used."""
        torch.manual_seed(seed)
        model = VideoLLM(self.model_config())
        look_back(model.language_model.model)
        return model

    def model_config(self) -> VideoLLMConfig:
        """A decoder of about two million parameters that reads 16 tokens a group."""
        packaged, hidden = self.packaged.config, self.size.hidden
        text = Qwen2Config(
            vocab_size=packaged.text_config.vocab_size,
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=GROUNDED_LAYER + 1,
            num_attention_heads=hidden // 64,
            num_key_value_heads=hidden // 64,
            max_position_embeddings=2048,
            rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=packaged.text_config.eos_token_id,
            pad_token_id=packaged.text_config.pad_token_id,
        )
        return VideoLLMConfig(
            vision_config=packaged.vision_config,
            text_config=text,
            vision_norm=True,
            video_token_id=packaged.video_token_id,
            context_tokens=2048,
            evidence_layers=[GROUNDED_LAYER],
        )

    def backbone(self, model: VideoLLM) -> OwnVideoLLM:
        """A model behind the adapter, ready to answer."""
        model.eval()
        return OwnVideoLLM(model, VideoLLMProcessor.from_config(self.tokenizer, model.config))


def needle_patches(video: ProbeVideo, side: int) -> NDArray[np.bool_]:
    """Which patches' middles a card or a mover covers, bool ``(frames, side, side)``."""
    covered = np.zeros((video.num_frames, side, side), np.bool_)
    height, width = video.size
    middle = (np.arange(side) + 0.5) / side
    for event in video.events:
        if event.what is None:
            continue
        for frame in range(video.num_frames):
            at = frame / video.fps
            if event.start_seconds <= at < event.stop_seconds:
                drawn, x, y = place_event(event, at, (width, height), video.split)
                across = (x <= middle * width) & (middle * width < x + drawn.width)
                down = (y <= middle * height) & (middle * height < y + drawn.height)
                covered[frame] |= down[:, None] & across[None]
    return covered
