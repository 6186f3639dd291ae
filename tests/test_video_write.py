"""Writing video: what was written is read back by PyAV, frame for frame."""

import av
import numpy as np
import pytest

import tiny
from full_disk import full_disk
from longtake import Frames, video
from longtake.types import LongtakeError


def read_back(path) -> tuple[np.ndarray, list[float], dict[str, object]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        facts = {"codec": codec.name, "format": codec.pix_fmt, "rate": stream.average_rate}
        shown = [(frame.to_ndarray(format="rgb24"), frame.time) for frame in container.decode(stream)]
    return np.stack([picture for picture, _ in shown]), [time for _, time in shown], facts


def smooth_frames(count: int, height: int, width: int) -> Frames:
    """A grey ramp that moves: colours would lose to chroma subsampling."""
    ramp = np.linspace(20, 200, width)[None, None, None] + np.arange(count)[:, None, None, None] * 4
    pixels = np.broadcast_to(ramp, (count, 3, height, width)).astype(np.uint8)
    return Frames(pixels=pixels, seconds=np.arange(count, dtype=np.float64))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = ((one.astype(float) - other.astype(float)) ** 2).mean()
    return float(10 * np.log10(255**2 / error))


def chunks(frames: Frames, size: int) -> list[Frames]:
    starts = range(0, len(frames), size)
    return [Frames(pixels=frames.pixels[a : a + size], seconds=frames.seconds[a : a + size]) for a in starts]


@pytest.mark.parametrize("fps", [1.0, 12.5, 29.97])
def test_what_is_written_is_read_back(tmp_path, fps):
    frames = smooth_frames(13, 48, 66)
    video.write(tmp_path / "a.mp4", chunks(frames, 5), fps)
    pixels, times, facts = read_back(tmp_path / "a.mp4")
    assert pixels.shape == (13, 48, 66, 3)
    assert times == pytest.approx(np.arange(13) / fps, abs=1e-3)
    assert facts["codec"] == "h264"
    assert facts["format"] == "yuv420p"
    assert float(facts["rate"]) == pytest.approx(fps, abs=1e-3)
    assert psnr(pixels, frames.pixels.transpose(0, 2, 3, 1)) > 35
    info = video.open(tmp_path / "a.mp4")
    assert (info.width, info.height, info.num_frames) == (66, 48, 13)
    assert info.duration_seconds == pytest.approx(13 / fps, abs=1e-2)


def test_quality_is_quality(tmp_path):
    frames = tiny.frames(12, 64, 64)
    sizes, likeness = [], []
    for quality in (10, 40):
        video.write(tmp_path / "a.mp4", [frames], 4.0, quality=quality)
        sizes.append((tmp_path / "a.mp4").stat().st_size)
        likeness.append(psnr(read_back(tmp_path / "a.mp4")[0], frames.pixels.transpose(0, 2, 3, 1)))
    assert sizes[0] > 2 * sizes[1]
    assert likeness[0] > likeness[1] + 5


def test_keyframes_come_as_often_as_asked(tmp_path):
    video.write(tmp_path / "a.mp4", [smooth_frames(20, 32, 32)], 5.0, keyframe_interval=5)
    with av.open(str(tmp_path / "a.mp4")) as container:
        keys = [frame.time for frame in container.decode(video=0) if frame.key_frame]
    assert keys[0] == 0.0
    assert 0 < np.diff(keys).max() <= 1.0
    assert keys[-1] >= 3.0


def test_a_failed_write_leaves_the_old_file_and_no_scrap(tmp_path):
    target = tmp_path / "a.mp4"
    target.write_bytes(b"old")

    def breaking():
        yield smooth_frames(3, 32, 32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        video.write(target, breaking(), 1.0)
    with pytest.raises(ValueError, match="no frame to write"):
        video.write(target, [], 1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert target.read_bytes() == b"old"
    with full_disk(600), pytest.raises(LongtakeError, match="could not write .*a.mp4: File too large"):
        video.write(target, [smooth_frames(3, 32, 32)], 1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert target.read_bytes() == b"old"
    video.write(target, [smooth_frames(3, 32, 32)], 1.0)
    assert len(read_back(target)[0]) == 3
