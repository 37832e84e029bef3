"""Names of cached pages: a page's digest covers its tokens, everything before them and the namespace.

    root = H(namespace)        page 0 = H(root, tokens 0..p-1)        page 1 = H(page 0, tokens p..2p-1)   ...

Two replicas that hold the same page under the same prefix call it the same, and who knows a prompt can ask how many of
its first pages a replica holds without seeing anybody's tokens. H is BLAKE2b of 64 bits; a collision costs a cache hit
that was expected and does not come, never a wrong answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

BYTES_PER_DIGEST = 8


def shared_namespace(namespace: str) -> str:
    """What the prefix index calls the namespace that requests give: apart from those of single requests."""
    return f"cache:{namespace}"


def root_digest(namespace: str) -> int:
    """Where every chain of a namespace starts."""
    return _digest(b"namespace", namespace.encode("utf-8", "surrogatepass"))


def child_digest(parent: int, key: bytes) -> int:
    """The page with the tokens `key` (big-endian uint32 each) after the page `parent`."""
    return _digest(parent.to_bytes(BYTES_PER_DIGEST, "big"), key)


def chain(key: bytes, *, bytes_per_page: int, namespace: str) -> Iterable[int]:
    """The digests of the whole pages of `key`, the first page first."""
    digest = root_digest(namespace)
    for start in range(0, len(key) - bytes_per_page + 1, bytes_per_page):
        digest = child_digest(digest, key[start : start + bytes_per_page])
        yield digest


def _digest(before: bytes, content: bytes) -> int:
    return int.from_bytes(blake2b(before + content, digest_size=BYTES_PER_DIGEST).digest(), "big")
