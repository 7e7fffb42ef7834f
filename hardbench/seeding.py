"""Named random streams: a number for every purpose, from the seed and the path of names alone."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Seeds:
    """A node in the tree of streams; `child` goes one name down. A new purpose moves no other stream."""

    def __init__(self, seed: int, path: tuple[str | int, ...] = ()):
        self.seed = seed
        self.path = path

    def child(self, *names: str | int) -> "Seeds":
        """The stream of a purpose below this one."""
        return Seeds(self.seed, (*self.path, *names))

    @property
    def integer(self) -> int:
        """63 bits of the SHA-256 of seed and path."""
        text = "/".join(map(str, (self.seed, *self.path)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def generator(self, device: "torch.device | str" = "cpu") -> "torch.Generator":
        """A fresh torch generator at the start of this stream."""
        import torch

        return torch.Generator(device=device).manual_seed(self.integer)

    @contextmanager
    def as_global(self) -> Iterator[None]:
        """Within the block torch's global CPU generator runs on this stream (PyTorch's own initialisers take no generator)."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.integer)
            yield


def networks(seed: int, first: int, count: int) -> list[Seeds]:
    """Streams of `count` networks from repeat index `first` on."""
    return [Seeds(seed).child("repeat", r) for r in range(first, first + count)]
