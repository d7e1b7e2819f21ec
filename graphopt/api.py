"""What most users need: load, optimize, save, verify, bench."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt import ir
from graphopt.frontends import load
from graphopt.manager.base import Pass
from graphopt.manager.instruments import Instrument
from graphopt.manager.runner import Objective, OracleMode, PassManager, Result

if TYPE_CHECKING:
    from graphopt.runtime.compare import Comparison
    from graphopt.runtime.latency import Latency
    from graphopt.targets import Target

__all__ = ["bench", "load", "optimize", "save", "verify"]

Data = str | os.PathLike[str] | Iterable[Mapping[str, Any]]


def optimize(
    model: Any,
    pipeline: Pass | str = "O2",
    *,
    inputs: Any = None,
    target: str | Target = "cpu",
    data: Data | None = None,
    oracle: OracleMode = "end",
    objective: Objective | None = "cost",
    allow_growth: bool = False,
    instruments: Sequence[Instrument] = (),
    seeds: Sequence[int] = (0,),
) -> Result:
    """Optimize a model and check that it still computes the same.

    Args:
        model: Whatever :func:`load` reads. It is not modified.
        pipeline: Pipeline text, a pipeline, or a pass.
        inputs: Example inputs, for a torch module.
        target: What to optimize for.
        data: Samples: an npz or a folder as for ``--data``, or an iterable of dicts of arrays.
        oracle: Compare outputs after each pass, once at the end, or not at all.
        objective: What must not get worse in a pass; None keeps everything.
        allow_growth: Let the file become larger.
        instruments: Observers of the run.
        seeds: Seeds of the made-up inputs that outputs are compared on.

    Returns:
        The optimized model and a report. A pass that failed its check is undone and named there.

    Raises:
        FrontendError: The model cannot be read.
        PipelineSyntaxError, UnknownPassError, TargetError, ConfigError: An argument is wrong.
        CalibrationError: The data does not fit the model.
    """
    loaded = model if isinstance(model, ir.Model) else load(model, inputs=inputs)
    manager = PassManager(
        pipeline,
        target=target,
        data=samples(data, loaded),
        oracle=oracle,
        objective=objective,
        allow_growth=allow_growth,
        instruments=instruments,
        seeds=seeds,
    )
    return manager.run(loaded)


def save(
    model: ir.Model, path: str | os.PathLike[str], *, external_data: bool | None = None
) -> list[Path]:
    """Write a model atomically: ``path`` holds either the new model or, after a crash, the old one.

    Args:
        model: Model to write.
        path: Destination; it may be the file the model came from.
        external_data: Put weights into a file beside it. None: only above 2 GB.

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
) -> Comparison:
    """Compare the outputs of two models, by ONNX Runtime with its optimizations off.

    Args:
        a: The original, whatever :func:`load` reads.
        b: The other.
        data: Samples, as for :func:`optimize`; made-up inputs are used besides.
        exactness: ``bitwise``, ``rounding`` or ``lossy`` (types and shapes only).
        seeds: Seeds of the made-up inputs.

    Raises:
        FrontendError: A model cannot be read.
        SessionError: ONNX Runtime does not run the original.
        VerificationError: The interfaces differ.
    """
    from graphopt.errors import SessionError, VerificationError
    from graphopt.runtime.oracle import Oracle

    first, second = (m if isinstance(m, ir.Model) else load(m) for m in (a, b))
    problem = ir.interface_difference(first, second)
    if problem is not None:
        raise VerificationError(problem)
    oracle = Oracle(first, data=samples(data, first), seeds=seeds)
    if not oracle.available:
        raise SessionError(f"the first model does not run: {oracle.reason}")
    return oracle.check(second, exactness)


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

    Args:
        a: The original, whatever :func:`load` reads.
        b: The other; it must accept the same inputs.
        data: Samples, as for :func:`optimize`; otherwise inputs are made up.
        threads: Threads within an operator.
        optimize: Let ONNX Runtime optimize both, as its users run it.
        target: Whose execution providers to run on.
        seconds: Roughly how long to measure.

    Raises:
        FrontendError: A model cannot be read.
        SessionError: ONNX Runtime does not run one of them.
    """
    from graphopt.errors import SessionError
    from graphopt.runtime.latency import compare_latency
    from graphopt.runtime.oracle import Oracle
    from graphopt.targets import get

    first, second = (m if isinstance(m, ir.Model) else load(m) for m in (a, b))
    oracle = Oracle(first, data=samples(data, first), settings=1)
    if not oracle.available:
        raise SessionError(f"the first model does not run: {oracle.reason}")
    return compare_latency(
        first,
        second,
        oracle.feeds[0],
        threads=threads,
        optimize=optimize,
        providers=get(target).providers,
        seconds=seconds,
    )


def samples(data: Data | None, model: ir.Model) -> Iterable[Mapping[str, Any]] | None:
    """Samples of a model's inputs from what a user calls data."""
    if data is None or not isinstance(data, (str, os.PathLike)):
        return data
    from graphopt.calibration import load_data

    return load_data(data, model)
