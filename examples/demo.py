"""The main job, end to end: write a ten-minute video with needles, watch it once, ask it three questions.

Run: make demo   (or: python examples/demo.py [--seed N] [--footage FOLDER])
"""

import argparse
from pathlib import Path

import numpy as np

import longtake
from longtake import video
from longtake.data.probe_world.haystack import load_clips, unique_minutes
from longtake.data.probe_world.probe import ProbeVideo, make_video
from longtake.data.probe_world.questions import Question, ask_all, score
from longtake.types import Answer

SECONDS = 600
FPS = 5.0
SHARED = Path(__file__).parents[2] / "shared/data/videos"


def write_once(path: Path, probe: ProbeVideo) -> None:
    """Write the probe video as an H.264 file unless it is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"writing {path}: {SECONDS} s of H.264 ...", flush=True)
        video.write(path, probe.frames(), FPS)


def three_questions(probe: ProbeVideo) -> list[Question]:
    """One on content, one on presence, one on time."""
    questions = ask_all(probe, np.random.default_rng(0), 40)
    return [next(q for q in questions if q.task == task) for task in ("what", "is_there", "when")]


def show(question: Question, answer: Answer) -> None:
    """Question, answer, truth, evidence and time spent."""
    verdict = "right" if score(question, answer.text) else "wrong"
    truth = question.answer
    if question.event is not None:
        truth += f", on from {question.event.start_seconds:.1f} to {question.event.stop_seconds:.1f} s"
    spans = [f"{s.start_seconds:.0f}-{s.stop_seconds:.0f} s ({s.score:.2f})" for s in answer.evidence[:3]]
    print(f"\nquestion  {question.text}")
    print(f"answer    {answer.text}    ({verdict})")
    print(f"truth     {truth}")
    print(f"evidence  {', '.join(spans)}")
    print("spent     " + ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in answer.usage.seconds.items()))


def main() -> None:
    """Write, watch, ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--footage", type=Path, default=SHARED if SHARED.is_dir() else None)
    options = parser.parse_args()
    clips = load_clips("test", options.footage, Path(".cache/haystack"))
    kind = "drawn scenes" if options.footage is None else f"{unique_minutes(clips):.0f} minutes of footage"
    probe = make_video(
        options.seed, split="test", clips=clips, num_frames=int(SECONDS * FPS), fps=FPS, num_cards=5, mover=True,
        size=(360, 640),
    )  # fmt: skip
    path = Path(".cache/demo") / f"probe-{'drawn' if options.footage is None else 'footage'}-{options.seed}.mp4"
    write_once(path, probe)
    info = video.open(path)
    print(f"{path}: {info.duration_seconds:.0f} s, {info.width}x{info.height}, {info.codec}; haystack of {kind}")

    model = longtake.load()
    memory = model.watch(path, fps=1.0)
    for question in three_questions(probe):
        show(question, model.ask(memory, question.text))


if __name__ == "__main__":
    main()
