"""Writing a folder in one step, so that a half-written one never appears."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graphopt import ir
from graphopt.bundle.manifest import SCHEMA
from graphopt.bundle.script import SCRIPT
from graphopt.errors import ExportError
from graphopt.ir.save import alive

__all__ = ["check_folder", "write_folder"]

_MODEL, _MANIFEST, _SCRIPT = "model.onnx", "manifest.json", "run.py"
_SUFFIX = ".graphopt-tmp"
_CHUNK = 1 << 20


def check_folder(directory: str | os.PathLike[str]) -> Path:
    """The folder to write, if it may be: it is new, empty, or an earlier export and nothing else.

    Raises:
        ExportError: It may not be written, or cannot be.
    """
    path = Path(os.path.realpath(Path(directory).absolute()))
    try:
        if not path.parent.is_dir():
            raise ExportError(f"{directory} cannot be written: there is no folder {path.parent}")
        if path.exists() and not path.is_dir():
            raise ExportError(f"{directory} cannot be written: it is a file")
        foreign = sorted(set(_names(path)) - _own(path)) if path.exists() else []
        if foreign:
            raise ExportError(
                f"{directory} cannot be written: it holds {foreign[0]}, which no export wrote"
            )
        with _beside(path) as attempt:  # permissions say little about network file systems
            attempt.rmdir()
    except OSError as e:
        raise ExportError(f"{directory} cannot be written: {e.strerror or e}") from e
    return path


def write_folder(
    directory: str | os.PathLike[str],
    model: ir.Model,
    manifest: dict[str, Any],
    *,
    external_data: bool | None,
) -> tuple[list[Path], dict[str, Any]]:
    """Write model, manifest and script; the folder is there as a whole or not at all.

    Args:
        directory: The folder.
        model: The model.
        manifest: What :func:`describe` returned; names, sizes and digests of files are added.
        external_data: As for :func:`graphopt.save`.

    Returns:
        The files, the model first and the script last, and the manifest as it was written.

    Raises:
        ExportError: They cannot be written. What was there before is still there.
    """
    path = check_folder(directory)
    try:
        with _beside(path) as folder:
            written = ir.save(model, folder / _MODEL, external_data=external_data)
            files = [_file(each) for each in written]
            whole = {**manifest, "files": files}
            text = json.dumps(whole, indent=2, allow_nan=False) + "\n"
            ir.atomic_write(folder / _MANIFEST, text.encode())
            ir.atomic_write(folder / _SCRIPT, SCRIPT.encode())
            names = [each.name for each in written]
            _put(folder, path)
    except OSError as e:
        raise ExportError(f"{directory} cannot be written: {e.strerror or e}") from e
    return [path / name for name in (*names, _MANIFEST, _SCRIPT)], whole


def _names(path: Path) -> list[str]:
    return [each.name for each in path.iterdir()]


def _own(path: Path) -> set[str]:
    """Files that an earlier export wrote there."""
    try:
        found = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        if found["schema"].partition("/")[0] != SCHEMA.partition("/")[0]:
            return set()
        names = {str(each["path"]) for each in found["files"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
    # Running the script leaves a cache of its compiled form if something imports it.
    return {*names, _MANIFEST, _SCRIPT, "__pycache__"}


def _file(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return {"path": path.name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A new folder on the same file system, which is gone afterwards unless it was moved."""
    for left in path.parent.glob(f".{path.name}.*{_SUFFIX}"):
        pid = left.name.removesuffix(_SUFFIX).rpartition(".")[2]
        if pid.isdigit() and int(pid) != os.getpid() and not alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    folder = path.with_name(f".{path.name}.new.{os.getpid()}{_SUFFIX}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put(folder: Path, path: Path) -> None:
    """Move a folder to its place; what was there goes once the new one is there."""
    if not path.exists():
        folder.rename(path)
        return
    old = path.with_name(f".{path.name}.old.{os.getpid()}{_SUFFIX}")
    path.rename(old)
    try:
        folder.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
