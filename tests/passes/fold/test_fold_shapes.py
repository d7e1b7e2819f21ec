from __future__ import annotations

import numpy as np
import pytest

from graphopt import PassManager, ir
from graphopt.passes.fold import FoldShapes
from graphopt.testing import check_pass

HEAD = '<ir_version: 9, opset_import: ["": 19]>\n'
OPSET_9 = '<ir_version: 4, opset_import: ["": 9]>\n'


def empty(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.zeros(shape, np.float32)}


def test_static_scaffold() -> None:
    check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[2,3,4] x) => (float[2,12] y)
        <int64 zero = {0}, int64[1] axis = {0}, int64[1] rest = {-1}> {
          s = Shape(x)
          n = Gather(s, zero)
          u = Unsqueeze(n, axis)
          t = Concat<axis = 0>(u, rest)
          y = Reshape(x, t)
        }""",
        """
        graph(%x: float[2,3,4]) {
          const %t.1: int64[2] = [2, -1]
          %y = Reshape(%x, %t.1)
          return %y
        }""",
    )


def test_axes_were_attributes_once() -> None:
    check_pass(
        FoldShapes(),
        OPSET_9
        + """
        g (float[2,3,4] x) => (float[2,12] y) <int64 zero = {0}, int64[1] rest = {-1}> {
          s = Shape(x)
          cut = Slice<starts = [0], ends = [2]>(s)
          n = Gather(cut, zero)
          u = Unsqueeze<axes = [0]>(n)
          v = Squeeze<axes = [0]>(u)
          w = Unsqueeze<axes = [0]>(v)
          t = Concat<axis = 0>(w, rest)
          y = Reshape(x, t)
        }""",
        """
        graph(%x: float[2,3,4]) {
          const %t.1: int64[2] = [2, -1]
          %y = Reshape(%x, %t.1)
          return %y
        }""",
    )


def test_copied_size() -> None:
    check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[N,3,4] x) => (float[N,12] y)
        <int64 zero = {0}, int64[1] axis = {0}, int64[1] rest = {-1}> {
          s = Shape(x)
          n = Gather(s, zero)
          u = Unsqueeze(n, axis)
          t = Concat<axis = 0>(u, rest)
          y = Reshape(x, t)
        }""",
        """
        graph(%x: float[N,3,4]) {
          const %t.1: int64[2] = [0, -1]
          %y = Reshape(%x, %t.1)
          return %y
        }""",
    )


def test_inferred_size() -> None:
    check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[N,L,12] x) => (float[M,12] y) <int64[1] d = {12}> {
          s = Shape<start = 0, end = 2>(x)
          p = ReduceProd(s)
          t = Concat<axis = 0>(p, d)
          y = Reshape(x, t)
        }""",
        """
        graph(%x: float[N,L,12]) {
          const %t.1: int64[2] = [-1, 12]
          %y = Reshape(%x, %t.1)
          return %y
        }""",
        data=[empty(0, 4, 12), empty(4, 0, 12)],
    )


HEADS = (
    HEAD
    + """
    g (float[N,3,H,W] x) => (float[N,3,P] y) {
      nc = Shape<end = 2>(x)
      hw = Shape<start = 2>(x)
      p = ReduceProd(hw)
      t = Concat<axis = 0>(nc, p)
      y = Reshape(x, t)
    }"""
)


def test_no_size_is_inferred_from_an_empty_tensor() -> None:
    result = check_pass(FoldShapes(), HEADS, None, data=[empty(0, 3, 2, 2)])
    assert result.report.passes[0].declined == {
        "fix-reshape: a size cannot be inferred where another may be 0": 1
    }


def test_unless_the_user_says_that_none_is_empty() -> None:
    check_pass(
        FoldShapes(nonempty=True),
        HEADS,
        """
        graph(%x: float[N,3,H,W]) {
          const %t.1: int64[3] = [0, 3, -1]
          %y = Reshape(%x, %t.1)
          return %y
        }""",
    )


def test_or_the_model_infers_a_size_beside_it_anyway() -> None:
    # The first Reshape fails where N is 0, so the second one may, too.
    check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[N,3,H,W] x) => (float[N,3,P] y, float[N,Q] z) <int64[2] flat = {0, -1}> {
          z = Reshape(x, flat)
          nc = Shape<end = 2>(x)
          hw = Shape<start = 2>(x)
          p = ReduceProd(hw)
          t = Concat<axis = 0>(nc, p)
          y = Reshape(x, t)
        }""",
        """
        graph(%x: float[N,3,H,W]) {
          const %flat: int64[2] = [0, -1]
          const %t.1: int64[3] = [0, 3, -1]
          %z = Reshape(%x, %flat)
          %y = Reshape(%x, %t.1)
          return %y, %z
        }""",
    )


def test_but_not_if_that_may_not_run() -> None:
    text = """
        g (float[N,3,H,W] x, bool c) => (float[N,3,P] y, float[A,B] z) {
          z = If (c) <
            then_branch = a () => (float[N,Q] f) <int64[2] flat = {0, -1}> { f = Reshape(x, flat) },
            else_branch = b () => (float[A,B] o) <float[1,1] o = {1}> {}
          >
          nc = Shape<end = 2>(x)
          hw = Shape<start = 2>(x)
          p = ReduceProd(hw)
          t = Concat<axis = 0>(nc, p)
          y = Reshape(x, t)
        }"""
    data = [{**empty(0, 3, 2, 2), "c": np.bool_(False)}]
    check_pass(FoldShapes(), HEAD + text, None, data=data)


def test_ones_are_inserted() -> None:
    check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[N,3,4] x) => (float[1,N,1,3,4] y) <int64[1] one = {1}> {
          n = Shape<end = 1>(x)
          c = Shape<start = 1>(x)
          t = Concat<axis = 0>(one, n, one, c)
          y = Reshape<allowzero = 1>(x, t)
        }""",
        """
        graph(%x: float[N,3,4]) {
          const %t.1: int64[5] = [1, -1, 1, 3, 4]
          %y = Reshape(%x, %t.1) {allowzero=1}
          return %y
        }""",
        data=[empty(0, 3, 4)],
    )
    check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[N,L,4] x) => (float[1,N,1,L,4] y) <int64[1] one = {1}, int64 axis = {1}> {
          n = Shape<end = 1>(x)
          c = Shape<start = 1>(x)
          t = Concat<axis = 0>(one, n, one, c)
          y = Reshape<allowzero = 1>(x, t)
        }""",
        """
        graph(%x: float[N,L,4]) {
          const %axes: int64[2] = [0, 2]
          %y = Unsqueeze(%x, %axes)
          return %y
        }""",
        data=[empty(0, 3, 4), empty(2, 0, 4)],
    )


def test_ones_are_removed() -> None:
    check_pass(
        FoldShapes(nonempty=True),
        OPSET_9
        + """
        g (float[1,N,1,L,4] x) => (float[N,L,4] z) <int64[3] picks = {1, 3, 4}> {
          s = Shape(x)
          t = Gather(s, picks)
          z = Reshape(x, t)
        }""",
        """
        graph(%x: float[1,N,1,L,4]) {
          %z = Squeeze(%x) {axes=[0, 2]}
          return %z
        }""",
    )


def test_ones_between_sizes_that_may_both_be_empty() -> None:
    # With a, b = 0 and no allowzero a 0 in the target copies another size of the data.
    text = """
        g (float[A,B,4] x) => (float[1,A,B,4] y) <int64[1] one = {1}> {
          s = Shape(x)
          t = Concat<axis = 0>(one, s)
          y = Reshape(x, t)
        }"""
    result = check_pass(FoldShapes(), HEAD + text, None)
    assert result.report.passes[0].declined == {
        "fix-reshape: more than one size of the target is unknown": 1
    }
    check_pass(
        FoldShapes(nonempty=True),
        HEAD + text,
        """
        graph(%x: float[A,B,4]) {
          const %axes: int64[1] = [0]
          %y = Unsqueeze(%x, %axes)
          return %y
        }""",
    )


def test_allowzero_goes_where_sizes_are_copied() -> None:
    check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[N,L,12] x) => (float[N,L,3,4] y) <int64[2] d = {3, 4}> {
          s = Shape<start = 0, end = 2>(x)
          t = Concat<axis = 0>(s, d)
          y = Reshape<allowzero = 1>(x, t)
        }""",
        """
        graph(%x: float[N,L,12]) {
          const %t.1: int64[4] = [0, 0, 3, 4]
          %y = Reshape(%x, %t.1)
          return %y
        }""",
        data=[empty(0, 4, 12)],
    )


def test_empty_and_copied_sizes_do_not_mix() -> None:
    result = check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[N,0] x) => (float[N,0,5] y) <int64[2] d = {0, 5}> {
          s = Shape<end = 1>(x)
          t = Concat<axis = 0>(s, d)
          y = Reshape<allowzero = 1>(x, t)
        }""",
        None,
        data=[empty(3, 0)],
    )
    assert result.report.passes[0].declined == {
        "fix-reshape: it has both empty and copied dimensions": 1
    }


def test_two_unknown_sizes() -> None:
    result = check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[N,L,12] x) => (float[L,N,12] y) <int64[3] order = {1, 0, 2}> {
          s = Shape(x)
          t = Gather(s, order)
          y = Reshape(x, t)
        }""",
        None,
    )
    assert result.report.passes[0].declined == {
        "fix-reshape: more than one size of the target is unknown": 1
    }


def test_reshape_and_expand_to_the_same_shape() -> None:
    check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[N,L,12] x) => (float[N,L,12] y) {
          s = Shape(x)
          r = Relu(x)
          z = Reshape(r, s)
          e = Expand(z, s)
          y = Neg(e)
        }""",
        """
        graph(%x: float[N,L,12]) {
          %r = Relu(%x)
          %y = Neg(%r)
          return %y
        }""",
        data=[empty(0, 4, 12)],
    )


def test_a_graph_output_needs_its_node() -> None:
    check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[N,12] x) => (float[N,12] y) { s = Shape(x) y = Reshape(x, s) }""",
        """
        graph(%x: float[N,12]) {
          const %s.1: int64[2] = [0, 12]
          %y = Reshape(%x, %s.1)
          return %y
        }""",
    )


def test_expand() -> None:
    check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[N,1,12] x) => (float[N,5,12] y) <int64[1] five = {5}> {
          a = Shape<end = 1>(x)
          b = Shape<start = 2>(x)
          s = Concat<axis = 0>(a, five, b)
          e = Expand(x, s)
          y = Neg(e)
        }""",
        """
        graph(%x: float[N,1,12]) {
          const %s.1: int64[3] = [1, 5, 12]
          %e = Expand(%x, %s.1)
          %y = Neg(%e)
          return %y
        }""",
        data=[empty(0, 1, 12)],
    )


def test_expand_that_broadcasts_stays() -> None:
    result = check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[N,1,12] x, float[N,L,12] z) => (float[N,L,12] y) {
          s = Shape(z)
          e = Expand(x, s)
          y = Neg(e)
        }""",
        None,
    )
    assert result.report.passes[0].declined == {"fix-expand: a size of the target is unknown": 1}


def test_expand_as_torch_writes_it() -> None:
    # A requested size of -1 keeps the size of the data; a size is never -1, though.
    check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[N,1] x) => (float[N,7] y)
        <int64[1] seven = {7}, int64[1] minus = {-1}, int64[2] ones = {1, 1}> {
          n = Shape<end = 1>(x)
          want = Concat<axis = 0>(n, seven)
          keep = Equal(want, minus)
          t = Where(keep, ones, want)
          y = Expand(x, t)
        }""",
        """
        graph(%x: float[N,1]) {
          const %t.1: int64[2] = [1, 7]
          %y = Expand(%x, %t.1)
          return %y
        }""",
    )


def test_slice_to_the_end() -> None:
    check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[N,L] x) => (float[N,M] y) <int64[1] one = {1}> {
          b = Shape<start = 1>(x)
          y = Slice(x, one, b, one)
        }""",
        """
        graph(%x: float[N,L]) {
          const %b.1: int64[1] = [9223372036854775807]
          const %one: int64[1] = [1]
          %y = Slice(%x, %one, %b.1, %one)
          return %y
        }""",
        data=[empty(2, 0), empty(2, 1)],
    )


@pytest.mark.parametrize("step", [-1, 1])
def test_slice_to_another_size_stays(step: int) -> None:
    axis = 0 if step > 0 else 1
    result = check_pass(
        FoldShapes(),
        HEAD
        + f"""
        g (float[N,L] x) => (float[A,B] y)
        <int64[1] zero = {{0}}, int64[1] axis = {{{axis}}}, int64[1] step = {{{step}}}> {{
          b = Shape<start = 1>(x)
          y = Slice(x, zero, b, axis, step)
        }}""",
        None,
    )
    assert result.report.passes[0].declined == {"fix-slice: an end is unknown": 1}


def test_symbols_that_inference_makes_up_are_traced_back() -> None:
    # ONNX's inference does not know that Range(0, L) + x has the length L.
    check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[N,L] x) => (float[N,L,1] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] unit = {1}> {
          s = Shape(x)
          l = Gather(s, one)
          r = Range(zero, l, one)
          f = Cast<to = 1>(r)
          a = Add(x, f)
          t = Concat<axis = 0>(s, unit)
          y = Reshape(a, t)
        }""",
        """
        graph(%x: float[N,L]) {
          const %one: int64[] = 1
          const %t.1: int64[3] = [0, 0, 1]
          const %zero: int64[] = 0
          %s = Shape(%x)
          %l = Gather(%s, %one)
          %r = Range(%zero, %l, %one)
          %f = Cast(%r) {to=1}
          %a = Add(%x, %f)
          %y = Reshape(%a, %t.1)
          return %y
        }""",
    )


def test_slices_keep_the_sizes_they_do_not_cut() -> None:
    # x[:, :L, 0:2**31-1] of a constant that is long enough, as for a mask or for positions.
    check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[N,L] x) => (float[N,L,1] y)
        <float[1,8] table = {1, 2, 3, 4, 5, 6, 7, 8}, int64[2] zeros = {0, 0},
         int64[1] end = {2147483647}, int64[1] unit = {1}> {
          s = Shape(x)
          l = Shape<start = 1>(x)
          ends = Concat<axis = 0>(end, l)
          p = Slice(table, zeros, ends)
          a = Add(x, p)
          t = Concat<axis = 0>(s, unit)
          y = Reshape(a, t)
        }""",
        """
        graph(%x: float[N,L]) {
          const %end: int64[1] = [2147483647]
          const %t.1: int64[3] = [0, 0, 1]
          const %table: float[1,8]
          const %zeros: int64[2] = [0, 0]
          %l = Shape(%x) {start=1}
          %ends = Concat(%end, %l) {axis=0}
          %p = Slice(%table, %zeros, %ends)
          %a = Add(%x, %p)
          %y = Reshape(%a, %t.1)
          return %y
        }""",
    )


def test_negative_sizes_are_unknown() -> None:
    model = ir.parse_text(
        HEAD + "g (float[2] x) => (int64 y) { s = Shape(x) y = ReduceProd<keepdims = 0>(s) }"
    )
    proto = ir.to_proto(model)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    check_pass(FoldShapes(), ir.load(proto), None)


def test_equal_names_are_equal_sizes() -> None:
    check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[N,2] x, float[N,3] z) => (float[N,2] y) <int64[1] two = {2}> {
          n = Shape<end = 1>(z)
          t = Concat<axis = 0>(n, two)
          e = Reshape(x, t)
          y = Neg(e)
        }""",
        """
        graph(%x: float[N,2], %z: float[N,3]) {
          %y = Neg(%x)
          return %y
        }""",
    )


def test_but_not_a_name_for_two_dimensions_of_one_input() -> None:
    check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[None,None] x) => (float[A,B] y) {
          a = Shape<start = 1>(x)
          b = Shape<end = 1>(x)
          t = Concat<axis = 0>(a, b)
          y = Reshape(x, t)
        }""",
        None,
        data=[{"x": np.arange(6, dtype=np.float32).reshape(2, 3)}],
    )


def test_shapes_that_somebody_declared_are_not_believed() -> None:
    check_pass(
        FoldShapes(),
        """
        <ir_version: 9, opset_import: ["": 19, "custom": 1]>
        g (float[N] x) => (int64[1] y) <float[2] a> {
          a = custom.Mystery(x)
          s = Shape(a)
          y = Neg(s)
        }""",
        None,
        numbers=False,
    )


def test_a_lone_shape_as_graph_output_stays() -> None:
    check_pass(FoldShapes(), HEAD + "g (float[2,3] x) => (int64[2] y) { y = Shape(x) }", None)


def test_a_graph_output_becomes_a_constant_node() -> None:
    check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[2,3] x) => (int64[2] y, int64[2] z) {
          s = Shape(x)
          y = Add(s, s)
          z = Neg(y)
        }""",
        """
        graph(%x: float[2,3]) {
          %y = Constant() {value=<int64[2]>}
          %z = Constant() {value=<int64[2]>}
          return %y, %z
        }""",
    )


def test_equal_constants_are_shared() -> None:
    check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[2,3] x, float[3,2] z) => (float[2,3] y, float[3,2] w) <int64[2] have = {2, 3}> {
          s = Shape(x)
          t = Shape(z)
          a = Exp(z)
          y = Reshape(a, s)
          b = Exp(x)
          w = Reshape(b, t)
        }""",
        """
        graph(%x: float[2,3], %z: float[3,2]) {
          const %have: int64[2] = [2, 3]
          const %t.1: int64[2] = [3, 2]
          %a = Exp(%z)
          %y = Reshape(%a, %have)
          %b = Exp(%x)
          %w = Reshape(%b, %t.1)
          return %y, %w
        }""",
    )


def test_inside_a_branch() -> None:
    check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[2,3] x, bool c) => (float[A,B] y) {
          y = If (c) <
            then_branch = t () => (float[A,B] a) { s = Shape(x) e = Exp(x) a = Expand(e, s) },
            else_branch = f () => (float[A,B] b) <int64[1] m = {6}> {
              n = Size(x)
              one = Div(n, m)
              u = Concat<axis = 0>(one, m)
              b = Reshape(x, u)
            }
          >
        }""",
        """
        graph(%x: float[2,3], %c: bool[]) {
          const %s.1: int64[2] = [2, 3]
          const %u.2: int64[2] = [1, 6]
          %y = If(%c)
            else_branch:
              graph() {
                %b = Reshape(%x, %u.2)
                return %b
              }
            then_branch:
              graph() {
                %e = Exp(%x)
                %a = Expand(%e, %s.1)
                return %a
              }
          return %y
        }""",
    )


def test_values_of_inputs_are_unknown() -> None:
    check_pass(
        FoldShapes(),
        HEAD
        + """
        g (float[4,6] x, int64 n) => (float[A,B] y) <int64[1] axis = {0}, int64[1] rest = {3}> {
          u = Unsqueeze(n, axis)
          v = Add(u, axis)
          t = Concat<axis = 0>(v, rest)
          y = Reshape(x, t)
        }""",
        """
        graph(%x: float[4,6], %n: int64[]) {
          const %t.1: int64[2] = [-1, 3]
          %y = Reshape(%x, %t.1)
          return %y
        }""",
        data=[{"x": np.zeros((4, 6), np.float32), "n": np.int64(n)} for n in (8, -1)],
        seeds=(),
    )


def test_old_models_are_left_alone() -> None:
    check_pass(
        FoldShapes(),
        '<ir_version: 3, opset_import: ["": 6]> g (float[2,3] x) => (int64[2] y)'
        "{ s = Shape(x) t = Identity(s) y = Identity(t) }",
        None,
        numbers=False,
    )


@pytest.mark.parametrize(("length", "folded"), [(64, True), (65, False)])
def test_long_tensors_are_not_followed(length: int, folded: bool) -> None:
    model = ir.parse_text(
        HEAD
        + f"""
        g (float[{length}] x) => (int64 y) <int64[1] one = {{1}}> {{
          s = Shape(x)
          o = Expand(one, s)
          n = ReduceSum<keepdims = 0>(o)
          y = Neg(n)
        }}"""
    )
    result = PassManager(FoldShapes()).run(model)
    assert (result.report.after.nodes == 1) is folded
