from __future__ import annotations

from graphopt import PassManager, ir
from graphopt.passes.cleanup import RemoveUnusedOpsets


def imports(text: str) -> tuple[dict[str, int], dict[str, int]]:
    result = PassManager(RemoveUnusedOpsets(), on_mismatch="raise").run(ir.parse_text(text))
    proto = ir.to_proto(result.model)
    again = PassManager(RemoveUnusedOpsets()).run(result.model)
    assert not again.report.changed
    return result.report.passes[0].rewrites, {o.domain: o.version for o in proto.opset_import}


def test_unused_domains_go() -> None:
    rewrites, left = imports("""
        <ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3, "mine": 1, "com.microsoft": 1]>
        g (float[N] x) => (float[N] y) { a = com.microsoft.Gelu(x) y = Relu(a) }
    """)
    assert rewrites == {"drop-opset": 2}
    assert left == {"": 17, "com.microsoft": 1}


def test_the_default_domain_stays() -> None:
    rewrites, left = imports("""
        <ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        g (float[N] x) => (float[N] y) { y = com.microsoft.Gelu(x) }
    """)
    assert rewrites == {}
    assert left == {"": 17, "com.microsoft": 1}


def test_subgraphs_count() -> None:
    rewrites, left = imports("""
        <ir_version: 8, opset_import: ["": 17, "com.microsoft": 1, "mine": 1]>
        g (float[N] x, bool c) => (float[N] y)
        {
            y = If (c) <
                then_branch = t () => (float[N] p) { p = com.microsoft.Gelu(x) },
                else_branch = e () => (float[N] r) { r = Neg(x) }
            >
        }
    """)
    assert rewrites == {"drop-opset": 1}
    assert left == {"": 17, "com.microsoft": 1}
