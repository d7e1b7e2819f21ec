"""Reading ONNX models into normal form."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

import google.protobuf.message
import onnx
import onnx_ir as _ir
from onnx_ir import DataType, Model, TensorProtocol

from graphopt.errors import FrontendError, StructureError
from graphopt.ir.external import MappedTensor, map_external_data, map_raw
from graphopt.ir.functions import inline_model
from graphopt.ir.graph import all_graphs, gc_paused
from graphopt.ir.normal import normalize
from graphopt.ir.origin import Origin, origin, seal, verbatim
from graphopt.ir.prepare import graphs, inline, redefinition, referring, unsupported, without_maps
from graphopt.ir.shapes import infer_shapes
from graphopt.ir.text import parse_proto
from graphopt.ir.verify import verify

__all__ = ["clone", "load", "parse_text"]

# What onnx_ir warns of is judged here; without a handler it would end up on stderr.
logging.getLogger("onnx_ir").addHandler(logging.NullHandler())

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
        FrontendError: The file cannot be read, is not an ONNX model, is truncated, uses a value
            that nothing defines, or its external data is missing, truncated or outside its folder.
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
    except (onnx.parser.ParseError, google.protobuf.message.DecodeError) as e:
        raise FrontendError(f"text does not parse as ONNX: {e}") from e
    return load(proto)


def clone(model: Model) -> Model:
    """Copy a model; weights are shared, since tensors are immutable."""
    source = origin(model)
    if source.opaque is not None:
        assert source.proto is not None
        return _opaque(source.proto, source.opaque, source.external)
    with gc_paused():
        copy = model.clone()
        _own_types(copy)
        copy.meta.update(model.meta)
        fresh = dataclasses.replace(
            source,
            inputs=dict(source.inputs),
            outputs=dict(source.outputs),
            output_names=list(source.output_names),
            inner=dict(source.inner),
            formal=dict(source.formal),
            value_info=set(source.value_info),
            remarks=list(source.remarks),
            seal=None,
        )
        copy.meta["graphopt.origin"] = fresh
        if source.seal is not None and verbatim(model) is not None:
            seal(copy)
    return copy


def _own_types(copy: Model) -> None:
    # onnx_ir's clone shares the types, and setting the dtype of a value changes its type in place.
    for graph in all_graphs(copy):
        made = (v for node in graph for v in node.outputs)
        for value in (*graph.inputs, *graph.initializers.values(), *made):
            kind = value.type
            if isinstance(kind, _ir.TensorType):
                value.type = _ir.TensorType(kind.dtype, denotation=kind.denotation)


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise FrontendError(f"{path} is a directory, not an ONNX file")
        return path.read_bytes()
    except FileNotFoundError as e:
        raise FrontendError(f"{path} does not exist") from e
    except OSError as e:
        raise FrontendError(f"{path} cannot be read: {e.strerror or e}") from e
    except ValueError as e:  # a null byte in the name
        raise FrontendError(f"{str(path)!r} is not a path: {e}") from e


def _parse(data: bytes, name: str) -> onnx.ModelProto:
    if not data:
        raise FrontendError(f"{name} is empty")
    if data[4:8] == b"ORTM":
        raise FrontendError(f"{name} is in ORT format, no longer ONNX: use its .onnx source")
    try:
        return onnx.ModelProto.FromString(data)
    except google.protobuf.message.DecodeError as e:
        raise FrontendError(
            f"{name} is not an ONNX model, or is truncated ({len(data)} bytes)"
        ) from e


def _from_proto(proto: onnx.ModelProto, directory: Path | None, name: str) -> Model:
    if not proto.HasField("graph") or not proto.ir_version:
        raise FrontendError(f"{name} is not an ONNX model: it has no graph or no IR version")
    if proto.ir_version >= 3 and not proto.opset_import:
        raise FrontendError(f"{name} imports no opset: it is truncated or not an ONNX model")
    tensors = list(referring(proto))
    if directory is None and tensors:
        raise FrontendError(
            f"{name} has external data: load it from its path, or give its directory"
        )
    try:
        reason = unsupported(proto)
        if reason is None:
            inlined, reason = inline(proto)
        if reason is None:
            return _represent(proto, inlined, directory, name)
    except FrontendError:
        raise
    except Exception as e:  # noqa: BLE001 - a model that ONNX Runtime may run passes through at least
        twice = redefinition(proto)
        if twice is not None:
            raise FrontendError(f"{name} is invalid: %{twice} is defined twice") from e
        reason = _first_line(_root(e))
        if "redeclared" in reason:
            reason = "a Constant node bears the name of another constant"
    raw: list[MappedTensor] = []
    if directory is not None:
        try:
            raw += map_raw(tensors, directory)
        except FrontendError as e:
            raise FrontendError(f"{name}: {e}") from e
    return _opaque(proto, reason, raw)


def _represent(
    proto: onnx.ModelProto, inlined: onnx.ModelProto, directory: Path | None, name: str
) -> Model:
    model = _ir.from_proto(without_maps(inlined))
    if directory is not None:
        try:
            map_external_data(model, directory)
        except FrontendError as e:
            raise FrontendError(f"{name}: {e}") from e
    source = origin(model)
    source.proto = proto
    _declare(model, source, proto.graph)
    source.value_info = {info.name for g in graphs(inlined.graph) for info in g.value_info}
    source.annotated = bool(inlined.graph.quantization_annotation)
    _finish(model, name)
    seal(model)
    return model


def _from_ir(source: Model) -> Model:
    try:
        model = source.clone()
    except RuntimeError:  # it cannot clone a graph whose nodes are out of order
        return _from_proto(_ir.to_proto(source), None, "model")
    _own_types(model)
    map_external_data(model)
    try:
        inline_model(model)
    except ValueError as e:
        raise FrontendError(f"functions of the model cannot be inlined: {_first_line(e)}") from e
    memory = origin(model)
    graph = model.graph
    for values, declared in ((graph.inputs, memory.inputs), (graph.outputs, memory.outputs)):
        for value in values:
            declared[value.name or ""] = _ir.serde.serialize_value(value)
    memory.output_names = [v.name or "" for v in graph.outputs]
    memory.value_info = {v.name for n in graph for v in n.outputs if v.name and v.type is not None}
    _finish(model, "model")
    return model


def _finish(model: Model, name: str) -> None:
    try:
        normalize(model)
        _check_weights(model)
        verify(model)
    except StructureError as e:
        raise FrontendError(f"{name} is invalid: {_first_line(e)}") from e
    inner = origin(model).inner
    for graph in all_graphs(model):
        if graph is not model.graph:
            for value in (*graph.inputs, *graph.outputs):
                inner[value.name or ""] = _ir.serde.serialize_value(value)
    defaults = [v for v in model.graph.inputs if v.is_initializer()]
    if defaults:
        origin(model).remarks.append(
            f"{len(defaults)} inputs have default values that a caller may override, so they are "
            "not constants; the pass freeze-inputs makes them constants"
        )
    infer_shapes(model)


def _check_weights(model: Model) -> None:
    # onnx would not complain about these but crash.
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.dtype is None or value.dtype == DataType.UNDEFINED:
                raise StructureError(f"%{value.name} has no element type")
            if any(isinstance(d, int) and d < 0 for d in value.shape or ()):
                raise StructureError(f"%{value.name} has a negative dimension")
            raw = getattr(value.const_value, "raw", None)
            if isinstance(raw, onnx.TensorProto) and raw.HasField("raw_data"):
                count = math.prod(d for d in value.shape or () if isinstance(d, int))
                need = math.ceil(count * value.dtype.bitwidth / 8)
                # The size of the message is known without copying the data out of it.
                if raw.ByteSize() < need:
                    raise StructureError(
                        f"initializer %{value.name} lacks data: its shape asks for {need} bytes"
                    )


def _declare(model: Model, source: Origin, graph: onnx.GraphProto) -> None:
    listed = {t.name for t in graph.initializer} if model.ir_version < 4 else set()
    source.inputs = {info.name: info for info in graph.input if info.name not in listed}
    source.outputs = {info.name: info for info in graph.output}
    source.output_names = [info.name for info in graph.output]


def _opaque(proto: onnx.ModelProto, reason: str, external: Sequence[TensorProtocol]) -> Model:
    defaults = {t.name for t in proto.graph.initializer}
    graph = _ir.Graph(
        [_ir.Value(name=_text(v.name)) for v in proto.graph.input if v.name not in defaults],
        [_ir.Value(name=_text(v.name)) for v in proto.graph.output],
        nodes=(),
        opset_imports={_text(o.domain): o.version for o in proto.opset_import},
        name=_text(proto.graph.name),
    )
    model = _ir.Model(graph, ir_version=proto.ir_version)
    source = origin(model)
    source.proto, source.opaque, source.external = proto, reason, list(external)
    source.remarks.append(f"the model is carried through unchanged: {reason}")
    return model


def _text(name: str | bytes) -> str:
    # protobuf hands out as bytes what is not UTF-8, such as names in an older Chinese encoding.
    return name.decode(errors="replace") if isinstance(name, bytes) else name


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
