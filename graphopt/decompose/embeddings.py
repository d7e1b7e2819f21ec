"""Embedding tables as products: fewer columns are gathered, and multiplied by what all share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.decompose.forms import Form, matrix_ranks
from graphopt.decompose.parts import Part, likely, set_apart, set_noise
from graphopt.measure import Trial
from graphopt.pruning.sizes import Measure
from graphopt.rewrite import Rewriter
from graphopt.runtime import Feeds, open_session

__all__ = ["Embeddings", "LowTable", "Table", "count_reads", "tables"]

Array = np.ndarray[Any, Any]

# Rows that are multiplied at a time, in float64.
_ROWS = 1 << 14


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """A Gather of rows of a constant ``[rows, columns]``.

    Attributes:
        node: The Gather.
    """

    node: ir.Node

    @property
    def name(self) -> str:
        """Name of what it computes."""
        return self.node.outputs[0].name or ""

    @property
    def indices(self) -> ir.Value:
        """Which rows it reads."""
        value = self.node.inputs[1]
        assert value is not None
        return value

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        shape = ir.static_shape(self.node.inputs[0])
        assert shape is not None
        return shape[0], shape[1]

    @property
    def data(self) -> Array:
        """The rows, float32."""
        found = ir.array(self.node.inputs[0])
        assert found is not None
        return found

    def why_fixed(self) -> str | None:
        """Why it keeps its table; None if it may get another."""
        value = self.node.inputs[0]
        if value is not None and (ir.use_count(value) > 1 or value.is_graph_output()):
            # It may be tied to the weights of the last layer: both would be stored.
            return "its rows are used elsewhere, too"
        return None

    def forms(self) -> list[Form]:
        """Forms that are smaller, the largest first."""
        return [Form("output", (rank,)) for rank in matrix_ranks(*self.shape)]


def tables(model: ir.Model) -> Iterator[Table]:
    """The embeddings of the main graph of a model, in its order."""
    for node in model.graph:
        if node.domain or node.op_type != "Gather" or ir.attr(node, "axis", 0) not in (0, -2):
            continue
        tensor, shape = ir.const(node.inputs[0]), ir.static_shape(node.inputs[0])
        if tensor is None or shape is None or tensor.dtype != ir.DataType.FLOAT:
            continue
        if len(shape) == 2 and 0 not in shape and ir.const(node.inputs[1]) is None:
            yield Table(node)


def count_reads(
    model: ir.Model, found: Sequence[Table], batches: Sequence[Feeds], threads: int = 1
) -> dict[str, Array]:
    """How often each row is read, ``[rows]`` float64, by name of the table.

    Args:
        model: The model.
        found: Some of its tables.
        batches: Its inputs.
        threads: Threads within an operator.

    Raises:
        SessionError: ONNX Runtime does not run what computes the indices.
    """
    counts = {table.name: np.zeros(table.shape[0]) for table in found}
    wanted = {t.indices.name or "": t.indices for t in found if t.indices.producer() is not None}
    given = list(model.graph.inputs)
    if not wanted:
        for feeds in batches:
            _count(found, feeds, counts)
        return counts
    part = ir.segment(model, given, list(wanted.values()))
    names = {v.name for v in part.graph.inputs}
    with open_session(part, optimize=True, threads=threads) as session:
        for feeds in batches:
            made = session.run({name: array for name, array in feeds.items() if name in names})
            _count(found, {**feeds, **made}, counts)
    return counts


def _count(found: Sequence[Table], values: Mapping[str, Any], counts: dict[str, Array]) -> None:
    for table in found:
        indices = np.asarray(values[table.indices.name or ""]).reshape(-1)
        rows = table.shape[0]
        counts[table.name] += np.bincount(indices % rows, minlength=rows)  # those below 0, too


class LowTable:
    """The products of all ranks that are closest to a table.

    Rows count as often as they are read, and once more: nobody knows what other samples read. A
    truncated singular value decomposition of the rows, weighted so, is the best there is (Eckart
    and Young, 1936).

    Attributes:
        vectors: Directions of the columns, those with most energy first, ``[columns, columns]``.
        errors: Share of the energy read that is lost beyond each number of directions, from none to
            all, ``[columns + 1]``.
    """

    def __init__(self, data: Array, reads: Array) -> None:
        """Decompose a table.

        Args:
            data: ``[rows, columns]``.
            reads: How often each row was read, ``[rows]``.
        """
        self._data = data
        columns = data.shape[1]
        read, once = np.zeros((columns, columns)), np.zeros((columns, columns))
        for at in range(0, len(data), _ROWS):
            rows = data[at : at + _ROWS].astype(np.float64)
            once += rows.T @ rows
            some = reads[at : at + _ROWS] > 0
            read += rows[some].T @ (rows[some] * reads[at : at + _ROWS][some, None])
        self.vectors = np.linalg.eigh(read + once)[1][:, ::-1]
        moments = read if reads.any() else once
        energies = np.einsum("ck,cd,dk->k", self.vectors, moments, self.vectors, optimize=True)
        left = np.concatenate([np.cumsum(energies[::-1])[::-1], [0.0]])
        self.errors = np.maximum(left, 0.0) / max(float(left[0]), 1e-300)

    def factors(self, rank: int) -> tuple[Array, Array]:
        """``[rows, rank]`` and ``[rank, columns]``, float32."""
        right = self.vectors[:, :rank]
        left = self._data @ right.astype(np.float32)
        return left, np.ascontiguousarray(right.T, dtype=np.float32)

    def write(self, rw: Rewriter, table: Table, rank: int, *, whole: bool = False) -> None:
        """Replace a table.

        Args:
            rw: Rewriter of its model.
            table: The table.
            rank: Columns that are gathered.
            whole: Write the product as one table, which computes the same.
        """
        left, right = self.factors(rank)
        name = table.node.inputs[0].name if table.node.inputs[0] is not None else None
        name = name or "table"
        if whole:
            rw.set_input(table.node, 0, rw.const(left @ right, name))
            return
        with rw.at(table.node):
            rows = rw.op("Gather", rw.const(left, f"{name}.in"), table.indices, axis=0)
            found = rw.op("MatMul", rows, rw.const(right, f"{name}.out"))
        rw.replace(table.node.outputs[0], found)
        rw.erase(table.node)


class Embeddings:
    """The tables of a model as parts of it, like layers; their names are those of the Gathers.

    Attributes:
        parts: Tables that have forms, ``errors`` and ``noise`` set; forms are of kind ``output``.
            They save numbers and bytes, and take more work, so they are of no use to other goals.
        reasons: Why others have none, by name.
    """

    def __init__(
        self, model: ir.Model, batches: Sequence[Feeds], skip: Sequence[str] = (), threads: int = 1
    ) -> None:
        """Decompose tables, and measure what that does to the outputs.

        Args:
            model: The model.
            batches: Samples.
            skip: Patterns of names, or operators, that stay.
            threads: Threads within an operator.

        Raises:
            SessionError: ONNX Runtime does not run the model.
        """
        self.parts: list[Part] = []
        self.reasons: dict[str, str] = {}
        self._low: dict[str, LowTable] = {}
        chosen: list[Table] = []
        for table in tables(model):
            why = "skip names it" if ir.matches(table.node, skip) else table.why_fixed()
            if why is None and not table.forms():
                why = "no form of it is smaller"
            if why is None:
                chosen.append(table)
            else:
                self.reasons[table.name] = why
        if not chosen:
            return
        counted, others = set_apart(batches)
        self._decompose(model, chosen, counted, threads)
        self.parts = [_part(table, self._low[table.name]) for table in chosen]
        self._measure(model, Trial(model, others))
        self._decompose(model, chosen, batches, threads)

    def applied(
        self, model: ir.Model, forms: Mapping[str, Form], *, whole: bool = False
    ) -> ir.Model:
        """A copy of a model with forms of tables.

        Args:
            model: The model, or a changed one with the same tables.
            forms: Forms by name; those of anything else are passed over.
            whole: Write each product as one table, which computes the same.
        """
        copy = ir.clone(model)
        rw = Rewriter(copy)
        for table in list(tables(copy)):
            if table.name in forms and table.name in self._low:
                (rank,) = forms[table.name].ranks
                self._low[table.name].write(rw, table, rank, whole=whole)
        rw.remove_initializers()
        ir.infer_shapes(copy)
        return copy

    def _decompose(
        self, model: ir.Model, chosen: Sequence[Table], batches: Sequence[Feeds], threads: int
    ) -> None:
        reads = count_reads(model, chosen, batches, threads)
        self._low = {table.name: LowTable(table.data, reads[table.name]) for table in chosen}

    def _measure(self, model: ir.Model, trial: Trial) -> None:
        """Set the noise: measured with one form of one table alone, others follow."""
        places = [likely(part) for part in self.parts]

        def alone(i: int) -> ir.Model:
            form = self.parts[i].forms[places[i]]
            assert form is not None
            return self.applied(model, {self.parts[i].name: form}, whole=True)

        noises = trial.noises(alone, range(len(self.parts)))
        for part, place, noise in zip(self.parts, places, noises, strict=True):
            set_noise(part, place, noise)


def _part(table: Table, low: LowTable) -> Part:
    rows, columns = table.shape
    forms = table.forms()
    ranks = np.array([0, *(form.ranks[0] for form in forms)])
    fewer = np.where(ranks > 0, rows * columns - ranks * (rows + columns), 0).astype(np.float64)
    sizes = ir.dims(table.indices) or ()
    reads = math.prod(n for n in sizes if isinstance(n, int))
    saved: dict[Measure, Array] = {
        "macs": -float(reads * columns) * ranks, "params": fewer, "bytes": fewer * 4,
    }  # fmt: skip
    errors = np.where(ranks > 0, low.errors[ranks], 0.0)
    blank = np.zeros(len(ranks))
    sign = f"Gather[{rows},{columns}]{list(sizes)}".replace(" ", "")
    return Part(table.name, sign, (None, *forms), saved, errors, blank, blank.copy())
