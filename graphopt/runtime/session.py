"""Sessions of ONNX Runtime: opened lazily, quietly, and without copying the weights."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import importlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from graphopt import ir
from graphopt.errors import GraphOptError, RuntimeUnavailable, SessionError
from graphopt.runtime.values import Feeds, carrier, decode, encode, ort_tensor

__all__ = ["ModelSource", "Serializable", "Session", "open_session", "ort"]

# Below this an initializer is written into the protobuf: a reference would be no smaller to handle.
_INLINE_BYTES = 64 * 1024
_SILENT = 4
# What a user cannot use of a message: error numbers, and where in its C++ code it arose.
_NOISE = re.compile(
    r"^\[ONNXRuntimeError\] : \d+ : |/onnxruntime_src/\S+:\d+ .*?\) (?:const )?(?:\[with .*?\] )?"
)


@runtime_checkable
class Serializable(Protocol):
    """What graphopt needs of an ``onnx.ModelProto``."""

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        """Return the message in wire format."""
        ...


ModelSource: TypeAlias = "ir.Model | Serializable | bytes | str | os.PathLike[str]"


@functools.cache
def ort() -> Any:
    """Import onnxruntime and return the module.

    Raises:
        RuntimeUnavailable: It is not installed, or its libraries do not load.
    """
    try:
        module = importlib.import_module("onnxruntime")
    except ImportError as e:
        why = "is not installed" if isinstance(e, ModuleNotFoundError) else f"does not load: {e}"
        raise RuntimeUnavailable(
            f"onnxruntime {why}. Install one of its two builds: "
            "pip install 'graphopt[cpu]', or pip install 'graphopt[gpu]' for NVIDIA GPUs."
        ) from e
    module.set_default_logger_severity(_SILENT)
    return module


class Session:
    """A loaded model.

    Attributes:
        inputs: ONNX Runtime's type (such as ``tensor(float)``) by name of the inputs to be fed.
        outputs: The same of the outputs.
        dims: Sizes, symbols or None by name of the inputs.
        providers: Execution providers in force, preferred first.
    """

    def __init__(self, session: Any, *, keep: Sequence[object] = ()) -> None:
        self._session: Any = session
        self._keep = tuple(keep)  # ONNX Runtime reads these buffers but does not own them
        self.inputs: dict[str, str] = {v.name: v.type for v in session.get_inputs()}
        self.outputs: dict[str, str] = {v.name: v.type for v in session.get_outputs()}
        self.dims: dict[str, tuple[int | str | None, ...]] = {
            v.name: tuple(v.shape) for v in session.get_inputs()
        }
        self.providers: tuple[str, ...] = tuple(session.get_providers())
        defaults = {v.name: v.type for v in session.get_overridable_initializers()}
        self._types = {**self.inputs, **defaults}

    def run(
        self, feeds: Feeds, *, outputs: Sequence[str] | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        """Run the model once.

        Args:
            feeds: Values by input name. Inputs that are optional or have defaults may be left out.
            outputs: Names of the outputs wanted; all of them by default.
            timeout: Seconds after which the run is stopped, at the end of the node then running.
                With one, Ctrl-C stops it likewise; without, only when the run is over.

        Returns:
            By output name: an array (an ``ml_dtypes`` one for bfloat16, float8 and 4-bit types, an
            object array for strings), a list for a sequence, a dict for a map, or None for an
            optional output that is absent.

        Raises:
            SessionError: ONNX Runtime refuses the feeds or fails to run the model.
        """
        names = list(self.outputs) if outputs is None else list(outputs)
        options = ort().RunOptions()
        options.log_severity_level = _SILENT
        raw = any(carrier(self.outputs.get(name, "")) for name in names)
        run = self._run_raw if raw else self._run_plain
        with _refusals():
            given = {k: encode(ort(), v, self._types.get(k, "")) for k, v in feeds.items()}
            if timeout is None:
                return run(names, given, options)
            return _stoppable(lambda: run(names, given, options), options, timeout)

    def _run_plain(self, names: list[str], given: Feeds, options: Any) -> dict[str, Any]:
        found = self._session.run(names, given, options)
        return dict(zip(names, found, strict=True))

    def _run_raw(self, names: list[str], given: Feeds, options: Any) -> dict[str, Any]:
        value = ort().OrtValue
        for name, fed in given.items():
            if isinstance(fed, np.ndarray):
                given[name] = value.ortvalue_from_numpy(fed)
            elif not isinstance(fed, value):
                raise TypeError(
                    f"input {name!r} is no tensor; together with outputs of types that NumPy lacks "
                    "onnxruntime's Python binding takes tensors only"
                )
        found = self._session.run_with_ort_values(names, given, options)
        return {k: decode(v, self.outputs[k]) for k, v in zip(names, found, strict=True)}

    def end_profiling(self) -> str:
        """Stop recording times, and return the path of the file that they were written to."""
        return str(self._session.end_profiling())

    def close(self) -> None:
        """Free the model. The session cannot be used afterwards."""
        self._session = None
        self._keep = ()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_session(
    model: ModelSource,
    *,
    optimize: bool = False,
    threads: int = 1,
    providers: Sequence[str | tuple[str, dict[str, Any]]] = ("CPUExecutionProvider",),
    custom_ops: Sequence[str | os.PathLike[str]] = (),
    prepack: bool | None = None,
    config: Mapping[str, str] | None = None,
    profile: str | None = None,
) -> Session:
    """Load a model into ONNX Runtime.

    Large weights of an ``ir.Model`` are not copied: the session computes on the arrays (or on the
    memory-mapped file) that the model holds, so that models above 2 GB work, too. This holds with
    ``optimize=False``; ONNX Runtime's own optimizer makes copies of its own.

    Args:
        model: A model, a ``ModelProto``, serialized bytes, or the path of a file.
        optimize: Let ONNX Runtime optimize the graph, as its users run it. Otherwise it computes
            the graph node by node as it stands.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        providers: Execution providers, preferred first, each with options if it needs them.
        custom_ops: Shared libraries of custom operators to load.
        prepack: Let kernels rearrange constant weights. By default only with ``optimize``: it takes
            another copy of the weights, and it makes a constant weight round differently from a
            computed one, which would defeat bitwise comparison before and after constant folding.
        config: Further session configuration entries.
        profile: Record the time of every kernel, in a file whose path begins so.

    Raises:
        RuntimeUnavailable: onnxruntime is not installed.
        SessionError: ONNX Runtime does not load the model; the message is its own, first line.
    """
    runtime = ort()

    def create(*, lend: bool) -> Session:
        options = _options(runtime, optimize, threads, custom_ops)
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        entries = dict(config or {})
        if not (optimize if prepack is None else prepack):
            entries.setdefault("session.disable_prepacking", "1")
        keep: list[object] = []
        source: bytes | str
        if isinstance(model, (str, os.PathLike)):
            source = str(os.fspath(model))
        elif isinstance(model, bytes):
            source = model
        elif lend and isinstance(model, ir.Model):
            source, keep = _lend(model, options, runtime, entries, in_place=not optimize)
        else:
            source = _whole(model).SerializeToString()
        for key, text in entries.items():
            options.add_session_config_entry(key, text)
        chosen = [p if isinstance(p, str) else (p[0], dict(p[1])) for p in providers]
        session = runtime.InferenceSession(source, options, providers=chosen)
        session.disable_fallback()  # it would print, and hide which provider failed
        return Session(session, keep=keep)

    with _refusals():
        if not isinstance(model, ir.Model) or ir.opaque(model) is not None:
            return create(lend=False)
        try:
            return create(lend=True)
        except Exception as e:
            if "external" not in str(e).lower():
                raise
        # Some weight is wanted while the graph is still being built, such as a table of sizes.
        return create(lend=False)


def _options(
    runtime: Any, optimize: bool, threads: int, custom_ops: Sequence[str | os.PathLike[str]]
) -> Any:
    options = runtime.SessionOptions()
    level = runtime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    # The arena keeps the largest amount of memory ever used, rounded up to a power of two.
    options.enable_cpu_mem_arena = optimize
    for library in custom_ops:
        options.register_custom_ops_library(os.fspath(library))
    return options


def _whole(model: ir.Model | Serializable) -> Serializable:
    if not isinstance(model, ir.Model):
        return model
    if ir.opaque(model) is not None:
        return ir.to_proto(model)
    # Asked like this, the weights come inline even where the source kept them in another file.
    return ir.to_proto(model, external=lambda value, proto: False)


def _lend(
    model: ir.Model, options: Any, runtime: Any, entries: dict[str, str], *, in_place: bool
) -> tuple[bytes, list[object]]:
    """Serialize a model without its large weights and lend those to the session to come."""
    lent: list[tuple[str, Any]] = []

    def external(value: ir.Value, proto: Any) -> bool:
        tensor = value.const_value
        if (
            tensor is None
            or tensor.nbytes < _INLINE_BYTES
            or tensor.dtype == ir.DataType.STRING
            or value.is_graph_input()
            or not ir.use_count(value)  # ONNX Runtime drops it before it looks for its content
            or model.graph.initializers.get(value.name or "") is not value
        ):
            return False
        lent.append((proto.name, ort_tensor(runtime, tensor.numpy(), tensor.dtype)))
        proto.data_location = 1  # EXTERNAL
        for key, text in (("location", "."), ("offset", "0"), ("length", str(tensor.nbytes))):
            proto.external_data.add(key=key, value=text)
        return True

    data = ir.to_proto(model, external=external).SerializeToString()
    if in_place:
        # ONNX Runtime checks that an external location exists, even where it never reads it.
        entries.setdefault(
            "session.model_external_initializers_file_folder_path",
            os.path.dirname(runtime.__file__),
        )
        for name, value in lent:
            options.add_initializer(name, value)
    elif lent:
        # The optimizer reads weights, which it can only where they are part of the graph. That
        # makes a copy of them.
        options.add_external_initializers([name for name, _ in lent], [value for _, value in lent])
    return data, [value for _, value in lent]


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Turn whatever ONNX Runtime raises into a SessionError.

    Its exceptions have no common base class below Exception, and its Python layer adds
    ValueError, TypeError and RuntimeError of its own.
    """
    try:
        yield
    except (GraphOptError, MemoryError):
        raise
    except Exception as e:
        lines = str(e).strip().splitlines() or [type(e).__name__]
        raise SessionError(_NOISE.sub("", lines[0])) from e


def _stoppable(run: Callable[[], dict[str, Any]], options: Any, timeout: float) -> dict[str, Any]:
    """Run on a thread, so that this one can tell ONNX Runtime to stop, which it does between nodes.

    Python handles Ctrl-C on the main thread, and not before a call into C++ returns.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(run)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            options.terminate = True
            return future.result()
        except KeyboardInterrupt:
            options.terminate = True
            raise
