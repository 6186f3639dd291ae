"""Watching by length: frames a second and peak memory, each length in a process of its own.

    python benchmarks/watch.py [--model FOLDER] [--frames 1024 16384] [--json]

The video is drawn and written once (256x144, H.264, 2 frames a second, a cut every 20 seconds) and watched at 1 frame a
second, so a length in frames is the same in seconds. ``over loaded`` is peak memory above the process with the model
loaded and one group encoded; only ``tokens`` may grow with length: the kept features with their places and times.
CPU seconds tell more than wall seconds on a machine that does other work.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

MEGABYTE = 1 << 20
VIDEO_FPS = 2


def write_video(path: Path, num_seconds: int) -> None:
    """Gradients that drift, with a cut to others every 20 seconds."""
    rng = np.random.default_rng(0)
    wide, high = np.linspace(0, 6, 256)[None, :, None], np.linspace(0, 4, 144)[:, None, None]
    part = path.with_suffix(".part")
    with av.open(str(part), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=VIDEO_FPS, options={"preset": "ultrafast", "g": "40"})
        stream.width, stream.height, stream.pix_fmt = 256, 144, "yuv420p"
        for index in range(num_seconds * VIDEO_FPS):
            if index % (20 * VIDEO_FPS) == 0:
                turn, tilt = rng.uniform(0, 6, 3), rng.uniform(-2, 2, 3)
            picture = 127 + 120 * np.sin(turn + wide * tilt + high + index / 15)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode())
    part.replace(path)


def measure(video: Path, model_path: str | None, num_frames: int) -> dict[str, float]:
    """One watch; run in a process of its own, as peak memory never goes back."""
    import torch

    import longtake
    from longtake.types import Frames

    model = longtake.load(model_path)
    size = model.backbone.frame_size or (144, 256)
    group = model.backbone.frames_per_group
    blank = Frames(pixels=np.zeros((group, 3, *size), np.uint8), seconds=np.arange(group, dtype=np.float64))
    with torch.no_grad():
        model.backbone.encode(blank)
    loaded = peak_megabytes()
    start, start_cpu = time.perf_counter(), time.process_time()
    memory = model.watch(video, fps=1.0, stop_seconds=float(num_frames))
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    tokens = memory.tokens
    kept = sum(t.nbytes for t in (tokens.features, tokens.position, tokens.seconds, tokens.weight))
    device = torch.cuda.max_memory_allocated() / MEGABYTE if torch.cuda.is_available() else 0.0
    return {
        "frames": memory.provenance.frames,
        "frames_per_second": memory.provenance.frames / seconds,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "read_seconds": memory.provenance.seconds["read"],
        "encode_seconds": memory.provenance.seconds["encode"],
        "peak_mb": peak_megabytes(),
        "over_loaded_mb": peak_megabytes() - loaded,
        "device_peak_mb": device,
        "tokens_mb": kept / MEGABYTE,
    }


def peak_megabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MEGABYTE if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a model; the one in the package if not given")
    parser.add_argument("--frames", type=int, nargs="+", default=[1024, 16384])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "longtake-benchmarks")
    parser.add_argument("--json", action="store_true", help="print one JSON object a length")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)  # measure this video in this process
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one, options.model, options.frames[0])))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    video = options.folder / f"watch-{max(options.frames)}.mp4"
    if not video.exists():
        write_video(video, max(options.frames))
    for num_frames in options.frames:
        command = [sys.executable, __file__, "--one", str(video), "--frames", str(num_frames)]
        command += ["--model", options.model] if options.model else []
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        if options.json:
            print(json.dumps(found))
            continue
        print(
            f"{found['frames']:6d} frames  {found['frames_per_second']:7.1f} frames/s  in {found['seconds']:6.1f} s "
            f"(CPU {found['cpu_seconds']:.1f}; read {found['read_seconds']:.1f}, encode {found['encode_seconds']:.1f}) "
            f"peak {found['peak_mb']:.0f} MB, over loaded {found['over_loaded_mb']:.0f} MB, "
            f"of it tokens {found['tokens_mb']:.1f} MB, on the device {found['device_peak_mb']:.0f} MB"
        )


if __name__ == "__main__":
    main()
