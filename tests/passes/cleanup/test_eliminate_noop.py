from __future__ import annotations

import numpy as np
import pytest

from graphopt import ir
from graphopt.passes.cleanup import EliminateNoop
from graphopt.runtime.session import open_session
from graphopt.testing import check_pass

HUGE = 2**63 - 1


def model(kind: str, consts: str, body: str, *, opset: int = 18, out: str | None = None) -> str:
    """The body maps x to t; an Identity, which this pass leaves alone, names the output."""
    return f"""
        <ir_version: 8, opset_import: ["": {opset}]>
        g ({kind} x) => ({out or kind} y) <{consts}>
        {{
            {body}
            y = Identity(t)
        }}
    """


def gone(kind: str) -> str:
    """What is left when the body has gone."""
    return f"""
    graph(%x: {kind}) {{
      %y = Identity(%x)
      return %y
    }}
    """


# Input type, constants, what computes t.
FIRES = {
    "cast": ("float[N,3]", "", "t = Cast<to=1>(x)"),
    "cast to int": ("int64[N]", "", "t = Cast<to=7>(x)"),
    "cast-like": ("float[N]", "float k = {1}", "t = CastLike(x, k)"),
    "cast there and back": ("float16[N]", "", "a = Cast<to=1>(x) t = Cast<to=10>(a)"),
    "cast int there and back": ("int32[N]", "", "a = Cast<to=11>(x) t = Cast<to=6>(a)"),
    "cast bool there and back": ("bool[N]", "", "a = Cast<to=7>(x) t = Cast<to=9>(a)"),
    "reshape static": ("float[2,3]", "int64[2] s = {2,-1}", "t = Reshape(x, s)"),
    "reshape zeros": ("float[N,M]", "int64[2] s = {0,0}", "t = Reshape(x, s)"),
    "reshape zero and rest": ("float[N,M]", "int64[2] s = {0,-1}", "t = Reshape(x, s)"),
    "reshape rest and known": ("float[N,3]", "int64[2] s = {-1,3}", "t = Reshape(x, s)"),
    "reshape to its shape": ("float[N,3]", "", "s = Shape(x) t = Reshape(x, s)"),
    "flatten": ("float[N,M]", "", "t = Flatten(x)"),
    "flatten at -1": ("float[N,3]", "", "t = Flatten<axis=-1>(x)"),
    "transpose": ("float[N,M]", "", "t = Transpose<perm=[0,1]>(x)"),
    "transpose vector": ("float[N]", "", "t = Transpose(x)"),
    "transpose ones": ("float[1,N,1,1]", "", "t = Transpose<perm=[0,1,3,2]>(x)"),
    "slice": (
        "float[N,4]",
        f"int64[2] b = {{0,0}}, int64[2] e = {{{HUGE},4}}",
        "t = Slice(x, b, e)",
    ),
    "slice int32 max": (
        "float[N,M]",
        "int64[1] b = {0}, int64[1] e = {2147483647}, int64[1] a = {1}, int64[1] s = {1}",
        "t = Slice(x, b, e, a, s)",
    ),
    "slice from far": (
        "float[3,4]",
        "int64[1] b = {-9}, int64[1] e = {9}, int64[1] a = {-1}",
        "t = Slice(x, b, e, a)",
    ),
    "pad": ("float[N,4]", "int64[4] p = {0,0,0,0}", "t = Pad(x, p)"),
    "pad reflect": ("float[N,4]", "int64[4] p = {0,0,0,0}", 't = Pad<mode="reflect">(x, p)'),
    "concat": ("float[N,4]", "", "t = Concat<axis=1>(x)"),
    "split": ("float[N,4]", "", "t = Split<axis=1,num_outputs=1>(x)"),
    "split sizes": ("float[N,4]", "int64[1] s = {4}", "t = Split<axis=1>(x, s)"),
    "expand ones": ("float[N,4]", "int64[2] s = {1,1}", "t = Expand(x, s)"),
    "expand known": ("float[N,4]", "int64[1] s = {4}", "t = Expand(x, s)"),
    "tile": ("float[N,4]", "int64[2] r = {1,1}", "t = Tile(x, r)"),
    "squeeze": ("float[2,4]", "", "t = Squeeze(x)"),
    "unsqueeze": ("float[N,4]", "int64[0] a = {}", "t = Unsqueeze(x, a)"),
    "resize scales": (
        "float[N,2,4,4]",
        "float[4] s = {1,1,1,1}",
        't = Resize<mode="cubic">(x, , s)',
    ),
    "resize sizes": (
        "float[1,2,4,5]",
        "int64[4] s = {1,2,4,5}",
        't = Resize<mode="linear",coordinate_transformation_mode="align_corners">(x, , , s)',
    ),
    "resize axes": (
        "float[N,2,4,5]",
        "int64[2] s = {5,4}",
        't = Resize<mode="linear",axes=[3,2]>(x, , , s)',
    ),
    "depth to space": ("float[N,2,4,4]", "", "t = DepthToSpace<blocksize=1>(x)"),
    "space to depth": ("float[N,2,4,4]", "", "t = SpaceToDepth<blocksize=1>(x)"),
    "reduce nothing": ("float[N,4]", "", "t = ReduceSum<noop_with_empty_axes=1>(x)"),
    "reduce no axes": (
        "float[N,4]",
        "int64[0] a = {}",
        "t = ReduceMean<noop_with_empty_axes=1>(x, a)",
    ),
    "reduce ones": ("float[N,1]", "int64[1] a = {1}", "t = ReduceMax(x, a)"),
    "max pool": ("float[N,2,4,4]", "", "t = MaxPool<kernel_shape=[1,1]>(x)"),
    "average pool": (
        "float[N,2,4,4]",
        "",
        "t = AveragePool<kernel_shape=[1,1],strides=[1,1]>(x)",
    ),
    "mul": ("float[N,4]", "float k = {1}", "t = Mul(x, k)"),
    "mul left": ("float[N,4]", "float[4] k = {1,1,1,1}", "t = Mul(k, x)"),
    "mul int": ("int32[N]", "int32[1] k = {1}", "t = Mul(x, k)"),
    "div": ("float[N,4]", "float[1,1] k = {1}", "t = Div(x, k)"),
    "pow": ("float[N,4]", "float k = {1}", "t = Pow(x, k)"),
    "pow int": ("float[N,4]", "int64 k = {1}", "t = Pow(x, k)"),
    "add int": ("int64[N]", "int64 k = {0}", "t = Add(k, x)"),
    "add -0.0": ("float[N]", "float k = {-0.0}", "t = Add(x, k)"),
    "sub": ("float[N]", "float k = {0}", "t = Sub(x, k)"),
    "sub int": ("int64[N]", "int64 k = {0}", "t = Sub(x, k)"),
    "and": ("bool[N]", "bool k = {1}", "t = And(x, k)"),
    "or": ("bool[N]", "bool k = {0}", "t = Or(k, x)"),
    "xor": ("bool[N]", "bool k = {0}", "t = Xor(x, k)"),
    "and itself": ("bool[N]", "", "t = And(x, x)"),
    "bitwise and": ("int32[N]", "int32 k = {-1}", "t = BitwiseAnd(x, k)"),
    "bitwise or": ("uint8[N]", "uint8 k = {0}", "t = BitwiseOr(x, k)"),
    "shift": ("uint8[N]", "uint8 k = {0}", 't = BitShift<direction="LEFT">(x, k)'),
    "not not": ("bool[N]", "", "a = Not(x) t = Not(a)"),
    "neg neg": ("float[N]", "", "a = Neg(x) t = Neg(a)"),
    "where true": (
        "float[N,2]",
        "bool[1,2] c = {1,1}, float[2] k = {5,6}",
        "t = Where(c, x, k)",
    ),
    "where false": ("float[N]", "bool c = {0}, float k = {5}", "t = Where(c, k, x)"),
    "clip int": ("int32[N]", "", "t = Clip(x)"),
    "clip to type": ("int8[N]", "int8 l = {-128}, int8 h = {127}", "t = Clip(x, l, h)"),
    "max of one": ("float[N]", "", "t = Max(x)"),
    "min of one": ("float[N]", "", "t = Min(x)"),
    "sum of one": ("float[N]", "", "t = Sum(x)"),
    "mean of one": ("float[N]", "", "t = Mean(x)"),
}

KEEPS = {
    "cast changes type": ("float[N]", "", "t = Cast<to=11>(x)", "double[N]"),
    "cast through a narrower type": ("float[N]", "", "a = Cast<to=10>(x) t = Cast<to=1>(a)"),
    "cast through float": ("int64[N]", "", "a = Cast<to=1>(x) t = Cast<to=7>(a)"),
    "cast int32 through float": ("int32[N]", "", "a = Cast<to=1>(x) t = Cast<to=6>(a)"),
    "cast through another sign": ("int8[N]", "", "a = Cast<to=2>(x) t = Cast<to=3>(a)"),
    "cast through bool": ("int32[N]", "", "a = Cast<to=9>(x) t = Cast<to=6>(a)"),
    "reshape unknown": ("float[N,M]", "int64[2] s = {-1,3}", "t = Reshape(x, s)", "float[A,B]"),
    "reshape two rests": ("float[N,M]", "int64[2] s = {3,-1}", "t = Reshape(x, s)", "float[A,B]"),
    "reshape allowzero": (
        "float[N,M]",
        "int64[2] s = {0,3}",
        "t = Reshape<allowzero=1>(x, s)",
        "float[A,B]",
    ),
    "reshape rank": ("float[N,3]", "int64[1] s = {-1}", "t = Reshape(x, s)", "float[A]"),
    "flatten rank 3": ("float[N,3,4]", "", "t = Flatten(x)", "float[N,12]"),
    "flatten at 0": ("float[N,3]", "", "t = Flatten<axis=0>(x)", "float[1,A]"),
    "transpose swaps": ("float[3,3]", "", "t = Transpose<perm=[1,0]>(x)"),
    "transpose default": ("float[N,N]", "", "t = Transpose(x)"),
    "transpose past a one": ("float[1,5]", "", "t = Transpose(x)", "float[5,1]"),
    "transpose unknown ones": ("float[N,M]", "", "t = Transpose<perm=[1,0]>(x)", "float[M,N]"),
    "slice cuts the end": (
        "float[N,4]",
        "int64[1] b = {0}, int64[1] e = {3}, int64[1] a = {1}",
        "t = Slice(x, b, e, a)",
        "float[N,3]",
    ),
    "slice of unknown size": (
        "float[N,4]",
        "int64[1] b = {0}, int64[1] e = {100}",
        "t = Slice(x, b, e)",
        "float[A,4]",
    ),
    "slice cuts the start": (
        "float[N,4]",
        f"int64[1] b = {{-1}}, int64[1] e = {{{HUGE}}}",
        "t = Slice(x, b, e)",
        "float[A,4]",
    ),
    "slice reverses": (
        "float[4]",
        f"int64[1] b = {{-1}}, int64[1] e = {{{-HUGE}}}, int64[1] a = {{0}}, int64[1] s = {{-1}}",
        "t = Slice(x, b, e, a, s)",
    ),
    "slice strides": (
        "float[N]",
        f"int64[1] b = {{0}}, int64[1] e = {{{HUGE}}}, int64[1] a = {{0}}, int64[1] s = {{2}}",
        "t = Slice(x, b, e, a, s)",
        "float[A]",
    ),
    "pad shifts": ("float[4]", "int64[2] p = {1,-1}", "t = Pad(x, p)"),
    "concat of two": ("float[N]", "", "t = Concat<axis=0>(x, x)", "float[A]"),
    "split in two": ("float[4]", "", "t, u = Split<num_outputs=2>(x)", "float[2]"),
    "expand broadcasts": ("float[N,1]", "int64[2] s = {1,4}", "t = Expand(x, s)", "float[N,4]"),
    "expand unknown": ("float[N]", "int64[1] s = {4}", "t = Expand(x, s)", "float[A]"),
    "expand adds a dim": ("float[N]", "int64[2] s = {1,1}", "t = Expand(x, s)", "float[1,N]"),
    "tile repeats": ("float[N]", "int64[1] r = {2}", "t = Tile(x, r)", "float[A]"),
    "squeeze unknown": ("float[N,4]", "", "t = Squeeze(x)", "float[]"),
    "squeeze one": ("float[1,4]", "", "t = Squeeze(x)", "float[4]"),
    "squeeze empty axes": ("float[1,4]", "int64[0] a = {}", "t = Squeeze(x, a)", "float[]"),
    "unsqueeze": ("float[4]", "int64[1] a = {0}", "t = Unsqueeze(x, a)", "float[1,4]"),
    "resize doubles": (
        "float[1,1,4,4]",
        "float[4] s = {1,1,2,2}",
        "t = Resize(x, , s)",
        "float[1,1,8,8]",
    ),
    "resize of unknown size": (
        "float[1,1,N,4]",
        "int64[4] s = {1,1,4,4}",
        "t = Resize(x, , , s)",
        "float[1,1,4,4]",
    ),
    "resize crops": (
        "float[1,1,4,4]",
        "float[4] s = {1,1,1,1}, float[8] r = {0,0,0.5,0.5,1,1,1,1}",
        't = Resize<coordinate_transformation_mode="tf_crop_and_resize",mode="linear">(x, r, s)',
        "float[A,B,C,D]",
    ),
    "depth to space": ("float[1,4,2,2]", "", "t = DepthToSpace<blocksize=2>(x)", "float[1,1,4,4]"),
    "reduce all": ("float[N,4]", "int64[0] a = {}", "t = ReduceSum(x, a)", "float[1,1]"),
    "reduce one axis": ("float[N,4]", "int64[1] a = {0}", "t = ReduceMax(x, a)", "float[1,4]"),
    "reduce drops a one": (
        "float[N,1]",
        "int64[1] a = {1}",
        "t = ReduceSum<keepdims=0>(x, a)",
        "float[N]",
    ),
    "reduce squares": ("float[N]", "", "t = ReduceSumSquare<noop_with_empty_axes=1>(x)"),
    "reduce norm of one": ("float[N,1]", "int64[1] a = {1}", "t = ReduceL2(x, a)"),
    "max pool": ("float[1,1,4,4]", "", "t = MaxPool<kernel_shape=[1,2]>(x)", "float[1,1,4,3]"),
    "max pool strides": (
        "float[1,1,4,4]",
        "",
        "t = MaxPool<kernel_shape=[1,1],strides=[2,2]>(x)",
        "float[1,1,2,2]",
    ),
    "average pool pads": (
        "float[1,1,4,4]",
        "",
        "t = AveragePool<kernel_shape=[1,1],pads=[0,0,0,1],count_include_pad=1>(x)",
        "float[1,1,4,5]",
    ),
    "mul by a one that broadcasts": (
        "float[N,1]",
        "float[4] k = {1,1,1,1}",
        "t = Mul(x, k)",
        "float[N,4]",
    ),
    "mul of unknown size": ("float[N]", "float[1,1] k = {1}", "t = Mul(x, k)", "float[1,N]"),
    "mul of unknown dim": ("float[N]", "float[2] k = {1,1}", "t = Mul(x, k)", "float[A]"),
    "mul almost": ("float[2]", "float[2] k = {1,2}", "t = Mul(x, k)"),
    "one divided": ("float[N]", "float k = {1}", "t = Div(k, x)"),
    "one to the power": ("float[N]", "float k = {1}", "t = Pow(k, x)"),
    "integers rounded to double": ("int64[N]", "int64 k = {1}", "t = Pow(x, k)"),
    "add 0.0": ("float[N]", "float k = {0}", "t = Add(x, k)"),
    "sub -0.0": ("float[N]", "float k = {-0.0}", "t = Sub(x, k)"),
    "zero minus": ("float[N]", "float k = {0}", "t = Sub(k, x)"),
    "and false": ("bool[N]", "bool k = {0}", "t = And(x, k)"),
    "or true": ("bool[N]", "bool k = {1}", "t = Or(x, k)"),
    "xor true": ("bool[N]", "bool k = {1}", "t = Xor(x, k)"),
    "and broadcasts": ("bool[1]", "bool[3] k = {1,1,1}", "t = And(x, k)", "bool[3]"),
    "bitwise and": ("uint8[N]", "uint8 k = {127}", "t = BitwiseAnd(x, k)"),
    "shift": ("uint8[N]", "uint8 k = {1}", 't = BitShift<direction="LEFT">(x, k)'),
    "not": ("bool[N]", "", "t = Not(x)"),
    "where both": (
        "float[2]",
        "bool[2] c = {1,0}, float[2] k = {5,6}",
        "t = Where(c, x, k)",
    ),
    "where broadcasts": (
        "float[1]",
        "bool c = {1}, float[3] k = {5,6,7}",
        "t = Where(c, x, k)",
        "float[3]",
    ),
    "where of condition's shape": (
        "float[1]",
        "bool[2] c = {1,1}, float k = {5}",
        "t = Where(c, x, k)",
        "float[2]",
    ),
    "clip float": ("float[N]", "", "t = Clip(x)"),
    "clip cuts": ("int32[N]", "int32 l = {0}", "t = Clip(x, l)"),
    "max of two": ("float[N]", "float k = {1}", "t = Max(x, k)"),
}


@pytest.mark.parametrize("case", FIRES)
def test_removes(case: str) -> None:
    kind, consts, body = FIRES[case]
    check_pass(EliminateNoop(), model(kind, consts, body), gone(kind))


@pytest.mark.parametrize("case", KEEPS)
def test_keeps(case: str) -> None:
    kind, consts, body, *out = KEEPS[case]
    check_pass(EliminateNoop(), model(kind, consts, body, out=out[0] if out else None), None)


# ONNX Runtime adds up the branches of Where, which loses the sign of zero.
EXACT = [c for c, (kind, *_) in FIRES.items() if kind.startswith("float[") and "where" not in c]


@pytest.mark.parametrize("case", EXACT)
def test_same_bits(case: str) -> None:
    """The oracle takes 0.0 for -0.0; the pass promises more."""
    kind, consts, body = FIRES[case]
    source = ir.parse_text(model(kind, consts, body))
    sizes = [d if isinstance(d, int) else 7 for d in ir.dims(source.graph.inputs[0]) or ()]
    awkward = [0.0, -0.0, np.inf, -np.inf, 1e-45, -1e-45, 3.4e38, 1.0, -1.5]
    fed = np.resize(np.array(awkward, np.float32), sizes)
    with open_session(source) as session:
        got = session.run({"x": fed})["y"]
    assert got.tobytes() == fed.tobytes()


@pytest.mark.parametrize(
    ("opset", "kind", "consts", "body"),
    [
        (9, "float[N,4]", "", "t = Slice<starts=[0,0],ends=[9223372036854775807,4]>(x)"),
        (9, "float[N,4]", "", "t = Pad<pads=[0,0,0,0]>(x)"),
        (11, "float[N,4]", "", "t = Unsqueeze<axes: ints=[]>(x)"),
        (11, "float[2,4]", "", "t = Squeeze(x)"),
        (9, "float[1,1,4,4]", "float[4] s = {1,1,1,1}", "t = Upsample(x, s)"),
        (10, "float[1,1,4,4]", "float[4] s = {1,1,1,1}", "t = Resize(x, s)"),
        (11, "float[N,4]", "", "t = Split<axis=1>(x)"),
        (11, "float[N,1]", "", "t = ReduceSum<axes=[1]>(x)"),
    ],
)
def test_older_opsets(opset: int, kind: str, consts: str, body: str) -> None:
    check_pass(EliminateNoop(), model(kind, consts, body, opset=opset), gone(kind))


@pytest.mark.parametrize(
    ("opset", "kind", "body", "out"),
    [
        (9, "float[N,4]", "t = Slice<axes=[1],starts=[0],ends=[3]>(x)", "float[N,3]"),
        (9, "float[4]", "t = Pad<pads=[0,1]>(x)", "float[5]"),
        (11, "float[4]", "t = Unsqueeze<axes=[0]>(x)", "float[1,4]"),
        (8, "float[1,1,4,4]", "t = Upsample<scales=[1.0,1.0,2.0,2.0]>(x)", "float[1,1,8,8]"),
        (11, "float[N,4]", "t = ReduceSum(x)", "float[1,1]"),
        (6, "float[N]", "t = Cast<to=1>(x)", "float[N]"),
    ],
)
def test_older_opsets_keep(opset: int, kind: str, body: str, out: str) -> None:
    check_pass(EliminateNoop(), model(kind, "", body, opset=opset, out=out), None)


@pytest.mark.parametrize(
    ("first", "again"),
    [("Relu", "Relu"), ("Abs", "Abs"), ("Sign", "Sign"), ("Floor", "Ceil"), ("Round", "Floor")],
)
def test_idempotent_operators(first: str, again: str) -> None:
    check_pass(
        EliminateNoop(),
        model("float[N]", "", f"a = {first}(x) b = Sin(a) c = {again}(a) t = Add(b, c)"),
        f"""
        graph(%x: float[N]) {{
          %a = {first}(%x)
          %b = Sin(%a)
          %t = Add(%b, %a)
          %y = Identity(%t)
          return %y
        }}
        """,
        data=[{"x": np.array([-0.0, 0.0, np.nan, np.inf, -np.inf, 0.5, -1.5], np.float32)}],
    )


def test_abs_of_relu_is_not_relu() -> None:
    check_pass(EliminateNoop(), model("float[N]", "", "a = Abs(x) t = Relu(a)"), None)


def test_shared_inner_nodes_stay() -> None:
    check_pass(
        EliminateNoop(),
        """
        <ir_version: 8, opset_import: ["": 18]>
        g (float[N] x) => (float[N] y, float[N] z) { y = Neg(x) t = Neg(y) z = Exp(t) }
        """,
        """
        graph(%x: float[N]) {
          %y = Neg(%x)
          %z = Exp(%x)
          return %y, %z
        }
        """,
    )


def test_output_keeps_its_name() -> None:
    check_pass(
        EliminateNoop(),
        """
        <ir_version: 8, opset_import: ["": 18]>
        g (float[N] x) => (float[N] y) { a = Exp(x) y = Cast<to=1>(a) }
        """,
        """
        graph(%x: float[N]) {
          %y = Exp(%x)
          return %y
        }
        """,
    )


def test_output_that_is_an_input_gets_an_identity() -> None:
    check_pass(
        EliminateNoop(),
        """
        <ir_version: 8, opset_import: ["": 18]>
        g (float[N] x) => (float[N] y) { y = Cast<to=1>(x) }
        """,
        gone("float[N]"),
    )


def test_where_both_branches_are_one_value() -> None:
    check_pass(
        EliminateNoop(),
        """
        <ir_version: 8, opset_import: ["": 18]>
        g (float[2,3] x, bool[3] c) => (float[2,3] y) { t = Where(c, x, x) y = Exp(t) }
        """,
        """
        graph(%x: float[2,3], %c: bool[3]) {
          %y = Exp(%x)
          return %y
        }
        """,
    )


def test_where_condition_may_broadcast() -> None:
    check_pass(
        EliminateNoop(),
        """
        <ir_version: 8, opset_import: ["": 18]>
        g (float[2,3] x, bool[M,1,1] c) => (float[M,2,3] y) { t = Where(c, x, x) y = Exp(t) }
        """,
        None,
    )


def test_a_default_value_is_not_constant() -> None:
    check_pass(
        EliminateNoop(),
        """
        <ir_version: 8, opset_import: ["": 18]>
        g (float[N] x, float k = {1}) => (float[N] y) { t = Mul(x, k) y = Exp(t) }
        """,
        None,
    )


def test_max_pool_whose_indices_are_used() -> None:
    check_pass(
        EliminateNoop(),
        """
        <ir_version: 8, opset_import: ["": 18]>
        g (float[1,1,4,4] x) => (float[1,1,4,4] y, int64[1,1,4,4] i)
        { t, i = MaxPool<kernel_shape=[1,1]>(x) y = Exp(t) }
        """,
        None,
    )


def test_inside_of_subgraphs() -> None:
    check_pass(
        EliminateNoop(),
        """
        <ir_version: 8, opset_import: ["": 18]>
        g (float[N] x, bool c) => (float[N] y)
        {
            y = If (c) <
                then_branch = a () => (float[N] p) { q = Cast<to=1>(x) p = Exp(q) },
                else_branch = b () => (float[N] r) { r = Cast<to=1>(x) }
            >
        }
        """,
        """
        graph(%x: float[N], %c: bool[]) {
          %y = If(%c)
            else_branch:
              graph() {
                %r = Identity(%x)
                return %r
              }
            then_branch:
              graph() {
                %p = Exp(%x)
                return %p
              }
          return %y
        }
        """,
    )


def test_reasons_are_counted() -> None:
    result = check_pass(
        EliminateNoop(), model("float[N,1]", "float[4] k = {1,1,1,1}", "t = Mul(x, k)"), None
    )
    assert result.report.passes[0].declined == {"noop-one: it may broadcast": 1}
