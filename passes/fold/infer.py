"""Refresh what is known about types and shapes."""

from __future__ import annotations

from typing import ClassVar

from graphopt import Context, Exactness, Pass, ir

__all__ = ["InferShapes"]


class InferShapes(Pass):
    """Infer the types and shapes of all intermediate values anew.

    What it does: Runs the shape inference of ONNX on the model as it is now, so that the passes
        that follow know the sizes that earlier passes made known, such as those behind a Reshape
        whose target has become constant. Nothing that the model computes changes, so the pass does
        not count as a change; cached analyses are dropped all the same.

    Exactness: bitwise.

    Needs: nothing.

    Options: none.

    Example: ``%y: ?`` of ``Reshape(%x, [2, 3])`` -> ``%y: float[2,3]``

    Declines when: an operator has no schema; its outputs keep the shapes they were declared with.

    References: https://onnx.ai/onnx/repo-docs/ShapeInference.html
    """

    name: ClassVar[str] = "infer-shapes"
    exactness: ClassVar[Exactness] = Exactness.BITWISE

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Infer; the answer is always False, since nothing is computed otherwise than before."""
        ctx.infer_shapes()
        return False
