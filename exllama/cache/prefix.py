"""What identifies the contents of a page: all tokens of its sequence up to its end, and what else they depend on."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from exllama.errors import UsageError

Images = tuple[tuple[int, bytes], ...]  # (place of its first token, digest of its content), in order
_MAX_CONTENT = 64


class Prefix:
    """The tokens of a page (n,) int32 as bytes, the images that begin among them, and the prefix before them.

    Two prefixes are the same when everything up to the root is equal (`same`); digests only make it likely. A root has
    no parent, and `tokens` holds what tells tenants and adapters apart. digest: the pool's keyed digest of the whole
    chain; empty where the page is incomplete, since such a page cannot be asked for by its digest.
    """

    __slots__ = ("_address", "digest", "images", "parent", "tokens")

    def __init__(self, digest: bytes, parent: Prefix | None, tokens: bytes, images: Images = ()) -> None:
        self.digest, self.parent, self.tokens, self.images = digest, parent, tokens, images
        self._address = b""

    @property
    def content(self) -> bytes:
        """Tokens and images, in one string that nothing else has."""
        return pack_content(self.tokens, self.images)

    @property
    def ids(self) -> NDArray[np.int32]:
        """The tokens (n,) int32."""
        return np.frombuffer(self.tokens, "<i4")

    @property
    def address(self) -> bytes:
        """A digest of the chain that is equal in all processes, 32 bytes; no secret goes into it but the root's."""
        if not self._address:
            before = self.parent.address if self.parent else b""
            self._address = blake2b(before + self.content, digest_size=32, person=b"exllama-address").digest()
        return self._address

    def same(self, other: Prefix) -> bool:
        """Whether all tokens and images of both chains are equal. Equal parents are usually one object."""
        a: Prefix | None = self
        b: Prefix | None = other
        while a is not b:
            if a is None or b is None or a.tokens != b.tokens or a.images != b.images:
                return False
            a, b = a.parent, b.parent
        return True

    def common_start(self, tokens: NDArray[np.int32], images: Images) -> int:
        """How many first tokens are equal to `tokens` (n,), as far as different images leave them equal."""
        mine = self.ids
        n = min(len(mine), len(tokens))
        if self.images != images:
            n = min([n, *(place for place, _ in {*self.images} ^ {*images})])
        equal = mine[:n] == tokens[:n]
        return n if equal.all() else int(equal.argmin())


def root_identity(salt: bytes, adapter: bytes) -> bytes:
    """What a root holds instead of tokens: 32 bytes that do not show the salt, which may be a secret."""
    fields = struct.pack("<QQ", len(salt), len(adapter)) + salt + adapter
    return blake2b(fields, digest_size=32, person=b"exllama-root").digest()


def check_images(images: Sequence[tuple[int, bytes]]) -> Images:
    """Sorted images of one sequence. Raises UsageError for places or digests that cannot be."""
    for place, content in images:
        if place < 0 or not 16 <= len(content) <= _MAX_CONTENT:
            found = f"an image at token {place} with a digest of {len(content)} bytes"
            raise UsageError(f"{found}, expected a place from 0 and 16 to {_MAX_CONTENT} bytes")
    return tuple(sorted(images))


def images_between(images: Images, begin: int, end: int) -> Images:
    """Those that begin at tokens begin .. end - 1, with places relative to `begin`."""
    return tuple((place - begin, content) for place, content in images if begin <= place < end)


def pack_content(tokens: bytes, images: Images) -> bytes:
    """len(tokens), tokens, then (place, length, digest) of every image."""
    parts = [struct.pack("<I", len(tokens)), tokens]
    parts += [struct.pack("<II", place, len(content)) + content for place, content in images]
    return b"".join(parts)


def unpack_content(data: bytes) -> tuple[bytes, Images]:
    """The inverse of pack_content. Raises ValueError for anything else."""
    if len(data) < 4:
        raise ValueError("no length")
    end = 4 + int.from_bytes(data[:4], "little")
    tokens, images, at = data[4:end], [], end
    if end > len(data) or len(tokens) % 4:
        raise ValueError("the tokens end early")
    while at < len(data):
        if at + 8 > len(data):
            raise ValueError("an image ends early")
        place, length = struct.unpack_from("<II", data, at)
        content = data[at + 8 : at + 8 + length]
        if len(content) != length or not 16 <= length <= _MAX_CONTENT:
            raise ValueError("an image ends early")
        images.append((place, content))
        at += 8 + length
    return tokens, tuple(images)
