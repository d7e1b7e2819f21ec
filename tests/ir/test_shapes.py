"""Inferred shapes and types are never wrong, and bad declarations do not get in their way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

from graphopt import ir
from graphopt.ir.random_model import random_model
from graphopt.runtime.probe import probe_feeds
from graphopt.runtime.session import open_session

HEAD = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1, "private": 1]>'


def parse(graph: str) -> ir.Model:
    return ir.parse_text(HEAD + graph)


def made(model: ir.Model) -> dict[str, tuple[int | str | None, ...] | None]:
    """Dimensions of what the nodes of the main graph produce."""
    return {v.name or "": ir.dims(v) for n in model.graph for v in n.outputs}


# Against the truth ------------------------------------------------------------------------------


def assert_true(model: ir.Model, feeds: dict[str, Any]) -> int:
    """Compare every inferred shape and type with what ONNX Runtime computes; count the shapes."""
    proto = onnx.ModelProto()
    proto.CopyFrom(ir.to_proto(model, external=lambda _v, _p: False))
    listed = {o.name for o in proto.graph.output}
    values = {v.name or "": v for n in model.graph for v in n.outputs if v.name and n.domain == ""}
    proto.graph.output.extend(onnx.ValueInfoProto(name=k) for k in values if k not in listed)
    found = open_session(proto).run(feeds)
    # A symbol stands for one size, wherever it occurs.
    sizes: dict[str, int] = {}
    for value in model.graph.inputs:
        for d, n in zip(ir.dims(value) or (), np.shape(feeds.get(value.name or "")), strict=False):
            if isinstance(d, str):
                assert sizes.setdefault(d, n) == n
    count = 0
    for name, value in values.items():
        array, dims = found[name], ir.dims(value)
        if not isinstance(array, np.ndarray):
            assert dims is None
            continue
        if array.dtype != object:
            assert value.dtype is not None
            assert array.dtype == value.dtype.numpy(), name
        if dims is None:
            continue
        count += 1
        assert len(dims) == array.ndim, name
        for d, n in zip(dims, array.shape, strict=True):
            if isinstance(d, int):
                assert d == n, name
            elif d is not None:
                assert sizes.setdefault(d, n) == n, f"{name}: {d}"
    return count


def settings(model: ir.Model) -> Iterator[dict[str, Any]]:
    session = open_session(model)

    def runs(feeds: Any) -> bool:
        try:
            session.run(feeds)
        except Exception:  # noqa: BLE001 - whether it runs is the question
            return False
        return True

    found = probe_feeds(model, settings=2, runs=runs)
    assert found
    yield from found


@pytest.mark.parametrize("seed", range(12))
def test_random_models(seed: int) -> None:
    model = random_model(seed)
    for feeds in settings(model):
        assert assert_true(model, feeds)


def test_trained_models(models_dir: Path) -> None:
    entries = json.loads((models_dir / "manifest.json").read_text())
    assert entries
    for path in sorted(models_dir.glob("*.onnx")):
        model = ir.load(path)
        for feeds in settings(model):
            assert assert_true(model, feeds) > 10


@pytest.mark.slow
def test_shared_models(shared_data: Path) -> None:
    for path in sorted((shared_data / "models").glob("*.onnx")):
        model = ir.load(path)
        for feeds in settings(model):
            assert assert_true(model, feeds) > 0


# Declarations -----------------------------------------------------------------------------------


def test_lying_value_info() -> None:
    model = parse(
        "g (float[2,3] x) => (float[3,2] y) <float[9,9] t> { t = Transpose(x) y = Neg(t) }"
    )
    assert made(model) == {"t": (3, 2), "y": (3, 2)}


def test_lying_value_info_of_a_branch() -> None:
    model = parse("""g (float[2,3] x, bool c) => (float[a,b] y) {
        y = If(c) <then_branch = t () => (float[8] p) <float[7] s> { s = Neg(x) p = Abs(s) },
                   else_branch = e () => (float[6,6] q) { q = Exp(x) }> }""")
    assert made(model)["y"] == (2, 3)
    inner = [ir.dims(v) for g in ir.subgraphs(model.graph[0]) for n in g for v in n.outputs]
    assert inner == [(2, 3)] * 3


def test_lying_outputs_are_not_believed_and_not_corrected() -> None:
    proto = parser.parse_model(HEAD + "g (float[2,3] x) => (float[9] y) { t = Neg(x) y = Abs(t) }")
    model = ir.load(proto)
    assert made(model)["y"] == (2, 3)
    assert ir.to_proto(model, external=lambda _v, _p: False).graph.output == proto.graph.output


def test_declared_shapes_of_unknown_operators_count() -> None:
    model = parse("""g (float[2,3] x) => (float[n,m] y) <float[2,5] a, float[k] b> {
        a = private.Mystery(x) b = com.microsoft.Nothing(a) y = Relu(a) }""")
    assert made(model) == {"a": (2, 5), "b": ("k",), "y": (2, 5)}
    ir.infer_shapes(model)
    assert made(model) == {"a": (2, 5), "b": ("k",), "y": (2, 5)}


def test_negative_and_empty_dims_are_unknown() -> None:
    proto = parser.parse_model(
        HEAD + "g (float[2,3] x) => (float[2,3] y) { t = Neg(x) y = Abs(t) }"
    )
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    dims[0].dim_value, dims[1].dim_param = -1, ""
    first, second = made(ir.load(proto))["t"] or ()
    assert not isinstance(first, int)
    assert not isinstance(second, int)


def test_two_unknown_dims_are_not_the_same() -> None:
    """-1 is not a size: comparing two of them must not fold to true."""
    model = parse("""g (float[-1,-1] x) => (bool[1] y) {
        s = Shape(x) a = Gather(s, zero) b = Gather(s, one) y = Equal(a, b)
        zero = Constant<value_ints=[0]>() one = Constant<value_ints=[1]>() }""")
    assert ir.dims(model.graph.inputs[0]) == (None, None)
    assert made(model)["y"] == (1,)


def test_defaults_that_callers_override_do_not_count() -> None:
    proto = parser.parse_model(
        HEAD
        + """g (float[4] x, int64[2] s) => (float[a,b] z) <int64[2] s = {2,2}> {
            y = Reshape(x, s) z = Neg(y) }"""
    )
    model = ir.load(proto)
    assert all(not isinstance(d, int) for d in made(model)["y"] or ())
    session = open_session(ir.to_proto(model, external=lambda _v, _p: False))
    x = np.zeros(4, np.float32)
    assert session.run({"x": x, "s": np.array([4, 1])})["z"].shape == (4, 1)


def test_sizes_computed_from_shapes() -> None:
    model = parse("""g (float[N,3,4] x) => (float[a,b] y) {
        s = Shape(x) n = Gather<axis=0>(s, zero) m = Constant<value_ints=[12]>()
        target = Concat<axis=0>(n, m) y = Reshape(x, target) zero = Constant<value_ints=[0]>() }""")
    assert made(model)["y"] == ("N", 12)


# Subgraphs --------------------------------------------------------------------------------------


def test_loop_whose_state_grows() -> None:
    model = parse("""g (float[1] x, int64 k) => (float[n] y, float[m] z) {
        y, z = Loop(k, , x) <body =
            b (int64 i, bool c, float[1] s) => (bool on, float[2] r, float[1] o) {
            on = Identity(c) r = Concat<axis=0>(s, x) o = ReduceSum<keepdims=1>(r)
        }> }""")
    loop = model.graph[0]
    assert not isinstance((ir.dims(loop.outputs[0]) or (None,))[0], int)
    (body,) = ir.subgraphs(loop)
    state = ir.dims(body.inputs[2])
    assert state is None or not isinstance(state[0], int)
    for value in (v for n in body for v in n.outputs if v.name == "r"):
        assert not isinstance((ir.dims(value) or (None,))[0], int)
    out = open_session(model).run({"x": np.ones(1, np.float32), "k": np.array(3)})
    assert out["y"].shape == (4,)


def test_branches_of_different_shapes() -> None:
    model = parse("""g (float[2,3] x, bool c) => (float[a,b] y) {
        y = If(c) <then_branch = t () => (float[2,3] p) { p = Neg(x) },
                   else_branch = e () => (float[3,2] q) { q = Transpose(x) }> }""")
    dims = made(model)["y"]
    assert dims is None or not any(isinstance(d, int) for d in dims)


def test_scan_slices_its_inputs() -> None:
    model = parse("""g (float[4] s, float[3,4] x) => (float[a] y, float[b,c] z) {
        y, z = Scan(s, x) <num_scan_inputs = 1, body =
            b (float[4] p, float[4] q) => (float[4] r, float[4] o) {
            r = Add(p, q) o = Abs(r) }> }""")
    assert made(model) == {"y": (4,), "z": (3, 4)}


# Robustness -------------------------------------------------------------------------------------


def test_one_operator_that_onnx_cannot_digest_hides_nothing_else() -> None:
    """The shape of a broadcast that fails is unknown; the rest of the graph has its shapes."""
    model = parse("""g (float[2] a, float[3] b, float[5] x) => (float[n] y, float[m] z) {
        y = Add(a, b) t = Neg(x) z = Abs(t) }""")
    assert made(model)["t"] == (5,)


def test_large_integer_vectors_do_not_become_symbols() -> None:
    """onnx invents a symbol for each element of an input that may be a shape."""
    model = parse(
        "g (float[4] x, int64[4611686018427387904] s) => (float[n] y) { y = Slice(x, s, s) }"
    )
    assert ir.static_shape(model.graph.inputs[1]) == (1 << 62,)


def test_weights_do_not_travel() -> None:
    """Only tensors that can be a shape are handed to onnx with their data."""
    model = parse("g (float[1000] x) => (float[1000] y) { y = Neg(x) }")
    read = []

    class Counting(ir.Tensor):
        def tobytes(self) -> bytes:
            read.append(self.name)
            return super().tobytes()

        def numpy(self) -> Any:
            read.append(self.name)
            return super().numpy()

    for name, size in (("large", 1000), ("small", 3)):
        value = ir.Value(name=name, const_value=Counting(np.zeros(size, np.float32), name=name))
        model.graph.initializers[name] = value
    ir.infer_shapes(model)
    assert set(read) == {"small"}


def test_types_are_inferred_along() -> None:
    model = parse(
        """g (float[4] x) => (int64[n] y) {
            h = Cast<to=10>(x) b = Less(h, h) i = Cast<to=7>(b) y = Neg(i) }"""
    )
    assert [n.outputs[0].dtype for n in model.graph] == [
        ir.DataType.FLOAT16, ir.DataType.BOOL, ir.DataType.INT64, ir.DataType.INT64,
    ]  # fmt: skip


def test_a_changed_model_is_inferred_anew() -> None:
    model = parse("g (float[2,3] x) => (float[a,b] y) { t = Transpose(x) y = Neg(t) }")
    model.graph[0].attributes["perm"] = ir.make_attr("perm", (0, 1))
    ir.infer_shapes(model)
    assert made(model) == {"t": (2, 3), "y": (2, 3)}


def test_sequence_values_have_no_shape() -> None:
    seq = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    node = helper.make_node("SplitToSequence", ["x"], ["s"], keepdims=1)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])], [seq]
    )
    model = ir.load(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )
    value = model.graph.outputs[0]
    assert (ir.dims(value), ir.rank(value), ir.static_shape(value)) == (None, None, None)
