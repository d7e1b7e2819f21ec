"""Where shape arithmetic is easily got wrong."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import PassManager, ir
from graphopt.passes.fold import FoldShapes
from graphopt.testing import assert_equivalent, check_pass

HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'


def sliced(start: int, end: int, step: int) -> ir.Model:
    """The shape of a 4-d tensor, sliced, as an output."""
    weights = {"start": [start], "end": [end], "axes": [0], "step": [step]}
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Slice", ["s", *weights], ["t"]),
        helper.make_node("Neg", ["t"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4, 5])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, None)],
        [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in weights.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return ir.load(helper.make_model(graph, opset_imports=opset, ir_version=8))


@pytest.mark.parametrize("step", [-2, -1, 1, 3])
@pytest.mark.parametrize("end", [-(2**63) + 1, -9, -4, -1, 0, 2, 9])
@pytest.mark.parametrize("start", [-(2**63) + 1, -6, -5, -4, -1, 0, 3, 4, 9])
def test_slices_in_both_directions(start: int, end: int, step: int) -> None:
    model = sliced(start, end, step)
    result = PassManager(FoldShapes(), objective=None, on_mismatch="raise").run(model)
    assert [n.op_type for n in result.model.graph] == ["Constant"]
    assert_equivalent(model, result.model, FoldShapes.exactness)


@pytest.mark.parametrize("end", [2**31 - 1, 2**63 - 1])
def test_backwards_to_the_largest_number(end: int) -> None:
    """ONNX Runtime takes that for the beginning, onnx for the end."""
    model = sliced(-1, end, -1)
    result = PassManager(FoldShapes(), objective=None, on_mismatch="raise").run(model)
    assert_equivalent(model, result.model, FoldShapes.exactness)


def test_an_identity_that_gives_a_constant_two_names_stays() -> None:
    """Otherwise eliminate-common-subexpressions and this pass would undo each other forever."""
    check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[2,3] x) => (int64[2] y, int64[2] z) {
          y = Constant<value = int64[2] {2, 3}>()
          z = Identity(y)
        }""",
        None,
    )
    check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[2,3] x) => (int64[2] y) {
          s = Shape(x)
          t = Neg(s)
          y = Identity(t)
        }""",
        """
        graph(%x: float[2,3]) {
          const %t.1: int64[2] = [-2, -3]
          %y = Identity(%t.1)
          return %y
        }""",
    )


def test_a_small_file_does_not_grow_either() -> None:
    """The estimate of its size is too low to rely on by more than what small files have."""
    model = ir.parse_text(
        """<ir_version: 8, opset_import: ["": 11, "com.microsoft": 1]>
        g (float[N,M,K] x) => (int64[4] first, int64[4] second)
        <int64[4] some = {0, 1, 0, -1}, int64 zero = {0}, int64 three = {3}> {
          first = Sub(some, zero)
          second = Mod(first, three)
        }"""
    )
    result = PassManager("O1", on_mismatch="raise").run(model)
    assert len(ir.to_bytes(result.model)) <= len(ir.to_bytes(model))
    assert len(ir.to_bytes(PassManager("O1", allow_growth=True).run(model).model)) > len(
        ir.to_bytes(model)
    )


def test_a_model_of_another_domain_alone() -> None:
    """Its results become Constant nodes, which are of a domain that it does not import."""
    model = ir.parse_text(
        """<ir_version: 8, opset_import: ["ai.onnx.ml": 1]>
        g () => (float[1,2] y) <float[1,3] a = {1, 2, 3}, int64[2] b = {0, 2}> {
          y = ai.onnx.ml.ArrayFeatureExtractor(a, b)
        }"""
    )
    result = PassManager("O1", objective=None, on_mismatch="raise", allow_growth=True).run(model)
    assert [n.op_type for n in result.model.graph] == ["Constant"]
    assert_equivalent(model, result.model, FoldShapes.exactness)
