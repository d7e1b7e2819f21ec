from __future__ import annotations

from graphopt import PassManager, ir
from graphopt.passes.fold import InferShapes
from graphopt.testing import check_pass

HEAD = '<ir_version: 9, opset_import: ["": 19]>\n'


def test_it_is_no_change() -> None:
    check_pass(InferShapes(), HEAD + "g (float[N] x) => (float[N] y) { y = Exp(x) }", None)


def test_shapes_are_known_afterwards() -> None:
    model = ir.parse_text(
        HEAD
        + """
        g (float[2,3] x) => (float[A,B] y) <int64[2] s = {3, 2}> {
          a = Reshape(x, s)
          b = Exp(a)
          y = Neg(b)
        }"""
    )
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    result = PassManager(InferShapes()).run(model)
    shapes = {v.name: ir.dims(v) for n in result.model.graph for v in n.outputs}
    assert shapes["a"] == shapes["b"] == (3, 2)
    assert not result.report.changed


def test_one_pass_after_another_profits() -> None:
    # The size of the Reshape is known only once its target has been computed.
    text = (
        HEAD
        + """
        g (float[6] x) => (int64 y) <int64[2] a = {1, 3}, int64[2] b = {1, -4}, int64 k = {2}> {
          t = Add(a, b)
          r = Reshape(x, t)
          s = Size(r)
          y = Mul(s, k)
        }"""
    )
    result = PassManager("fold-constants,infer-shapes,fold-shapes").run(ir.parse_text(text))
    assert [n.op_type for n in result.model.graph] == ["Constant"]
