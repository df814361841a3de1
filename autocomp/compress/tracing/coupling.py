"""Channels that must be kept or dropped together, as classes that are merged where they meet."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Axis:
    """Where a tensor's channels are: axis index, and the channel classes along it with their sizes."""

    dim: int
    parts: tuple[tuple[int, int], ...]
    repeat: int = 1

    @property
    def classes(self) -> tuple[int, ...]:
        return tuple(c for c, _ in self.parts)


class Coupling:
    """Union-find over channel classes: two classes that must be pruned alike become one."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.size: list[int] = []
        self.reason: list[str] = []
        self.producers: list[list[str]] = []

    def new(self, size: int, producer: str | None = None, reason: str = "") -> int:
        self.parent.append(len(self.parent))
        self.size.append(size)
        self.reason.append(reason)
        self.producers.append([producer] if producer else [])
        return len(self.parent) - 1

    def find(self, c: int) -> int:
        while self.parent[c] != c:
            self.parent[c] = self.parent[self.parent[c]]
            c = self.parent[c]
        return c

    def union(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        if a == b:
            return
        a, b = min(a, b), max(a, b)
        self.parent[b] = a
        self.producers[a] += self.producers[b]
        self.reason[a] = self.reason[a] or self.reason[b]

    def freeze(self, axis: Axis | None, reason: str) -> None:
        for c in axis.classes if axis is not None else ():
            root = self.find(c)
            self.reason[root] = self.reason[root] or reason
