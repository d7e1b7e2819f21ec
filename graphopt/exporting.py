"""Export: a model in the form that a target takes, with all that running it takes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graphopt import ir
from graphopt.api import Data, load, optimize, require_goals
from graphopt.bundle import Shapes, check_folder, choose_sizes, describe, write_folder
from graphopt.errors import TargetError, UnsupportedFeature, VerificationError
from graphopt.manager.base import Exactness, Pass, Pipeline
from graphopt.manager.options import format_option
from graphopt.manager.report import Report
from graphopt.manager.text import parse
from graphopt.targets import Target, Violation, check, get

__all__ = ["Export", "export"]

_SHOWN = 5
# What quantization is to find: operators with integer kernels.
_INTEGER = "convert-opset,lower-ops{integer},fold,cleanup"


@dataclasses.dataclass(frozen=True)
class Export:
    """What an export wrote.

    Attributes:
        files: The model first, then data files if any, ``manifest.json`` and ``run.py``.
        manifest: What is in the manifest.
        model: The model.
        reports: Reports of the runs that made it: of fixing its interface, if that was needed, and
            of the pipeline.
    """

    files: list[Path]
    manifest: dict[str, Any]
    model: ir.Model
    reports: list[Report]


def export(
    model: Any,
    target: str | Target,
    directory: str | os.PathLike[str],
    *,
    shapes: Shapes | None = None,
    passes: Pass | str = "O2",
    data: Data | None = None,
    allow_violations: bool = False,
    require_verified: bool = False,
    **options: Any,
) -> Export:
    """Bring a model into the form that a target takes, and write it with all that running it takes.

    Open dimensions get a size where the target needs to know every shape. Then the pipeline runs,
    followed by ``legalize``, which also comes before the first lossy pass, so that quantization
    finds the operators that the target has.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = export("models/digits_mobilenet.onnx", "nnapi", f"{folder}/net")
    >>> print(*(file.name for file in result.files))
    model.onnx manifest.json run.py
    >>> result.manifest["inputs"][0]["shape"], result.manifest["violations"]
    ([1, 1, 32, 32], [])

    Args:
        model: Whatever :func:`load` reads. It is not modified.
        target: What to export for.
        directory: The folder to write: a new or empty one, or an earlier export, which is replaced.
        shapes: Shapes by input, sizes by symbol: ``{"x": (1, 3, 224, 224)}``, ``{"N": 1}``. Where
            the target needs all sizes and nothing but the batch is open, that becomes 1.
        passes: Pipeline text, a pipeline, or a pass.
        data: Samples, as for :func:`optimize`.
        allow_violations: Write the model even if the target does not take all of it.
        require_verified: Write nothing where outputs could not be compared.
        **options: Further arguments of :func:`optimize`, such as ``oracle`` and ``seeds``.

    Raises:
        TargetError: The target does not take the model, or needs sizes; nothing was written.
        GoalNotMet: A pass did not reach what its options ask for; nothing was written.
        VerificationError: A model could not be compared and had to be; nothing was written.
        ExportError: The folder cannot be written, or holds files that no export wrote.
        UnsupportedFeature: The model has a part that nobody can judge.
        GraphOptError: As for :func:`optimize`.
    """
    chosen = get(target)
    check_folder(directory)
    loaded = model if isinstance(model, ir.Model) else load(model)
    if (why := ir.opaque(loaded)) is not None:
        raise UnsupportedFeature(f"the model cannot be brought into another form: {why}")
    sizes = choose_sizes(loaded, shapes or {}, all_of_them=chosen.static_shapes, target=chosen.name)
    steps = []
    if chosen.operators is not None and len(ir.inputs(loaded)) < len(loaded.graph.inputs):
        steps.append("freeze-inputs")  # its weights have to be constant
    if sizes:
        steps.append(f"fix-shapes{{{format_option('dims', tuple(sizes))}}}")
    reports = []
    if steps:
        fixed = optimize(
            loaded, ",".join(steps), target=chosen, **{**options, "on_mismatch": "raise"}
        )
        unfit = [r.reason for r in fixed.report.passes if r.status == "not-applicable"]
        if unfit:
            raise TargetError(f"shapes cannot be fixed: {unfit[0]}")
        loaded = fixed.model
        reports.append(fixed.report)
    pipeline = _legalized(passes, chosen)
    result = optimize(loaded, pipeline, target=chosen, data=data, **options)
    reports.append(result.report)
    require_goals(result)
    _need_comparison(reports, require_verified)
    result.model.ir_version = min(result.model.ir_version or 1, chosen.ir_version)
    inline = not chosen.external_data
    found = [v for v in check(result.model, chosen) if not (inline and v.rule == "external_data")]
    serious = [v for v in found if not v.slow]
    if serious and not allow_violations:
        raise TargetError(_told(serious, chosen))
    manifest = describe(
        result.model,
        chosen,
        pipeline=",".join([*steps, str(pipeline)]),
        reports=[r.to_json() for r in reports],
        violations=found,
    )
    files, manifest = write_folder(
        directory, result.model, manifest, external_data=False if inline else None
    )
    return Export(files, manifest, result.model, reports)


def _legalized(passes: Pass | str, target: Target) -> Pipeline:
    """A pipeline with what the target needs: before the first lossy pass, and at the end."""
    parsed = parse(passes) if isinstance(passes, str) else passes
    parts = parsed.passes if isinstance(parsed, Pipeline) and parsed.repeat == 1 else (parsed,)
    lossy = [
        (p.promise if isinstance(p, Pipeline) else p.exactness) is Exactness.LOSSY for p in parts
    ]
    if True in lossy:
        first = lossy.index(True)
        early = parse(_INTEGER if target.scheme is not None else "legalize")
        parts = (*parts[:first], early, *parts[first:])
    return Pipeline(passes=(*parts, parse("legalize")))


def _need_comparison(reports: Sequence[Report], require_verified: bool) -> None:
    for report in reports:
        if require_verified and report.oracle.get("verdict") in ("unavailable", "not run"):
            reason = report.oracle.get("reason", "the oracle is off")
            raise VerificationError(f"outputs were not compared: {reason}")


def _told(violations: Sequence[Violation], target: Target) -> str:
    lines = []
    for each in violations[:_SHOWN]:
        node = each.node
        where = "" if node is None else f"{node.op_type} {node.name or node.outputs[0].name!r}: "
        lines.append(f"\n  {where}{each.reason}")
    more = f"\n  and {len(violations) - _SHOWN} more" if len(violations) > _SHOWN else ""
    return (
        f"{target.name} does not take all of the model, so nothing was written "
        f"(--allow-violations does nevertheless):{''.join(lines)}{more}"
    )
