"""Forget opset imports that no node needs."""

from __future__ import annotations

from graphopt import Context, Exactness, Pass, ir

__all__ = ["RemoveUnusedOpsets"]


class RemoveUnusedOpsets(Pass):
    """Drop the imports of operator domains that no node uses.

    What it does: Looks at the nodes of all graphs. The default domain stays: tools insist on it.

    Exactness: Bitwise. No node is touched.

    Needs: Nothing.

    Options: None.

    Example: ``opset_import: ["": 17, "ai.onnx.ml": 3]`` and no node of ai.onnx.ml ->
    ``opset_import: ["": 17]``

    Declines when: A node uses the domain.

    References: ONNX IR specification, operator sets.
    """

    name = "remove-unused-opsets"
    exactness = Exactness.BITWISE

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Compare the imports with the domains in use."""
        rw = ctx.rewriter()
        used = {node.domain for node in ir.all_nodes(model)}
        imports = {d for g in ir.all_graphs(model) for d in g.opset_imports}
        for domain in sorted(imports - used - {""}):
            if not ctx.allow(f"drop-opset {domain}"):
                break
            rw.drop_opset(domain)
            ctx.stats.applied["drop-opset"] += 1
        return rw.changed
