"""What onnx_ir gets wrong, and that graphopt does not pass it on.

Each test first shows the trap in the installed onnx_ir. Where that part fails after an upgrade, the
trap is gone, and so may be the remedy (docs/adr/0002-onnx-ir-storage.md).
"""

from __future__ import annotations

import copy
import gc
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from graphopt import FrontendError, StructureError, ir
from graphopt.rewrite import Rewriter

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def chain(length: int) -> onnx.ModelProto:
    names = ["x", *(f"t{i}" for i in range(length - 1)), "y"]
    nodes = [helper.make_node("Neg", [a], [b]) for a, b in itertools.pairwise(names)]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def external(folder: Path, count: int, size: int = 4) -> Path:
    """A model with ``count`` tensors in one data file, tensor ``i`` filled with ``i``."""
    proto = chain(1)
    data = np.repeat(np.arange(count, dtype=np.float32), size)
    for i in range(count):
        tensor = proto.graph.initializer.add(name=f"w{i}", dims=[size], data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "m.bin"), ("offset", 4 * size * i), ("length", 4 * size)):
            tensor.external_data.add(key=key, value=str(value))
    (folder / "m.bin").write_bytes(data.tobytes())
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_1_a_map_and_a_descriptor_per_tensor(tmp_path: Path) -> None:
    path = external(tmp_path, 200)
    code = """
import resource, sys
import onnx_ir
from graphopt import ir
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
model = ir.load(sys.argv[1])
assert [float(ir.array(v)[0]) for v in model.graph.initializers.values()] == list(range(200))
ir.save(model, sys.argv[2], external_data=True)
try:
    for v in onnx_ir.load(sys.argv[1]).graph.initializers.values():
        v.const_value.numpy()
except OSError as e:
    print("trap", e.errno)
"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(path), str(tmp_path / "out.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "trap 24\n"


def test_1_models_of_onnx_ir_are_mapped_once_too(tmp_path: Path) -> None:
    source = onnx_ir.load(external(tmp_path, 8))
    tensors = [v.const_value for v in ir.load(source).graph.initializers.values()]
    bases = {id(_base(t.numpy())) for t in tensors if t is not None}
    assert len(bases) == 1
    assert all(
        isinstance(v.const_value, onnx_ir.ExternalTensor)
        for v in source.graph.initializers.values()
    )


def _base(array: np.ndarray) -> object:
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array


def test_2_types_shared_between_values() -> None:
    a, b = onnx_ir.Value(name="a"), onnx_ir.Value(name="b")
    a.type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    b.type = a.type
    b.dtype = onnx_ir.DataType.UINT8
    assert a.dtype == onnx_ir.DataType.UINT8  # the trap
    model = ir.load(chain(20))
    copies = [model, ir.clone(model), ir.load(model)]
    types = [v.type for m in copies for v in m.graph.inputs]
    types += [v.type for m in copies for n in m.graph for v in n.outputs]
    assert len({id(t) for t in types}) == len(types) == 3 * 21


def test_3_replacing_a_value_by_what_is_computed_from_it() -> None:
    model = ir.load(chain(2))
    value = model.graph[0].outputs[0]
    node = onnx_ir.Node("", "Identity", [value])
    node.outputs[0].name = "same"
    model.graph.insert_after(model.graph[0], node)
    value.replace_all_uses_with(node.outputs[0])
    assert node.inputs[0] is node.outputs[0]  # the trap
    with pytest.raises(StructureError, match="%same is used before"):
        ir.verify(model)

    model = ir.load(chain(2))
    value = model.graph[0].outputs[0]
    rewriter = Rewriter(model)
    with rewriter.at(model.graph[1]):
        rewriter.replace(value, rewriter.op("Identity", value))
    ir.verify(model)
    assert [n.op_type for n in model.graph] == ["Neg", "Identity", "Neg"]


def test_4_names_made_up_per_graph() -> None:
    branch = "b () => (float[4] {0}) {{ {0} = Abs(x) }}"
    graph = f"""g (float[4] x, bool c) => (float[4] y) {{ val_0 = Neg(x)
        y = If(c) <then_branch = {branch.format("p")}, else_branch = {branch.format("q")}> }}"""
    model = ir.load(parser.parse_model(HEAD + graph))
    inner = next(ir.subgraphs(model.graph[1]))
    node = onnx_ir.Node("", "Neg", [model.graph.inputs[0]])
    inner.append(node)
    assert node.outputs[0].name == "val_0"  # the trap
    with pytest.raises(StructureError, match="%val_0 is defined twice"):
        ir.verify(model)
    inner.remove(node, safe=True)
    rewriter = Rewriter(model)
    with rewriter.at(inner[0]):
        made = rewriter.op("Neg", model.graph.inputs[0])
    assert made.name not in ("val_0", "x", "y", "p", "q")
    assert rewriter.fresh("val_0") != "val_0"
    ir.verify(model)


def test_5_sparse_initializers_dropped() -> None:
    proto = chain(1)
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    assert not onnx_ir.to_proto(onnx_ir.from_proto(proto)).graph.sparse_initializer  # the trap
    assert ir.to_proto(ir.load(proto)).graph.sparse_initializer


def test_6_bare_file_names_switch_containment_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(folder, 1)
    (folder / "m.bin").rename(tmp_path / "m.bin")
    proto = onnx.ModelProto.FromString(path.read_bytes())
    proto.graph.initializer[0].external_data[0].value = "../m.bin"
    path.write_bytes(proto.SerializeToString())
    monkeypatch.chdir(folder)
    leaked = onnx_ir.load("m.onnx").graph.initializers["w0"].const_value
    assert leaked is not None
    assert leaked.numpy().tolist() == [0.0] * 4  # the trap
    with pytest.raises(FrontendError, match=r"'\.\./m\.bin' .* outside the model's directory"):
        ir.load("m.onnx")


def test_6_a_bare_file_name_works_from_elsewhere_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    external(tmp_path, 2)
    monkeypatch.chdir(tmp_path)
    model = ir.load("m.onnx")
    monkeypatch.chdir("/")
    assert ir.array(model.graph.initializers["w1"]).tolist() == [1.0] * 4
    ir.save(model, tmp_path / "out.onnx", external_data=True)


def test_7_and_8_time_is_linear() -> None:
    """Removing nodes one by one and asking ``in graph.inputs`` are quadratic in onnx_ir."""

    def calls(length: int, what: str) -> int:
        proto = chain(length)
        for i in range(length):
            proto.graph.node.add(op_type="Constant", output=[f"k{i}"]).attribute.append(
                helper.make_attribute("value_float", float(i))
            )
            proto.graph.output.append(helper.make_tensor_value_info(f"o{i}", TensorProto.FLOAT, []))
            proto.graph.node.append(helper.make_node("Neg", [f"k{i}"], [f"o{i}"]))
        model = None if what == "load" else ir.load(proto)
        count = 0

        def count_call(*_: object) -> None:
            nonlocal count
            count += 1

        sys.setprofile(count_call)
        try:
            if what == "load":
                ir.load(proto)
            elif what == "write":
                ir.to_proto(model, external=lambda _v, _p: False)  # type: ignore[arg-type]
            else:
                getattr(ir, what)(model)
        finally:
            sys.setprofile(None)
        return count

    for what in (
        "load",
        "verify",
        "infer_shapes",
        "clone",
        "dump",
        "write",
        "nbytes",
        "to_networkx",
    ):
        calls(10, what)  # caches of schemas fill
        small, large = calls(25, what), calls(100, what)
        assert large <= 4.4 * small, what


def test_9_removal_leaves_uses_behind() -> None:
    model = ir.load(chain(2))
    model.graph.remove(model.graph[0])
    assert model.graph.inputs[0].uses()  # the trap
    with pytest.raises(StructureError, match=r"stale use by Neg|before or outside"):
        ir.verify(model)


def test_9_operators_are_not_checked() -> None:
    model = ir.load(chain(1))
    node = onnx_ir.Node("", "Concat", [model.graph.inputs[0]], [onnx_ir.AttrInt64("axes", 0)])
    assert node.attributes["axes"].value == 0  # the trap: there is no such attribute
    with pytest.raises(StructureError, match="Concat of opset 17 has no attribute 'axes'"):
        Rewriter(model).op("Concat", model.graph.inputs[0], axes=0)


def test_10_tensors_without_elements(tmp_path: Path) -> None:
    path = external(tmp_path, 1, size=0)
    theirs = onnx_ir.load(path).graph.initializers["w0"].const_value
    assert theirs is not None
    with pytest.raises((AssertionError, ValueError)):
        theirs.tobytes()  # the trap
    model = ir.load(path)
    tensor = model.graph.initializers["w0"].const_value
    assert tensor is not None
    assert (tensor.tobytes(), tensor.numpy().shape) == (b"", (0,))
    ir.save(model, tmp_path / "out.onnx", external_data=True)
    assert ir.load(tmp_path / "out.onnx").graph.initializers["w0"].const_value is not None


def test_10_deep_copies_recurse() -> None:
    model = ir.load(chain(3000))
    with pytest.raises(RecursionError):
        copy.deepcopy(model)  # the trap
    assert len(ir.clone(model).graph) == 3000


def test_10_text_depends_on_addresses() -> None:
    proto = chain(2)
    assert ir.dump(ir.load(proto)) == ir.dump(ir.load(proto))
    assert hex(id(ir.load(proto)))[2:6] not in ir.dump(ir.load(proto))


def test_tensors_are_renamed_with_their_values() -> None:
    tensor = onnx_ir.tensor(np.ones(2, np.float32), name="before")
    value = onnx_ir.Value(name="before", const_value=tensor)
    value.name = "after"
    assert tensor.name == "after"  # the trap: another model may hold the tensor
    graph = """g (float[1] x, bool c) => (float[1] y) {
        y = If(c) <then_branch = t () => (float[1] p) <float[1] w = {1}> { p = Add(x, w) },
                   else_branch = e () => (float[1] q) <float[1] w = {2}> { q = Mul(x, w) }> }"""
    source = onnx_ir.from_proto(parser.parse_model(HEAD + graph))
    held = [
        v.const_value
        for a in source.graph[0].attributes.values()
        for v in a.as_graph().initializers.values()
    ]
    model = ir.load(source)
    assert sorted(k for g in ir.all_graphs(model) for k in g.initializers) == ["w", "w.1"]
    assert [t.name for t in held if t is not None] == ["w", "w"]


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    path = external(tmp_path, 4)
    gc.collect()
    before = _descriptors()
    for _ in range(20):
        ir.save(ir.load(path), tmp_path / "out.onnx", external_data=True)
    gc.collect()
    assert _descriptors() <= before


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))
