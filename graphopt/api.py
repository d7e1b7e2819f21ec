"""What most users need: load, optimize, quantize, save, verify, bench."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graphopt import ir
from graphopt.errors import (
    ConfigError,
    GoalNotMet,
    RuntimeUnavailable,
    SessionError,
    TargetError,
    VerificationError,
)
from graphopt.frontends import load
from graphopt.manager.base import Pass, Pipeline
from graphopt.manager.instruments import Instrument
from graphopt.manager.options import OptionError, Raw, build
from graphopt.manager.registry import default_registry
from graphopt.manager.runner import Objective, OracleMode, PassManager, Result
from graphopt.manager.text import parse

if TYPE_CHECKING:
    from graphopt.calibration import Samples
    from graphopt.runtime.compare import Comparison
    from graphopt.runtime.latency import Latency
    from graphopt.runtime.oracle import Oracle
    from graphopt.runtime.probe import Probe
    from graphopt.targets import Target

__all__ = ["bench", "load", "optimize", "quantize", "save", "verify"]

Data = str | os.PathLike[str] | Mapping[str, Any] | Iterable[Mapping[str, Any]]

# Batches of the user's data that two models are compared on unless told otherwise: their outputs
# are kept in memory.
_BATCHES = 32
_QUANTIZE = "quantize-int8"


def optimize(
    model: Any,
    pipeline: Pass | str = "O2",
    *,
    inputs: Any = None,
    target: str | Target = "cpu",
    data: Data | None = None,
    oracle: OracleMode = "end",
    on_mismatch: Literal["revert", "raise"] = "revert",
    objective: Objective | None = "cost",
    allow_growth: bool = False,
    instruments: Sequence[Instrument] = (),
    seeds: Sequence[int] = (0,),
    executor: Executor | str | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Result:
    """Optimize a model and check that it still computes the same.

    >>> result = optimize("models/digits_resnet.onnx", data="models/digits_calib.npz")
    >>> result.report.after.nodes < result.report.before.nodes
    True
    >>> result.report.oracle["verdict"], result.report.reverted
    ('equal', [])

    Args:
        model: Whatever :func:`load` reads. It is not modified.
        pipeline: Pipeline text, a pipeline, or a pass.
        inputs: Example inputs, for a torch module.
        target: What to optimize for.
        data: Samples: what ``--data`` takes, such as the path of an npz or a folder, or
            ``module:function``; or batches, each a dict of arrays by input name, in a list or
            another collection that can be read repeatedly (what can be read only once is read into
            memory), or a single such dict.
        oracle: Compare outputs after each pass, once at the end, or not at all.
        on_mismatch: What to do with a pass that raises, breaks the model or changes its numbers:
            undo it and go on, or raise.
        objective: What must not get worse in a pass; None keeps everything.
        allow_growth: Let the file become larger.
        instruments: Observers of the run.
        seeds: Seeds of the made-up inputs that outputs are compared on.
        executor: Where passes that calibrate run the samples: an executor, or what ``--executor``
            takes, such as ``processes:4``. By default two threads.
        cache: Folder where results of calibration are kept, to be used again.

    Returns:
        The optimized model and a report. A pass that failed its check is undone and named there.

    Raises:
        FrontendError: The model cannot be read.
        PipelineSyntaxError, UnknownPassError, ConfigError: An argument is wrong.
        CalibrationError: The data does not fit the model.
        RuntimeUnavailable: onnxruntime is not installed, and ``oracle`` is not ``"off"``.
        PassFailed, NumericalMismatch: A pass failed its check (only with ``on_mismatch="raise"``).
    """
    if oracle != "off":
        _need_runtime("; --oracle off leaves that out")
    loaded = _loaded(model, inputs)
    batches = samples(data, loaded)
    with contextlib.ExitStack() as stack:
        if isinstance(executor, str):
            from graphopt.calibration import open_executor

            executor = stack.enter_context(open_executor(executor))
        manager = PassManager(
            pipeline,
            target=target,
            data=batches,
            oracle=oracle,
            on_mismatch=on_mismatch,
            objective=objective,
            allow_growth=allow_growth,
            instruments=instruments,
            seeds=seeds,
            executor=executor,
            cache=cache,
        )
        result = manager.run(loaded)
    if batches is not None:  # what was converted shows when data is read
        remarks = result.report.remarks
        remarks += [each for each in batches.remarks if each not in remarks]
    return result


def quantize(
    model: Any,
    *,
    data: Data | None = None,
    target: str | Target = "cpu",
    first: str = "O2",
    inputs: Any = None,
    executor: Executor | str | None = None,
    cache: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Result:
    """Quantize a model to 8-bit integers where that makes it faster on the target.

    This is :func:`optimize` with the pipeline ``O2,quantize-int8``, and errors where the model
    cannot be quantized.

    >>> result = quantize(
    ...     "models/digits_transformer.onnx", data="models/digits_calib.npz",
    ...     form="dynamic", choose="all", min_sqnr=30,
    ... )
    >>> result.report.passes[-1].details["chosen"]
    'dynamic, 14 of 14 nodes'

    Args:
        model: Whatever :func:`load` reads. It is not modified.
        data: Samples, as for :func:`optimize`. Without them only the dynamic form is possible.
        target: Where the model will run.
        first: Pipeline that runs before.
        inputs: Example inputs, for a torch module.
        executor: Where the samples run, as for :func:`optimize`.
        cache: Folder where observations and measured times are kept.
        **options: Options of the pass ``quantize-int8``, such as ``form``, ``max_drop``,
            ``min_sqnr`` or ``skip``; ``graphopt passes quantize-int8`` explains them.

    Returns:
        The model and a report. Where no form in integers is faster, and no goal was set, the model
        is in floating point and ``report.passes[-1]`` says why.

    Raises:
        FrontendError: The model cannot be read.
        ConfigError: An option is wrong; or there is nothing to quantize, or no data to do it with.
        CalibrationError: The data does not fit the model.
        GoalNotMet: No form is faster and within ``max_drop`` and ``min_sqnr``, if they were given.
        VerificationError: The quantized model failed its check.
    """
    pipeline = quantization(options, first)
    result = optimize(
        model, pipeline, inputs=inputs, target=target, data=data, executor=executor, cache=cache
    )
    require_quantized(result, pipeline)
    return result


def save(
    model: ir.Model, path: str | os.PathLike[str], *, external_data: bool | None = None
) -> list[Path]:
    """Write a model atomically: ``path`` holds either the new model or, after a crash, the old one.

    >>> import tempfile
    >>> model = load("models/digits_resnet.onnx")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = save(model, f"{folder}/net.onnx", external_data=True)
    >>> print(*(file.name for file in files))
    net.onnx net.onnx.data

    Args:
        model: Model to write.
        path: Destination; it may be the file the model came from.
        external_data: Put weights into a file beside it. None: as the source did, and above 2 GB.

    Returns:
        The files written, the model first.

    Raises:
        ExportError: The destination cannot be written.
    """
    return ir.save(model, path, external_data=external_data)


def verify(
    a: Any,
    b: Any,
    *,
    data: Data | None = None,
    exactness: str = "rounding",
    seeds: Sequence[int] = (0, 1),
    samples: int = _BATCHES,
) -> Comparison:
    """Compare the outputs of two models, by ONNX Runtime with its optimizations off.

    >>> result = optimize("models/digits_resnet.onnx")
    >>> verify("models/digits_resnet.onnx", result.model).ok
    True

    Args:
        a: The original, whatever :func:`load` reads.
        b: The other.
        data: Samples, as for :func:`optimize`; made-up inputs are used besides.
        exactness: ``bitwise``, ``rounding`` or ``lossy`` (names, types and shapes only; the result
            tells the signal-to-noise ratio).
        seeds: Seeds of the made-up inputs.
        samples: How many batches of the data to compare on, at most.

    Returns:
        Whether they agree and, if not, why; and the largest differences.

    Raises:
        FrontendError: A model cannot be read.
        SessionError: ONNX Runtime does not run the original.
        VerificationError: They do not have inputs and outputs of the same names.
        CalibrationError: The data does not fit the original.
        ConfigError: There is no such exactness.
    """
    found, _ = judge(
        _loaded(a), _loaded(b), data=data, exactness=exactness, seeds=seeds, batches=samples
    )
    return found


def bench(
    a: Any,
    b: Any,
    *,
    data: Data | None = None,
    threads: int = 1,
    optimize: bool = True,
    target: str | Target = "cpu",
    seconds: float = 5.0,
) -> Latency:
    """Compare the latency of two models by interleaved runs.

    >>> result = optimize("models/digits_resnet.onnx")
    >>> timings = bench("models/digits_resnet.onnx", result.model, seconds=0.1)
    >>> speedup = 1 / timings["b"].ratio
    >>> timings["a"].median > 0 and speedup > 0
    True

    Args:
        a: The original, whatever :func:`load` reads.
        b: The other; it must accept the same inputs.
        data: Samples, as for :func:`optimize`, of which the first batch is used; otherwise inputs
            are made up.
        threads: Threads within an operator.
        optimize: Let ONNX Runtime optimize both, as its users run it.
        target: Whose execution providers to run on.
        seconds: Roughly how long to measure.

    Returns:
        Timings named ``"a"`` and ``"b"``.

    Raises:
        FrontendError: A model cannot be read.
        SessionError: ONNX Runtime does not run one of them.
        VerificationError: They do not have inputs of the same names.
        TargetError: This ONNX Runtime lacks the target's execution provider.
        CalibrationError: The data does not fit the original.
    """
    first, second = _loaded(a), _loaded(b)
    return race(
        first, second, bench_input(first, second, data, target),
        threads=threads, optimize=optimize, target=target, seconds=seconds,
    )  # fmt: skip


# What the command line says more about than the functions above return.


def quantization(options: Mapping[str, Any], first: str) -> Pipeline:
    """The pipeline of :func:`quantize`.

    Raises:
        ConfigError: An option is wrong.
    """
    known = default_registry().get(_QUANTIZE)
    try:
        each: Pass = build(known, [(key, 0, Raw.of(value)) for key, value in options.items()])
    except OptionError as e:
        raise ConfigError(str(e)) from e
    return Pipeline(passes=(*parse(first).passes, each))


def require_goals(result: Result) -> None:
    """Check that passes reached what their options asked for.

    Raises:
        GoalNotMet: One did not.
    """
    for record in result.report.passes:
        if "missed" in record.details:
            raise GoalNotMet(f"{record.text}: {record.details['missed']}")


def require_quantized(result: Result, pipeline: Pipeline) -> None:
    """Check what came of the pipeline of :func:`quantize`; see there for what it raises."""
    report = result.report
    record = next((r for r in reversed(report.passes) if r.name == _QUANTIZE), None)
    if record is None:
        raise ConfigError(f"the model cannot be quantized: {'; '.join(report.remarks)}")
    if record.status == "ok":
        return
    if record.status == "reverted":
        raise VerificationError(f"{record.text} was undone: it {record.reason}")
    if "chosen" not in record.details:
        raise ConfigError(f"the model cannot be quantized: {record.reason}")
    asked: Any = pipeline.passes[-1]
    if asked.min_sqnr is not None or asked.max_drop is not None:
        raise GoalNotMet(record.reason or "no form of the model is within the goal")


def judge(
    first: ir.Model,
    second: ir.Model,
    *,
    data: Data | None,
    exactness: str,
    seeds: Sequence[int],
    batches: int,
) -> tuple[Comparison, Oracle]:
    """Compare two models; see :func:`verify`. Returns what it was compared on, too."""
    from graphopt.manager.base import Exactness
    from graphopt.runtime.oracle import Oracle

    if exactness not in (known := [e.value for e in Exactness]):
        raise ConfigError(f"{exactness!r} is none of {', '.join(known)}")
    _need_runtime()
    _comparable(first, second)
    oracle = Oracle(first, data=samples(data, first), seeds=seeds, samples=batches)
    if not oracle.available:
        raise SessionError(f"outputs of the first model cannot be compared: {oracle.reason}")
    return oracle.check(second, exactness), oracle


def bench_input(
    first: ir.Model, second: ir.Model, data: Data | None, target: str | Target
) -> Probe:
    """What to run two models on; see :func:`bench`."""
    from graphopt.runtime.oracle import Oracle
    from graphopt.runtime.session import ort
    from graphopt.targets import get

    chosen = get(target)
    present = ort().get_available_providers()
    if chosen.providers[0] not in present:
        raise TargetError(
            f"target {chosen.name!r} needs {chosen.providers[0]}, which this onnxruntime lacks: it "
            f"has {', '.join(present)}"
        )
    _comparable(first, second)
    oracle = Oracle(first, data=samples(data, first), settings=1)
    if not oracle.available:
        raise SessionError(f"the first model cannot be measured: {oracle.reason}")
    return oracle.probes[0]


def race(
    first: ir.Model,
    second: ir.Model,
    probe: Probe,
    *,
    threads: int,
    optimize: bool,
    target: str | Target,
    seconds: float,
) -> Latency:
    """Measure two models on one input; see :func:`bench`."""
    from graphopt.runtime.latency import compare_latency
    from graphopt.targets import get

    chosen = get(target)
    return compare_latency(
        first,
        second,
        probe.feeds,
        threads=threads,
        optimize=optimize and chosen.optimize,
        providers=chosen.with_options,
        config=chosen.session,
        seconds=seconds,
    )


def samples(data: Data | None, model: ir.Model) -> Samples | None:
    """Samples of a model's inputs from what a user calls data.

    Raises:
        CalibrationError: They do not fit the model's inputs.
    """
    if data is None:
        return None
    from graphopt.calibration import Samples, from_batches, load_data

    if isinstance(data, Samples):
        return data
    if isinstance(data, (str, os.PathLike)):
        return load_data(data, model)
    return from_batches(data, model)


def _need_runtime(otherwise: str = "") -> None:
    """Fail where onnxruntime is missing, before any work.

    Raises:
        RuntimeUnavailable: It is; the message says what to do.
    """
    from graphopt.runtime.session import ort

    try:
        ort()
    except RuntimeUnavailable as e:
        raise RuntimeUnavailable(f"{e} Outputs cannot be compared without it{otherwise}.") from e


def _loaded(model: Any, inputs: Any = None) -> ir.Model:
    return model if isinstance(model, ir.Model) else load(model, inputs=inputs)


def _comparable(first: ir.Model, second: ir.Model) -> None:
    """Check that two models can be fed the same and make outputs of the same names.

    Raises:
        VerificationError: They cannot.
    """
    pairs = [("outputs", first.graph.outputs, second.graph.outputs)]
    if ir.opaque(first) is None and ir.opaque(second) is None:
        pairs.insert(0, ("inputs", ir.inputs(first), ir.inputs(second)))
    for kind, one, other in pairs:
        a, b = [v.name or "" for v in one], [v.name or "" for v in other]
        missing = [n for n in a if n not in b]
        extra = [n for n in b if n not in a]
        if missing or extra:
            told = " and ".join(
                f"only the {which} has {_few(names)}"
                for which, names in (("first", missing), ("second", extra))
                if names
            )
            raise VerificationError(f"the models have different {kind}: {told}")


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
