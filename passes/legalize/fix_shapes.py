"""Give open dimensions of the inputs a size."""

from __future__ import annotations

import re

from graphopt import Context, Exactness, NotApplicable, Pass, Rewriter, StructureError, ir

__all__ = ["FixShapes"]

_ENTRY = re.compile(r"\s*(?P<key>.+?)\s*=\s*(?P<size>\d+)\s*")


class FixShapes(Pass):
    """Give open dimensions of the inputs a size, for targets that need to know every shape.

    What it does: Replaces symbolic dimensions by sizes, wherever they occur, and writes the sizes
    that follow into the declared outputs. Callers can feed nothing else afterwards, so this pass
    runs only where it is asked for.

    Exactness: Bitwise, for inputs of these sizes.

    Needs: Nothing.

    Options: dims (such as "N=1", or "x[2]=224" for the third dimension of input x; a symbol that
    the dimension has is fixed everywhere).

    Example: ``graph(x: float[N,3]) { y = Relu(x) }`` with dims="N=1" ->
    ``graph(x: float[1,3]) { y = Relu(x) }``

    Declines when: No input has such a dimension, or it has another size already.

    References: ONNX IR specification, "Static tensor shapes".
    """

    name = "fix-shapes"
    exactness = Exactness.BITWISE
    gated = False
    narrows = True
    dims: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the entries.

        Raises:
            ValueError: One of them is no name and size.
        """
        for entry in self.dims:
            if _ENTRY.fullmatch(entry) is None:
                raise ValueError(f'{entry!r} is no dimension and size, such as "N=1" or "x[0]=1"')

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Fix inputs, infer, and fix the outputs by what was inferred."""
        rw = ctx.rewriter()
        sizes = self._sizes(model)
        if not sizes or not ctx.allow("fix shapes"):
            return False
        for value in ir.inputs(model):
            found = ir.dims(value)
            if found is not None:
                new = [sizes.get(_key(value, i, d), d) for i, d in enumerate(found)]
                rw.declare(value, new)
        _substitute(model, sizes)
        ctx.infer_shapes()
        _declare_outputs(model, rw, ctx)
        ctx.stats.applied["fix"] += len(sizes)
        told = ", ".join(f"{key}={size}" for key, size in sizes.items())
        ctx.remark(f"the interface changed: {told}")
        return rw.changed

    def _sizes(self, model: ir.Model) -> dict[str, int]:
        """Size by symbol, or by ``input[axis]`` where the dimension has none.

        Raises:
            NotApplicable: No input has the dimension, or it has another size.
        """
        open_dims: dict[str, str] = {}
        fixed: dict[str, int] = {}
        for value in ir.inputs(model):
            for i, d in enumerate(ir.dims(value) or ()):
                place = f"{value.name}[{i}]"
                if isinstance(d, int):
                    fixed[place] = d
                else:
                    open_dims[place] = open_dims[_key(value, i, d)] = _key(value, i, d)
        sizes: dict[str, int] = {}
        for entry in self.dims:
            match = _ENTRY.fullmatch(entry)
            assert match is not None
            name, size = match["key"], int(match["size"])
            if fixed.get(name, size) != size:
                raise NotApplicable(f"{name} is {fixed[name]}, not {size}")
            if name in fixed:
                continue
            if name not in open_dims:
                known = ", ".join(dict.fromkeys(open_dims.values())) or "none is open"
                raise NotApplicable(f"no input has a dimension {name!r}; there are: {known}")
            key = open_dims[name]
            if sizes.setdefault(key, size) != size:
                raise NotApplicable(f"{key} is to be {sizes[key]} and {size}")
        return sizes


def _key(value: ir.Value, axis: int, dim: int | str | None) -> str:
    return dim if isinstance(dim, str) else f"{value.name}[{axis}]"


def _substitute(model: ir.Model, sizes: dict[str, int]) -> None:
    """Replace symbols in shapes that nobody infers: those of operators without a schema."""
    for node in ir.all_nodes(model):
        for value in node.outputs if node.domain else ():
            found = ir.dims(value)
            if found is not None and any(d in sizes for d in found):
                value.shape = ir.Shape(
                    [sizes.get(d, d) if isinstance(d, str) else d for d in found]
                )


def _declare_outputs(model: ir.Model, rw: Rewriter, ctx: Context) -> None:
    for value in model.graph.outputs:
        found = ir.dims(value)
        if found is None:
            continue
        try:
            rw.declare(value, found)
        except StructureError as e:  # wrong before, too; what is declared stays as it was
            ctx.remark(f"the declared shape does not fit the computed one: {e}", value)
