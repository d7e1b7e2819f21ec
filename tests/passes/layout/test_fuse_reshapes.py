from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx
import pytest

from graphopt import PassManager, ir
from graphopt.passes.layout import FuseReshapes
from graphopt.runtime.oracle import Oracle
from graphopt.testing import check_pass

Rewrite = Callable[..., ir.Model]
HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def test_reshape_of_reshape() -> None:
    check_pass(
        FuseReshapes(),
        f"""
        {HEAD}
        g (float[N,3,4] x) => (float[A,B] y)
        <int64[2] s = {{-1,6}}, int64[2] t = {{-1,4}}>
        {{ a = Reshape(x, s) b = Reshape(a, t) y = Relu(b) }}
        """,
        """
        graph(%x: float[N,3,4]) {
          const %t: int64[2] = [-1, 4]
          %reshape = Reshape(%x, %t)
          %y = Relu(%reshape)
          return %y
        }
        """,
    )


def test_a_zero_refers_to_the_tensor_in_between() -> None:
    check_pass(
        FuseReshapes(),
        f"""
        {HEAD}
        g (float[N,T,8] x) => (float[A,B,C,D] y)
        <int64[3] s = {{0,0,8}}, int64[4] t = {{0,0,2,4}}, int64[4] u = {{0,0,4,2}}>
        {{ a = Reshape(x, s) b = Reshape(a, t) c = Reshape(b, u) y = Relu(c) }}
        """,
        """
        graph(%x: float[N,T,8]) {
          const %u: int64[4] = [0, 0, 4, 2]
          %reshape.1 = Reshape(%x, %u)
          %y = Relu(%reshape.1)
          return %y
        }
        """,
    )


def test_flatten_behind_squeeze() -> None:
    check_pass(
        FuseReshapes(),
        f"""
        {HEAD}
        g (float[N,16,1,1] x) => (float[N,16] y)
        <int64[2] axes = {{2,3}}>
        {{ a = Squeeze(x, axes) b = Flatten(a) y = Relu(b) }}
        """,
        """
        graph(%x: float[N,16,1,1]) {
          %flatten = Flatten(%x) {axis=1}
          %y = Relu(%flatten)
          return %y
        }
        """,
    )


@pytest.mark.parametrize(
    ("kind", "nodes", "ops"),
    [
        ("N,T,U", "a = Unsqueeze(x, one) b = Flatten<axis=2>(a)", ["Flatten"]),
        ("N,T,U", "a = Unsqueeze(x, one) b = Flatten<axis=-1>(a)", ["Flatten"]),
        ("N,T,U", "a = Unsqueeze(x, one) b = Flatten<axis=0>(a)", ["Flatten"]),
        ("N,1,T,U", "a = Squeeze(x, one) b = Flatten<axis=2>(a)", ["Flatten"]),
        ("N,1,T", "a = Squeeze(x, one) b = Flatten(a) c = Relu(b)", ["Flatten", "Relu"]),
        ("N,T", "a = Unsqueeze(x, one) b = Flatten(a) c = Relu(b)", ["Relu"]),
        ("N,T", "a = Unsqueeze(x, one) b = Flatten<axis=2>(a) c = Relu(b)", ["Relu"]),
    ],
)
def test_flatten_of_unknown_sizes(rewrite: Rewrite, kind: str, nodes: str, ops: list[str]) -> None:
    model = rewrite(
        FuseReshapes(),
        f"""
        g (float[{kind}] x) => (float[] {"c" if "c =" in nodes else "b"})
        <int64[1] one = {{1}}>
        {{ {nodes} }}
        """,
    )
    assert [n.op_type for n in model.graph] == ops


def test_unsqueeze_of_unsqueeze() -> None:
    check_pass(
        FuseReshapes(),
        f"""
        {HEAD}
        g (float[A,B,C] x) => (float[P,Q,R,S,T] y)
        <int64[1] one = {{1}}, int64[1] last = {{-1}}>
        {{ a = Unsqueeze(x, one) b = Unsqueeze(a, last) y = Relu(b) }}
        """,
        """
        graph(%x: float[A,B,C]) {
          const %axes: int64[2] = [1, 4]
          %unsqueeze = Unsqueeze(%x, %axes)
          %y = Relu(%unsqueeze)
          return %y
        }
        """,
    )


def test_squeeze_of_squeeze_before_axes_were_inputs() -> None:
    check_pass(
        FuseReshapes(),
        """
        <ir_version: 7, opset_import: ["": 11]>
        g (float[A,1,B,1] x) => (float[P,Q] y)
        { a = Squeeze<axes=[1]>(x) b = Squeeze<axes=[-1]>(a) y = Relu(b) }
        """,
        """
        graph(%x: float[A,1,B,1]) {
          %squeeze = Squeeze(%x) {axes=[1, 3]}
          %y = Relu(%squeeze)
          return %y
        }
        """,
    )


@pytest.mark.parametrize(
    ("kind", "nodes"),
    [
        ("A,B", "a = Unsqueeze(x, one) b = Squeeze(a, one)"),
        ("A,B", "a = Unsqueeze(x, one) b = Squeeze(a, minus2)"),
        ("A,1,B", "a = Squeeze(x, one) b = Unsqueeze(a, one)"),
        ("N,3,4", "a = Flatten(x) b = Reshape(a, n34)"),
        ("N,3,4", "a = Reshape(x, n12) b = Reshape(a, n34)"),
        ("2,3,4", "a = Reshape(x, all) b = Reshape(a, n34)"),
        ("N,12", "a = Reshape(x, n34) b = Flatten(a)"),
        ("N,T,4", "a = Reshape(x, flat4) b = Unsqueeze(a, one) c = Squeeze(b, one) b1 = Relu(c)"),
        ("3,1,4", "a = Transpose<perm=[1,0,2]>(x) b = Reshape(a, s314)"),
        ("N,1,4", "a = Reshape(x, n41) b = Transpose<perm=[0,2,1]>(a)"),
    ],
)
def test_nothing_is_left(rewrite: Rewrite, kind: str, nodes: str) -> None:
    last = "b1" if "b1" in nodes else "b"
    model = rewrite(
        FuseReshapes(),
        f"""
        g (float[{kind}] x) => (float[] y)
        <int64[1] one = {{1}}, int64[1] minus2 = {{-2}}, int64[3] n34 = {{-1,3,4}},
         int64[2] n12 = {{-1,12}}, int64[1] all = {{-1}}, int64[2] flat4 = {{-1,4}},
         int64[3] s314 = {{3,1,4}}, int64[3] n41 = {{-1,4,1}}>
        {{ {nodes} y = Neg({last}) }}
        """,
    )
    expected = ["Reshape", "Relu", "Neg"] if "flat4" in nodes else ["Neg"]
    assert [n.op_type for n in model.graph] == expected


@pytest.mark.parametrize("opset", [7, 11, 13, 17])
def test_every_version(rewrite: Rewrite, opset: int) -> None:
    old = opset < 13
    model = rewrite(
        FuseReshapes(),
        f"""
        g (float[N,3,4] x) => (float[] y)
        <int64[1] one = {{1}}, int64[3] s = {{-1,4,3}}>
        {{
          a = Unsqueeze{"<axes=[1]>(x)" if old else "(x, one)"}
          b = Reshape(a, s)
          y = Flatten(b)
        }}
        """,
        opset=opset,
    )
    assert len(model.graph) == 1


def test_inner_result_used_elsewhere() -> None:
    check_pass(
        FuseReshapes(),
        f"""
        {HEAD}
        g (float[A,B] x) => (float[A,B] y, float[A,C,B] z)
        <int64[1] one = {{1}}>
        {{ a = Unsqueeze(x, one) b = Squeeze(a, one) y = Relu(b) z = Neg(a) }}
        """,
        """
        graph(%x: float[A,B]) {
          const %one: int64[1] = [1]
          %a = Unsqueeze(%x, %one)
          %y = Relu(%x)
          %z = Neg(%a)
          return %y, %z
        }
        """,
    )


def test_graph_output_keeps_its_name() -> None:
    check_pass(
        FuseReshapes(),
        f"""
        {HEAD}
        g (float[2,3] x) => (float[3,2] y)
        <int64[1] s = {{6}}, int64[2] t = {{3,2}}>
        {{ a = Reshape(x, s) y = Reshape(a, t) }}
        """,
        """
        graph(%x: float[2,3]) {
          const %t: int64[2] = [3, 2]
          %y = Reshape(%x, %t)
          return %y
        }
        """,
    )


@pytest.mark.parametrize(
    ("kind", "nodes", "reason"),
    [
        ("N,12", "a = Reshape(x, given) b = Reshape(a, n12)", "at run time"),
        ("N,12", "a = Reshape(x, n34) b = Reshape(a, given)", "at run time"),
        ("N,12", "a = Unsqueeze(x, ax) b = Reshape(a, n12)", "at run time"),
        ("N,T,U,V", "a = Flatten<axis=2>(x) b = Unsqueeze(a, one)", "more than one dimension"),
        # With N = 0 a Reshape could not tell T * 4.
        ("N,3,T,4", "a = Reshape(x, s034) b = Flatten(a)", "may be empty"),
        ("N,3,4", "a = Reshape(x, n12) b = Reshape(a, n26) c = Relu(a)", "something else"),
        ("N,3,4", "a = Transpose<perm=[0,2,1]>(x) b = Reshape(a, n12)", ""),
        ("N,3,4", "a = Reshape(x, n12) b = Transpose(a)", ""),
        ("0,4", "a = Reshape(x, z22) b = Unsqueeze(a, one)", "empty"),
        ("A,1,B", "a = Squeeze(x) b = Unsqueeze(a, one)", "size of every dimension"),
        ("", "a = Unsqueeze(x, one) b = Unsqueeze(a, one)", "rank"),
    ],
)
def test_declines(declined: Callable[[Any], str], kind: str, nodes: str, reason: str) -> None:
    outputs = "float[] b, float[] c" if "c = Relu(a)" in nodes else "float[] b"
    text = f"""
        {HEAD}
        g (float[{kind}] x, int64[2] given, int64[1] ax) => ({outputs})
        <int64[1] one = {{1}}, int64[3] n34 = {{-1,3,4}}, int64[2] n12 = {{-1,12}},
         int64[2] n26 = {{-1,6}}, int64[3] z22 = {{0,2,2}}, int64[4] s034 = {{0,3,0,4}}>
        {{ {nodes} }}
        """
    assert reason in declined(check_pass(FuseReshapes(), text, None))


@st.composite
def chains(draw: st.DrawFn) -> tuple[str, str, dict[str, list[int]]]:
    """A shape, nodes one behind the other, and the constants they take."""
    kind = draw(st.sampled_from(["2,3,4", "N,3,4", "1,N,6", "N,1,T", "2,1,1,3", "N,T,2,2", ""]))
    rank = kind.count(",") + 1 if kind else 0
    nodes, constants, value = "", {}, "x"
    for i in range(draw(st.integers(2, 4))):
        op = draw(st.sampled_from(["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"]))
        out, argument, attributes = f"v{i}", "", ""
        axis = st.integers(-rank - 1, rank)
        if op == "Reshape":
            numbers = st.sampled_from([-1, 0, 0, 1, 2, 3, 4, 6, 12])
            constants[f"c{i}"] = draw(st.lists(numbers, min_size=1, max_size=4))
            rank = len(constants[f"c{i}"])
        elif op == "Flatten":
            attributes = f"<axis={draw(st.integers(-rank, rank))}>"
            rank = 2
        elif op == "Transpose":
            perm = draw(st.permutations(range(rank)))
            attributes = f"<perm=[{','.join(map(str, perm))}]>" if perm else ""
        else:
            constants[f"c{i}"] = draw(st.lists(axis, min_size=1, max_size=2, unique=True))
            rank += len(constants[f"c{i}"]) * (1 if op == "Unsqueeze" else -1)
            hypothesis.assume(rank >= 0)
        if f"c{i}" in constants:
            argument = f", c{i}"
        nodes += f" {out} = {op}{attributes}({value}{argument})"
        value = out
    return kind, f"{nodes} y = Relu({value})", constants


@hypothesis.given(chain=chains())
@hypothesis.settings(
    max_examples=300,
    suppress_health_check=[hypothesis.HealthCheck.filter_too_much, hypothesis.HealthCheck.too_slow],
)
def test_any_chain(chain: tuple[str, str, dict[str, list[int]]]) -> None:
    kind, nodes, constants = chain
    shape = f"[{kind}]" if kind else ""
    proto = onnx.parser.parse_model(f"{HEAD} g (float{shape} x) => (float[] y) {{ {nodes} }}")
    for name, numbers in constants.items():
        array = np.array(numbers, np.int64)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.load(proto)
    empty = [0 if d.isalpha() else int(d) for d in kind.split(",")] if kind else []
    oracle = Oracle(model, data=[{"x": np.zeros(empty, np.float32)}])
    hypothesis.assume(oracle.available)
    result = PassManager(FuseReshapes(), on_mismatch="raise", objective=None).run(model)
    found = oracle.check(result.model, FuseReshapes.exactness)
    assert found.ok, f"{found.reason}\n{ir.dump(model)}\n{ir.dump(result.model)}"
