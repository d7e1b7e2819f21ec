"""What the IR cannot hold passes through everything unchanged, with a remark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import graphopt
from graphopt import ExportError, FrontendError, PassManager, ir
from graphopt.runtime.session import open_session

PassesThrough = Callable[[onnx.ModelProto, str], ir.Model]
X = np.arange(4, dtype=np.float32)
HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def _neg() -> onnx.ModelProto:
    return parser.parse_model(HEAD + "g (float[4] x) => (float[4] y) { y = Neg(x) }")


def _add_sparse() -> onnx.ModelProto:
    proto = parser.parse_model(HEAD + "g (float[4] x) => (float[4] y) { y = Add(x, w) }")
    proto.graph.sparse_initializer.append(_sparse())
    return proto


def _sparse() -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.array([5, 6], np.float32), "w")
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0, 2]), "i"), [4])


def test_sparse_initializer(passes_through: PassesThrough) -> None:
    model = passes_through(_add_sparse(), "sparse")
    out = open_session(model).run({"x": X})["y"]
    assert out.tolist() == [5.0, 1.0, 8.0, 3.0]


def test_sparse_constant(passes_through: PassesThrough) -> None:
    proto = parser.parse_model(HEAD + "g (float[4] x) => (float[4] y) { y = Add(x, w) }")
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=_sparse()))
    passes_through(proto, "Sparse")


def test_training_information(passes_through: PassesThrough) -> None:
    proto = _neg()
    proto.training_info.add()
    passes_through(proto, "training information")


def test_map_as_input(passes_through: PassesThrough) -> None:
    kind = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    node = helper.make_node(
        "DictVectorizer", ["m"], ["y"], domain="ai.onnx.ml", int64_vocabulary=[1]
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_value_info("m", kind)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    passes_through(helper.make_model(graph, opset_imports=imports, ir_version=8), "map")


def test_subgraph_that_redefines_an_initializer(passes_through: PassesThrough) -> None:
    """ONNX Runtime computes with the outer one."""
    proto = parser.parse_model(
        HEAD
        + """g (float[1] x, bool c) => (float[1] y) <float[1] w = {9}> {
        y = If(c) <then_branch = t () => (float[1] p) <float[1] w = {1}> { p = Add(x, w) },
                   else_branch = e () => (float[1] q) { q = Mul(x, w) }>
    }"""
    )
    model = passes_through(proto, "redefines the initializer 'w'")
    feeds = {"x": np.zeros(1, np.float32), "c": np.array(True)}
    assert open_session(model).run(feeds)["y"].tolist() == [9.0]


@pytest.mark.parametrize("first", ["initializer", "Constant", "input"])
def test_constant_node_that_redefines_a_name(passes_through: PassesThrough, first: str) -> None:
    proto = parser.parse_model(HEAD + "g (float[1] x) => (float[1] y) { y = Add(x, w) }")
    tensor = numpy_helper.from_array(np.ones(1, np.float32), "w")
    if first == "initializer":
        proto.graph.initializer.append(tensor)
    elif first == "Constant":
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    else:
        proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1]))
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    passes_through(proto, "a Constant node bears the name of another constant")


def test_output_listed_twice_with_different_types(passes_through: PassesThrough) -> None:
    proto = _neg()
    proto.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"]))
    passes_through(proto, "output 'y' is listed twice")


@pytest.mark.parametrize("where", ["value", "operator", "producer"])
def test_names_that_are_not_utf8(where: str) -> None:
    """Tools of the time before write names in the encoding of their country."""
    proto = parser.parse_model(
        HEAD + "g (float[4] x) => (float[4] y) { AAAA = Abs(x) y = Neg(AAAA) }"
    )
    proto.producer_name = "BBBB"
    if where == "operator":
        proto.graph.node[0].op_type, proto.graph.node[0].domain = "CCCC", "private"
    old = {"value": b"AAAA", "operator": b"CCCC", "producer": b"BBBB"}[where]
    data = proto.SerializeToString(deterministic=True).replace(old, b"\xce\xd2\xb5\xc4")
    model = ir.load(data)
    assert ir.opaque(model) is not None
    assert ir.to_bytes(model) == data


def test_the_interface_of_an_opaque_model() -> None:
    proto = _add_sparse()
    proto.graph.input.append(helper.make_tensor_value_info("d", TensorProto.FLOAT, [1]))
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "d"))
    model = ir.load(proto)
    assert [v.name for v in ir.inputs(model)] == ["x"]
    assert [v.name for v in model.graph.outputs] == ["y"]
    assert ir.interface_difference(model, ir.load(proto)) is None
    assert "input" in (ir.interface_difference(model, ir.load(_neg())) or "")
    assert ir.dump(model).startswith("opaque model: sparse")
    assert ir.nbytes(model) == proto.ByteSize() == ir.source_bytes(model)


def test_pipelines_leave_it_alone(tmp_path: Path) -> None:
    proto = _add_sparse()
    result = PassManager("O2", oracle="end").run(ir.load(proto))
    assert ir.to_bytes(result.model) == proto.SerializeToString(deterministic=True)
    assert any("carried through unchanged" in r for r in result.report.remarks)
    graphopt.save(result.model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == proto.SerializeToString(deterministic=True)


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """An opaque model with external data in two files, one of them read from the middle."""
    proto = _add_sparse()
    for name, offset in (("one", 0), ("two", 8)):
        (tmp_path / f"{name}.bin").write_bytes(b"\1" * 8 + X.tobytes())
        tensor = proto.graph.initializer.add(name=name, dims=[4], data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        keys: dict[str, Any] = {"location": f"{name}.bin", "offset": offset, "length": 16}
        for key, value in keys.items():
            tensor.external_data.add(key=key, value=str(value))
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_external_data_moves_along(external: Path, tmp_path: Path) -> None:
    model = ir.load(external)
    assert "sparse" in (ir.opaque(model) or "")
    target = tmp_path / "sub" / "out.onnx"
    target.parent.mkdir()
    written = ir.save(model, target)
    assert written == [target, target.with_name("out.onnx.data")]
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(target).graph.initializer}
    assert tensors["two"].tolist() == X.tolist()
    assert tensors["one"].tobytes() == b"\1" * 8 + X.tobytes()[:8]
    assert (tmp_path / "one.bin").exists()


def test_external_data_in_place_again_and_again(external: Path) -> None:
    model = ir.load(external)
    counts = []
    for _ in range(5):
        ir.save(model, external)
        ir.save(ir.load(external), external)
        counts.append(len(list(external.parent.iterdir())))
    assert counts[1:] == [counts[-1]] * 4, "data files pile up"
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(external).graph.initializer}
    assert tensors["two"].tolist() == X.tolist()


def test_external_data_has_to_be_there(external: Path) -> None:
    (external.parent / "two.bin").unlink()
    with pytest.raises(FrontendError, match=r"m\.onnx: external data 'two\.bin' .* is missing"):
        ir.load(external)
    (external.parent / "two.bin").write_bytes(b"short")
    with pytest.raises(FrontendError, match=r"'two\.bin' is truncated: .* bytes 8 to 24, .* has 5"):
        ir.load(external)


def test_external_data_needs_a_directory(external: Path) -> None:
    data = external.read_bytes()
    with pytest.raises(FrontendError, match="load it from its path, or give its directory"):
        ir.load(data)
    assert ir.opaque(ir.load(data, directory=external.parent)) is not None


def test_an_opaque_model_cannot_be_written_without_its_weights() -> None:
    with pytest.raises(graphopt.GraphOptError, match="carried through"):
        ir.to_proto(ir.load(_add_sparse()), external=lambda _v, _p: True)
    assert issubclass(ExportError, graphopt.GraphOptError)
