"""Reading video: the only part of longtake that knows FFmpeg. Never imports torch; frames are numpy arrays."""

from longtake.video.probe import identity, open
from longtake.video.read import Reading, read

__all__ = ["Reading", "identity", "open", "read"]
