"""Video-XL-Pro at its real size with the paper's hyper-parameters (arXiv 2503.18478).

Where the paper contradicts itself or is silent, the choice is named; "ours" is nobody else's. Not run here: it needs
the published SigLIP and Qwen2.5 weights, the data, and GPUs.

Run: torchrun --nproc-per-node N -m longtake.cli train video_xl_pro_3b --data FILE --media DIR --output DIR
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from longtake.backbones.place import check_source
from longtake.data.conversations.media import VariableSampling
from longtake.models.processor import VideoLLMProcessor
from longtake.models.video_llm import VideoLLM, VideoLLMConfig
from longtake.recipes.recipe import DataFiles, Recipe
from longtake.train.align import AlignRecipe
from longtake.train.dialogues import Reading
from longtake.train.recot import ReCoTRecipe
from longtake.train.run import Fit
from longtake.train.sft import SftRecipe
from longtake.types import LongtakeError, first_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A published tower and decoder with a fresh DTS, projector and scorer between them.

    tower, decoder: folders or hub ids. The paper says SigLIP and Qwen2.5 3B; which checkpoints is the released code's.
    tower_layers: of the tower that are used: all but the last, as in the released code.
    dts_grid: side of the grid the tower's 27x27 features are resized to, as in the released code.
    video_token: what stands for a visual token.
    """

    tower: str = "google/siglip-so400m-patch14-384"
    decoder: str = "Qwen/Qwen2.5-3B-Instruct"
    tower_layers: int = 26
    dts_grid: int = 24
    video_token: str = "<|vision_pad|>"
    seed: int = 0

    def config(self, vision: SiglipVisionConfig, text: Qwen2Config, video_token_id: int) -> VideoLLMConfig:
        """The whole model's config around its two parts' own, the tower cut after ``tower_layers``."""
        kept = vision.to_dict() | {"num_hidden_layers": self.tower_layers, "vision_use_head": False}
        return VideoLLMConfig(
            vision_config=kept,
            text_config=text,
            dts_grid=self.dts_grid,
            video_token_id=video_token_id,
            scorer="faithful",  # the paper's description; the released code's differs ("legacy")
            scorer_layer=0,  # ours: the embedding table, the cheapest "LLM encoding"
        )

    def model(self) -> tuple[VideoLLM, VideoLLMProcessor]:
        """Both parts' weights as published, the DTS as a mean (ours), the rest as it starts."""
        for source in (self.tower, self.decoder):
            check_source(source)
        try:
            tower = SiglipVisionModel.from_pretrained(self.tower, dtype=torch.float32)
            decoder = Qwen2ForCausalLM.from_pretrained(self.decoder, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(self.decoder)
        except OSError as error:
            raise LongtakeError(
                f"{self.tower} or {self.decoder} cannot be loaded ({first_line(error)}); give folders of them "
                "with --set start.tower=FOLDER and --set start.decoder=FOLDER"
            ) from error
        torch.manual_seed(self.seed)
        model = VideoLLM(self.config(tower.config, decoder.config, tokenizer.get_vocab()[self.video_token]))
        wanted = model.vision_tower.state_dict()
        model.vision_tower.load_state_dict({n: w for n, w in tower.state_dict().items() if n in wanted})
        model.language_model.load_state_dict(decoder.state_dict())
        model.dts.start_as_mean()
        return model, VideoLLMProcessor.from_config(tokenizer, model.config)

    def other_family(self) -> None:
        """No model: this one is a ``VideoLLM``."""

    def data(self, folder: Path) -> DataFiles | None:
        """No data: the user brings them."""
        del folder
        return None


def video_xl_pro_3b() -> Recipe:
    """Pre-training of the compressor, alignment, fine-tuning."""
    return Recipe(
        name="video_xl_pro_3b",
        start=Published(),
        recot=ReCoTRecipe(
            # a million samples, a quarter of them images (250K and 750K: the supplement's table); the batch, and so the
            # number of steps, the rate, its warm-up, 4 frames a clip at 1 fps and the masking's shares: ours
            fit=Fit(lr=1e-4, batch=64, micro_batch=8, steps=15625, save_every=1000),
            image_share=0.25,
            frames=4,
            fps=1.0,
            held_clips=256,
        ),
        align=AlignRecipe(
            # 4.2: only the projector, rate 5e-4, warm-up 0.03, cosine. "Batch size 8" is said without a unit: taken as
            # rows of a step over all devices (ours). One epoch: ours.
            fit=Fit(lr=5e-4, batch=8, micro_batch=1, warmup=0.03, checkpointing=True),
            reading=Reading(sampling=VariableSampling(max_frames=240), max_tokens=32768, threads=4),
        ),
        sft=SftRecipe(
            # 4.2: all parameters, rate 1e-5, cosine; the supplement: Adam, weight decay 0, bf16, one epoch.
            # Warm-up: 0.03 (4.2), not 0.3 (supplement), which would be a third of the training.
            # Batch: 64 over all devices (supplement), in micro-batches of 1 (4.2's "1").
            # Frames: at most 360 with variable sampling (3.3), not 240 at 1 fps (4.2).
            # The tower's weights are trained as "all parameters" says, so that its features are not stored.
            fit=Fit(lr=1e-5, batch=64, micro_batch=1, warmup=0.03, weight_decay=0.0, checkpointing=True, shard=True),
            reading=Reading(sampling=VariableSampling(max_frames=360), max_tokens=32768, threads=4),
            drop=(0.05, 0.3),  # 3.3
            train_tower=True,
        ),
    )
