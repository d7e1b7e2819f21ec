"""What was collected once is kept in a folder, under a digest of all that it depends on.

Files are ``.npz`` archives of the arrays of the observers, with their other attributes as JSON;
they hold no code. They are written atomically, so that runs may share a folder.
"""

from __future__ import annotations

import copy
import hashlib
import io
import itertools
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.calibration.observers import Observer
from graphopt.calibration.samples import Samples
from graphopt.calibration.watched import model_digest
from graphopt.errors import CalibrationError, ExportError

__all__ = ["cached"]

Found = dict[str, list[Observer]]

# What an observer remembers changes its meaning with this.
_VERSION = 1


def cached(
    folder: Path,
    model: ir.Model,
    prototypes: Found,
    samples: Samples,
    limit: int | None,
    collect: Callable[[], Found],
) -> Found:
    """Read what was collected before, or collect and keep it.

    A file that is damaged is replaced; the samples' remarks say so.

    Raises:
        ExportError: The folder cannot be written.
        CalibrationError: As ``collect``.
    """
    configuration = json.dumps(
        {n: [_state(o, name=n)[0] | {"": _kind(o)} for o in os] for n, os in prototypes.items()},
        sort_keys=True,
    )
    key = hashlib.sha256(
        "\n".join([
            str(_VERSION), model_digest(model), data_digest(samples, limit), configuration,
        ]).encode()
    ).hexdigest()  # fmt: skip
    path = folder / f"{key[:40]}.npz"
    try:
        return _read(path, prototypes)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        samples.remarks.append(f"{path.name} in the calibration cache was damaged and is replaced")
    found = collect()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        ir.atomic_write(path, _written(found))
    except OSError as e:
        raise ExportError(f"the calibration cache {folder} cannot be written: {e}") from e
    return found


def data_digest(samples: Samples, limit: int | None = None) -> str:
    """Digest of the values that the samples have, in order."""
    digest = hashlib.sha256()
    for _, feeds in itertools.islice(samples.named(), limit):
        digest.update(b"batch\n")
        for name, value in sorted(feeds.items()):
            digest.update(f"{name}\n".encode())
            _digest(digest, value)
    return digest.hexdigest()


def _digest(digest: Any, value: Any) -> None:
    if isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(f"{value.dtype} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    elif isinstance(value, (list, tuple)):
        digest.update(f"{len(value)} values\n".encode())
        for item in value:
            _digest(digest, item)
    else:
        digest.update(repr(value.tolist() if isinstance(value, np.ndarray) else value).encode())


def _kind(observer: Observer) -> str:
    return f"{type(observer).__module__}.{type(observer).__qualname__}"


def _state(observer: Observer, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Attributes of an observer: those that JSON can hold, and arrays."""
    plain: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    for key, value in sorted(vars(observer).items()):
        if isinstance(value, np.ndarray) and value.dtype != object:
            arrays[key] = value
        elif isinstance(value, np.generic):
            plain[key] = value.item()
        elif value is None or isinstance(value, (bool, int, float, str)):
            plain[key] = value
        else:
            raise CalibrationError(
                f"the observer {_kind(observer)} of %{name} cannot be kept in a cache: its "
                f"attribute {key!r} is neither an array nor a number or a string"
            )
    return plain, arrays


def _written(found: Found) -> bytes:
    plain: dict[str, list[dict[str, Any]]] = {}
    arrays: dict[str, Any] = {}
    for i, (name, observers) in enumerate(found.items()):
        plain[name] = []
        for j, observer in enumerate(observers):
            simple, more = _state(observer, name)
            plain[name].append(simple)
            arrays |= {f"{i}.{j}.{key}": value for key, value in more.items()}
    buffer = io.BytesIO()
    text = json.dumps(plain).encode()
    np.savez_compressed(buffer, state=np.frombuffer(text, np.uint8), **arrays)
    return buffer.getvalue()


def _read(path: Path, prototypes: Mapping[str, list[Observer]]) -> Found:
    found = copy.deepcopy(dict(prototypes))
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        plain = json.loads(archive["state"].tobytes())
        for i, (name, observers) in enumerate(found.items()):
            for j, (observer, simple) in enumerate(zip(observers, plain[name], strict=True)):
                _, arrays = _state(observer, name)
                if not isinstance(simple, dict) or set(simple) | set(arrays) != set(vars(observer)):
                    raise ValueError(f"{name} has other attributes")
                state = simple | {key: archive[f"{i}.{j}.{key}"] for key in arrays}
                vars(observer).update(state)
    return found
