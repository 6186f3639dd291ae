"""Examples: the processor's own ids, labels on the assistant's words and end token only, frames thinned to fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import fakes
import tiny
from longtake.data.conversations.conversations import Conversation, Media, Turn
from longtake.data.conversations.examples import Example, ExampleMaker, TooLong, build_example, messages_of
from longtake.data.conversations.media import MediaReader, VariableSampling
from longtake.data.features import Features
from longtake.models.processor import CHAT_TEMPLATE, VideoLLMProcessor
from longtake.types import IGNORE, Frames, LongtakeError

VIDEO = Media(kind="video", path=Path("v.mp4"))
IMAGE = Media(kind="image", path=Path("i.png"))


def processor(**changes: object) -> VideoLLMProcessor:
    settings = {"tokenizer": tiny.tokenizer(), "frame_height": 32, "frame_width": 32, "tokens_per_group": 4} | changes
    return VideoLLMProcessor(**settings)


def talk(*said: tuple[str | Media, ...], system: str | None = None) -> Conversation:
    turns = [Turn(role=("user", "assistant")[i % 2], parts=parts) for i, parts in enumerate(said)]
    if system is not None:
        turns.insert(0, Turn(role="system", parts=(system,)))
    return Conversation(name="a", turns=tuple(turns))


SIMPLE = talk((VIDEO, "What?"), ("A card.",))
TALKS = {
    "video": (SIMPLE, (7,)),
    "words only": (talk(("Hello.",), ("Hi.",)), ()),
    "system": (talk((IMAGE, "What?"), ("A card.",), system="Be brief."), (1,)),
    "turns": (
        talk(
            (IMAGE, VIDEO, "Which?"),
            ("The first.\nNot the second.",),
            ("And", VIDEO, "here?"),
            ("Naïve 红 🙂",),
            ("Sure?",),
            ("Yes.",),
        ),
        (1, 9, 4),
    ),
    "answer with media": (talk(("Show.",), ("Here:", IMAGE, "done")), (1,)),
}


def clips_of(conversation: Conversation, counts: tuple[int, ...]) -> list[Frames]:
    made = [tiny.frames(count, 32, 32, every_seconds=3.0, seed=i) for i, count in enumerate(counts)]
    assert [m.kind == "image" for m in conversation.media] == [count == 1 for count in counts]
    return made


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE in which ".", line breaks and some letters merge with their neighbours."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("Ġ", "c"), ("a", "r"), ("ar", "d"), (".", "Ċ"), (":", "Ċ"), ("h", "a"), ("Ċ", "W")]
    vocabulary = {token: i for i, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(list(tiny.SPECIAL))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def own_ids(make: VideoLLMProcessor, conversation: Conversation, clips: list[Frames]) -> list[int]:
    """What the processor itself makes of the same messages, the media put into them."""
    messages, left = messages_of(conversation), list(clips)
    for message in messages:
        for part in message["content"]:
            if part["type"] == "video":
                part["video"] = left.pop(0)
            elif part["type"] == "image":
                part["image"] = Image.fromarray(left.pop(0).pixels[0].transpose(1, 2, 0))
    return make.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"][0].tolist()


@pytest.mark.parametrize("tokenizer", [tiny.tokenizer, merging_tokenizer], ids=["bytes", "merges"])
@pytest.mark.parametrize("style", ["compact", "legacy"])
@pytest.mark.parametrize("name", TALKS)
def test_ids_are_the_processors_own(name, style, tokenizer):
    conversation, counts = TALKS[name]
    make, clips = processor(stamp_style=style, tokenizer=tokenizer()), clips_of(conversation, counts)
    example = build_example(make, conversation, clips)
    assert example.ids.tolist() == own_ids(make, conversation, clips)
    assert example.clips == tuple(clips)
    assert example.left_out == 0
    assert len(example) == len(example.labels)


def learned(example: Example, make: VideoLLMProcessor) -> list[str]:
    """Runs of learned tokens as text; their labels must be the ids themselves."""
    on = example.labels != IGNORE
    assert torch.equal(example.labels[on], example.ids[on])
    edges = torch.nonzero(torch.diff(on.int(), prepend=torch.zeros(1), append=torch.zeros(1))).flatten().tolist()
    return [make.tokenizer.decode(example.ids[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.parametrize("tokenizer", [tiny.tokenizer, merging_tokenizer], ids=["bytes", "merges"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("video", ["A card.<|im_end|>"]),
        ("system", ["A card.<|im_end|>"]),
        ("turns", ["The first.\nNot the second.<|im_end|>", "Naïve 红 🙂<|im_end|>", "Yes.<|im_end|>"]),
        ("answer with media", ["Here:", "\ndone<|im_end|>"]),
    ],
)
def test_learned_are_the_assistants_words_and_its_end(name, expected, tokenizer):
    conversation, counts = TALKS[name]
    make = processor(tokenizer=tokenizer())
    assert learned(build_example(make, conversation, clips_of(conversation, counts)), make) == expected


def test_a_token_that_begins_before_the_answer_is_not_learned():
    make = processor(tokenizer=merging_tokenizer())
    example = build_example(make, talk(("Hi.",), ("What a card.",)), [])
    assert learned(example, make) == ["hat a card.<|im_end|>"]  # the line break before it and "W" are one token


def test_another_template_and_its_own_end():
    template = (
        "{%- for m in messages -%}[{{ m.role }}]{%- for p in m.content -%}{{ p.text }}{%- endfor -%}"
        "{%- if m.role == 'assistant' -%}<|endoftext|>\n\n{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}[assistant]{%- endif -%}"
    )
    make = processor(chat_template=template)
    example = build_example(make, talk(("Hi.",), ("Ho.",), ("Again.",), ("No.",)), [])
    assert learned(example, make) == ["Ho.<|endoftext|>", "No.<|endoftext|>"]


def test_a_template_that_rewrites_earlier_turns_is_refused():
    template = CHAT_TEMPLATE.replace("{{ part.text }}", "{{ part.text if loop.last and message == messages[-1] }}")
    with pytest.raises(LongtakeError, match="the chat template writes a turn otherwise when more turns follow"):
        build_example(processor(chat_template=template), TALKS["turns"][0], clips_of(*TALKS["turns"]))


def test_question_ids_are_the_users_words_alone():
    make = processor()
    conversation, counts = TALKS["turns"]
    example = build_example(make, conversation, clips_of(conversation, counts))
    assert make.tokenizer.decode(example.question_ids) == "Which?\nAnd\nhere?\nSure?"
    silent = build_example(make, talk((IMAGE,), ("A card.",)), clips_of(talk((IMAGE,), ("A.",)), (1,)))
    assert silent.question_ids.shape == (0,)
    assert silent.question_ids.dtype == torch.int64


def features(count: int) -> Features:
    values = torch.arange(count, dtype=torch.bfloat16)[:, None, None, None].expand(-1, 2, 2, 3)
    return Features(features=values, seconds=np.arange(count, dtype=np.float64))


def test_features_stand_as_frames_do():
    make = processor()
    from_features = build_example(make, SIMPLE, [features(7)])
    assert torch.equal(from_features.ids, build_example(make, SIMPLE, [tiny.frames(7, 8, 8)]).ids)


def test_too_long_a_video_loses_frames_evenly_and_no_words():
    make = processor()
    whole = build_example(make, SIMPLE, [features(40)])
    limit = len(whole) - 1
    example = build_example(make, SIMPLE, [features(40)], limit)
    (clip,) = example.clips
    assert len(clip) == 36 == 40 - example.left_out
    assert clip.features[:, 0, 0, 0].tolist() == clip.seconds.tolist()
    assert set(np.diff(clip.seconds)) == {1.0, 2.0}
    assert learned(example, make) == ["A card.<|im_end|>"]
    assert len(example) <= limit
    same = build_example(make, SIMPLE, [features(40)], len(whole))
    assert (same.left_out, len(same)) == (0, len(whole))


@pytest.mark.parametrize("limit", range(90, 190, 7))
def test_as_many_frames_stay_as_fit(limit):
    make = processor()
    for count in (10, 11, 12, 40, 120):
        example = build_example(make, SIMPLE, [features(count)], limit)
        kept = len(example.clips[0])
        assert len(example) <= limit
        if kept < count:
            more = build_example(make, SIMPLE, [features(min(count, kept + 4))])
            assert len(more) > limit - 2  # a stamp of another digit may fit by chance


def words(make: VideoLLMProcessor, conversation: Conversation) -> int:
    """Tokens of a conversation but for its media: each is one group here."""
    clips = [features(1) for _ in conversation.media]
    return len(build_example(make, conversation, clips)) - len(clips) * (len("0:") + 4)


def test_several_videos_share_what_there_is_and_images_stay():
    make = processor()
    conversation = talk((IMAGE, VIDEO, VIDEO, "Which?"), ("A.",))
    clips = [features(1), features(80), features(20)]
    whole = len(build_example(make, conversation, clips))
    half = build_example(make, conversation, clips, whole - 75)
    image, long, short = map(len, half.clips)
    assert image == 1
    assert (long // 4, short // 4) == (11, 2)  # of 20 and 5 groups
    tight = build_example(make, conversation, clips, words(make, conversation) + 3 * 4 + len("0:10:2:"))
    assert [len(clip) for clip in tight.clips] == [1, 4, 4]


def test_words_that_do_not_fit_are_refused():
    make = processor()
    least = words(make, SIMPLE) + len("0:") + 4
    assert len(build_example(make, SIMPLE, [features(8)], least).clips[0]) == 4
    told = f"a: {least - 6} tokens of text and 1 media exceed {least - 1} tokens; raise max_tokens"
    with pytest.raises(TooLong, match=told):
        build_example(make, SIMPLE, [features(8)], least - 1)
    with pytest.raises(TooLong, match="exceed 20"):
        build_example(processor(), talk(("Hello.",), ("Hi.",)), [], 20)


def test_marks_in_texts_are_refused():
    with pytest.raises(LongtakeError, match=r"a: has 1 media but 2 marks; leave <\|video\|> and"):
        build_example(processor(), talk((VIDEO, "What is <|video|>?"), ("A.",)), [features(4)])


def test_the_maker_reads_and_builds(tmp_path):
    path = fakes.write_video(tmp_path / "v.mp4", [10 * i for i in range(9)], fps=3, size=32)
    conversation = talk((Media(kind="video", path=path), "What?"), ("A card.",))
    reader = MediaReader(VariableSampling(short_fps=(2.0,)), seed=0, frame_size=(32, 32))
    maker = ExampleMaker(processor=processor(), reader=reader)
    example = maker.make(conversation, 0)
    (clip,) = example.clips
    assert len(clip) == 6
    assert int((example.ids == tiny.ID["<|vision_pad|>"]).sum()) == 2 * 4
    assert maker.length(conversation, 0) == 2 * (4 + 3) + len("What?A card.") // 4
    short = ExampleMaker(processor=processor(), reader=reader, max_tokens=len(example) - 1)
    assert len(short.make(conversation, 0).clips[0]) == 4
    assert ExampleMaker(processor=processor(), reader=reader, max_tokens=9).length(conversation, 0) == 9
