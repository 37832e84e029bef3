"""The native library and its pool, or a skip that says why there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from phloem.kernels.cpu import library
from phloem.kernels.cpu.library import Library, Pool
from phloem.kernels.cpu.pack import Packer


@pytest.fixture(scope="session")
def native() -> Library:
    found = library.load()
    if found.library is None:
        pytest.skip(found.reason)
    return found.library


@pytest.fixture(scope="session")
def pool(native: Library) -> Iterator[Pool]:
    pool = native.pool(2)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def packer(native: Library, pool: Pool) -> Packer:
    return Packer(native, pool)
