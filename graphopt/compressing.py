"""Making a model smaller at some cost of accuracy: ``prune``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graphopt import ir
from graphopt.api import Data, load, optimize, require_goals, samples
from graphopt.errors import ConfigError, GoalNotMet, VerificationError
from graphopt.manager.base import Pass, Pipeline
from graphopt.manager.options import OptionError, Raw, build
from graphopt.manager.registry import default_registry
from graphopt.manager.report import PassRecord, Report
from graphopt.manager.runner import Result
from graphopt.manager.text import parse
from graphopt.targets import Target, get

if TYPE_CHECKING:
    from graphopt.calibration import Samples

__all__ = ["prune", "pruning", "pruning_records", "require_pruned"]

_HEADS, _LAYERS, _CHANNELS = "prune-heads", "prune-layers", "prune-channels"
_GOALS = ("macs", "params", "bytes", "latency", "channels")
# Options of prune-channels that the other passes have, too, and what these call them.
_BOTH = {name: name for name in ("skip", "min_sqnr", "max_drop", "samples", "threads", "dry")}
_OF_HEADS = {**_BOTH, **{n: n for n in ("criterion", "ranking", "least", "recover")}}
_OF_LAYERS = {**_BOTH, "recover": "reconstruct"}


def prune(
    model: Any,
    *,
    data: Data | None = None,
    target: str | Target = "cpu",
    heads: float | None = None,
    layers: int | None = None,
    first: str = "O2",
    inputs: Any = None,
    cache: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Result:
    """Remove channels, heads and layers of a model, and let what stays make up for them.

    This is :func:`optimize` with a pipeline of ``prune-heads``, ``prune-layers`` and
    ``prune-channels``, those of them that are asked for, and errors where the model cannot be
    pruned as asked.

    >>> result = prune(
    ...     "models/digits_lstm.onnx", data="models/digits_calib.npz", target="cpu-arm64", macs=0.9
    ... )
    >>> left = result.report.passes[-1].details["left"]["macs"]
    >>> 0.85 < left <= 0.9
    True

    Args:
        model: Whatever :func:`load` reads. It is not modified.
        data: Samples, as for :func:`optimize`. Without them only some options are possible.
        target: Where the model will run.
        heads: The share of attention heads that stays.
        layers: How many layers beside shortcuts go.
        first: Pipeline that runs before.
        inputs: Example inputs, for a torch module.
        cache: Folder where measured times are kept.
        **options: Options of the pass ``prune-channels``: one of ``macs``, ``params``, ``bytes``,
            ``latency`` and ``channels``, the share that stays (of what heads and layers leave);
            ``criterion``, ``max_drop``, ``skip`` and others, which the other passes are given, too;
            ``graphopt passes prune-channels`` explains them. With ``dry`` nothing is pruned, and
            ``details`` of the passes tell what could be.

    Returns:
        The model and a report. ``details`` of the records of these passes tell what went; if
        several did something, ``details["total"]`` of the last what they come to together.

    Raises:
        FrontendError: The model cannot be read.
        ConfigError: An option is wrong or a goal missing; there is nothing to prune, or no data.
        CalibrationError: The data does not fit the model.
        GoalNotMet: The goal is out of reach, or not within ``max_drop`` and ``min_sqnr``; or the
            result would be slower.
        VerificationError: The pruned model failed its check.
    """
    pipeline = pruning(options, heads=heads, layers=layers, first=first)
    source = model if isinstance(model, ir.Model) else load(model, inputs=inputs)
    # What can be read only once is read once.
    batches = samples(data, source)
    result = optimize(source, pipeline, target=target, data=batches, cache=cache)
    require_pruned(result, source, pipeline, target=target, data=batches)
    return result


# What the command line says more about than the function above returns.


def pruning(
    options: Mapping[str, Any], *, heads: float | None, layers: int | None, first: str
) -> Pipeline:
    """The pipeline of :func:`prune`. A dry run looks at heads, layers and channels alike.

    Raises:
        ConfigError: An option is wrong, or it is not said what to prune.
    """
    if heads is not None and not 0 < heads < 1:
        raise ConfigError(f"heads is the fraction that remains, in (0, 1), not {heads:g}")
    if layers is not None and layers < 1:
        raise ConfigError(f"layers has to be 1 or more, not {layers}")
    # Checked even where no channels go: options of the others are among them.
    channels = _built(_CHANNELS, options)
    dry = bool(options.get("dry"))
    goal = any(options.get(name) is not None for name in _GOALS)
    if not (dry or goal or heads is not None or layers is not None):
        raise ConfigError(
            f"it has to be said what may remain: one of {', '.join(_GOALS)}; or heads or layers"
        )
    passes: list[Pass] = [*parse(first).passes]
    if heads is not None or dry:
        shared = _renamed(options, _OF_HEADS)
        passes.append(_built(_HEADS, shared if heads is None else {**shared, "channels": heads}))
    if layers is not None or dry:
        passes.append(_built(_LAYERS, {**_renamed(options, _OF_LAYERS), "count": layers}))
    if goal or dry:
        passes.append(channels)
    return Pipeline(passes=tuple(passes))


def pruning_records(report: Report) -> list[PassRecord]:
    """The records of passes that prune, in order."""
    return [r for r in report.passes if r.name in (_HEADS, _LAYERS, _CHANNELS)]


def require_pruned(
    result: Result,
    source: ir.Model,
    pipeline: Pipeline,
    *,
    target: str | Target,
    data: Data | None,
) -> None:
    """Check what came of the pipeline of :func:`prune`; see there for what it raises.

    Where several passes pruned, what they come to together is measured, and added to the report.
    """
    require_goals(result)
    records = pruning_records(result.report)
    if not records:
        raise ConfigError(f"the model cannot be pruned: {'; '.join(result.report.remarks)}")
    asked = {each.name: each for each in pipeline.leaves()}
    for record in records:
        _require(record, asked[record.name])
    if sum(record.status == "ok" for record in records) > 1:
        _together(result, source, asked[records[-1].name], get(target), samples(data, source))


def _require(record: PassRecord, asked: Any) -> None:
    if record.status == "reverted":
        raise VerificationError(f"{record.text} was undone: it {record.reason}")
    if record.status == "not-applicable":
        if "groups" in record.details or "layers" in record.details:
            raise GoalNotMet(f"{record.text}: {record.reason}")
        raise ConfigError(f"the model cannot be pruned: {record.reason}")
    if record.name != _LAYERS or asked.dry:
        return
    gone = sum(row["removed"] is not None for row in record.details.get("layers", ()))
    if gone < asked.count:
        if not gone:
            why = "".join(f"; {reason}" for reason in list(record.declined)[:1])
            raise ConfigError(f"the model cannot be pruned: no layer may go{why}")
        raise GoalNotMet(f"{record.text}: {gone} went, no more may")


def _together(
    result: Result, source: ir.Model, asked: Any, target: Target, data: Samples | None
) -> None:
    """Measure the result against the original, which each pass saw only what was left of."""
    from graphopt.calibration import fitting
    from graphopt.measure import Budget, Trial, race, runs_here, settings
    from graphopt.pruning.batches import split

    if data is None:
        return
    fit, aside = split(fitting(data, source), asked.samples)
    quality = Trial(source, aside or fit).quality(result.model)
    total: dict[str, Any] = {"quality": {**quality.to_json(), "aside": bool(aside)}}
    if runs_here(target) is None:
        inputs = settings((aside or fit)[0], source)
        (ratios,) = race(source, [result.model], inputs, target=target, threads=asked.threads)
        total["speedup"] = [1 / ratio for ratio in ratios]
    pruning_records(result.report)[-1].details["total"] = total
    budget = Budget(asked.min_sqnr, asked.max_drop)
    obstacle = None if budget == Budget() else budget.obstacle(quality)
    if obstacle is not None:
        raise GoalNotMet(f"what was pruned taken together, {obstacle}")


def _built(name: str, options: Mapping[str, Any]) -> Pass:
    known = default_registry().get(name)
    try:
        found: Pass = build(known, [(key, 0, Raw.of(value)) for key, value in options.items()])
    except OptionError as e:
        raise ConfigError(str(e)) from e
    return found


def _renamed(options: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names[key]: value for key, value in options.items() if key in names}
