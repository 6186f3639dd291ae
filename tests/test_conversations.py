"""Conversations from LLaVA's and OpenAI's forms; every malformed entry is told with its file and place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longtake.data.conversations.conversations import Conversation, Media, Turn, read_conversations
from longtake.types import LongtakeError

MEDIA = Path("media")
SAMPLE = Path(__file__).parents[1] / "../shared/data/annotations/llamafactory_mllm_video_demo.json"


def read(folder: Path, *entries: object, lines: bool = True) -> list[Conversation]:
    file = folder / ("data.jsonl" if lines else "data.json")
    file.write_text("\n".join(map(json.dumps, entries)) + "\n" if lines else json.dumps(entries, indent=1))
    return read_conversations(file, MEDIA)


def video(path: str, start: float | None = None, stop: float | None = None) -> Media:
    return Media(kind="video", path=MEDIA / path, start_seconds=start, stop_seconds=stop)


def image(path: str) -> Media:
    return Media(kind="image", path=MEDIA / path)


def llava(*values: str, **more: object) -> dict[str, object]:
    said = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]
    return {"conversations": said, **more}


def chat(*contents: object, **more: object) -> dict[str, object]:
    said = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return {"messages": said, **more}


@pytest.mark.parametrize("lines", [True, False])
def test_llava_entries(tmp_path, lines):
    first = llava("<image>\nWhat?", "A card.", "And <video> here?", "Red.", id="a7", image="x.png", video=["y.mp4"])
    second = llava("Hello.", "Hi.", type="caption")
    second["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    assert read(tmp_path, first, second, lines=lines) == [
        Conversation(
            name="a7",
            turns=(
                Turn(role="user", parts=(image("x.png"), "What?")),
                Turn(role="assistant", parts=("A card.",)),
                Turn(role="user", parts=("And", video("y.mp4"), "here?")),
                Turn(role="assistant", parts=("Red.",)),
            ),
        ),
        Conversation(
            name="data.jsonl:2" if lines else "data.json:2",
            turns=(
                Turn(role="system", parts=("Be brief.",)),
                Turn(role="user", parts=("Hello.",)),
                Turn(role="assistant", parts=("Hi.",)),
            ),
            task="caption",
        ),
    ]


def test_marks_take_media_in_order_and_an_image_mark_may_mean_a_video(tmp_path):
    several = llava("<image><image>\nWhich?", "The first.", "<image>?", "No.", images=["1.png", "2.png", "3.png"])
    as_llava_video = llava("<image>\nWhat happens?", "It falls.", video="v.mp4")
    one, two = read(tmp_path, several, as_llava_video)
    assert one.media == (image("1.png"), image("2.png"), image("3.png"))
    assert one.turns[0].parts == (image("1.png"), image("2.png"), "Which?")
    assert two.media == (video("v.mp4"),)
    assert two.questions == ("What happens?",)


def test_openai_entries(tmp_path):
    parts = [
        {"type": "text", "text": " First: "},
        {"type": "image_url", "image_url": {"url": "file://x.png"}},
        {"type": "video", "video": "y.mp4"},
        {"type": "video_url", "video_url": "z.mp4"},
        {"type": "text", "text": "What is it, "},
        {"type": "text", "text": "please?"},
    ]
    (got,) = read(tmp_path, chat(parts, [{"type": "text", "text": "A card."}], id=3, task="open"))
    assert got.name == "3"
    assert got.task == "open"
    assert got.turns[0].parts == ("First:", image("x.png"), video("y.mp4"), video("z.mp4"), "What is it, please?")
    assert got.turns[1].text == "A card."
    assert got.questions == ("First:\nWhat is it, please?",)


def test_parts_without_a_path_and_marked_text_take_what_the_entry_lists(tmp_path):
    listed = chat([{"type": "video"}, {"type": "text", "text": "What?"}], "A.", "<video>Now?", "B.", videos=["1", "2"])
    (got,) = read(tmp_path, listed)
    assert got.media == (video("1"), video("2"))


def test_absolute_paths_stay(tmp_path):
    (got,) = read(tmp_path, llava("<video>?", "A.", video=str(tmp_path / "v.mp4")))
    assert got.media[0].path == tmp_path / "v.mp4"


def test_spans(tmp_path):
    one, several, open_end = read(
        tmp_path,
        llava("<video>?", "A.", video="v", start=2, end=7.5),
        llava("<video><image><video>?", "A.", videos=["v", "w"], image="i", start=[0, 3], end=[None, 4]),
        llava("<video>?", "A.", video="v", start=2),
    )
    assert one.media == (video("v", 2, 7.5),)
    assert several.media == (video("v", 0, None), image("i"), video("w", 3, 4))
    assert open_end.media == (video("v", 2, None),)


MALFORMED = {
    "no messages": ({"id": "x7", "video": "v"}, r"\(id x7\): has \['id', 'video'\]; it must have 'messages' or"),
    "not an object": (["a"], r'is \["a"\]; an entry is an object'),
    "empty": ({"messages": []}, r"messages is \[\]; it must be a list"),
    "not a list": ({"conversations": "hello"}, 'conversations is "hello"; it must be a list'),
    "no value": ({"conversations": [{"from": "human"}]}, "it must be an object with 'from' and 'value'"),
    "role": ({"messages": [{"role": "judge", "content": "A"}]}, 'role is "judge"; it must be one of system, user'),
    "content": (chat(5, "A"), "a content is 5; it must be text or a list"),
    "part": (chat([{"type": "audio", "audio": "a.wav"}], "A"), "a part is .*audio.*; it must be a text, image"),
    "bare part": (chat(["What?"], "A"), r'a part is "What\?"; it must be'),
    "missing medium": (llava("<video>?", "A."), "has a <video> too many for 0 videos, 0 images; name one file"),
    "too many marks": (llava("<image><image>", "A.", image="i"), "has a <image> too many for 0 videos, 1 images"),
    "unmarked medium": (llava("What?", "A.", video="v"), "names 1 videos but marks 0; put one <video> in the text"),
    "path": (llava("<video>?", "A.", video=7), "a path is 7; it must be text"),
    "url": (
        chat([{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}], "A."),
        "longtake reads files only",
    ),
    "data": (chat([{"type": "image_url", "image_url": "data:image/png;base64,AA"}], "A."), "longtake reads files only"),
    "user last": (llava("What?"), "the turns are user; user and assistant must take turns, the assistant last"),
    "two users": (llava("What?", "A.", "More?"), "the turns are user, assistant, user; user and assistant must"),
    "empty answer": (llava("What?", " "), "a turn of the assistant is empty; write what is said"),
    "empty question": (llava("", "A."), "a turn of the user is empty"),
    "span": (llava("<video>?", "A.", video="v", start=3, end=2), "start is 3 and end 2; the end must come after"),
    "negative": (llava("<video>?", "A.", video="v", start=-1, end=2), "start is -1 and end 2; both are seconds"),
    "text span": (llava("<video>?", "A.", video="v", start="0:10"), 'start is "0:10" and end null; both are seconds'),
    "span count": (llava("<video>?", "A.", video="v", start=[1, 2], end=[2, 3]), "has 2 spans for 1 videos"),
    "uneven spans": (llava("<video>?", "A.", video="v", start=[1, 2], end=3), "has 2 starts and 1 ends"),
}


@pytest.mark.parametrize(("entry", "told"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_entries_are_told_with_their_place(tmp_path, entry, told):
    with pytest.raises(LongtakeError, match=r"data\.jsonl:2.*" + told) as caught:
        read(tmp_path, llava("Hello.", "Hi."), entry)
    assert "\n" not in str(caught.value)


def test_system_turns_come_first_only(tmp_path):
    late = llava("Hello.", "Hi.")
    late["conversations"].append({"from": "system", "value": "Be brief."})
    with pytest.raises(LongtakeError, match="the turns are user, assistant, system"):
        read(tmp_path, late)


def test_files_that_cannot_be_read_are_told(tmp_path):
    file = tmp_path / "data.jsonl"
    with pytest.raises(LongtakeError, match="data.jsonl: could not be read"):
        read_conversations(file, MEDIA)
    file.write_bytes(b'{"a": 1}\n{"a": \n')
    with pytest.raises(LongtakeError, match=r"data.jsonl:1: has \['a'\]"):
        read_conversations(file, MEDIA)
    file.write_text(json.dumps(llava("Hello.", "Hi.")) + "\n\n{'a': 1}\n")
    with pytest.raises(LongtakeError, match=r"data.jsonl:3: not JSON \(Expecting property name.*one object a line"):
        read_conversations(file, MEDIA)
    file.write_text("[" * 100_000)
    with pytest.raises(LongtakeError, match="data.jsonl: is nested too deeply"):
        read_conversations(file, MEDIA)
    file.write_bytes(b"\xff\xfe[")
    with pytest.raises(LongtakeError, match="is not UTF-8"):
        read_conversations(file, MEDIA)


def test_a_byte_order_mark_and_line_separators_in_texts_do_no_harm(tmp_path):
    file = tmp_path / "data.jsonl"
    entry = json.dumps(llava("One\u2028two?", "A."), ensure_ascii=False)
    file.write_text(f"\ufeff{entry}\r\n{entry}", encoding="utf-8")
    assert [got.questions for got in read_conversations(file, MEDIA)] == [("One\u2028two?",)] * 2


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"the shared sample is not at {SAMPLE}")
def test_a_real_file():
    got = read_conversations(SAMPLE, MEDIA)
    assert [conversation.media for conversation in got] == [
        (video("mllm_demo_data/1.mp4"),),
        (video("mllm_demo_data/2.avi"),),
        (video("mllm_demo_data/3.mp4"),),
    ]
    assert got[0].questions == ("Why is this video funny?",)
    assert got[1].turns[1].text == "She is cooking."
