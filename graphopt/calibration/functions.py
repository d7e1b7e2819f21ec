"""Samples that a Python function makes, named as ``module:function``."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from graphopt.calibration.samples import Samples, check_named
from graphopt.errors import CalibrationError
from graphopt.runtime.probe import InputSpec
from graphopt.runtime.values import Feeds

__all__ = ["from_function", "is_reference"]

_REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_reference(text: str) -> bool:
    """Whether text has the form ``module:function``, and is not the name of a file."""
    return _REFERENCE.fullmatch(text) is not None and not os.path.exists(text)


def from_function(reference: str, specs: Sequence[InputSpec]) -> Samples:
    """Samples of a function without arguments that returns an iterable of dicts by input name.

    The function is called anew whenever the samples are iterated over. Where what it returns has no
    length, it is counted, once.

    Args:
        reference: ``module:function``; the module may be in the current folder.
        specs: The inputs.

    Raises:
        CalibrationError: There is no such function, or what it returns does not fit.
    """
    function = _find(reference)

    def batches() -> Iterator[tuple[str, Feeds]]:
        for i, batch in enumerate(_called(function, reference)):
            where = f"{reference}, batch {i}"
            if not isinstance(batch, Mapping):
                kind = type(batch).__name__
                raise CalibrationError(f"{where} is no dict of arrays by input name, but {kind}")
            check_named(list(batch), specs, where, remarks)
            yield where, dict(batch)

    remarks: list[str] = []
    made = _called(function, reference)
    length = len(made) if hasattr(made, "__len__") else sum(1 for _ in _guarded(made, reference))
    if not length:
        raise CalibrationError(f"{reference} returned no batches")
    return Samples(reference, specs, batches, length, count=None, remarks=remarks)


def _find(reference: str) -> Callable[[], Iterable[Any]]:
    module_name, _, path = reference.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as e:
        raise CalibrationError(f"there is no function {reference}: {e}") from e
    except Exception as e:
        raise CalibrationError(
            f"the module of {reference} does not load: {type(e).__name__}: {e}"
        ) from e
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise CalibrationError(f"{reference} is no function, but {type(found).__name__}")
    function: Callable[[], Iterable[Any]] = found
    return function


def _called(function: Callable[[], Iterable[Any]], reference: str) -> Any:
    try:
        made = function()
    except Exception as e:
        raise CalibrationError(f"{reference} raised {type(e).__name__}: {e}") from e
    if isinstance(made, Mapping) or not isinstance(made, Iterable):
        raise CalibrationError(
            f"{reference} returned {type(made).__name__}, not an iterable of dicts by input name"
        )
    return made if hasattr(made, "__len__") else _guarded(made, reference)


def _guarded(made: Iterable[Any], reference: str) -> Iterator[Any]:
    """Iterate, and turn what the user's code raises into an error that says whose it is."""
    iterator = iter(made)
    i = 0
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except CalibrationError:
            raise
        except Exception as e:
            raise CalibrationError(f"{reference}, batch {i} raised {type(e).__name__}: {e}") from e
        yield batch
        i += 1
