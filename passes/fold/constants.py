"""Compute at compile time what depends on constants only."""

from __future__ import annotations

from typing import ClassVar

from graphopt import Context, Exactness, Pass, apply_rules, ir
from graphopt.errors import NotApplicable, RuntimeUnavailable
from graphopt.passes.fold._candidates import find
from graphopt.passes.fold._evaluate import Evaluator, tensor_of
from graphopt.passes.fold._materialize import materialize
from graphopt.passes.fold._plan import make_plan
from graphopt.passes.fold._sizes import array_bytes, expected_bytes

__all__ = ["FoldConstants"]

_ROUNDS = 16


class FoldConstants(Pass):
    """Replace nodes that depend on constants only by their results.

    What it does: Finds all deterministic nodes whose inputs are constants, directly or through one
        another, in subgraphs too, computes those results that the rest of the model uses in one
        session of ONNX Runtime with its optimizations off, and stores them as constants. A result
        is stored only where that is no larger than the nodes and constants that it replaces; where
        it is, the chain is cut at its smallest place instead, so that Shape(Expand(...)) folds and
        Expand(...) does not. A result that is up to 4 KiB larger is stored as long as others save
        as much.

    Exactness: bitwise.

    Needs: onnxruntime.

    Options: ``max-growth``: bytes by which the file may grow (default 0). ``max-input``: most bytes
        of constants to read, in total (default 256 MiB). ``quantization``: compute QuantizeLinear
        and DequantizeLinear too, which by default stay, as they carry the quantization.

    Example: ``Add(x, Mul([2.0], [3.0]))`` -> ``Add(x, [6.0])``

    Declines when: a result is larger than what computes it; an operator is random, unknown, or one
        that onnxruntime refuses; the result is no tensor; integers would be divided by zero; an
        input of the model has a default value, since a caller may feed another; a float16 result
        would be rounded, which onnxruntime leaves out where another operator follows.

    References: https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html
    """

    name: ClassVar[str] = "fold-constants"
    exactness: ClassVar[Exactness] = Exactness.BITWISE
    max_growth: int = 0
    max_input: int = 256 * 2**20
    quantization: bool = False

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Find, plan, compute, replace; plan again where sizes become known only by computing."""
        found = find(model, ctx, quantization=self.quantization, max_input=self.max_input)
        if not found.nodes:
            return False
        evaluator = Evaluator(model, found)

        def size(value: ir.Value) -> int | None:
            data = evaluator.results.get(value)
            if data is not None:
                return array_bytes(value, data)
            if value.type is not None and not isinstance(value.type, ir.TensorType):
                return None
            return expected_bytes(value) or 0

        values: list[ir.Value] = []
        for _ in range(_ROUNDS):
            plan = make_plan(found, size, self.max_growth)
            missing = [v for v in plan.values if v not in evaluator.results]
            if not missing:
                values = plan.values
                break
            try:
                evaluator.compute(missing)
            except RuntimeUnavailable as e:
                raise NotApplicable(f"constants are computed by onnxruntime: {e}") from e
            found.discard(evaluator.failed)
        for reason in evaluator.failed.values():
            ctx.decline("fold-constant", reason)
        for node in plan.kept:
            if all(size(v) is not None for v in node.outputs):
                ctx.decline("fold-constant", "the result is larger than what computes it")
        if not values:
            return False
        rw = ctx.rewriter()
        for value in values:
            if not ctx.allow(f"fold-constant at %{value.name}"):
                break
            materialize(rw, value, tensor_of(value, evaluator.results[value]))
            ctx.stats.applied["fold-constant"] += 1
        if rw.changed:
            ctx.stats.add(apply_rules(rw, ()))
        return rw.changed
