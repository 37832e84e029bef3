"""Building a worker: what is refused before anything slow or large happens."""

from __future__ import annotations

import pytest

from phloem.core.errors import ConfigError
from phloem.runtime.exec import build


@pytest.mark.parametrize(("quantize", "gigabytes"), [("auto", "29.5"), ("int8", "14.8"), ("int4", "7.4")])
def test_weights_that_do_not_fit_are_refused_before_they_are_loaded(
    monkeypatch: pytest.MonkeyPatch, quantize: str, gigabytes: str
) -> None:
    """Red when a model larger than the memory is loaded until the kernel kills somebody."""
    monkeypatch.setattr(build, "free_host_bytes", lambda: 5 * 10**9)
    with pytest.raises(ConfigError, match=f"too little memory: .* need {gigabytes} GB, 5.0 GB are free"):
        build.build_worker(
            model="dummy:qwen3-14b",
            dtype="auto",
            quantize=quantize,
            device="cpu",
            threads=1,
            max_model_len=None,
            memory_gb=None,
            page_size=32,
            max_running=4,
            max_step_tokens=64,
            overlap_depth=0,
            report=lambda stage, seconds: None,
        )
