"""Which sizes the open dimensions of a model's inputs get."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from graphopt import ir
from graphopt.errors import TargetError

__all__ = ["Shapes", "choose_sizes"]

Shapes: TypeAlias = Mapping[str, "int | Sequence[int]"]
"""A shape by name of an input, or a size by symbol of a dimension."""


def choose_sizes(model: ir.Model, shapes: Shapes, *, all_of_them: bool, target: str) -> list[str]:
    """Sizes of open dimensions, as the pass ``fix-shapes`` takes them.

    Args:
        model: The model.
        shapes: What the user wants; sizes below 1 in a shape leave a dimension to the others.
        all_of_them: Every dimension needs a size: 1 for the batch, if nothing else is open.
        target: Name of the target, for messages.

    Returns:
        Entries such as ``N=1`` and ``x[2]=224``.

    Raises:
        TargetError: What is wanted does not fit the model, or sizes are missing; the message names
            the dimensions and the options to give.
    """
    inputs = {v.name or "": v for v in ir.inputs(model)}
    sizes: dict[str, int] = {}
    for name, wanted in shapes.items():
        if isinstance(wanted, int):
            _note(sizes, _symbol(name, inputs), wanted)
        else:
            for key, size in _of_shape(name, wanted, inputs):
                _note(sizes, key, size)
    if all_of_them:
        missing = _missing(inputs, sizes, target)
        if missing and any(axis for _, axis in missing.values()):
            raise TargetError(_ask(missing, inputs, target))
        sizes |= dict.fromkeys(missing, 1)
    return [f"{key}={size}" for key, size in sizes.items()]


def _note(sizes: dict[str, int], key: str, size: int) -> None:
    if size < 1:
        raise TargetError(f"dimension {key!r} cannot have the size {size}")
    if sizes.setdefault(key, size) != size:
        raise TargetError(f"dimension {key!r} cannot have both sizes {sizes[key]} and {size}")


def _symbol(name: str, inputs: Mapping[str, ir.Value]) -> str:
    symbols = {d for v in inputs.values() for d in ir.dims(v) or () if isinstance(d, str)}
    if name in symbols:
        return name
    near = difflib.get_close_matches(name, symbols, 1)
    known = ", ".join(sorted(symbols)) or "none"
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {known}"
    raise TargetError(f"no input has a dimension {name!r}; {hint}")


def _of_shape(
    name: str, wanted: Sequence[int], inputs: Mapping[str, ir.Value]
) -> list[tuple[str, int]]:
    value = inputs.get(name)
    if value is None:
        raise TargetError(f"there is no input {name!r}; there are: {', '.join(inputs)}")
    dims = ir.dims(value)
    if dims is None:
        raise TargetError(f"input {name!r} is declared without a rank, so no shape can be given")
    if len(dims) != len(wanted):
        raise TargetError(f"input {name!r} has {len(dims)} dimensions, not {len(wanted)}")
    found = []
    for axis, (dim, size) in enumerate(zip(dims, wanted, strict=True)):
        if isinstance(dim, int) and size not in (dim, 0, -1):
            raise TargetError(f"dimension {axis} of input {name!r} is {dim}, not {size}")
        if not isinstance(dim, int) and size not in (0, -1):
            found.append((dim or f"{name}[{axis}]", size))
    return found


def _missing(
    inputs: Mapping[str, ir.Value], sizes: Mapping[str, int], target: str
) -> dict[str, tuple[str, int]]:
    """Open dimensions without a size; for each the last place where it is."""
    found: dict[str, tuple[str, int]] = {}
    for name, value in inputs.items():
        dims = ir.dims(value)
        if dims is None:
            raise TargetError(f"input {name!r} has no known rank, and {target} needs every shape")
        for axis, dim in enumerate(dims):
            key = dim or f"{name}[{axis}]"
            if not isinstance(dim, int) and key not in sizes:
                before = found.get(str(key), (name, 0))
                found[str(key)] = max(before, (name, axis), key=lambda place: place[1])
    return found


def _ask(
    missing: Mapping[str, tuple[str, int]], inputs: Mapping[str, ir.Value], target: str
) -> str:
    shapes = []
    for name, value in inputs.items():
        dims = ir.dims(value) or ()
        if any(not isinstance(d, int) for d in dims):
            shapes.append(f"{name}:{','.join('?' if d is None else str(d) for d in dims)}")
    symbols = [key for key in missing if "[" not in key]
    flags = [f"--dim {key}=SIZE" for key in symbols]
    if len(symbols) < len(missing) or not flags:
        flags = [f"--shape {shape}" for shape in shapes]
    return (
        f"{target} needs the size of every dimension, and these are open: {', '.join(shapes)}; "
        f"give {' '.join(flags)}"
    )
