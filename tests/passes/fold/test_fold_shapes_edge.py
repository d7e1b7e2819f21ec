"""Where shape arithmetic is easily got wrong."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import PassManager, ir
from graphopt.errors import SessionError
from graphopt.passes.fold import FoldShapes
from graphopt.runtime.session import open_session
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


@pytest.mark.parametrize(("start", "back"), [(-9, 20), (-1, 3), (9, 20), (-4, 20)])
@pytest.mark.parametrize("step", [-1, -2])
def test_a_backward_slice_to_a_computed_end(start: int, back: int, step: int) -> None:
    model = ir.parse_text(
        HEAD
        + f"""
        g (float[N,4] x, float[{back}] z) => (float[a,b] y)
        <int64[1] start = {{{start}}}, int64[1] one = {{1}}, int64[1] rest = {{-1}},
            int64[1] step = {{{step}}}> {{
          length = Shape(z)
          end = Neg(length)
          cut = Slice(x, start, end, one, step)
          shape = Shape(cut)
          size = Gather(shape, one)
          target = Concat<axis = 0>(size, rest)
          y = Reshape(cut, target)
        }}"""
    )
    result = PassManager(FoldShapes(), objective=None, on_mismatch="raise").run(model)
    data = [{"x": np.ones((3, 4), np.float32), "z": np.zeros(back, np.float32)}]
    assert_equivalent(model, result.model, FoldShapes.exactness, data=data)


@pytest.mark.parametrize("shape", ["N,1,M", "1,N,M", "N,M,1"])
def test_a_reshape_that_drops_a_one_next_to_two_sizes_that_may_be_0(shape: str) -> None:
    """A 0 in the target copies the size at its place: the result is not [0,0] but [0,1]."""
    kept = [str(i) for i, size in enumerate(shape.split(",")) if size != "1"]
    model = ir.parse_text(
        HEAD
        + f"""
        g (float[{shape}] x) => (float[a,b] y) <int64[2] kept = {{{",".join(kept)}}}> {{
          shape = Shape(x)
          target = Gather(shape, kept)
          y = Reshape(x, target)
        }}"""
    )
    result = PassManager(FoldShapes(), objective=None, on_mismatch="raise").run(model)
    sizes = [{"N": n, "M": m, "1": 1} for n in (0, 1, 2) for m in (0, 1, 3)]
    with open_session(model) as before, open_session(result.model) as after:
        for each in sizes:
            x = np.zeros([each[d] for d in shape.split(",")], np.float32)
            try:
                expected = before.run({"x": x})
            except SessionError:
                continue  # another size is copied than meant
            assert after.run({"x": x})["y"].shape == expected["y"].shape


def test_a_reshape_that_drops_a_one_next_to_one_size_that_may_be_0() -> None:
    check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[N,1,3,1] x) => (float[N,3] y)
        <int64[2] kept = {0, 2}> {
          shape = Shape(x)
          target = Gather(shape, kept)
          y = Reshape(x, target)
        }""",
        """
        graph(%x: float[N,1,3,1]) {
          const %target.1: int64[2] = [0, 3]
          %y = Reshape(%x, %target.1)
          return %y
        }""",
    )


SCAFFOLDS = {
    # Where M is 0, the second size is a copy of N, and what is left is 0, not 3.
    "copied and left over": """
        g (float[1,N,3,M] x) => (float[a,b,c,d] r, float[e,f] y) {
          shape = Shape(x)
          n = Gather(shape, one)
          m = Gather(shape, three)
          t = Concat<axis = 0>(n, m, rest, one)
          r = Reshape(x, t)
          s = Shape(r)
          u = Gather(s, two)
          v = Concat<axis = 0>(rest, u)
          y = Reshape(r, v)
        }""",
    # Where N*M is 0, the first size is a copy of N.
    "product and left over": """
        g (float[1,N,3,M] x) => (float[a,b] r, float[e] y) {
          shape = Shape(x)
          n = Gather(shape, one)
          m = Gather(shape, three)
          p = Mul(n, m)
          t = Concat<axis = 0>(p, rest)
          r = Reshape(x, t)
          s = Shape(r)
          u = Gather(s, one)
          y = ConstantOfShape(u)
        }""",
}


@pytest.mark.parametrize("text", SCAFFOLDS.values(), ids=SCAFFOLDS)
def test_sizes_that_are_0(text: str) -> None:
    constants = """
        <int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3}, int64[1] rest = {-1}> {"""
    model = ir.parse_text(HEAD + text.replace("{", constants, 1))
    result = PassManager(FoldShapes(), objective=None, on_mismatch="raise").run(model)
    succeeded = 0
    with open_session(model) as before, open_session(result.model) as after:
        for n, m in ((2, 4), (1, 1), (0, 2), (2, 0), (1, 0), (0, 0)):
            x = np.ones((1, n, 3, m), np.float32)
            try:
                expected = before.run({"x": x})
            except SessionError:
                continue
            succeeded += 1
            found = after.run({"x": x})
            assert {k: v.shape for k, v in found.items()} == {
                k: v.shape for k, v in expected.items()
            }
    assert succeeded > 2


def test_a_reshape_that_infers_a_size_next_to_empty_ones() -> None:
    """ONNX Runtime does, with allowzero=1, so that it tells nothing about the other sizes."""
    model = ir.parse_text(
        HEAD
        + """
        g (float[1,N,3,M] x, int64[1] one) => (float[a,b,c] r, float[e,f,h,i] y)
        <int64[1] first = {1}, int64[1] three = {3}, int64[1] rest = {-1}> {
          shape = Shape(x)
          n = Gather(shape, first)
          m = Gather(shape, three)
          t = Concat<axis = 0>(m, n, three)
          r = Reshape<allowzero = 1>(x, t)
          v = Concat<axis = 0>(rest, n, three, one)
          y = Reshape<allowzero = 1>(r, v)
        }"""
    )
    result = PassManager(FoldShapes(), objective=None, on_mismatch="raise").run(model)
    data = [{"x": np.ones((1, n, 3, 2), np.float32), "one": np.array([1])} for n in (0, 1, 2)]
    assert_equivalent(model, result.model, FoldShapes.exactness, data=data)
