from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import PassManager, ir
from graphopt.passes.cleanup import DeduplicateInitializers
from graphopt.testing import check_pass


def model_of(*tensors: TensorProto) -> ir.Model:
    """A model with these initializers, each the first input of an Identity."""
    graph = helper.make_graph(
        [helper.make_node("Identity", [t.name], [f"y_{t.name}"]) for t in tensors],
        "g",
        [],
        [helper.make_tensor_value_info(f"y_{t.name}", t.data_type, t.dims) for t in tensors],
        list(tensors),
    )
    imports = [helper.make_opsetid("", 24)]
    return ir.load(helper.make_model(graph, opset_imports=imports, ir_version=11))


def kept(*tensors: TensorProto, **options: int) -> list[str]:
    """Names of the initializers that the pass leaves."""
    result = PassManager(DeduplicateInitializers(**options)).run(model_of(*tensors))
    ir.verify(result.model)
    before = {o.name: ir.const(o.producer().inputs[0]) for o in model_of(*tensors).graph.outputs}  # type: ignore[union-attr]
    for out in result.model.graph.outputs:
        node = out.producer()
        assert node is not None
        found, wanted = ir.const(node.inputs[0]), before[out.name]
        assert found is not None
        assert wanted is not None
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        if found.dtype != ir.DataType.STRING:
            assert found.tobytes() == wanted.tobytes()
    return sorted(result.model.graph.initializers)


def array(name: str, *values: float, dtype: str = "float32") -> TensorProto:
    return numpy_helper.from_array(np.array(values, dtype), name)


def test_equal_constants() -> None:
    result = check_pass(
        DeduplicateInitializers(),
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N,2] x) => (float[N,2] y)
        <float[2] a = {1,2}, float[2] b = {1,2}, float[2] c = {1,3}>
        { t = Mul(x, a) u = Add(t, b) y = Div(u, c) }
        """,
        """
        graph(%x: float[N,2]) {
          const %a: float[2]
          const %c: float[2]
          %t = Mul(%x, %a)
          %u = Add(%t, %a)
          %y = Div(%u, %c)
          return %y
        }
        """,
    )
    assert result.report.passes[0].rewrites == {"share": 1}


def test_bits_decide() -> None:
    assert kept(array("a", 0.0), array("b", -0.0)) == ["a", "b"]
    quiet, other = np.array([0x7FC00000], np.uint32), np.array([0x7FC00001], np.uint32)
    nan = [numpy_helper.from_array(v.view(np.float32), n) for v, n in ((quiet, "a"), (other, "b"))]
    assert kept(*nan) == ["a", "b"]
    same = [numpy_helper.from_array(quiet.view(np.float32), n) for n in "ab"]
    assert kept(*same) == ["a"]


def test_type_and_shape_decide() -> None:
    one = np.ones(4, np.float32)
    assert kept(array("a", 1, 1), array("b", 1, 1, dtype="float64")) == ["a", "b"]
    assert kept(array("a", 0, 0, dtype="int32"), array("b", 0, 0)) == ["a", "b"]
    assert kept(
        numpy_helper.from_array(one, "a"), numpy_helper.from_array(one.reshape(2, 2), "b")
    ) == ["a", "b"]


def test_how_the_data_is_stored_does_not_matter() -> None:
    raw = array("a", 1, 2, 3)
    fields = helper.make_tensor("b", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    assert fields.float_data
    assert kept(raw, fields) == ["a"]


@pytest.mark.parametrize("at", [0, 70, 5_000, 9_999])
def test_one_element_of_many(at: int) -> None:
    """Also where the sample does not see it."""
    data = np.arange(10_000, dtype=np.int16)
    other = data.copy()
    other[at] += 1
    tensors = [numpy_helper.from_array(v, n) for v, n in ((data, "a"), (other, "b"), (data, "c"))]
    assert kept(*tensors) == ["a", "b"]


def test_strings() -> None:
    def text(name: str, *values: bytes) -> TensorProto:
        return TensorProto(
            name=name, data_type=TensorProto.STRING, dims=[len(values)], string_data=values
        )

    assert kept(text("a", b"x", b"y"), text("b", b"x", b"y"), text("c", b"x", b"z")) == ["a", "c"]
    assert kept(text("a", b"x"), text("b", b"x\0")) == ["a", "b"]
    assert kept(text("a", b"xy", b""), text("b", b"x", b"y")) == ["a", "b"]


@pytest.mark.parametrize(
    "kind",
    [TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT8E4M3FN, TensorProto.BFLOAT16],
)
def test_small_types(kind: int) -> None:
    tensors = [
        helper.make_tensor(name, kind, [3], values)
        for name, values in (("a", [1, 2, 3]), ("b", [1, 2, 3]), ("c", [1, 2, 4]))
    ]
    assert kept(*tensors) == ["a", "c"]


def test_empty_and_scalar() -> None:
    assert kept(array("a"), array("b")) == ["a"]
    scalars = [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in (("a", 3), ("b", 3))]
    assert kept(*scalars) == ["a"]


def test_min_bytes() -> None:
    tensors = [array("a", 1, 2), array("b", 1, 2), array("c", 1, 2, 3), array("d", 1, 2, 3)]
    assert kept(*tensors, min_bytes=9) == ["a", "b", "c"]


def test_defaults_of_inputs_stay() -> None:
    check_pass(
        DeduplicateInitializers(),
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N] x, float a = {1}) => (float[N] y) <float b = {1}>
        { t = Mul(x, a) y = Add(t, b) }
        """,
        None,
    )


def test_scopes() -> None:
    """A branch uses the constant of the main graph, and its own rather than its sibling's."""
    check_pass(
        DeduplicateInitializers(),
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N] x, bool c) => (float[N] y) <float k = {1}>
        {
            a = Mul(x, k)
            y = If (c) <
                then_branch = t () => (float[N] p) <float k1 = {1}, float m1 = {2}>
                    { q = Add(a, k1) p = Mul(q, m1) },
                else_branch = e () => (float[N] r) <float k2 = {1}, float m2 = {2}, float m3 = {2}>
                    { s = Sub(a, k2) u = Mul(s, m2) r = Mul(u, m3) }
            >
        }
        """,
        """
        graph(%x: float[N], %c: bool[]) {
          const %k: float[]
          %a = Mul(%x, %k)
          %y = If(%c)
            else_branch:
              graph() {
                const %m2: float[]
                %s = Sub(%a, %k)
                %u = Mul(%s, %m2)
                %r = Mul(%u, %m2)
                return %r
              }
            then_branch:
              graph() {
                const %m1: float[]
                %q = Add(%a, %k)
                %p = Mul(%q, %m1)
                return %p
              }
          return %y
        }
        """,
    )


def test_external_data(tmp_path: Path) -> None:
    """Weights in a file are compared there, and the result saves like any other."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((300, 301)).astype(np.float32)
    other = weight.copy()
    other[150, 7] += 1
    nodes, tensors = [], []
    for i, data in enumerate((weight, other, weight)):
        tensors.append(numpy_helper.from_array(data, f"w{i}"))
        nodes.append(helper.make_node("Add", ["x" if i == 0 else f"t{i - 1}", f"w{i}"], [f"t{i}"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [300, 301])],
        [helper.make_tensor_value_info("t2", TensorProto.FLOAT, [300, 301])],
        tensors,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "in.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="weights", size_threshold=0)
    result = PassManager(DeduplicateInitializers(), oracle="each", on_mismatch="raise").run(
        ir.load(path)
    )
    assert sorted(result.model.graph.initializers) == ["w0", "w1"]
    assert result.report.oracle["verdict"] == "equal"
    ir.save(result.model, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_size < 2.1 * weight.nbytes


@pytest.mark.parametrize("opset", [9, 13, 14, 17])
def test_running_statistics_of_a_normalization_that_trains(opset: int) -> None:
    """ONNX Runtime writes the new statistics over the old ones, wherever those are."""
    outputs, mode = ("a, m, v", "<training_mode = 1>") if opset >= 14 else ("a, m, v, s, t", "")
    text = f"""<ir_version: 7, opset_import: ["": {opset}]>
    g (float[2,3] x) => (float[2,3] y) <float[3] scale = {{1, 1, 1}}, float[3] bias = {{0, 0, 0}},
        float[3] mean = {{0, 0, 0}}, float[3] var = {{1, 1, 1}}> {{
        {outputs} = BatchNormalization{mode}(x, scale, bias, mean, var)
        y = Relu(a)
    }}"""
    check_pass(DeduplicateInitializers(), text, None)
