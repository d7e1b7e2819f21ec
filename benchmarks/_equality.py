"""Run two models on the same inputs, ONNX Runtime's optimizations off, and compare."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from _models import fed_inputs

Feeds = dict[str, Any]
Runner = Callable[[Feeds], list[Any]]
RTOL, ATOL = 1e-3, 1e-4


# --- running -------------------------------------------------------------------------------------


def session(
    model: Path | bytes, *, optimize: bool = False, threads: int = 1
) -> ort.InferenceSession:
    """Open an ONNX Runtime session on the CPU.

    Args:
        model: File or serialized model.
        optimize: Use ONNX Runtime's default graph optimizations instead of none.
        threads: Threads inside an operator.
    """
    options = ort.SessionOptions()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    source = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def ort_runner(model: Path | bytes) -> Runner:
    """Run a model in ONNX Runtime, optimizations off, one thread.

    Raises:
        Exception: ONNX Runtime cannot load the model.
    """
    opened = session(model)
    plain = all(i.type.startswith("tensor") for i in opened.get_inputs())
    wide = any(i.type in _WIDE for i in (*opened.get_inputs(), *opened.get_outputs()))

    def run(feeds: Feeds) -> list[Any]:
        if not (plain and wide):
            return list(opened.run(None, feeds))
        values = {name: _ort_value(value) for name, value in feeds.items()}
        return [_from_ort_value(value) for value in opened.run_with_ort_values(None, values)]

    return run


def reference_runner(model: Path | bytes) -> Runner:
    """Run a model in onnx's reference evaluator: slow, but it knows what ONNX Runtime lacks."""
    from onnx.reference import ReferenceEvaluator

    source = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(str(model))
    evaluator = ReferenceEvaluator(source)

    def run(feeds: Feeds) -> list[Any]:
        return list(evaluator.run(None, feeds))

    return run


# Element types ONNX Runtime's numpy bindings refuse; their bits travel as integers of the same
# width.
_WIDE = ("tensor(bfloat16)", "tensor(float8e4m3fn)", "tensor(float8e4m3fnuz)", "tensor(float8e5m2)",
         "tensor(float8e5m2fnuz)")  # fmt: skip


def _ort_value(value: Any) -> ort.OrtValue:
    array = np.ascontiguousarray(value)
    if array.dtype.kind != "V":
        return ort.OrtValue.ortvalue_from_numpy(array)
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    bits = array.view(np.uint16 if array.itemsize == 2 else np.uint8)
    if kind == onnx.TensorProto.BFLOAT16:
        result = ort.OrtValue.ortvalue_from_shape_and_type(list(array.shape), kind)
        ctypes.memmove(result.data_ptr(), bits.ctypes.data, bits.nbytes)
        return result
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, kind)


def _from_ort_value(value: ort.OrtValue) -> Any:
    if not value.is_tensor() or value.element_type() != onnx.TensorProto.BFLOAT16:
        return value.numpy()
    shape = tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    bits = np.empty(count, np.uint16)
    ctypes.memmove(bits.ctypes.data, value.data_ptr(), bits.nbytes)
    return bits.view(onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)).reshape(shape)


# --- inputs --------------------------------------------------------------------------------------


def random_feeds(
    model: onnx.ModelProto, seed: int, sizes: dict[str, int] | None = None, free: int = 2
) -> Feeds:
    """Random inputs from the declared shapes.

    Args:
        model: Any model whose fed inputs are tensors.
        seed: Seed of the generator.
        sizes: Size of each symbolic dim; the others get ``free``.
        free: Size of dims without a name.

    Raises:
        TypeError: An input is not a tensor of numbers or booleans.
    """
    rng = np.random.default_rng(seed)
    feeds: Feeds = {}
    for value in fed_inputs(model):
        if not value.type.HasField("tensor_type"):
            raise TypeError(f"input {value.name} is not a tensor")
        shape = [
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0
            else (sizes or {}).get(dim.dim_param, free)
            for dim in value.type.tensor_type.shape.dim
        ]  # fmt: skip
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if dtype.kind == "b":
            feeds[value.name] = rng.random(shape) < 0.5
        elif dtype.kind in "iu":
            feeds[value.name] = rng.integers(0, 16, shape).astype(dtype)
        elif dtype.kind in "fV":
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
        else:
            raise TypeError(f"input {value.name} has element type {dtype}")
    return feeds


def vary(
    feeds: Feeds, model: onnx.ModelProto, seed: int, *, resize: bool, integers: bool, noise: bool
) -> Feeds:
    """Other inputs made from given ones, so that indices and ranges stay plausible.

    Args:
        feeds: Inputs that work.
        model: The model they belong to; says which dims are free.
        seed: Seed of the generator.
        resize: Make every free dim one larger (the same symbol, or without a name the same size,
            changes alike).
        integers: Permute integers and strings too, instead of keeping them.
        noise: Draw floats from a normal distribution of the same mean and spread, instead of
            permuting them.
    """
    rng = np.random.default_rng(seed)

    def change(array: Any) -> Any:
        if isinstance(array, (list, tuple)):
            return [change(item) for item in array]
        if not isinstance(array, np.ndarray):
            return array
        flat = array.reshape(-1)
        if array.dtype.kind == "f" and noise and np.isfinite(flat).any():
            good = flat[np.isfinite(flat)].astype(np.float64)
            fresh = rng.normal(good.mean(), good.std() + 1e-3, array.shape)
            return fresh.astype(array.dtype)
        if array.dtype.kind in "fcV" or integers:
            return flat[rng.permutation(flat.size)].reshape(array.shape)
        return array

    grown = _resized(feeds, model) if resize else feeds
    return {name: change(value) for name, value in grown.items()}


def _resized(feeds: Feeds, model: onnx.ModelProto) -> Feeds:
    result: Feeds = {}
    declared = {v.name: v.type for v in model.graph.input}
    for name, value in feeds.items():
        kind = declared.get(name)
        if not isinstance(value, np.ndarray) or kind is None or not kind.HasField("tensor_type"):
            result[name] = value
            continue
        listed = list(kind.tensor_type.shape.dim)
        shape = [
            size + 1 if i < len(listed) and _is_free(listed[i]) else size
            for i, size in enumerate(value.shape)
        ]  # fmt: skip
        result[name] = np.resize(value, shape) if value.size else value
    return result


def _is_free(dim: Any) -> bool:
    return not (dim.HasField("dim_value") and dim.dim_value >= 0)


def has_free_dims(model: onnx.ModelProto) -> bool:
    """Whether an input has a dim without a fixed size."""
    return any(
        _is_free(dim)
        for value in fed_inputs(model)
        if value.type.HasField("tensor_type")
        for dim in value.type.tensor_type.shape.dim
    )


# --- comparing -----------------------------------------------------------------------------------


def difference(
    expected: Sequence[Any],
    got: Sequence[Any],
    *,
    rtol: float = RTOL,
    atol: float = ATOL,
    scaled: bool = True,
) -> str | None:
    """What differs between two lists of outputs, or None.

    Floats may differ by ``atol + rtol * |expected|``, everything else not at all; NaN equals NaN.
    Half precision gets at least its own rounding.

    Args:
        expected: Outputs of the original.
        got: Outputs of the other model.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        scaled: ``atol`` is relative to the largest finite value of the output, where that is above
            1.
    """
    if len(expected) != len(got):
        return f"{len(expected)} outputs became {len(got)}"
    for i, (a, b) in enumerate(zip(expected, got, strict=True)):
        found = _differs(a, b, rtol, atol, scaled)
        if found:
            return f"output {i}: {found}"
    return None


def _differs(a: Any, b: Any, rtol: float, atol: float, scaled: bool) -> str | None:
    if a is None or b is None:
        return None if a is None and b is None else f"{type(a).__name__} became {type(b).__name__}"
    if isinstance(a, (list, tuple)):
        if not isinstance(b, (list, tuple)):
            return f"a sequence became {type(b).__name__}"
        return difference(a, b, rtol=rtol, atol=atol, scaled=scaled)
    if isinstance(a, dict):
        if not isinstance(b, dict) or list(a) != list(b):
            return "map keys differ"
        return difference(list(a.values()), list(b.values()), rtol=rtol, atol=atol, scaled=scaled)
    x, y = np.asarray(a), np.asarray(b)
    if x.shape != y.shape:
        return f"shape {x.shape} became {y.shape}"
    if x.dtype != y.dtype:
        return f"dtype {x.dtype} became {y.dtype}"
    if x.dtype.kind in "OUSb" or x.dtype.kind in "iu":
        wrong = x != y
        count = int(np.count_nonzero(wrong))
        return f"{count} of {x.size} elements differ" if count else None
    if x.dtype.kind == "V":  # ml_dtypes: bfloat16, float8, int4 ...
        step = float(2.0**-7) if x.dtype.itemsize == 2 else 0.13
        rtol, x, y = max(rtol, step), x.astype(np.float32), y.astype(np.float32)
    elif x.dtype == np.float16:
        rtol, atol = max(rtol, 2e-3), max(atol, 2e-3)
    return _floats_differ(x, y, rtol, atol, scaled)


def _floats_differ(
    x: np.ndarray, y: np.ndarray, rtol: float, atol: float, scaled: bool
) -> str | None:
    wide = np.complex128 if x.dtype.kind == "c" else np.float64
    x, y = x.astype(wide), y.astype(wide)
    finite = np.isfinite(x)
    same_special = np.array_equal(x[~finite], y[~finite], equal_nan=True)
    if not same_special or not np.isfinite(y[finite]).all():
        return "infinities or NaNs differ"
    if not finite.any():
        return None
    a, b = x[finite], y[finite]
    top = float(np.abs(a).max())
    error = np.abs(a - b)
    over = error > atol * (max(1.0, top) if scaled else 1.0) + rtol * np.abs(a)
    if over.any():
        worst = f"max error {float(error.max()):.3g} (largest value {top:.3g})"
        return f"{worst}, {int(over.sum())} elements over"
    return None


def sqnr_db(expected: Sequence[Any], got: Sequence[Any]) -> float:
    """Signal to error ratio in dB over all float outputs; infinite where the bits are equal."""
    signal = error = 0.0
    for a, b in zip(expected, got, strict=True):
        x = np.asarray(a)
        if x.dtype.kind == "f":
            signal += float(np.square(x.astype(np.float64)).sum())
            error += float(np.square(x.astype(np.float64) - np.asarray(b, np.float64)).sum())
    if error == 0.0:
        return float("inf")
    return float(10 * np.log10(signal / error)) if signal else float("-inf")


def equal_on(original: Path, result: Path, settings: Sequence[Feeds]) -> str | None:
    """Compare two model files on several feeds; what differs, or None."""
    run = ort_runner(original)
    expected = [run(feeds) for feeds in settings]
    del run
    try:
        run = ort_runner(result)
    except Exception as error:  # any reason counts: the result does not load
        return f"does not load: {str(error)[:200]}"
    for feeds, outputs in zip(settings, expected, strict=True):
        try:
            got = run(feeds)
        except Exception as error:
            return f"does not run: {str(error)[:200]}"
        found = difference(outputs, got)
        if found:
            return found
    return None


def checker_accepts(path: Path) -> str | None:
    """First line of ``onnx.checker``'s complaint (full check); None where it accepts the file."""
    with contextlib.suppress(UnicodeDecodeError):
        try:
            onnx.checker.check_model(str(path), full_check=True)
        except Exception as error:  # ValidationError, InferenceError, and what protobuf raises
            return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return None
