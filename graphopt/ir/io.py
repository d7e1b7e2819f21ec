"""Reading ONNX models into normal form."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import google.protobuf.message
import onnx
import onnx.inliner  # onnx itself does not import it
import onnx_ir as _ir
from onnx_ir import Model

from graphopt.errors import FrontendError, StructureError
from graphopt.ir.external import map_external_data
from graphopt.ir.graph import all_graphs, gc_paused
from graphopt.ir.normal import normalize
from graphopt.ir.origin import Origin, origin, seal, verbatim
from graphopt.ir.shapes import infer_shapes
from graphopt.ir.text import parse_proto
from graphopt.ir.verify import verify

__all__ = ["clone", "load", "parse_text"]

Source = str | os.PathLike[str] | bytes | onnx.ModelProto | Model


def load(source: Source, *, directory: str | os.PathLike[str] | None = None) -> Model:
    """Read a model into normal form.

    Args:
        source: Path of an ``.onnx`` file, its bytes, a ``ModelProto``, or an ``onnx_ir.Model``.
            Objects are not modified and not referred to afterwards.
        directory: Where external data of bytes or of a ``ModelProto`` lies; for a path, its folder.

    Returns:
        The model. Where something in it has no representation in the IR, ``ir.opaque`` says so and
        the model passes through everything unchanged.

    Raises:
        FrontendError: The file cannot be read, is not an ONNX model, is truncated, uses a value that
            nothing defines, or its external data is missing, truncated or outside its folder.
    """
    base = None if directory is None else Path(directory).absolute()
    with gc_paused():
        if isinstance(source, Model):
            return _from_ir(source)
        if isinstance(source, onnx.ModelProto):
            proto = onnx.ModelProto()
            proto.CopyFrom(source)
            return _from_proto(proto, base, "model")
        if isinstance(source, (bytes, bytearray, memoryview)):
            return _from_proto(_parse(bytes(source), "model"), base, "model")
        if not isinstance(source, (str, os.PathLike)):
            raise FrontendError(
                f"cannot load {type(source).__name__}: expected a path, bytes, an onnx.ModelProto, "
                "an onnx_ir.Model or a torch.nn.Module"
            )
        path = Path(source).absolute()
        return _from_proto(_parse(_read(path), str(source)), path.parent, str(source))


def parse_text(text: str) -> Model:
    """Read a model in ONNX text syntax, as tests do.

    Raises:
        FrontendError: The text does not parse.
    """
    try:
        proto = parse_proto(text)
    except onnx.parser.ParseError as e:
        raise FrontendError(f"text does not parse as ONNX: {e}") from e
    return load(proto)


def clone(model: Model) -> Model:
    """Copy a model; weights are shared, since tensors are immutable."""
    source = origin(model)
    if source.opaque is not None:
        assert source.proto is not None
        directory = None if source.directory is None else Path(source.directory)
        return _opaque(source.proto, directory, source.opaque)
    with gc_paused():
        copy = model.clone()
        copy.meta.update(model.meta)
        fresh = dataclasses.replace(
            source,
            inputs=dict(source.inputs),
            outputs=dict(source.outputs),
            inner=dict(source.inner),
            value_info=set(source.value_info),
            remarks=list(source.remarks),
            seal=None,
        )
        copy.meta["graphopt.origin"] = fresh
        if source.seal is not None and verbatim(model) is not None:
            seal(copy)
    return copy


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise FrontendError(f"{path} is a directory, not an ONNX file")
    try:
        data = path.read_bytes()
    except FileNotFoundError as e:
        raise FrontendError(f"{path} does not exist") from e
    except OSError as e:
        raise FrontendError(f"{path} cannot be read: {e.strerror or e}") from e
    return data


def _parse(data: bytes, name: str) -> onnx.ModelProto:
    if not data:
        raise FrontendError(f"{name} is empty")
    if data[4:8] == b"ORTM":
        raise FrontendError(f"{name} is in ORT format, which is no longer ONNX: use its .onnx source")
    try:
        return onnx.ModelProto.FromString(data)
    except google.protobuf.message.DecodeError as e:
        raise FrontendError(f"{name} is not an ONNX model, or is truncated ({len(data)} bytes)") from e


def _from_proto(proto: onnx.ModelProto, directory: Path | None, name: str) -> Model:
    if not proto.HasField("graph") or not proto.ir_version:
        raise FrontendError(f"{name} is not an ONNX model: it has no graph or no IR version")
    if proto.ir_version >= 3 and not proto.opset_import:
        raise FrontendError(f"{name} imports no opset: it is truncated or not an ONNX model")
    reason = _unsupported(proto)
    inlined = proto
    if reason is None and proto.functions:
        try:
            inlined = onnx.inliner.inline_local_functions(proto)
        except (RuntimeError, ValueError) as e:
            reason = f"its functions cannot be inlined: {_first_line(e)}"
    model = None
    if reason is None:
        try:
            model = _ir.from_proto(inlined)
        except Exception as e:  # noqa: BLE001 - onnx_ir wraps whatever its deserializer meets
            cause = _root(e)
            if "redeclared" in str(cause):
                raise FrontendError(f"{name} is invalid: {_first_line(cause)}") from e
            reason = _first_line(cause)
    if model is None:
        return _opaque(proto, directory, reason or "unknown reason")
    if directory is not None:
        map_external_data(model, directory)
    elif _has_external_data(proto):
        raise FrontendError(f"{name} has external data: load it from its path, or give its directory")
    source = origin(model)
    source.proto, source.directory = proto, str(directory) if directory is not None else None
    _declare(model, source, proto.graph)
    source.value_info = {info.name for info in _value_infos(inlined.graph)}
    source.annotated = bool(inlined.graph.quantization_annotation)
    _finish(model, name)
    seal(model)
    return model


def _from_ir(source: Model) -> Model:
    model = source.clone()
    try:
        if model.functions:
            _ir.passes.common.InlinePass()(model)
    except (ValueError, _ir.passes.PassError, _ir.passes.PreconditionError) as e:
        raise FrontendError(f"functions of the model cannot be inlined: {_first_line(e)}") from e
    memory = origin(model)
    graph = model.graph
    for values, declared in ((graph.inputs, memory.inputs), (graph.outputs, memory.outputs)):
        for value in values:
            declared[value.name or ""] = _ir.serde.serialize_value(value)
    memory.value_info = {v.name for n in graph for v in n.outputs if v.name and v.type is not None}
    _finish(model, "model")
    return model


def _finish(model: Model, name: str) -> None:
    try:
        normalize(model)
        verify(model)
    except (ValueError, StructureError) as e:
        raise FrontendError(f"{name} is invalid: {_first_line(e)}") from e
    inner = origin(model).inner
    for graph in all_graphs(model):
        if graph is not model.graph:
            for value in (*graph.inputs, *graph.outputs):
                inner[value.name or ""] = _ir.serde.serialize_value(value)
    defaults = [v for v in model.graph.inputs if v.is_initializer()]
    if defaults:
        origin(model).remarks.append(
            f"{len(defaults)} inputs have default values that a caller may override, so they are not "
            "constants; the pass freeze-inputs makes them constants"
        )
    infer_shapes(model)


def _declare(model: Model, source: Origin, graph: onnx.GraphProto) -> None:
    listed = {t.name for t in graph.initializer} if model.ir_version < 4 else set()
    source.inputs = {info.name: info for info in graph.input if info.name not in listed}
    source.outputs = {info.name: info for info in graph.output}


def _opaque(proto: onnx.ModelProto, directory: Path | None, reason: str) -> Model:
    graph = _ir.Graph(
        [_ir.Value(name=info.name) for info in proto.graph.input],
        [_ir.Value(name=info.name) for info in proto.graph.output],
        nodes=(),
        opset_imports={o.domain: o.version for o in proto.opset_import},
        name=proto.graph.name,
    )
    model = _ir.Model(graph, ir_version=proto.ir_version)
    source = origin(model)
    source.proto, source.opaque = proto, reason
    source.directory = None if directory is None else str(directory)
    source.remarks.append(f"the model is carried through unchanged: {reason}")
    return model


def _unsupported(proto: onnx.ModelProto) -> str | None:
    """What the IR would drop without a word."""
    if proto.training_info:
        return "training information has no representation"
    if any(g.sparse_initializer for g in _graphs(proto.graph)):
        return "sparse initializers have no representation"
    return None


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    found = [graph]
    for node in graph.node:
        for a in node.attribute:
            if a.HasField("g"):
                found += _graphs(a.g)
            for g in a.graphs:
                found += _graphs(g)
    return found


def _value_infos(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    return [info for g in _graphs(graph) for info in g.value_info]


def _has_external_data(proto: onnx.ModelProto) -> bool:
    return any(
        t.data_location == onnx.TensorProto.EXTERNAL
        for g in _graphs(proto.graph)
        for t in g.initializer
    )


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
