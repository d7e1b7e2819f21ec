"""Convert a model to an opset that the target takes."""

from __future__ import annotations

from graphopt import Context, Exactness, NotApplicable, Pass, UnsupportedFeature, ir

__all__ = ["ConvertOpset"]


class ConvertOpset(Pass):
    """Convert a model to another opset of the default domain.

    What it does: Lets onnx's version converter rewrite operators that changed between the two
    opsets. Without ``to`` it goes to the nearest opset that the target takes, which is nowhere for
    most models.

    Exactness: Rounding: some operators turn into others.

    Needs: Nothing.

    Options: to (the opset; 0 for the nearest that the target takes).

    Example: ``y = ReduceMax(x) {axes=[1]}`` at opset 17 -> ``y = ReduceMax(x, axes)`` at opset 18

    Declines when: onnx has no conversion for an operator, or the result is not valid.

    References: ONNX, "ONNX Version Converter" (docs/VersionConverter.md).
    """

    name = "convert-opset"
    exactness = Exactness.ROUNDING
    gated = False
    to: int = 0

    def __post_init__(self) -> None:
        """Check the version.

        Raises:
            ValueError: It is negative.
        """
        if self.to < 0:
            raise ValueError(f"{self.to} is no opset")

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Convert, and take the result over."""
        present = ir.opset(model)
        if "" not in model.opset_imports:
            return False
        low, high = ctx.target.opsets
        wanted = self.to or min(max(present, low), high)
        if wanted == present:
            return False
        if not ctx.allow(f"convert opset {present} to {wanted}"):
            return False
        rw = ctx.rewriter()
        try:
            converted = ir.convert_opset(model, wanted)
        except UnsupportedFeature as e:
            raise NotApplicable(str(e)) from e
        rw.become(converted)
        ctx.stats.applied["convert"] += 1
        ctx.remark(f"opset {present} became {wanted}")
        return rw.changed
