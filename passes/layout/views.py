"""Operators that only give a tensor another shape, described by where its dimensions come from.

A dimension of the result is a number, a copy of a dimension of the tensor at the start of a chain,
or whatever is left. Reshape, Flatten, Squeeze and Unsqueeze qualify, and a Transpose that moves
nothing but dimensions of size one.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import TypeAlias

from graphopt import ir
from graphopt.passes.layout.axes import integers, normalized, permutation

__all__ = ["VIEWS", "Copy", "Dim", "View", "apply", "same_shape", "shape_input", "start"]

VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")


@dataclasses.dataclass(frozen=True)
class Copy:
    """The size of dimension ``axis`` of the tensor at the start, which is not known."""

    axis: int


Dim: TypeAlias = "int | Copy | None"
"""A size; the size of another dimension; or None for what is left."""


@dataclasses.dataclass(frozen=True)
class View:
    """The shape of a tensor in terms of that at the start of the chain.

    Attributes:
        dims: Its dimensions; None for an unknown rank.
        left_over: Axes of the start that have to be non-empty for the chain to work, since a
            Reshape with -1 fails on an empty tensor next to them.
    """

    dims: tuple[Dim, ...] | None
    left_over: frozenset[int] = frozenset()


def start(x: ir.Value) -> View:
    """The tensor at the start of a chain."""
    shape = ir.dims(x)
    if shape is None:
        return View(None)
    return View(tuple(d if isinstance(d, int) else Copy(i) for i, d in enumerate(shape)))


def apply(view: View, node: ir.Node) -> View | str:
    """The shape behind another operator, or why it is not known."""
    if node.op_type == "Reshape":
        return _reshape(view, node)
    dims = view.dims
    if dims is None:
        return "the rank is not known"
    found: tuple[Dim, ...] | str
    if node.op_type == "Flatten":
        axis = int(ir.attr(node, "axis", 1))
        axis += len(dims) if axis < 0 else 0
        found = (_product(dims[:axis]), _product(dims[axis:]))
    elif node.op_type == "Transpose":
        found = _transpose(dims, node)
    elif node.op_type == "Squeeze":
        found = _squeeze(dims, node)
    else:
        found = _unsqueeze(dims, node)
    return found if isinstance(found, str) else View(found, view.left_over)


def same_shape(view: View, x: ir.Value) -> bool:
    """Whether a shape is the one at the start of the chain."""
    before = start(x).dims
    if before is None or view.dims is None or len(before) != len(view.dims):
        return False
    differing = [(a, b) for a, b in zip(before, view.dims, strict=True) if a != b]
    # What is left over when every other dimension is the same is the same, too, unless the tensor
    # is empty because of one of those.
    return not differing or (
        len(differing) == 1
        and differing[0][1] is None
        and all(d != 0 and (not isinstance(d, Copy) or d.axis in view.left_over) for d in view.dims)
    )


def shape_input(view: View) -> tuple[int, ...] | str:
    """The ``shape`` of the one Reshape that does what a chain does, or why there is none."""
    if view.dims is None:
        return "the rank is not known"
    shape: list[int] = []
    for i, d in enumerate(view.dims):
        if d == 0:
            return "the tensor is empty"
        if isinstance(d, int):
            shape.append(d)
        elif isinstance(d, Copy) and d.axis == i:
            shape.append(0)
        else:
            shape.append(-1)
    if shape.count(-1) > 1:
        return "more than one dimension is not known"
    if -1 in shape and not {i for i, d in enumerate(shape) if d == 0} <= view.left_over:
        return "a dimension could not be told next to one that may be empty"
    return tuple(shape)


def _reshape(view: View, node: ir.Node) -> View | str:
    numbers = integers(node, "shape", 1, 5)
    if numbers is None:
        return "a shape is computed at run time"
    literal_zero = bool(ir.attr(node, "allowzero", 0))
    dims: list[Dim] = []
    for i, n in enumerate(numbers):
        if n > 0 or (n == 0 and literal_zero):
            dims.append(n)
        elif n < 0:
            dims.append(None)
        elif view.dims is None or i >= len(view.dims):
            return "the rank is not known"
        else:
            dims.append(view.dims[i])
    dims = _resolved(view, dims, numbers)
    left_over = view.left_over
    if -1 in numbers:
        left_over |= {d.axis for d in dims if isinstance(d, Copy)}
    return View(tuple(dims), left_over)


def _resolved(view: View, dims: list[Dim], numbers: tuple[int, ...]) -> list[Dim]:
    """Replace the -1 by a number where the rest of the shape tells it."""
    if view.dims is None or -1 not in numbers or None in view.dims:
        return dims
    copies = Counter(d for d in view.dims if isinstance(d, Copy))
    copies.subtract(d for d in dims if isinstance(d, Copy))
    total = math.prod(d for d in view.dims if isinstance(d, int))
    rest = math.prod(d for d in dims if isinstance(d, int))
    if any(copies.values()) or rest == 0 or total % rest:
        return dims
    return [total // rest if n < 0 else d for d, n in zip(dims, numbers, strict=True)]


def _product(dims: tuple[Dim, ...]) -> Dim:
    size = math.prod(d for d in dims if isinstance(d, int))
    rest = [d for d in dims if not isinstance(d, int)]
    if not rest or size == 0:
        return size
    return rest[0] if len(rest) == 1 and size == 1 else None


def _transpose(dims: tuple[Dim, ...], node: ir.Node) -> tuple[Dim, ...] | str:
    perm = permutation(node, len(dims))
    if perm is None or len(perm) != len(dims):
        return "the rank is not known"
    moved = [axis for axis in perm if dims[axis] != 1]
    if moved != sorted(moved):
        return "the Transpose moves data"
    return tuple(dims[axis] for axis in perm)


def _squeeze(dims: tuple[Dim, ...], node: ir.Node) -> tuple[Dim, ...] | str:
    given = integers(node, "axes", 1, 13)
    axes = None if given is None else normalized(given, len(dims))
    if axes is None:
        return "axes are computed at run time"
    if not axes:
        if not all(isinstance(d, int) for d in dims):
            return "a Squeeze depends on the size of every dimension"
        return tuple(d for d in dims if d != 1)
    return tuple(d for i, d in enumerate(dims) if i not in axes)


def _unsqueeze(dims: tuple[Dim, ...], node: ir.Node) -> tuple[Dim, ...] | str:
    given = integers(node, "axes", 1, 13)
    axes = None if given is None else normalized(given, len(dims) + len(given))
    if axes is None:
        return "axes are computed at run time"
    rest = iter(dims)
    return tuple(1 if i in axes else next(rest) for i in range(len(dims) + len(axes)))
