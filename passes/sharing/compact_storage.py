"""Constants in fewer bytes."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections import Counter
from typing import Any

from graphopt import Context, Exactness, NotApplicable, Pass, UnsupportedFeature, ir
from graphopt.storage import (
    MIN_OPSET,
    OPERATORS,
    Code,
    Emitter,
    deflated_nbytes,
    distance,
    encode,
    rounded,
)
from graphopt.targets import Target

__all__ = ["CompactStorage", "at_opset", "store", "why_uncoded"]

_TYPES = frozenset({
    ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE,
    ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16,
    ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL,
})  # fmt: skip
# Places of elements are 32-bit integers in the nodes that decode.
_MOST = 2**31 - 1
# Vectors of so many integers set shapes, axes and the like, also those of codes.
_SHAPES = 64


class CompactStorage(Pass):
    """Store constants in fewer bytes, which ONNX Runtime decodes when it loads the model.

    What it does: a constant becomes a few nodes that compute it from a code. ONNX Runtime does that
    once, when it loads the model, so that the optimized model and its speed are what they were. Per
    constant the smallest code is taken. A code says where something else than zeros is: everywhere,
    at set bits (1/8 byte per element, or per block), at distances (a byte each, smaller beyond 87 %
    of zeros), or in numbered patterns of N in M; and what is there: numbers in the narrowest type
    that holds them (16-bit floats, bytes), or places in a book of the different values, several in
    a byte (16 values take 4 bits each), with a book for all, for each of several blocks of rows or
    columns, or of vectors. What is the same along axes is stored once.

    Exactness: BITWISE; LOSSY with a tolerance.

    Needs: a target whose models ONNX Runtime optimizes when it loads them.

    Options: least (bytes that have to be saved for a constant to be coded, or rounded; 1024: the
    nodes take some hundred), tolerance (norm of what may be lost of a floating-point constant, over
    that of the constant; 0: nothing; else 16-bit floats and 9 to 255 equal steps are tried, too),
    skip (patterns of names of constants that stay), deflate (report what the constants take after
    compression), dry (only report).

    Example: w: float[64,64,3,3] -> Gather(book: float[16], Reshape(Mod(Div(Cast(places), [16, 1]),
    16)))

    Declines when: the target's models are not optimized by ONNX Runtime, or it does not compute the
    operators; for a constant, when no code is smaller, it is used in a subgraph, has 2^31 elements
    or more, or is an input that callers may override. Sparse initializers are not written: they
    take 12 bytes per element that is not zero, more than codes unless fewer than one in some 700
    are.

    References: Han, Mao and Dally, "Deep Compression" (2016), for books; Frantar and Alistarh,
    "SparseGPT" (2023), for what makes zeros; Jegou, Douze and Schmid, "Product Quantization for
    Nearest Neighbor Search" (2011), for books of vectors; ONNX Runtime,
    onnxruntime/core/optimizer/constant_folding.cc, for what decodes them.
    """

    name = "compact-storage"
    exactness = Exactness.BITWISE
    min_opset = MIN_OPSET
    # The nodes that decode are counted as if they ran every time.
    gated = False
    least: int = 1024
    tolerance: float = 0.0
    skip: tuple[str, ...] = ()
    deflate: bool = True
    dry: bool = False

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is out of bounds.
        """
        if self.least < 0:
            raise ValueError(f"least is a number of bytes, not {self.least}")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance is a share, in [0, 1), not {self.tolerance}")
        if self.tolerance:
            object.__setattr__(self, "exactness", Exactness.LOSSY)  # the dataclass is frozen

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Encode constant by constant, so that no more than one is in memory."""
        why = why_uncoded(ctx.target)
        if why is not None:
            raise NotApplicable(why)
        rw = ctx.rewriter()
        emit = Emitter(rw)
        order = {node: i for i, node in enumerate(model.graph)}
        rows: list[_Row] = []
        unseen = set(self.skip)
        for value in tuple(model.graph.initializers.values()):
            name = value.name or "weight"
            if any(fnmatch.fnmatchcase(name, each) for each in self.skip):
                unseen -= {each for each in self.skip if fnmatch.fnmatchcase(name, each)}
                ctx.decline("code", "skip names it")
                continue
            found = self._code(value, order, ctx)
            if found is None:
                continue
            code, row = found
            if not self.dry:
                if not ctx.allow(f"compact-storage at %{name}"):
                    break
                first = min((use.node for use in value.uses()), key=order.__getitem__)
                with rw.at(first):
                    decoded = emit(code, name)
                rw.replace(value, decoded)
                ctx.stats.applied["code"] += 1
            rows.append(row)
        for each in sorted(unseen):
            ctx.remark(f"no constant's name matches {each!r}, which was to be skipped")
        if not rows:
            return False
        rw.remove_initializers()
        _report(rows, ctx)
        return not self.dry

    def _code(
        self, value: ir.Value, order: dict[ir.Node, int], ctx: Context
    ) -> tuple[Code, _Row] | None:
        """The code of a constant; None where it stays."""
        tensor = ir.const(value)
        if tensor is None or tensor.dtype not in _TYPES or tensor.nbytes <= self.least:
            return None
        if value.is_graph_output() or not value.uses():
            return None
        if tensor.dtype.is_integer() and len(tensor.shape) < 2 and tensor.size <= _SHAPES:
            return None
        if tensor.size > _MOST:
            ctx.decline("code", "it has too many elements to count in 32 bits")
            return None
        array = ir.array(value)
        if array is None or not array.ndim:
            return None
        code, lost = encode(array), 0.0
        for near in rounded(array, self.tolerance):
            other = encode(near)
            if other.nbytes + self.least < code.nbytes:  # a loss has to be worth it, too
                code, lost = other, distance(array, near)
        if code.nbytes + self.least >= code.plain_nbytes:
            ctx.decline("code", "no code is smaller")
            return None
        if any(use.node not in order for use in value.uses()):
            ctx.decline("code", "a subgraph uses it")
            return None
        row = _Row(value.name or "", str(code), code.kind, code.plain_nbytes, code.nbytes, lost)
        if self.deflate:
            row.deflated_before = deflated_nbytes(array)
            row.deflated_after = deflated_nbytes(*code.parts)
        return code, row


@dataclasses.dataclass
class _Row:
    """A constant in the report; ``lost`` is its share that rounding took."""

    name: str
    code: str
    kind: str
    bytes_before: int
    bytes_after: int
    lost: float = 0.0
    deflated_before: int | None = None
    deflated_after: int | None = None


def _report(rows: list[_Row], ctx: Context) -> None:
    kinds = dict(sorted(Counter(row.kind for row in rows).items()))
    totals: dict[str, Any] = {
        key: sum(getattr(row, key) for row in rows)
        for key in ("bytes_before", "bytes_after", "deflated_before", "deflated_after")
        if getattr(rows[0], key) is not None
    }
    ctx.details.update(totals, codes=kinds, constants=[dataclasses.asdict(row) for row in rows])
    deflated = (
        f" (deflated {totals['deflated_after']:,} instead of {totals['deflated_before']:,})"
        if "deflated_after" in totals
        else ""
    )
    said = ", ".join(f"{count} as {kind}" for kind, count in kinds.items())
    ctx.remark(
        f"{len(rows)} constants take {totals['bytes_after']:,} bytes instead of "
        f"{totals['bytes_before']:,}{deflated}: {said}"
    )
    worst = max(rows, key=lambda row: row.lost)
    if worst.lost:
        ctx.remark(f"{worst.name} lost most by rounding, {100 * worst.lost:.2g} % of its norm")


def at_opset(model: ir.Model, ctx: Context) -> ir.Model:
    """A model at an opset that codes can be written in, where the target takes them."""
    if ir.opset(model) >= MIN_OPSET or why_uncoded(ctx.target) is not None:
        return model
    try:
        return ir.convert_opset(model, MIN_OPSET)
    except UnsupportedFeature as e:
        ctx.remark(f"weights stay uncoded, which takes opset {MIN_OPSET}: {e}")
        return model


def store(model: ir.Model, ctx: Context) -> None:
    """Encode the constants of a model that another pass made, as part of that pass.

    Args:
        model: The model, which is changed.
        ctx: Context of the other pass, for its report and its target.
    """
    if ir.opset(model) < MIN_OPSET:
        return
    inner = Context(model, ctx.target)
    try:
        CompactStorage().run(model, inner)
    except NotApplicable as e:
        ctx.remark(f"weights stay uncoded: {e}")
        return
    ctx.details.update(inner.details)
    for remark in inner.remarks:
        ctx.remark(remark)


def why_uncoded(target: Target) -> str | None:
    """Why constants cannot be codes in models for a target; None where they can."""
    if not target.optimize:
        return (
            f"models for {target.name} are not optimized by ONNX Runtime, so that codes would be "
            "decoded in every run"
        )
    if target.operators is not None and not target.operators >= OPERATORS:
        missing = ", ".join(sorted(OPERATORS - target.operators)[:3])
        return f"{target.name} does not compute what codes are made of: {missing}"
    return None
