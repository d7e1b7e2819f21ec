"""Convert a model to an opset that the target takes."""

from __future__ import annotations

from graphopt import Context, Exactness, NotApplicable, Pass, UnsupportedFeature, ir
from graphopt.targets import check

__all__ = ["ConvertOpset"]

# Since then axes and parts are inputs, and Slice, Pad and Resize are what they are today.
_SETTLED = 13


class ConvertOpset(Pass):
    """Convert a model to another opset of the default domain.

    What it does: Lets onnx's version converter rewrite operators that changed between the two
    opsets. Without ``to`` it goes to the nearest opset that the target takes, and from older ones
    to 13 where the target then takes more of the model.

    Exactness: Rounding: some operators turn into others.

    Needs: Nothing.

    Options: to (the opset; 0 for the nearest that the target takes).

    Example: ``y = ReduceMax(x) {axes=[1]}`` at opset 17 -> ``y = ReduceMax(x, axes)`` at opset 18

    Declines when: onnx has no conversion for an operator, the result is not valid, or the target
    takes no more of it.

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
        trial = wanted == present < _SETTLED <= high and not self.to
        if trial:
            wanted = _SETTLED
        before = len(check(model, ctx.target)) if trial else 0
        if wanted == present or (trial and not before):
            return False
        try:
            converted = ir.convert_opset(model, wanted)
        except UnsupportedFeature as e:
            raise NotApplicable(str(e)) from e
        if trial and len(check(converted, ctx.target)) >= before:
            ctx.decline("convert", f"the target takes no more of it at opset {wanted}")
            return False
        if not ctx.allow(f"convert opset {present} to {wanted}"):
            return False
        rw = ctx.rewriter()
        rw.become(converted)
        ctx.stats.applied["convert"] += 1
        ctx.remark(f"opset {present} became {wanted}")
        return rw.changed
