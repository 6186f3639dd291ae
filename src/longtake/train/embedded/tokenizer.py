"""The embedded model's tokenizer: byte-level BPE, digits one by one, trained on the probe world's sentences."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from longtake.data.probe_world.needles import LETTERS, SYMBOLS
from longtake.data.probe_world.questions import vocabulary_text
from longtake.outputs import replaced

PAD, START, END, VIDEO = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>"
SPECIAL = (PAD, START, END, VIDEO, "<|lat_start|>", "<|lat_end|>")
# Words with their leading space, single digits, runs of punctuation, white space.
PIECES = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"


def train_tokenizer(vocabulary: int = 768) -> PreTrainedTokenizerFast:
    """Train the tokenizer, of at most ``vocabulary`` tokens; the same every time."""
    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(PIECES), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, letters])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    frame = ["number letter shape", "system You are a helpful assistant. user assistant"]
    text = [*vocabulary_text(), *SYMBOLS, *LETTERS, *frame]
    tokenizer.train_from_iterator(text * 3, trainer)  # a pair of letters is merged when it is seen more than once
    return fast_tokenizer(tokenizer)


def cached_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a file, trained and written there first: wordings that are added later then change no id."""
    if not file.exists():
        with replaced(file, make_folder=True) as scratch:
            scratch.write_text(train_tokenizer().backend_tokenizer.to_str(pretty=True), encoding="utf-8")
    return fast_tokenizer(Tokenizer.from_file(str(file)))


def fast_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A trained tokenizer as transformers' class, which knows padding and end."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, model_max_length=8192
    )
