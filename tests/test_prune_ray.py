"""Pruning on Ray Data gives what one process gives. Run with ``make test-ray``, which installs Ray."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

import make_videos
from fakes import write_video
from longtake.cli.prune import make_scorer
from longtake.data.pruning.prune import prune
from longtake.data.pruning.redundancy import Cut
from longtake.data.pruning.samples import SUBSETS

pytest.importorskip("ray", reason="Ray is an extra of its own: make test-ray installs it")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own, of its dependencies
def test_ray_gives_what_one_process_gives(tmp_path: Path) -> None:
    media = tmp_path / "media"
    media.mkdir()
    write_video(media / "0.mp4", [120] * 8)
    for number in range(1, 4):
        make_videos.make(media / f"{number}.mp4", count=30 * number)
    said = [{"from": "human", "value": "<video>\nWhat is it?"}, {"from": "gpt", "value": "A bar."}]
    rows = [{"id": name, "video": f"{name}.mp4", "conversations": said} for name in ("0", "1", "gone", "2", "3")]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    make = partial(make_scorer, None, "cpu", "adjacent", "pooled")  # the model in the package
    cuts = dict.fromkeys(SUBSETS, Cut(keep=0.5))
    prune(data, media, tmp_path / "here.jsonl", cuts, make)
    done = prune(data, media, tmp_path / "ray.jsonl", cuts, make, engine="ray", workers=2)
    for ending in ("jsonl", "scores.jsonl"):
        assert (tmp_path / f"ray.{ending}").read_bytes() == (tmp_path / f"here.{ending}").read_bytes()
    scores = [verdict.score for verdict in done.verdicts]
    assert scores[0] == 1.0
    assert scores[2] is None
    assert all(score < 1.0 for score in (scores[1], *scores[3:]))
