"""Turn inputs with default values into constants."""

from __future__ import annotations

import re

from graphopt import Context, Exactness, Pass, ir

__all__ = ["FreezeInputs"]


class FreezeInputs(Pass):
    """Make constants of the inputs that have default values, so that other passes can use them.

    What it does: Old exporters list every weight as a graph input with a default that a caller may
    override. Such a weight is no constant, and neither folding nor fusing applies to it. This pass
    takes those inputs out of the interface; their defaults are constants from then on. No other
    pass changes the interface, so this one runs only where it is asked for.

    Exactness: Bitwise, for callers that do not feed these inputs.

    Needs: Nothing.

    Options: keep (regular expressions; inputs whose whole name matches one stay inputs).

    Example: ``graph(x, w = default) { y = Mul(x, w) }`` -> ``graph(x) { const w; y = Mul(x, w) }``

    Declines when: The input has no default value, or its name matches ``keep``.

    References: ONNX IR specification: "when an initializer has the same name as a graph input, it
    specifies a default value for that input".
    """

    name = "freeze-inputs"
    exactness = Exactness.BITWISE
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the regular expressions.

        Raises:
            ValueError: One of them does not compile.
        """
        try:
            for pattern in self.keep:
                re.compile(pattern)
        except re.error as e:
            raise ValueError(f"{e.pattern!r} is no regular expression: {e}") from e

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Drop the inputs in one go."""
        rw = ctx.rewriter()
        frozen: list[ir.Value] = []
        for value in model.graph.inputs:
            if not value.is_initializer():
                continue
            if any(re.fullmatch(p, value.name or "") for p in self.keep):
                ctx.decline("freeze", "keep names the input")
                continue
            if not ctx.allow(f"freeze %{value.name}"):
                break
            frozen.append(value)
        if frozen:
            rw.drop_inputs(*frozen)
            ctx.stats.applied["freeze"] += len(frozen)
            some = ", ".join(str(v.name) for v in frozen[:3])
            more = f" and {len(frozen) - 3} more" if len(frozen) > 3 else ""
            ctx.remark(f"the interface changed: {some}{more} can no longer be fed")
        return rw.changed
