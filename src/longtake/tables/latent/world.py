"""What every table about latents stands on: sizes, settings, questions by hops, and their videos' tokens, made once.

The model in the package is where all begin; its tower, DTS and projector stay as they are, so that a video's tokens are
the same for every arm.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from longtake.backbones import load_backbone
from longtake.backbones.base import Backbone
from longtake.data.probe_world.haystack import Clip, clips_and_scenes, footage_names
from longtake.data.probe_world.hops import MOST_HOPS, Hop, draw_hops, draw_pair, form_of, hop_video, word_of
from longtake.data.probe_world.needles import Split
from longtake.data.probe_world.probe import ProbeVideo
from longtake.data.probe_world.questions import Question
from longtake.model import EMBEDDED
from longtake.outputs import write_json
from longtake.tables.token_files import encoded, read_tokens, token_files, videos_of, write_tokens
from longtake.tables.work_folder import named
from longtake.train.embedded.compressor import CPU
from longtake.train.puzzles import QuestionPuzzle
from longtake.types import LongtakeError, VisualTokens

# search: what a setting is chosen on, curve: what is asked while an arm learns; no table is made of either
Part = Literal["train", "search", "exam", "curve"]
SPLIT_OF: dict[Part, Split] = {"train": "train", "search": "test", "exam": "test", "curve": "test"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all arms learn under: frames of a video, steps of the starting model and of an arm, learning rate.

    base_steps: of answers alone; 0: arms go on from the model in the package.
    """

    frames: int = 16
    base_steps: int = 0
    steps: int = 1000
    lr: float = 3e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentSize:
    """How large the tables are. Ours: chosen for a few hours of two CPU cores.

    train_videos: with a question of each number of hops about each. pairs, search_pairs, curve_pairs: of test
    questions, asked about two videos each. batch: questions a step, ``together`` of them about one video. most_steps:
    to which an arm is lengthened at most for equal operations. width, heads: of the latents' module. settings: tried
    in this order. single, gain: what a setting must reach, on single hops and by traces over answers alone on all
    others.
    """

    train_videos: int = 4000
    pairs: int = 240
    search_pairs: int = 240
    curve_pairs: int = 60
    batch: int = 16
    together: int = MOST_HOPS
    most_steps: int = 9000
    width: int = 128
    heads: int = 4
    settings: tuple[Setting, ...] = (
        Setting(),
        Setting(steps=1500),
        Setting(steps=2500),
    )
    single: float = 0.90
    gain: float = 0.15


FULL = LatentSize()
SMALLEST = LatentSize(
    train_videos=2, pairs=4, search_pairs=4, curve_pairs=2, batch=4, most_steps=2, width=16, heads=2,
    settings=(Setting(base_steps=1, steps=1),), single=0.0, gain=-1.0,  # whatever is reached, so that tables are made
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class HopExam:
    """Test questions; numbers 2n and 2n + 1 are the same question about two videos with different answers."""

    hops: tuple[Hop, ...]
    puzzles: tuple[QuestionPuzzle, ...]

    @property
    def digest(self) -> str:
        """A hash of questions, their videos' things, and answers."""
        return digest_of(self.hops)

    @property
    def asked(self) -> list[Question]:
        """All questions, their task the number of hops."""
        return [dataclasses.replace(hop.question, task=hops_name(hop.hops)) for hop in self.hops]

    @property
    def video_of(self) -> NDArray[np.int64]:
        """The pair that each question is of: what is drawn again for intervals."""
        return np.arange(len(self.hops)) // 2


def digest_of(hops: Sequence[Hop]) -> str:
    """What names whatever is made of some questions: others get another name."""
    told = repr([(hop.text, hop.things, hop.answer) for hop in hops])
    return hashlib.blake2b(told.encode(), digest_size=5).hexdigest()


def hops_name(hops: int) -> str:
    """What tables call questions of so many hops."""
    return f"{hops} hop" + ("s" if hops > 1 else "")


class HopWorld:
    """A work folder with all that the tables share; what is missing is made, and kept."""

    def __init__(self, work: Path, footage: Path | None, size: LatentSize, curve_every: int = 0) -> None:
        """curve_every: steps of an arm between two points of its accuracy while it learns; 0: it has none.

        Raises LongtakeError if that is negative.
        """
        if curve_every < 0:
            raise LongtakeError(f"curve is {curve_every}; it must be a number of steps, or 0 for none")
        self.work, self.footage, self.size, self.curve_every = work, footage, size, curve_every
        self._tokens = lru_cache(maxsize=4)(self._made)
        self._hops = lru_cache(maxsize=4)(self._drawn)
        self._digest = lru_cache(maxsize=8)(lambda part, frames: digest_of(self.hops(part, frames)))

    @property
    def footage_names(self) -> list[str]:
        """Part of what names tokens, arms and settings."""
        return footage_names(self.footage)

    def start(self) -> Backbone:
        """The model in the package, fresh."""
        return load_backbone(str(EMBEDDED), CPU, torch.float32)

    @cached_property
    def start_name(self) -> str:
        """The architecture of the model in the package and a hash of its weights."""
        return self.start().name

    def count(self, part: Part) -> int:
        """How many videos a part has."""
        size = self.size
        pairs = {"search": size.search_pairs, "exam": size.pairs, "curve": size.curve_pairs}
        return size.train_videos if part == "train" else 2 * pairs[part]

    def asks(self, part: Part) -> int:
        """How many questions are asked about each video of a part."""
        return MOST_HOPS if part == "train" else 1

    def hops(self, part: Part, frames: int) -> tuple[Hop, ...]:
        """Questions of a part, of one to four hops in turn: for training four about each video, else in pairs."""
        return self._hops(part, frames)

    def _drawn(self, part: Part, frames: int) -> tuple[Hop, ...]:
        split, seed = SPLIT_OF[part], {"train": 61, "search": 62, "exam": 63, "curve": 64}[part]
        if part == "train":
            rngs = [np.random.default_rng([seed, number]) for number in range(self.count(part))]
            return tuple(hop for number, rng in enumerate(rngs) for hop in draw_hops(rng, split, number, frames))
        rngs = [np.random.default_rng([seed, number]) for number in range(self.count(part) // 2)]
        return tuple(hop for n, rng in enumerate(rngs) for hop in draw_pair(rng, split, form_of(n), frames))

    def digest(self, part: Part, frames: int) -> str:
        """A hash of a part's questions."""
        return self._digest(part, frames)

    def folder(self, part: Part, frames: int, fps: float = 1.0) -> Path:
        """Where the tokens of a part are or will be."""
        key = {"frames": frames, "fps": fps, "footage": self.footage_names, "model": self.start_name, "part": part}
        key["questions"] = self.digest(part, frames)
        return self.work / named(f"hops-{part}", key)

    def shards(self, part: Part, frames: int, fps: float = 1.0) -> list[Path]:
        """Files of a part's tokens."""
        return token_files(self.folder(part, frames, fps), self.count(part))

    def tokens(self, part: Part, frames: int, fps: float = 1.0) -> list[VisualTokens]:
        """Tokens of every question's video, made once, at ``fps`` frames a second of ``frames`` seconds."""
        return [own for own in self._tokens(part, frames, fps) for _ in range(self.asks(part))]

    def _made(self, part: Part, frames: int, fps: float) -> list[VisualTokens]:
        files = self.shards(part, frames, fps)
        missing = [number for number, file in enumerate(files) if not file.exists()]
        if missing:
            print(f"{part}: {self.count(part)} videos of {frames} s, {fps:g} frames a second", flush=True)
            backbone = self.start()
            clips = clips_and_scenes(SPLIT_OF[part], self.footage, self.work / "haystack")
            for number in missing:
                own = videos_of(number, self.count(part))
                found = [encoded(backbone, self.video(part, frames, fps, n, clips)) for n in own]
                write_tokens(found, files[number])
        return [tokens for file in files for tokens in read_tokens(file)]

    def video(self, part: Part, frames: int, fps: float, number: int, clips: list[Clip]) -> ProbeVideo:
        """A part's video of this number, which ``asks(part)`` questions are about."""
        seed = {"train": 0, "search": 10**6, "exam": 2 * 10**6, "curve": 3 * 10**6}[part] + number
        video = hop_video(self.hops(part, frames)[number * self.asks(part)], clips, frames, seed)
        return dataclasses.replace(video, fps=fps, num_frames=round(frames * fps))

    def puzzles(self, part: Part, frames: int, *, traced: bool = False) -> tuple[QuestionPuzzle, ...]:
        """Questions with their videos' tokens. traced: what is to be said is the trace and the answer."""
        pairs = enumerate(zip(self.hops(part, frames), self.tokens(part, frames), strict=True))
        return tuple(
            QuestionPuzzle(
                name=f"{part}-{n}",
                question=hop.text,
                answers=(hop.trace if traced else hop.answer,),
                tokens=tokens,
                level=hops_name(hop.hops),
                steps=tuple(map(word_of, hop.way)),
            )
            for n, (hop, tokens) in pairs
        )

    def exam(self, part: Part, frames: int) -> HopExam:
        """Test questions of the tables ("exam"), of the search for a setting, or of the arms' curves."""
        return HopExam(hops=self.hops(part, frames), puzzles=self.puzzles(part, frames))

    @property
    def setting_file(self) -> Path:
        """Where the search keeps the setting that it found."""
        key = {"size": dataclasses.asdict(self.size), "footage": self.footage_names, "model": self.start_name}
        lengths = sorted({setting.frames for setting in self.size.settings})
        key["questions"] = [self.digest("search", frames) for frames in lengths]
        return self.work / f"{named('setting', key)}.json"

    def keep_setting(self, setting: Setting) -> None:
        """Keep what the search found."""
        write_json(self.setting_file, dataclasses.asdict(setting))

    def setting(self) -> Setting:
        """What the search found. Raises LongtakeError before it has found any."""
        if not self.setting_file.exists():
            raise LongtakeError(
                f"{self.work} holds no setting in which single hops reach {self.size.single:.0%} and traces beat "
                f"answers alone by {self.size.gain:.0%}; find one first: python -m longtake.tables.latent setting"
            )
        return Setting(**json.loads(self.setting_file.read_text()))
