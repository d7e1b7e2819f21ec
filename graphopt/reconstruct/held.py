"""Arrays of many batches: in memory up to a limit, in files beyond."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import CalibrationError

__all__ = ["Held"]

# Bytes that are kept in memory. Where one value of all batches takes more, so may what is computed
# from it, whose size nobody knows.
_LIMIT = 256 << 20


class Held:
    """Values by name, each an array (or what else ONNX Runtime returns) for every batch."""

    def __init__(self, limit: int = _LIMIT) -> None:
        """Hold nothing.

        Args:
            limit: Bytes of arrays that stay in memory.
        """
        self.limit = limit
        self._values: dict[str, list[Any]] = {}
        self._bytes = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._values))

    def lend(self, name: str, values: Sequence[Any]) -> None:
        """Hold what the caller has in memory anyway."""
        self._values[name] = [_Lent(value) for value in values]

    def add(self, name: str, value: Any) -> None:
        """Hold a value of the next batch.

        Raises:
            CalibrationError: There is no room for it.
        """
        kept = self._values.setdefault(name, [])
        size = _size(value)
        if not size or self._bytes + size <= self.limit:
            self._bytes += size
            kept.append(value)
            return
        try:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="graphopt-")
            path = Path(self._folder.name) / f"{self._files}.npy"
            self._files += 1
            np.save(path, value, allow_pickle=False)
        except OSError as e:
            raise CalibrationError(f"there is no room for what layers read: {e}") from e
        kept.append(path)

    def get(self, name: str, index: int) -> Any:
        """A value of a batch."""
        value = self._values[name][index]
        if isinstance(value, _Lent):
            return value.value
        return np.load(value, allow_pickle=False) if isinstance(value, Path) else value

    def all(self, name: str) -> Sequence[Any]:
        """A value of every batch, each read when it is asked for, until the name is dropped."""
        return _Batches(self, name, len(self._values[name]))

    def drop(self, name: str, index: int | None = None) -> None:
        """Forget a value, of one batch or of all."""
        kept = self._values[name] if index is None else [self._values[name][index]]
        for value in kept:
            if isinstance(value, Path):
                value.unlink(missing_ok=True)
            else:
                self._bytes -= _size(value)
        if index is None:
            del self._values[name]
        else:
            self._values[name][index] = None

    def close(self) -> None:
        """Forget everything."""
        self._values.clear()
        self._bytes = 0
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def _size(value: Any) -> int:
    """Bytes of what a file can hold: numbers that NumPy itself knows."""
    numbers = isinstance(value, np.ndarray) and value.dtype.kind in "biufc"
    return int(value.nbytes) if numbers else 0


class _Lent:
    """A value that is not ours to count."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Batches(Sequence[Any]):
    def __init__(self, held: Held, name: str, count: int) -> None:
        self._held, self._name, self._count = held, name, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return self._held.get(self._name, index % self._count)
