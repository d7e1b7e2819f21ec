"""Reading ``.npz`` archives a few samples at a time.

``numpy.load`` reads an array as a whole. An archive is a zip of ``.npy`` members whose data are in
row order, so that samples along axis 0 can be read one after another, in memory for one batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import zipfile
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from graphopt.errors import CalibrationError
from graphopt.runtime.values import Array

__all__ = ["Header", "open_archive"]


@dataclasses.dataclass(frozen=True)
class Header:
    """What an archive says about one of its arrays."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool


class Archive:
    """An open archive.

    Attributes:
        headers: Its arrays by name.
    """

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self._path, self._file = path, file
        self.headers: dict[str, Header] = {}
        for member in file.namelist():
            if member.endswith(".npy"):
                name = member.removesuffix(".npy")
                with self._file.open(member) as f:
                    self.headers[name] = self._header(name, f)

    def array(self, name: str) -> Array:
        """A whole array."""
        with _reading(self._path), self._file.open(f"{name}.npy") as f:
            found: Array = np.lib.format.read_array(f, allow_pickle=False)
        return found

    def rows(self, name: str, size: int) -> Generator[Array, None, None]:
        """The array in pieces of ``size`` along axis 0; a shorter rest is left out."""
        header = self.headers[name]
        count = header.shape[0] // size
        if header.fortran:
            whole = self.array(name)
            for i in range(count):
                yield whole[i * size : (i + 1) * size]
            return
        shape = (size, *header.shape[1:])
        wanted = math.prod(shape) * header.dtype.itemsize
        with self._file.open(f"{name}.npy") as f:
            self._header(name, f)
            for _ in range(count):
                with _reading(self._path):
                    data = f.read(wanted)
                    if len(data) != wanted:
                        raise EOFError(f"array {name!r} ends early")
                yield np.frombuffer(data, header.dtype).reshape(shape)
            with _reading(self._path):
                while f.read(1 << 20):
                    pass  # the checksum is compared at the end

    def _header(self, name: str, f: IO[bytes]) -> Header:
        with _reading(self._path):
            version = np.lib.format.read_magic(f)
            if version == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(f)
            elif version == (2, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_2_0(f)
            else:
                raise ValueError(f"array {name!r} has version {version} of the format")
        if dtype.hasobject:
            raise CalibrationError(
                f"{self._path}: array {name!r} holds pickled Python objects, which are not read; "
                "save numbers, or strings as an array of type 'U'"
            )
        if dtype.names is not None:
            raise CalibrationError(f"{self._path}: array {name!r} is a structured array")
        return Header(name, shape, dtype, fortran)


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an ``.npz`` file.

    Raises:
        CalibrationError: It is missing, truncated, not an archive, or holds pickled objects.
    """
    with contextlib.ExitStack() as stack:
        with _reading(path):
            file = stack.enter_context(zipfile.ZipFile(path))
        yield Archive(path, file)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as e:
        raise CalibrationError(f"{path} does not exist") from e
    except (
        OSError,
        EOFError,
        ValueError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as e:
        raise CalibrationError(f"{path} is truncated or not an .npz archive: {e}") from e
