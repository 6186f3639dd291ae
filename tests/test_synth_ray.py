"""The synthesis on Ray Data gives what one process gives. Run with ``make test-ray``, which installs Ray."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

import make_videos
from longtake.cli.synth import make_gatherer
from longtake.data.puzzles.footage import find_footage
from longtake.data.puzzles.mvp import LEVELS
from longtake.data.puzzles.synth import Synthesis, synthesise

pytest.importorskip("ray", reason="Ray is an extra of its own: make test-ray installs it")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own, of its dependencies
def test_ray_gives_what_one_process_gives(tmp_path: Path) -> None:
    media = tmp_path / "media"
    media.mkdir()
    for number in range(3):
        make_videos.make(media / f"{number}.mp4", count=60 + 30 * number, fps=2)
    (media / "torn.mp4").write_bytes(b"no video" * 100)
    settings = Synthesis(levels=LEVELS[:2], frames=8, per_minute=30.0)
    held = []
    for name, options in (("here", {}), ("ray", {"engine": "ray", "workers": 2})):
        output = tmp_path / name
        make = partial(make_gatherer, None, "cpu", "tower", output, 1.0, 64, "jpeg")  # the model in the package
        done = synthesise(find_footage([media]), output, settings, make, **options)
        assert list(done.problems) == ["torn.mp4"]
        files = sorted(path for path in output.rglob("*") if path.is_file())
        held.append({path.relative_to(output).as_posix(): path.read_bytes() for path in files})
    assert len(held[0]) == 3 + 3
    assert held[0] == held[1]
