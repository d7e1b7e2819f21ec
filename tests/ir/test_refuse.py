"""What is no model, or half of one, is refused with one message: the file and the reason."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

from graphopt import FrontendError, ir

Unprivileged = Callable[[], contextlib.AbstractContextManager[None]]
HEAD = '<ir_version: 8, opset_import: ["": 17]>'
GRAPH = (
    HEAD
    + """g (float[2,4] x) => (float[2,4] y) <float[4] w = {1,2,3,4}> {
    a = Add(x, w) b = Relu(a) k = Constant<value_floats=[2.0, 3.0, 4.0, 5.0]>() y = Mul(b, k) }"""
)


def refused(source: Any, *parts: str, **kwargs: Any) -> None:
    with pytest.raises(FrontendError) as caught:
        ir.load(source, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# Files ------------------------------------------------------------------------------------------


def test_files_that_are_no_models(tmp_path: Path) -> None:
    def file(name: str, data: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    refused(file("empty.onnx", b""), "empty.onnx is empty")
    refused(file("text.onnx", b"# a readme\n\nnot a model\n"), "text.onnx is not an ONNX model")
    refused(file("zeros.onnx", bytes(1000)), "zeros.onnx is not an ONNX model")
    refused(file("m.ort", b"\x18\0\0\0ORTM" + bytes(64)), "m.ort is in ORT format")
    refused(file("zip.onnx", b"PK\x03\x04" + bytes(64)), "zip.onnx is not an ONNX model")
    refused(tmp_path, f"{tmp_path} is a directory")
    refused(tmp_path / "none.onnx", "none.onnx does not exist")
    refused(tmp_path / "empty.onnx" / "x.onnx", "cannot be read: Not a directory")
    refused(str(tmp_path / "a\0b"), "is not a path")
    tensor = onnx.numpy_helper.from_array(np.ones(3)).SerializeToString()
    refused(file("tensor.pb", tensor), "tensor.pb is not an ONNX model")


def test_a_file_that_may_not_be_read(shared_path: Path, unprivileged: Unprivileged) -> None:
    path = shared_path / "m.onnx"
    path.write_bytes(parser.parse_model(GRAPH).SerializeToString())
    path.chmod(0)
    with unprivileged():
        refused(path, "m.onnx cannot be read: Permission denied")


def test_a_folder_that_may_not_be_entered(shared_path: Path, unprivileged: Unprivileged) -> None:
    shared_path.chmod(0)
    with unprivileged():
        refused(shared_path / "m.onnx", "m.onnx cannot be read: Permission denied")
    shared_path.chmod(0o755)


def test_external_data_that_may_not_be_read(shared_path: Path, unprivileged: Unprivileged) -> None:
    path = save_proto(external_model(location="w.bin"), shared_path)
    (shared_path / "w.bin").chmod(0)
    with unprivileged():
        refused(path, "m.onnx: ", "'w.bin' of initializer 'w' cannot be read: Permission denied")


def test_sources_of_the_wrong_kind() -> None:
    refused(3, "cannot load int")
    refused(None, "cannot load NoneType")
    refused(onnx.ModelProto(), "no graph")
    with pytest.raises(FrontendError, match="text does not parse as ONNX"):
        ir.parse_text("graph? what graph")


def test_a_file_cut_anywhere(tmp_path: Path) -> None:
    """No prefix of a file is taken for a model."""
    data = parser.parse_model(GRAPH).SerializeToString()
    path = tmp_path / "cut.onnx"
    for end in range(1, len(data)):
        path.write_bytes(data[:end])
        refused(path, "cut.onnx", "truncated" if end > 8 else "not an ONNX model")


def test_damaged_bytes_are_refused_or_pass_through() -> None:
    """Nothing but a FrontendError comes out of damaged bytes, and what loads can be written."""
    random_ = random.Random(0)
    data = parser.parse_model(GRAPH).SerializeToString()
    seen = {"refused": 0, "opaque": 0, "loaded": 0}
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(random_.choice([1, 1, 2, 4])):
            damaged[random_.randrange(len(data))] = random_.randrange(256)
        try:
            model = ir.load(bytes(damaged))
        except FrontendError:
            seen["refused"] += 1
            continue
        seen["opaque" if ir.opaque(model) else "loaded"] += 1
        ir.to_bytes(model)
    assert all(seen.values()), seen


# Graphs -----------------------------------------------------------------------------------------


def test_no_opset() -> None:
    proto = parser.parse_model(GRAPH)
    del proto.opset_import[:]
    refused(proto, "imports no opset")


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        ("g (float[4] x) => (float[4] y) { y = Add(x, w) }", "%w is used before or outside"),
        ("g (float[4] x) => (float[4] z) { y = Neg(x) }", "graph output %z has no definition"),
        (
            "g (float[4] x) => (float[4] y) { a = Neg(x) a = Abs(x) y = Exp(a) }",
            "%a is defined twice",
        ),
        ("g (float[4] x) => (float[4] y) { x = Neg(y) y = Exp(x) }", "%x is defined twice"),
        (
            "g (float[4] x) => (float[4] y) <float[1] w = {1}> { w = Neg(x) y = Exp(w) }",
            "%w is defined twice",
        ),
        ("g (float[4] x) => (float[4] y) { a = Add(x, y) y = Neg(a) }", "the graph has a cycle"),
        ("g (float[4] x) => (float[4] y) { y = Add(x) }", "Add that makes %y lacks its input 1"),
        (
            """g (bool c, float[4] x) => (float[4] y) {
                y = If(c) <then_branch = t () => (float[4] p) { p = Neg(x) inner = Abs(x) },
                           else_branch = e () => (float[4] q) { q = Neg(inner) }> }""",
            "%inner is used before or outside its definition",
        ),
        (
            """g (bool c, float[4] x) => (float[4] z) {
                y = If(c) <then_branch = t () => (float[4] p) { p = Neg(x) inner = Abs(x) },
                           else_branch = e () => (float[4] q) { q = Neg(x) }>
                z = Add(y, inner) }""",
            "%inner is used before or outside its definition",
        ),
    ],
)
def test_graphs_that_are_invalid(graph: str, reason: str) -> None:
    refused(parser.parse_model(HEAD + graph), "model is invalid: ", reason)


def test_an_input_that_is_left_out() -> None:
    proto = parser.parse_model(HEAD + "g (float[4] x) => (float[4] y) { y = Add(x, x) }")
    proto.graph.node[0].input[0] = ""
    refused(proto, "model is invalid: Add that makes %y lacks its input 0")


@pytest.mark.parametrize("constant", [True, False])
def test_weights_that_cannot_be(constant: bool) -> None:
    """onnx.shape_inference aborts the process for some of these."""
    for dims, kind, reason in (
        ([-4], TensorProto.FLOAT, "%w has a negative dimension"),
        ([4], TensorProto.UNDEFINED, "%w has no element type"),
    ):
        proto = parser.parse_model(HEAD + "g (float[4] x) => (float[4] y) { y = Add(x, w) }")
        tensor = TensorProto(name="w", dims=dims, data_type=kind, raw_data=bytes(16))
        if constant and kind == TensorProto.UNDEFINED:
            continue  # passes through
        if constant:
            node = helper.make_node("Constant", [], ["w"])
            node.attribute.append(helper.make_attribute("value", tensor))
            proto.graph.node.insert(0, node)
        else:
            proto.graph.initializer.append(tensor)
        refused(proto, f"model is invalid: {reason}")


def test_a_missing_input_that_would_crash_onnx() -> None:
    """onnx.shape_inference dereferences null for a RegexFullMatch without input."""
    node = helper.make_node("RegexFullMatch", [""], ["y"], pattern="a")
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", 9, [3])])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    refused(proto, "RegexFullMatch that makes %y lacks its input 0")


# External data ----------------------------------------------------------------------------------


def external_model(**entries: Any) -> onnx.ModelProto:
    proto = parser.parse_model(HEAD + "g (float[4] x) => (float[4] y) { y = Add(x, w) }")
    tensor = proto.graph.initializer.add(name="w", dims=[4], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return proto


def save_proto(proto: onnx.ModelProto, folder: Path, data: bytes | None = bytes(32)) -> Path:
    if data is not None:
        (folder / "w.bin").write_bytes(data)
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"location": "none.bin"}, "'none.bin' of initializer 'w' is missing"),
        (
            {"location": "w.bin", "offset": 20},
            "'w.bin' is truncated: initializer 'w' needs bytes 20 to 36, the file has 32",
        ),
        ({"location": "w.bin", "offset": -4}, "'w.bin' is truncated"),
        ({"location": "w.bin", "offset": "four"}, "m.onnx"),
        ({"location": "w.bin", "length": 12}, "12 bytes are declared, 16 needed for FLOAT[4]"),
        ({"location": "w.bin", "length": -1}, "external data 'w.bin'"),
        ({"location": "w.bin", "offset": 1 << 62}, "'w.bin' is truncated"),
        ({"location": ""}, "no valid location"),
        ({}, "no valid location"),
        ({"location": "a\0b"}, "no valid location"),
        ({"location": "."}, "cannot be read"),
        ({"location": "../outside.bin"}, "'../outside.bin' of initializer 'w' lies outside"),
        ({"location": "sub/../../outside.bin"}, "lies outside"),
        ({"location": "/etc/hostname"}, "'/etc/hostname' of initializer 'w' lies outside"),
        ({"location": "link.bin"}, "'link.bin' of initializer 'w' lies outside"),
        ({"location": "folder/outside.bin"}, "lies outside"),
    ],
    ids=str,
)
def test_external_data_that_is_wrong(entries: dict[str, Any], reason: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(bytes(64))
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    (folder / "folder").symlink_to(tmp_path, target_is_directory=True)
    path = save_proto(external_model(**entries), folder)
    refused(path, str(path), reason)


def test_links_within_the_folder_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to("w.bin")
    whole = tmp_path / "link"  # and the folder itself may be reached through one
    whole.symlink_to(folder, target_is_directory=True)
    path = save_proto(external_model(location="link.bin"), folder)
    for source in (path, whole / path.name):
        assert ir.array(ir.load(source).graph.initializers["w"]).tolist() == [0.0] * 4


def test_external_data_that_is_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_proto(external_model(location="pipe"), tmp_path)
    os.mkfifo(tmp_path / "pipe")
    refused(path, "cannot be read: not a regular file")
    proto = external_model(location="socket")
    monkeypatch.chdir(tmp_path)  # the path of a socket has to be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        refused(save_proto(proto, tmp_path), "cannot be read: not a regular file")


def test_external_data_of_a_shape_that_cannot_be(tmp_path: Path) -> None:
    proto = external_model(location="w.bin")
    proto.graph.initializer[0].dims[:] = [-4]
    refused(save_proto(proto, tmp_path), "m.onnx")


def test_external_strings(tmp_path: Path) -> None:
    proto = external_model(location="w.bin")
    proto.graph.initializer[0].data_type = TensorProto.STRING
    refused(save_proto(proto, tmp_path), "m.onnx", "strings cannot be external data")


@pytest.mark.parametrize("where", ["initializer", "attribute", "branch", "function"])
def test_external_data_without_a_directory(where: str, tmp_path: Path) -> None:
    proto = external_model(location="w.bin")
    tensor = proto.graph.initializer[0]
    if where != "initializer":
        constant = helper.make_node("Constant", [], ["w"], value=tensor)
        proto.graph.ClearField("initializer")
        if where == "attribute":
            proto.graph.node.insert(0, constant)
        elif where == "branch":
            branch = helper.make_graph(
                [constant], "b", [], [helper.make_tensor_value_info("w", 1, [4])]
            )
            node = helper.make_node("If", ["c"], ["w"], then_branch=branch, else_branch=branch)
            proto.graph.node.insert(0, node)
            proto.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
        else:
            imports = [helper.make_opsetid("", 17)]
            proto.functions.append(helper.make_function("f", "f", [], ["w"], [constant], imports))
            proto.graph.node.insert(0, helper.make_node("f", [], ["w"], domain="f"))
            proto.opset_import.add(domain="f", version=1)
    refused(proto, "model has external data: load it from its path, or give its directory")
    refused(proto.SerializeToString(), "external data")
    (tmp_path / "w.bin").write_bytes(bytes(range(16)))
    model = ir.load(proto, directory=tmp_path)
    inline = ir.to_proto(model, external=lambda _v, _p: False)
    assert bytes(range(16)) in inline.SerializeToString()


def test_an_initializer_that_is_shorter_than_its_shape() -> None:
    proto = parser.parse_model(GRAPH)
    tensor = proto.graph.initializer[0]
    data = np.array(tensor.float_data or [1, 2, 3, 4], np.float32).tobytes()
    tensor.ClearField("float_data")
    tensor.raw_data = data
    ir.load(proto)
    tensor.dims[0] = 9999
    refused(proto, "model is invalid", "initializer %w lacks data", "39996 bytes")
