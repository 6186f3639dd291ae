"""Speed and memory of reading chosen frames from a long video, against other readers.

    python benchmarks/video.py                            longtake and a plain PyAV loop
    python benchmarks/video.py --peer-python PATH         also OpenCV, torchcodec and decord2, installed in that Python
    python benchmarks/video.py --json                     one JSON object instead of the table

Every measurement is a fresh process that opens the file, takes its frames as 1280x720 RGB uint8 and drops them again in
chunks of at most 64; time runs from opening to the last frame, without imports; peak memory is the whole process's.
Contenders take turns within each repeat, so that a busy machine slows all of them; the best of the repeats counts.
The file is made once: moving textures and shapes with cuts, H.264 by x264's defaults (medium, CRF 23, a keyframe at
least every 250 frames, up to 3 B-frames in a pyramid); 100 s are encoded and repeated six times without re-encoding.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FPS, WIDTH, HEIGHT, SECONDS, REPEATS = 30, 1280, 720, 600, 6
CHUNK = 64
JOBS = {"1 fps": 600, "256 uniform": 256, "32 uniform": 32}  # name: frames


def job_seconds(job: str) -> list[float]:
    """The times a job asks for: whole seconds, or midpoints of equal parts."""
    count = JOBS[job]
    shift = 0.0 if job == "1 fps" else 0.5
    return [(i + shift) * SECONDS / count for i in range(count)]


def chunks(values: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]


# -- contenders: each yields the number of frames it has just delivered ------------------------------------------------


def longtake_nearest(path: str, job: str, threads: int, *, exact: bool = False) -> Iterator[int]:
    from longtake import video
    from longtake.types import Sampling

    sampling = Sampling(fps=1.0, exact=exact) if job == "1 fps" else Sampling(count=JOBS[job], exact=exact)
    for frames in video.read(path, sampling, threads=threads):
        yield len(frames)


def longtake_exact(path: str, job: str, threads: int) -> Iterator[int]:
    return longtake_nearest(path, job, threads, exact=True)


def pyav_loop(path: str, job: str, threads: int) -> Iterator[int]:
    """Decode on and keep the frame shown at each time; seek before each time when they are far apart."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
        frames = container.decode(stream)
        for second in job_seconds(job):
            if job == "32 uniform":
                container.seek(int(second / stream.time_base), stream=stream)
                frames = container.decode(stream)
            for frame in frames:
                if frame.time + 1 / FPS > second + 1e-6:
                    frame.to_ndarray(format="rgb24")
                    yield 1
                    break


def opencv(path: str, job: str, threads: int) -> Iterator[int]:
    """Grab on and retrieve only what is wanted; set the position before each time when they are far apart."""
    os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = f"threads;{threads}"
    import cv2

    cv2.setNumThreads(threads)
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
    at = 0
    for second in job_seconds(job):
        index = int(second * FPS + 1e-6)
        if job == "32 uniform":
            capture.set(cv2.CAP_PROP_POS_FRAMES, index)
            at = index
        while at <= index:
            assert capture.grab()
            at += 1
        cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)
        yield 1


def torchcodec(path: str, job: str, threads: int) -> Iterator[int]:
    """Its batch call, in its faster mode (no scan of the file on opening)."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, seek_mode="approximate", num_ffmpeg_threads=threads)
    for seconds in chunks(job_seconds(job)):
        yield len(decoder.get_frames_played_at(seconds).data)


def decord2(path: str, job: str, threads: int) -> Iterator[int]:
    import decord

    reader = decord.VideoReader(path, num_threads=threads)
    for indices in chunks([int(second * FPS + 1e-6) for second in job_seconds(job)]):
        yield len(reader.get_batch(indices).asnumpy())


OURS: dict[str, Callable[[str, str, int], Iterator[int]]] = {
    "longtake nearest": longtake_nearest,
    "longtake exact": longtake_exact,
    "PyAV loop": pyav_loop,
}
PEERS: dict[str, Callable[[str, str, int], Iterator[int]]] = {
    "OpenCV": opencv,
    "torchcodec": torchcodec,
    "decord2": decord2,
}


def measure(contender: str, path: str, job: str, threads: int) -> dict[str, float]:
    """One measurement, inside its own process."""
    run = (OURS | PEERS)[contender]
    warm_up = {"longtake": "longtake.video", "PyAV": "av", "OpenCV": "cv2", "decord2": "decord"}
    __import__(warm_up.get(contender.split()[0], contender))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    started, cpu = time.perf_counter(), usage.ru_utime + usage.ru_stime
    frames = sum(run(path, job, threads))
    wall = time.perf_counter() - started
    usage = resource.getrusage(resource.RUSAGE_SELF)
    spent = usage.ru_utime + usage.ru_stime - cpu
    return {"frames": frames, "wall_seconds": wall, "cpu_seconds": spent, "peak_mb": peak_megabytes()}


def peak_megabytes() -> float:
    """This program's own peak; on Linux ru_maxrss would count the size of the process that started it, too."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS, in bytes


# -- the file ----------------------------------------------------------------------------------------------------------


def make_file(path: Path) -> None:
    """Encode a sixth of the file and repeat its packets."""
    import av

    once, part = path.with_suffix(".once.mp4"), path.with_suffix(".part.mp4")
    _encode(once)
    with av.open(str(part), "w") as target:
        copy = None
        for repeat in range(REPEATS):
            with av.open(str(once)) as source:
                stream = source.streams.video[0]
                copy = copy or target.add_stream_from_template(stream)
                shift = round(repeat * SECONDS / REPEATS / stream.time_base)
                for packet in source.demux(stream):
                    if packet.size:
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                        target.mux(packet)
    once.unlink()
    part.rename(path)


def _encode(path: Path) -> None:
    """Scenes of 2 to 20 s: a texture under a moving camera, drifting shapes, a little grain."""
    import av
    import numpy as np

    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "medium", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        written, total = 0, SECONDS * FPS // REPEATS
        while written < total:
            length = min(int(rng.integers(2 * FPS, 20 * FPS)), total - written)
            for planes in _scene(rng, length):
                frame = av.VideoFrame(WIDTH, HEIGHT, "yuv420p")
                for plane, values in zip(frame.planes, planes, strict=True):
                    np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width] = values
                frame.pts = written
                written += 1
                container.mux(stream.encode(frame))
            print(f"\rencoding {path.name}: {100 * written // total}%", end="", file=sys.stderr)
        container.mux(stream.encode())
    print(file=sys.stderr)


def _scene(rng: Any, length: int) -> Iterator[tuple[Any, Any, Any]]:
    """YUV planes of one scene."""
    import numpy as np

    pan = rng.uniform(-3, 3, 2) * (rng.random() < 0.7)  # pixels a frame; three scenes in ten stand still
    luma = sum(
        np.kron(rng.normal(0, amount, (2000 // cell + 1, 2600 // cell + 1)), np.ones((cell, cell)))[:2000, :2600]
        for cell, amount in ((200, 30), (50, 18), (10, 9), (2, 4))
    )
    luma = np.clip(luma + rng.uniform(80, 160), 16, 235).astype(np.uint8)
    grain = rng.integers(-2, 3, (8, HEIGHT, WIDTH)).astype(np.int8)
    shapes = [(rng.uniform(0, 1, 2), rng.uniform(-4, 4, 2), int(rng.integers(40, 200))) for _ in range(4)]
    colours = rng.integers(90, 166, 2)
    for number in range(length):
        y0, x0 = (np.array([640, 660]) + pan * (number - length / 2)).astype(int).clip(0, 1279)
        y = luma[y0 : y0 + HEIGHT, x0 : x0 + WIDTH].astype(np.int16) + grain[number % 8]
        u, v = (np.full((HEIGHT // 2, WIDTH // 2), value, np.uint8) for value in colours)
        for place, speed, side in shapes:
            top, left = ((place * (HEIGHT, WIDTH) + speed * number) % (HEIGHT - side, WIDTH - side)).astype(int)
            y[top : top + side, left : left + side] += 40
            u[top // 2 : (top + side) // 2, left // 2 : (left + side) // 2] += 20
        yield np.clip(y, 16, 235).astype(np.uint8), u, v


# -- the runs ----------------------------------------------------------------------------------------------------------


def available(python: str, contender: str) -> bool:
    module = {"OpenCV": "cv2", "decord2": "decord"}.get(contender, contender)
    found = subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0
    if not found:
        print(f"skipped: {contender} (no module {module} in {python})", file=sys.stderr)
    return found


def run_once(python: str, contender: str, path: Path, job: str, threads: int) -> dict[str, float]:
    command = [python, __file__, "--measure", contender, "--job", job, "--threads", str(threads), "--file", str(path)]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def compare(path: Path, peer_python: str, jobs: list[str], threads: list[int], repeats: int) -> list[dict[str, Any]]:
    pythons = dict.fromkeys(OURS, sys.executable) | {
        name: peer_python for name in PEERS if available(peer_python, name)
    }
    best: dict[tuple[str, int, str], dict[str, Any]] = {}
    for _ in range(repeats):
        for job in jobs:
            for number in threads:
                for name, python in pythons.items():
                    result = run_once(python, name, path, job, number)
                    assert result["frames"] == JOBS[job], f"{name} gave {result['frames']} frames"
                    key = (job, number, name)
                    if key not in best or result["wall_seconds"] < best[key]["wall_seconds"]:
                        best[key] = {"job": job, "threads": number, "reader": name, **result}
    return list(best.values())


def print_table(rows: list[dict[str, Any]]) -> None:
    print("| job | threads | reader | wall s | CPU s | frames/s | peak MB | times the best other |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        same = [other for other in rows if (other["job"], other["threads"]) == (row["job"], row["threads"])]
        others = [other["wall_seconds"] for other in same if not other["reader"].startswith("longtake")]
        wall, rate = row["wall_seconds"], row["frames"] / row["wall_seconds"]
        print(
            f"| {row['job']} | {row['threads']} | {row['reader']} | {wall:.2f} | {row['cpu_seconds']:.2f} "
            f"| {rate:.0f} | {row['peak_mb']:.0f} | {min(others) / wall:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME", tempfile.gettempdir())) / "longtake-benchmarks"
    parser.add_argument("--file", type=Path, default=cache / "ten_minutes_720p.mp4", help="made when it is not there")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has the other readers")
    parser.add_argument("--job", choices=JOBS, action="append", help="default: all three")
    parser.add_argument("--threads", type=int, action="append", help="default: 1 and 2")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", choices=[*OURS, *PEERS], help="one measurement in this process, as JSON")
    options = parser.parse_args()
    jobs, threads = options.job or list(JOBS), options.threads or [1, 2]
    if options.measure:
        print(json.dumps(measure(options.measure, str(options.file), jobs[0], threads[0])))
        return
    if not options.file.exists():
        options.file.parent.mkdir(parents=True, exist_ok=True)
        make_file(options.file)
    rows = compare(options.file, options.peer_python, jobs, threads, options.repeats)
    if options.json:
        print(json.dumps({"file_bytes": options.file.stat().st_size, "repeats": options.repeats, "rows": rows}))
    else:
        print_table(rows)


if __name__ == "__main__":
    main()
