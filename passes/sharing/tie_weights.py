"""Store once what is the same but for its layout."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from graphopt import Context, Exactness, Pass, ir
from graphopt.ir.content import Content

__all__ = ["TieWeights"]

Array = np.ndarray[Any, Any]

# Elements that are compared before all are.
_SAMPLE = 32
# Bytes of a piece that is compared.
_PIECE = 1 << 24


class TieWeights(Pass):
    """Let constants that are transposes of each other, or reshaped, share one initializer.

    What it does: a matrix that is bit by bit the transpose of another becomes ``Transpose`` of it,
    or the other itself where only a Gemm reads it, which can transpose by an attribute; a constant
    of the same bytes in another shape becomes ``Reshape``. Exporters write the embedding of a
    language model twice that way: as rows for Gather, as columns for the MatMul of the last layer.
    ONNX Runtime computes the nodes once, when it loads the model, so that its speed is what it was.
    Shapes are compared first, then a few elements, and all of them only where these are equal, in
    pieces, so that the weights of a large model stay on disk.

    Exactness: BITWISE

    Needs: Nothing.

    Options: min-bytes (smaller constants stay as they are, since the node takes some hundred bytes;
    1024).

    Example: ``const e: float[V,D]; const h: float[D,V]; Gather(e, ids); MatMul(x, h)`` ->
    ``Gather(e, ids); MatMul(x, Transpose(e))``

    Declines when: the constant is the default of a graph input or a graph output, or a subgraph
    uses it; the target's models are not optimized when they are loaded, or its operators lack
    Transpose or Reshape. Equal constants of one shape are those of deduplicate-initializers,
    repeated computations those of eliminate-common-subexpressions.

    References: Press and Wolf (2017), "Using the Output Embedding to Improve Language Models", for
    why such weights are the same.
    """

    name = "tie-weights"
    exactness = Exactness.BITWISE
    # A node is counted as if it ran every time, and what it saves is in the file.
    gated = False
    min_bytes: int = 1024

    def __post_init__(self) -> None:
        """Check the number.

        Raises:
            ValueError: It is negative.
        """
        if self.min_bytes < 0:
            raise ValueError(f"min-bytes is a number of bytes, not {self.min_bytes}")

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Among constants of one size and type, tie later ones to the first of them."""
        groups: dict[Hashable, list[ir.Value]] = defaultdict(list)
        for value in model.graph.initializers.values():
            tensor = ir.const(value)
            if tensor is None or tensor.dtype == ir.DataType.STRING or value.is_graph_output():
                continue
            if value.uses() and tensor.nbytes >= max(self.min_bytes, 1):
                groups[tensor.dtype, tensor.size].append(value)
        tie = _Tie(model, ctx)
        for values in groups.values():
            seen: dict[bytes, dict[tuple[int, ...], ir.Value]] = defaultdict(dict)
            for value in values if len(values) > 1 else ():
                if not _tied(value, seen, tie):
                    seen[_sample(value)].setdefault(_shape(value), value)
        if not tie.saved:
            return False
        tie.rw.remove_initializers()
        ctx.remark(f"{tie.saved:,} bytes of constants are stored once that were stored twice")
        return True


class _Tie:
    """Lets a constant be computed from another."""

    def __init__(self, model: ir.Model, ctx: Context) -> None:
        self.rw, self.ctx, self.saved = ctx.rewriter(), ctx, 0
        self._order = {node: i for i, node in enumerate(model.graph)}

    def __call__(self, value: ir.Value, first: ir.Value, *, turned: bool) -> bool:
        """Whether that was possible.

        Args:
            value: What becomes a form of ``first``.
            first: A constant.
            turned: Whether it is the transpose, rather than of another shape.
        """
        uses = list(value.uses())
        products = turned and all(
            use.node.op_type == "Gemm" and not use.node.domain and use.idx == 1 for use in uses
        )
        operator = "Transpose" if turned else "Reshape"
        why = None if products else self._why_not(uses, operator)
        if why is not None:
            self.ctx.decline("tie", why)
            return False
        if not self.ctx.allow(f"tie %{value.name} to %{first.name}"):
            return False
        self.saved += _tensor(value).nbytes
        self.ctx.stats.applied["tie"] += 1
        if products:
            for use in uses:
                self.rw.set_attr(use.node, transB=1 - ir.attr(use.node, "transB", 0))
                self.rw.set_input(use.node, 1, first)
            return True
        with self.rw.at(min((use.node for use in uses), key=self._order.__getitem__)):
            if turned:
                made = self.rw.op("Transpose", first, perm=[1, 0])
            else:
                shape = self.rw.const(np.array(_shape(value), np.int64), f"{value.name}.shape")
                made = self.rw.op("Reshape", first, shape)
        self.rw.replace(value, made)
        return True

    def _why_not(self, uses: Iterable[Any], operator: str) -> str | None:
        target = self.ctx.target
        if any(use.node not in self._order for use in uses):
            return "a subgraph uses it"
        if not target.optimize:
            return f"models for {target.name} are not optimized when they are loaded"
        if target.operators is not None and operator not in target.operators:
            return f"{target.name} does not compute {operator}"
        return None


def _tied(
    value: ir.Value, seen: Mapping[bytes, dict[tuple[int, ...], ir.Value]], tie: _Tie
) -> bool:
    """Tie a constant to one that was seen before, if there is one."""
    shape = _shape(value)
    if len(shape) == 2 and 1 not in shape and _tensor(value).dtype.bitwidth in (8, 16, 32, 64):
        first = seen.get(_sample(value, turned=True), {}).get(shape[::-1])
        if first is not None and _transposed(_tensor(first), _tensor(value)):
            return tie(value, first, turned=True)
    for other, first in seen.get(_sample(value), {}).items():
        if other != shape and _same_bytes(_tensor(first), _tensor(value)):
            return tie(value, first, turned=False)
    return False


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    found = ir.const(value)
    assert found is not None
    return found


def _shape(value: ir.Value) -> tuple[int, ...]:
    return tuple(int(n) for n in _tensor(value).shape.numpy())


def _sample(value: ir.Value, *, turned: bool = False) -> bytes:
    """Some elements in their order, or in that of the transpose."""
    tensor = _tensor(value)
    content, size = Content(tensor), max(tensor.dtype.bitwidth // 8, 1)
    count = content.nbytes // size
    at = np.unique(np.linspace(0, count - 1, _SAMPLE).astype(np.int64))
    if turned:
        rows, columns = _shape(value)
        at = at % rows * columns + at // rows
    return b"".join(content.read(int(i) * size, size).tobytes() for i in at)


def _same_bytes(one: ir.TensorProtocol, other: ir.TensorProtocol) -> bool:
    a, b = Content(one), Content(other)
    return a.nbytes == b.nbytes and all(
        np.array_equal(x, y) for x, y in zip(a.chunks(), b.chunks(), strict=True)
    )


def _transposed(one: ir.TensorProtocol, other: ir.TensorProtocol) -> bool:
    """Whether a matrix is bit by bit the transpose of another, comparing blocks of both."""
    return all(
        np.array_equal(a[:, start : start + len(b)], b[:, at : at + len(a)].T)
        for at, a in _bands(one)
        for start, b in _bands(other)
    )


def _bands(tensor: ir.TensorProtocol) -> Iterator[tuple[int, Array]]:
    """Rows of a matrix as bits, some at a time, with the place of the first."""
    content, size = Content(tensor), tensor.dtype.bitwidth // 8
    _, columns = (int(n) for n in tensor.shape.numpy())
    rows = max(_PIECE // (columns * size), 1)
    for at in range(0, content.nbytes // (columns * size), rows):
        part = content.read(at * columns * size, rows * columns * size)
        yield at, part.view(f"u{size}").reshape(-1, columns)
