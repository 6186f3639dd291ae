"""How the embedded model is made: every stage's hyper-parameters, and a command that runs a stage.

Run: python -m longtake.recipes.make_embedded STAGE --footage FOLDER --work FOLDER
with STAGE one after the other: school, tower, bank, compressor, polish, tokens, decoder, export. Every stage resumes
where it was stopped. `sharpen`, another bank and `follow` mend the tower of a model that is there; `tokens` and
`decoder` go on after them. Where the work folder of an earlier training is gone, `unpack` takes its place: training
then goes on from the model in the package.
`eyes` stands apart: it makes a tower for comparing frames, which no other stage uses.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import copyfile

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, SiglipVisionConfig, SiglipVisionModel

from longtake.data.probe_world.bank import BankRecipe, Mixer, build_bank, cut_units, read_events
from longtake.data.probe_world.haystack import Clip, clips_and_scenes, describe, load_clips
from longtake.data.probe_world.needles import Split
from longtake.data.threads import use_threads
from longtake.model import EMBEDDED
from longtake.models.dts import DynamicTokenSynthesizer
from longtake.models.preprocess import normalise
from longtake.models.processor import VideoLLMProcessor
from longtake.models.video_llm import VideoLLM, VideoLLMConfig
from longtake.recipes.one_line import errors_in_one_line
from longtake.train import checkpoint
from longtake.train.checkpoint import Cycle
from longtake.train.embedded.compressor import CompressorRecipe, FeatureBank, encode_groups, train_compressor
from longtake.train.embedded.decoder import DecoderRecipe, Phase, decoder_parts, train_decoder
from longtake.train.embedded.eyes import EyesRecipe, train_eyes
from longtake.train.embedded.lookback import keep_looking_back, look_back
from longtake.train.embedded.school import SchoolRecipe, train_school
from longtake.train.embedded.sharpen import SharpenRecipe, sharpen_tower
from longtake.train.embedded.tokenizer import VIDEO, cached_tokenizer
from longtake.train.embedded.tower import PATCHES, TowerRecipe, train_tower
from longtake.types import LongtakeError

SHIPPED_STEP = 10_300  # of the decoder, of the model in the package
LEFT = {  # in the work folder by a stage, for those after it
    "tower": "tower/config.json",
    "bank": "bank/videos.jsonl",
    "compressor": "dts.pt",
    "tokens": "tokens.pt",
}
ALL_TASKS = ("what", "is_there", "order", "count", "when", "after", "direction")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a stage runs. footage: a folder of videos; None for drawn scenes alone."""

    footage: Path | None
    work: Path
    device: torch.device

    def clips(self, split: Split) -> list[Clip]:
        """Footage and drawn scenes of one split."""
        return clips_and_scenes(split, self.footage, self.work / "haystack")


def vision_config() -> SiglipVisionConfig:
    """A SigLIP tower of about 2M parameters: 128 px in 16-px patches, 64 tokens a frame."""
    return SiglipVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=128,
        patch_size=16,
        vision_use_head=False,
    )


def model_config(tokenizer: PreTrainedTokenizerFast) -> VideoLLMConfig:
    """The whole model, about 9M parameters: 16 tokens for 4 frames, a decoder of 5 layers, 8,192 positions."""
    text = Qwen2Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return VideoLLMConfig(
        vision_config=vision_config(),
        text_config=text,
        vision_norm=True,
        video_token_id=tokenizer.get_vocab()[VIDEO],
        scorer="faithful",
        scorer_layer=0,
        scorer_dim=128,
        context_tokens=8192,
        evidence_layers=[decoder().grounded_layer],
    )


def school() -> SchoolRecipe:
    """Stage 0: read cards that fill a few patches."""
    return SchoolRecipe(vision=vision_config())


def tower() -> TowerRecipe:
    """Stage 1: read needles on single frames."""
    return TowerRecipe(vision=vision_config())


def sharpen() -> SharpenRecipe:
    """Stage 1 once more, on small cards."""
    return SharpenRecipe()


def eyes() -> EyesRecipe:
    """A tower that tells frames of unlabelled footage apart."""
    return EyesRecipe()


def bank(seed: int = 0, videos: int = 14_000, small: float = 0.0) -> BankRecipe:
    """560,000 frames of training footage with needles."""
    return BankRecipe(seed=seed, videos=videos, small=small)


def compressor() -> CompressorRecipe:
    """Stage 2: keep what was read, four frames to one."""
    return CompressorRecipe()


def polish() -> CompressorRecipe:
    """Stage 2 once more, on another bank, on a GPU: nearly four times as many windows."""
    return CompressorRecipe(cycles=(Cycle(until_step=5_000, peak=0.7),), batch=256, warmup=300, save_every=1000)


def follow() -> CompressorRecipe:
    """Stage 2 once more, on a tower that was sharpened since; the second cycle on a bank of small cards."""
    return CompressorRecipe(cycles=(Cycle(until_step=1_800, peak=0.3), Cycle(until_step=2_700, peak=0.3)))


def decoder() -> DecoderRecipe:
    """Stage 3: from 8 frames with one card to 1,024 frames with six, and 16,384 thinned."""
    easy = ("what", "is_there", "count", "direction", "when")
    every = partial(Phase, cards=6, tasks=ALL_TASKS)
    long = partial(every, questions=25)
    last_layers = partial(
        long, groups=(24, 64), tokens=6144, late=0.3, thin=0.6, least_stretch=12, stretch=64, learns_from=3
    )
    return DecoderRecipe(
        phases=(
            Phase(until_step=300, groups=(2, 4), cards=2, tasks=easy, tokens=4096, questions=12),
            every(until_step=1100, groups=(3, 16), tokens=4096, questions=12, stretch=8),
            every(until_step=1700, groups=(4, 64), tokens=6144, questions=16, stretch=16),
            every(until_step=2850, groups=(8, 256), questions=20, stretch=8),
            long(until_step=4100, groups=(16, 384), stretch=8),
            long(until_step=5460, groups=(16, 256), stretch=8),
            long(until_step=5750, groups=(8, 256), stretch=8),
            long(until_step=6150, groups=(3, 24), late=0.9),
            long(until_step=6400, groups=(8, 256), late=0.7, stretch=8),
            last_layers(until_step=7100),
            long(until_step=7500, groups=(4, 256), tokens=32_768, blind=0.1, stretch=16),
            long(until_step=8000, groups=(4, 256), blind=0.1, stretch=16),
            last_layers(until_step=8700, blind=0.05),
            long(until_step=9000, groups=(4, 256), blind=0.1, stretch=16),
            last_layers(until_step=9500, blind=0.05),
            long(until_step=9800, groups=(4, 256), blind=0.1, stretch=16),
            last_layers(until_step=10_300, blind=0.05),
        ),
        cycles=(
            Cycle(until_step=2850),
            Cycle(until_step=4100, peak=0.5),
            Cycle(until_step=4240, peak=0.25),
            Cycle(until_step=5160, peak=0.5),
            Cycle(until_step=5460, peak=0.25),
            Cycle(until_step=6400, peak=0.5),
            Cycle(until_step=7100, peak=0.7),
            Cycle(until_step=7500, peak=0.5),
            Cycle(until_step=8000, peak=0.25),
            Cycle(until_step=8700, peak=0.7),
            Cycle(until_step=9000, peak=0.5),
            Cycle(until_step=9500, peak=0.7),
            Cycle(until_step=9800, peak=0.5),
            Cycle(until_step=10_300, peak=0.7),
        ),
    )


def left_by(stage: str, work: Path) -> Path:
    """The file that a stage left. Raises LongtakeError where it has not."""
    file = work / LEFT[stage]
    if not file.exists():
        raise LongtakeError(f"{file} does not exist; run the stage {stage} first")
    return file


def trained_tower(work: Path) -> SiglipVisionModel:
    """The tower that its stage left, in float32. Raises LongtakeError where there is none yet."""
    return SiglipVisionModel.from_pretrained(left_by("tower", work).parent, dtype=torch.float32)


def frame_encoder(trained: SiglipVisionModel, device: torch.device) -> Callable[[Tensor], Tensor]:
    """uint8 frames to bf16 features of the trained tower, on the CPU."""
    trained.eval().to(device)

    @torch.no_grad()
    def encode(pixels: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            features: Tensor = trained(normalise(pixels.to(device))).last_hidden_state
        return features.bfloat16().cpu()

    return encode


def run_school(place: Place) -> None:
    """Train stage 0."""
    _on_cpu("school", place)
    train_school(school(), place.clips("train"), place.work / "school")


def run_tower(place: Place) -> None:
    """Train stage 1."""
    _on_cpu("tower", place)
    if not checkpoint.last_step(place.work / "tower"):
        checkpoint.modules_of(place.work / "school")  # before footage is decoded, which takes long
    train, test = (place.clips(split) for split in ("train", "test"))
    print("train", describe(train), "test", describe(test), flush=True)
    train_tower(tower(), train, test, place.work / "tower", place.work / "school")


def run_sharpen(place: Place) -> None:
    """Train stage 1 once more, from the tower as it is."""
    _on_cpu("sharpen", place)
    begin = trained_tower(place.work)
    train, test = (place.clips(split) for split in ("train", "test"))
    sharpen_tower(sharpen(), begin, train, test, place.work / "sharpen").save_pretrained(place.work / "tower")


def run_eyes(place: Place) -> None:
    """Train eyes, from the tower of the model in the package; measured on real footage if there is any."""
    _on_cpu("eyes", place)
    tower = VideoLLM.from_pretrained(EMBEDDED, dtype=torch.float32).vision_tower
    held_out = load_clips("test", place.footage, place.work / "haystack")
    train_eyes(eyes(), tower, place.clips("train"), held_out, place.work / "eyes")


def _on_cpu(stage: str, place: Place) -> None:
    if place.device.type != "cpu":
        raise LongtakeError(f"device is {place.device} for the stage {stage}; it is trained on the CPU only")


def run_bank(place: Place, recipe: BankRecipe | None = None, workers: int = 1) -> None:
    """Render and encode the bank of training videos."""
    encode = frame_encoder(trained_tower(place.work), place.device)
    build_bank(recipe or bank(), place.clips("train"), encode, place.work / "bank", workers)


def feature_bank(work: Path) -> FeatureBank:
    """The bank's features, for stages 2 and 3."""
    side = PATCHES // compressor().pool
    return FeatureBank(left_by("bank", work).parent, PATCHES**2, vision_config().hidden_size, bank().frames, side)


def run_compressor(place: Place) -> None:
    """Train stage 2."""
    trained = train_compressor(compressor(), feature_bank(place.work), place.work / "compressor", place.device)
    torch.save(trained.cpu().state_dict(), place.work / "dts.pt")


def run_polish(place: Place) -> None:
    """Train stage 2 once more, from the DTS as it is."""
    _train_on("polish", polish(), place)


def run_follow(place: Place) -> None:
    """Train stage 2 once more, from the DTS as it is, on features of the sharpened tower."""
    _train_on("follow", follow(), place)


def _train_on(stage: str, recipe: CompressorRecipe, place: Place) -> None:
    begin = torch.load(left_by("compressor", place.work), weights_only=True)
    trained = train_compressor(recipe, feature_bank(place.work), place.work / stage, place.device, begin)
    torch.save(trained.cpu().state_dict(), place.work / "dts.pt")


def run_tokens(place: Place) -> None:
    """Make the bank's tokens, for stage 3."""
    dts = DynamicTokenSynthesizer(vision_config().hidden_size)
    dts.load_state_dict(torch.load(left_by("compressor", place.work), weights_only=True))
    tokens = encode_groups(dts.to(place.device).eval(), feature_bank(place.work), compressor().pool)
    torch.save(tokens.cpu(), place.work / "tokens.pt")


def untrained_model(work: Path) -> tuple[VideoLLM, PreTrainedTokenizerFast]:
    """The model with its trained tower and DTS and everything else fresh."""
    tower, dts = trained_tower(work), torch.load(left_by("compressor", work), weights_only=True)
    torch.manual_seed(decoder().seed)
    tokenizer = cached_tokenizer(work / "tokenizer.json")
    model = VideoLLM(model_config(tokenizer))
    look_back(model.language_model.model)
    model.vision_tower.load_state_dict(tower.state_dict())
    model.dts.load_state_dict(dts)
    return model, tokenizer


def run_unpack(place: Place) -> None:
    """Put the parts of the model in the package where their stages leave them; ledger and optimiser begin anew."""
    model = VideoLLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    model.vision_tower.save_pretrained(place.work / "tower")
    torch.save(model.dts.state_dict(), place.work / "dts.pt")
    copyfile(EMBEDDED / "tokenizer.json", place.work / "tokenizer.json")
    keep_looking_back(model.language_model.model)
    modules, optimiser = decoder_parts(decoder(), model)
    checkpoint.save(place.work / "decoder", SHIPPED_STEP, modules, optimiser)


def run_decoder(place: Place) -> None:
    """Train stage 3."""
    tokens = torch.load(left_by("tokens", place.work), weights_only=True).to(place.device)
    events = read_events(left_by("bank", place.work).parent)
    model, tokenizer = untrained_model(place.work)
    mixer = Mixer(cut_units(events, bank().frames // model.config.frames_per_group), "train")
    model.to(place.device)  # type: ignore[arg-type]  # wrapped by transformers
    train_decoder(decoder(), model, tokenizer, tokens, mixer, place.work / "decoder")


def run_export(place: Place) -> None:
    """Write the model, whatever step its decoder is at, as bf16 into ``work/export``."""
    state = checkpoint.modules_of(place.work / "decoder")
    model, tokenizer = untrained_model(place.work)
    model.projector.load_state_dict(state["projector"])
    model.language_model.load_state_dict(state["decoder"])
    assert model.scorer is not None
    model.scorer.load_state_dict(state["scorer"])
    model.bfloat16().save_pretrained(place.work / "export")
    VideoLLMProcessor.from_config(tokenizer, model.config).save_pretrained(place.work / "export")


STAGES: dict[str, Callable[[Place], None]] = {
    "school": run_school,
    "tower": run_tower,
    "sharpen": run_sharpen,
    "unpack": run_unpack,
    "bank": run_bank,
    "compressor": run_compressor,
    "polish": run_polish,
    "follow": run_follow,
    "tokens": run_tokens,
    "decoder": run_decoder,
    "export": run_export,
    "eyes": run_eyes,
}


@errors_in_one_line()
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument("--footage", type=Path, default=None, help="a folder of videos; drawn scenes alone without it")
    parser.add_argument("--work", type=Path, default=Path(".cache/embedded"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the bank")
    parser.add_argument("--videos", type=int, default=bank().videos, help="in the bank")
    parser.add_argument("--small", type=float, default=0.0, help="share of the bank's cards that are small")
    parser.add_argument("--workers", type=int, default=1, help="processes that render the bank")
    device = "not for school, tower, sharpen and eyes"
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help=device)
    options = parser.parse_args()
    use_threads(options.threads)
    place = Place(footage=options.footage, work=options.work, device=options.device)
    if options.stage == "bank":
        run_bank(place, bank(options.seed, options.videos, options.small), options.workers)
    else:
        STAGES[options.stage](place)


if __name__ == "__main__":
    main()
