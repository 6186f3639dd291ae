"""The networks: plain modules and Hugging Face classes. Importing this makes the Auto classes know ``VideoLLM``."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from longtake.models.dts import DynamicTokenSynthesizer
from longtake.models.processor import VideoLLMProcessor
from longtake.models.scorer import LegacySelector, QueryScorer
from longtake.models.video_llm import VideoLLM, VideoLLMConfig

__all__ = [
    "DynamicTokenSynthesizer",
    "LegacySelector",
    "QueryScorer",
    "VideoLLM",
    "VideoLLMConfig",
    "VideoLLMProcessor",
    "register",
]


def register() -> None:
    """Teaches Hugging Face's Auto classes ``VideoLLM``; calling it again changes nothing."""
    AutoConfig.register(VideoLLMConfig.model_type, VideoLLMConfig, exist_ok=True)
    AutoModelForImageTextToText.register(VideoLLMConfig, VideoLLM, exist_ok=True)
    AutoProcessor.register(VideoLLMConfig, VideoLLMProcessor, exist_ok=True)


register()
