"""What an accelerator does differently: run with ``pytest -m gpu``."""

import dataclasses

import pytest
import torch

import tiny
from longtake.ask import PrefixCache, ask
from longtake.backbones import language
from longtake.backbones.attention import causal_attention, fuses
from longtake.backbones.own import OwnVideoLLM
from longtake.models.processor import VideoLLMProcessor
from longtake.types import Sampling
from longtake.watch import watch_frames

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("queries", [7, 300, 700])
def test_fused_attention_equals_blocks(queries: int):
    torch.manual_seed(0)
    q = torch.randn(1, 4, queries, 128, device="cuda", dtype=torch.bfloat16)
    k, v = torch.randn(2, 1, 2, 900, 128, device="cuda", dtype=torch.bfloat16)
    assert fuses(q, k, v, 0.0)
    fused = causal_attention(q, k, v, scaling=0.1)
    exact = causal_attention(*(x.double().cpu() for x in (q, k, v)), scaling=0.1)
    torch.testing.assert_close(fused.double().cpu(), exact, atol=2e-2, rtol=2e-2)


def test_watching_and_asking_there_is_as_on_the_cpu(monkeypatch: pytest.MonkeyPatch):
    """In float32, with pieces of a prompt, a chosen prompt and a cache of the video."""
    monkeypatch.setattr(language, "PREFILL_COLUMNS", 40)
    frames, found = tiny.frames(24, 32, 32), {}
    for device in ("cpu", "cuda"):
        model = tiny.video_llm().to(device)
        backbone = OwnVideoLLM(model, VideoLLMProcessor.from_config(tiny.tokenizer(), model.config))
        memory = watch_frames(backbone, [frames], Sampling(fps=1.0))
        assert memory.tokens.features.device.type == "cpu"
        cache = PrefixCache()
        answers = [ask(backbone, memory, question, max_new_tokens=4, cache=cache) for question in ("What?", "Who?")]
        answers.append(ask(backbone, memory, "What?", max_new_tokens=4, budget_tokens=8))
        found[device] = [dataclasses.replace(answer, usage=None, evidence=()) for answer in answers]
    assert found["cuda"] == found["cpu"]
