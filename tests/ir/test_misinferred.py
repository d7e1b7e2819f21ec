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


ATTENTION = """g ({float} q, {float} k, {float} v) => (float[] y, float[] z) {{
    a, b, c, s = Attention{attributes}(q, k, v)
    y = Neg(a)
    z = Neg(s)
}}"""


@pytest.mark.parametrize("width", ["W", 6])
@pytest.mark.parametrize("product", [True, False])
@pytest.mark.parametrize("rank", [3, 4])
def test_attention_of_unknown_sizes(width: object, product: bool, rank: int) -> None:
    text = ATTENTION.format(
        float=f"float[B,S,{width}]" if rank == 3 else f"float[B,2,S,{width}]",
        attributes="<q_num_heads = 2, kv_num_heads = 2>" if rank == 3 else "",
    )
    if not product:
        text = text.replace(", b, c, s", "").replace("z = Neg(s)", "z = Abs(a)")
    model = load(text, 23)
    found = shapes(model)
    shape = (3, 5, 6) if rank == 3 else (3, 2, 5, 6)
    data = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    with open_session(model) as session:
        results = session.run(dict(zip("qkv", data, strict=True)))
    for name, result in results.items():
        inferred = found[name]
        assert inferred is not None
        pairs = zip(inferred, result.shape, strict=True)
        assert all(not isinstance(d, int) or d == n for d, n in pairs)
    assert all(n.op_type != "HiddenAttention" for n in model.graph)
    if width == 6 and not product:
        assert found["y"] == (("B", "S", 6) if rank == 3 else ("B", 2, "S", 6))
