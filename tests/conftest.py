"""What several folders of tests share: where a real model is, if there is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from phloem.launch.models import DEFAULT, cache_folder


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The default model's GGUF in the cache folder; the test is skipped when it was not fetched."""
    path = cache_folder() / DEFAULT.file
    if not path.is_file():
        pytest.skip(f"{DEFAULT.file} is not in the cache: phloem models fetch default")
    return path
