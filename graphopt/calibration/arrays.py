"""Reading ``.npz`` archives and ``.npy`` files a few samples at a time.

``numpy.load`` reads an array as a whole, or maps it, and then what was read counts as memory of the
process. The data of a ``.npy`` file, of which an archive is a zip, are in row order, so that
samples along axis 0 can be read one after another, in memory for one batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from graphopt.errors import CalibrationError
from graphopt.runtime.values import Array

__all__ = ["Archive", "Header", "open_npy", "open_npz"]


@dataclasses.dataclass(frozen=True)
class Header:
    """What an archive says about one of its arrays."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool


class Archive:
    """Arrays that are open for reading.

    Args:
        path: Where they are, for messages.
        members: What opens the ``.npy`` data of each.

    Attributes:
        headers: What is known of the arrays, by name.
    """

    def __init__(self, path: Path, members: Mapping[str, Callable[[], IO[bytes]]]) -> None:
        self._path, self._members = path, members
        self.headers: dict[str, Header] = {}
        for name in members:
            with self._open(name) as f:
                self.headers[name] = self._header(name, f)

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        with _reading(self._path):
            file = self._members[name]()
        with file:
            yield file

    def array(self, name: str) -> Array:
        """A whole array."""
        with self._open(name) as f, _reading(self._path):
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
        with self._open(name) as f:
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
def open_npz(path: Path) -> Iterator[Archive]:
    """Open an ``.npz`` file.

    Raises:
        CalibrationError: It is missing, truncated, not an archive, or holds pickled objects.
    """
    with contextlib.ExitStack() as stack:
        with _reading(path):
            file = stack.enter_context(zipfile.ZipFile(path))
        names = [m.removesuffix(".npy") for m in file.namelist() if m.endswith(".npy")]
        yield Archive(path, {n: functools.partial(file.open, f"{n}.npy") for n in names})


@contextlib.contextmanager
def open_npy(path: Path, files: Mapping[str, Path]) -> Iterator[Archive]:
    """Open ``.npy`` files as the arrays of an archive.

    Args:
        path: Where they are, for messages.
        files: The file of each array.

    Raises:
        CalibrationError: One is missing, truncated, not such a file, or holds pickled objects.
    """
    yield Archive(path, {n: functools.partial(_file, f) for n, f in files.items()})


def _file(path: Path) -> IO[bytes]:
    return path.open("rb")


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
        what = "an .npz archive" if path.suffix == ".npz" else "in the .npy format"
        raise CalibrationError(f"{path} is truncated or not {what}: {e}") from e
