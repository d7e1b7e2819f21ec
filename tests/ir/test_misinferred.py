"""Shapes that onnx infers wrongly are not believed."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

from graphopt import ir
from graphopt.runtime.session import open_session


def load(text: str, opset: int) -> ir.Model:
    head = f'<ir_version: 7, opset_import: ["": {opset}]>\n'
    return ir.load(parser.parse_model(head + text))


def shapes(model: ir.Model) -> dict[str, tuple[int | str | None, ...] | None]:
    return {v.name or "": ir.dims(v) for n in ir.all_nodes(model) for v in n.outputs}


@pytest.mark.parametrize("axes", ["[3, 2]", "[-1, -2]", "[-1, 2]"])
@pytest.mark.parametrize("opset", [7, 10, 11])
def test_axes_of_a_squeeze_in_any_order(axes: str, opset: int) -> None:
    text = f"g (float[1,5,1,1] x) => (float[a,b] y) {{ y = Squeeze<axes = {axes}>(x) }}"
    model = load(text, opset)
    assert shapes(model) == {"y": (1, 5)}
    with open_session(model) as session:
        found = session.run({"x": np.zeros((1, 5, 1, 1), np.float32)})
    assert found["y"].shape == (1, 5)
    assert [n.op_type for n in model.graph] == ["Squeeze"]


CUT = """g (float[N,4] x) => (float[a,b] y)
<int64[1] one = {1}, int64[1] two = {2}, int64[1] axis = {AXIS}> {
    cut = Slice(x, one, two, axis)
    y = Relu(cut)
}"""


def test_a_slice_in_opset_10_does_not_keep_a_symbol_it_cuts() -> None:
    for opset in (10, 11):
        found = shapes(load(CUT.replace("AXIS", "0"), opset))
        for name in ("cut", "y"):
            shape = found[name]
            assert shape is not None
            assert (shape[0] != "N", shape[1]) == (True, 4)


def test_a_slice_in_opset_10_keeps_the_symbols_it_does_not_cut() -> None:
    assert shapes(load(CUT.replace("AXIS", "1"), 10)) == {"cut": ("N", 1), "y": ("N", 1)}


def test_what_a_slice_in_opset_10_cuts_is_forgotten_in_subgraphs() -> None:
    model = load(
        """g (float[N,4] x, bool c) => (float[a,b] y) <int64[1] one = {1}, int64[1] axis = {0}> {
            cut = Slice(x, axis, one)
            y = If(c) <then_branch = t () => (float[a,b] p) { p = Neg(cut) },
                       else_branch = e () => (float[a,b] q) { q = Abs(cut) }> }""",
        10,
    )
    assert all("N" not in (shape or ()) for shape in shapes(model).values())


def test_a_name_that_one_input_uses_twice_says_nothing() -> None:
    text = "g (float[N,N] x, float[N] z) => (float[a,b] y) { t = Transpose(x) y = Add(t, z) }"
    model = load(text, 17)
    assert shapes(model)["t"] == ("%x[1]", "%x[0]")
    assert "N" not in (shapes(model)["y"] or ())
    assert [ir.dims(v) for v in model.graph.inputs] == [("N", "N"), ("N",)]


def test_a_name_that_two_inputs_share_is_believed() -> None:
    model = load("g (float[N,4] x, float[N,1] z) => (float[a,b] y) { y = Add(x, z) }", 17)
    assert shapes(model)["y"] == ("N", 4)


@pytest.mark.parametrize(("end", "left"), [(2**31 - 1, 3), (2**63 - 1, 3), (0, 2), (-9, 3)])
def test_backwards_to_the_largest_number(end: int, left: int) -> None:
    inputs = f"int64[1] a = {{2}}, int64[1] b = {{{end}}}, int64[1] d = {{0}}, int64[1] s = {{-1}}"
    model = load(f"g (float[5] x) => (float[n] y) <{inputs}> {{ y = Slice(x, a, b, d, s) }}", 13)
    assert shapes(model) == {"y": (left,)}
    with open_session(model) as session:
        assert session.run({"x": np.zeros(5, np.float32)})["y"].shape == (left,)
    assert [v.name for v in model.graph[0].inputs] == ["x", "a", "b", "d", "s"]
