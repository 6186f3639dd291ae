"""Reading video: the only part of longtake that knows FFmpeg. Never imports torch; frames are numpy arrays."""

from longtake.video.probe import identity, open
from longtake.video.read import Reading, read
from longtake.video.write import write

__all__ = ["Reading", "identity", "open", "read", "write"]
