"""Constants with many zeros, in fewer bytes."""

from __future__ import annotations

from collections import Counter

from graphopt import Context, Exactness, NotApplicable, Pass, UnsupportedFeature, ir
from graphopt.storage import MIN_OPSET, OPERATORS, Code, Emitter, encode
from graphopt.targets import Target

__all__ = ["CompactStorage", "at_opset", "store"]

_TYPES = frozenset({
    ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT8,
    ir.DataType.UINT8,
})  # fmt: skip
# Places of elements are 32-bit integers in the nodes that decode.
_MOST = 2**31 - 1


class CompactStorage(Pass):
    """Store constants with many zeros as what is not zero, and where.

    What it does: a constant becomes a few nodes that compute it from a code. ONNX Runtime does that
    once, when it loads the model, so that the optimized model and its speed are what they were. Per
    constant the smallest code is taken: the values that are not zero, as 16-bit floats where these
    are the same numbers, with a bit per element that says which there are (1/8 byte), or the
    distances between them (1 byte each, smaller beyond 87 % of zeros), or numbers of patterns for
    constants with N zeros in M elements; blocks of zeros need a bit per block. Constants without
    zeros that 16-bit floats hold exactly are stored as these.

    Exactness: BITWISE

    Needs: a target whose models ONNX Runtime optimizes when it loads them.

    Options: least: bytes that have to be saved for a constant to be coded (default 1024); the nodes
    take some hundred.

    Example: w: float[64,64,3,3] -> Reshape(Gather(Cast(values: float16[18433]), Mul(CumSum(bits),
    bits)))

    Declines when: the target's models are not optimized by ONNX Runtime, or it does not compute the
    operators; for a constant, when no code is smaller, it is used in a subgraph, has 2^31 elements
    or more, or is an input that callers may override. Sparse initializers are not written: they
    take 12 bytes per element that is not zero, more than codes unless fewer than one in some 700
    are.

    References: Frantar and Alistarh, "SparseGPT" (2023), for what makes such zeros; ONNX Runtime,
    onnxruntime/core/optimizer/constant_folding.cc, for what decodes them.
    """

    name = "compact-storage"
    exactness = Exactness.BITWISE
    min_opset = MIN_OPSET
    # The nodes that decode are counted as if they ran every time.
    gated = False
    least: int = 1024

    def __post_init__(self) -> None:
        """Check the number.

        Raises:
            ValueError: It is negative.
        """
        if self.least < 0:
            raise ValueError(f"least is a number of bytes, not {self.least}")

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Encode constant by constant."""
        why = _why_not(ctx.target)
        if why is not None:
            raise NotApplicable(why)
        rw = ctx.rewriter()
        emit = Emitter(rw)
        order = {node: i for i, node in enumerate(model.graph)}
        kinds: Counter[str] = Counter()
        before = after = 0
        for value in tuple(model.graph.initializers.values()):
            code = self._code(value, order, ctx)
            if code is None:
                continue
            name = value.name or "weight"
            if not ctx.allow(f"compact-storage at %{name}"):
                break
            first = min((use.node for use in value.uses()), key=order.__getitem__)
            with rw.at(first):
                decoded = emit(code, name)
            rw.replace(value, decoded)
            kinds[code.coding] += 1
            before, after = before + code.plain_nbytes, after + code.nbytes
            ctx.stats.applied["code"] += 1
        if not kinds:
            return False
        rw.remove_initializers()
        said = ", ".join(f"{count} as {kind}" for kind, count in sorted(kinds.items()))
        ctx.remark(
            f"{sum(kinds.values())} constants take {after:,} bytes instead of {before:,}: {said}"
        )
        ctx.details.update(
            codes=dict(sorted(kinds.items())), bytes_before=before, bytes_after=after
        )
        return True

    def _code(self, value: ir.Value, order: dict[ir.Node, int], ctx: Context) -> Code | None:
        """The code of a constant; None where it stays."""
        tensor = ir.const(value)
        if tensor is None or tensor.dtype not in _TYPES or tensor.nbytes <= self.least:
            return None
        if value.is_graph_output() or not value.uses():
            return None
        if tensor.size > _MOST:
            ctx.decline("code", "it has too many elements to count in 32 bits")
            return None
        array = ir.array(value)
        if array is None or not array.ndim:
            return None
        code = encode(array)
        if code.nbytes + self.least >= code.plain_nbytes:
            ctx.decline("code", "no code is smaller")
            return None
        if any(use.node not in order for use in value.uses()):
            ctx.decline("code", "a subgraph uses it")
            return None
        return code


def at_opset(model: ir.Model, ctx: Context) -> ir.Model:
    """A model at an opset that codes can be written in, where the target takes them."""
    if ir.opset(model) >= MIN_OPSET or _why_not(ctx.target) is not None:
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


def _why_not(target: Target) -> str | None:
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
