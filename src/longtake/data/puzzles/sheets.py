"""A page that shows puzzles to a person: context and gap, candidates, truth; one file without anything beside it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from PIL import Image

from longtake.data.puzzles.framefile import FrameFile
from longtake.data.puzzles.puzzle_file import PuzzleRecord, read_records
from longtake.types import LongtakeError

SHOWN_SIDE = 176  # longest side of a picture on the page
SHEET_STYLE = """
h3{font-size:12px;margin:10px 0 4px}
.row{display:flex;flex-wrap:wrap;gap:6px;align-items:flex-start}
figure{margin:0;text-align:center;font-size:11px} figure img{display:block;border:2px solid #fff}
.gap{min-width:110px;min-height:90px;border:2px dashed #d1495b;color:#d1495b;padding:8px;box-sizing:border-box}
.truth img{border-color:#2b7a78}
"""
STYLE = """
body{font:14px system-ui,sans-serif;margin:24px;color:#222;background:#fff}
section{border-top:1px solid #bbb;padding:12px 0 20px}
h2{font-size:15px;margin:0 0 2px} p{margin:0 0 8px;color:#666;font-size:12px}
""" + SHEET_STYLE


def choose(records: Sequence[PuzzleRecord], count: int) -> list[PuzzleRecord]:
    """``count`` puzzles, as many of each level, evenly spread over the file."""
    by_level: dict[str, list[PuzzleRecord]] = {}
    for record in records:
        by_level.setdefault(record.level, []).append(record)
    each = max(1, count // max(1, len(by_level)))
    chosen: list[PuzzleRecord] = []
    for _, group in sorted(by_level.items()):
        some = min(each, len(group))
        chosen += [group[(2 * number + 1) * len(group) // (2 * some)] for number in range(some)]
    return chosen


def contact_page(folder: Path, count: int) -> str:
    """The page of some puzzles in the folder of a synthesis. Raises LongtakeError when there is none."""
    chosen = choose(list(read_records(folder)), count)
    if not chosen:
        raise LongtakeError(f"{folder} holds no puzzles; give more footage, or read its statistics.json for why")
    sheets = sheets_of(folder, chosen)
    title = f"{len(chosen)} puzzles of {html.escape(folder.name)}"
    sections = "".join(f"<section>{_heading(record)}{sheets[record.id]}</section>" for record in chosen)
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f"{head}</head><body><h1>{title}</h1>{sections}</body></html>\n"


def sheets_of(folder: Path, records: Sequence[PuzzleRecord]) -> dict[str, str]:
    """Each puzzle's pictures as HTML, by its id; they want ``SHEET_STYLE``. folder: of the synthesis."""
    sheets: dict[str, str] = {}
    for file, group in groupby(sorted(records, key=lambda record: record.frames), key=lambda record: record.frames):
        with FrameFile(folder / file) as frames:
            sheets |= {record.id: "".join(_sheet(record, frames)) for record in group}
    return sheets


def _heading(record: PuzzleRecord) -> str:
    told = f"{record.mask}, {record.fps:g} frames a second, seed {record.seed}"
    return f"<h2>{record.level}: {html.escape(record.video)}</h2><p>{html.escape(record.id)}: {told}</p>"


def _sheet(record: PuzzleRecord, frames: FrameFile) -> Iterator[str]:
    yield '<h3>Context and gap</h3><div class="row">'
    yield from _sequence(record, frames)
    yield '</div><h3>Candidates</h3><div class="row">'
    for number, name in enumerate(record.candidates, start=1):
        yield _figure(frames, name, str(number))
    yield '</div><h3>Truth</h3><div class="row truth">'
    for number, second in zip(record.truth, record.truth_seconds, strict=True):
        yield _figure(frames, record.candidates[number - 1], f"{number}, {second:.2f} s")
    yield "</div>"


def _sequence(record: PuzzleRecord, frames: FrameFile) -> Iterator[str]:
    """The context with a box for each run of missing frames."""
    shown = iter(zip(record.context, record.context_seconds, strict=True))
    spans = iter(record.gaps_seconds)
    for place in range(len(record.context) + len(record.masked)):
        if place not in record.masked:
            name, second = next(shown)
            yield _figure(frames, name, f"{second:.2f} s")
        elif place - 1 not in record.masked:
            stop = place
            while stop in record.masked:
                stop += 1
            begin, end = next(spans)
            times = f"{'…' if begin is None else f'{begin:.2f} s'} to {'…' if end is None else f'{end:.2f} s'}"
            yield f'<div class="gap">{stop - place} missing<br>{times}</div>'


def _figure(frames: FrameFile, name: str, caption: str) -> str:
    with Image.open(io.BytesIO(frames.picture_bytes(name))) as picture:
        small = picture.convert("RGB")
    small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    sink = io.BytesIO()
    small.save(sink, "jpeg", quality=80)
    data = base64.b64encode(sink.getvalue()).decode()
    size = f'width="{small.width}" height="{small.height}"'
    words = html.escape(caption)
    return f'<figure><img {size} alt="{words}" src="data:image/jpeg;base64,{data}">{words}</figure>'
