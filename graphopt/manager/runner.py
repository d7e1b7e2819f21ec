"""The pass manager: runs a pipeline, checks every pass, undoes and names those that fail."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graphopt import ir
from graphopt.analyses import Cost
from graphopt.errors import (
    CalibrationError,
    ConfigError,
    GraphOptError,
    NotApplicable,
    NumericalMismatch,
    PassFailed,
    VerificationError,
)
from graphopt.manager.base import Exactness, Pass, Pipeline
from graphopt.manager.context import Context, Data
from graphopt.manager.instruments import Fuel, Instrument, versions
from graphopt.manager.registry import Registry
from graphopt.manager.report import PassRecord, Report, Size
from graphopt.manager.sizes import compared, file_bytes, measure
from graphopt.manager.text import parse

if TYPE_CHECKING:
    from graphopt.runtime.oracle import Oracle
    from graphopt.targets import Target

__all__ = ["Objective", "OracleMode", "PassManager", "Result"]

OracleMode = Literal["each", "end", "off"]
Objective = Literal["cost", "bytes", "nodes"]

# Names and attributes of a rewritten node may be a little longer than before; what a pass adds
# beyond this is judged right away, what remains in the end is judged exactly.
_SLACK_BYTES = 1024


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run returns.

    Attributes:
        model: The optimized model.
        report: What happened.
    """

    model: ir.Model
    report: Report


@dataclasses.dataclass(frozen=True)
class _Undone:
    """A pass that an attempt has to do without."""

    ordinal: int
    error: Exception
    reason: str
    rewrites: dict[str, int] = dataclasses.field(default_factory=dict)


class _Restart(Exception):  # noqa: N818 - control flow inside this module
    def __init__(self, undone: _Undone) -> None:
        super().__init__(undone.reason)
        self.undone = undone


class PassManager:
    """Runs a pipeline over models.

    After every pass that changed something the structure is verified, and the size and estimated
    cost are compared: a pass that makes the model worse is not kept. With an oracle the numbers are
    compared too, by ONNX Runtime with its own optimizations off, at the exactness the pass
    promises.

    Args:
        pipeline: A pipeline, a pass, or pipeline text.
        target: What to optimize for.
        data: Samples of the model's inputs, re-iterable, for the oracle and for passes that
            calibrate.
        oracle: Compare outputs after each pass, once at the end, or not at all.
        on_mismatch: What to do with a pass that raises, breaks the model or changes its numbers:
            undo it and go on, or raise.
        objective: What must not get worse in a pass; None keeps everything.
        allow_growth: Let the file become larger.
        fuel: Number of actions (passes and single rewrites) that may happen.
        instruments: Observers.
        registry: Where names in pipeline text come from.
        seeds: Seeds of the probe inputs of the oracle.
        executor: Where passes that calibrate run the samples; None leaves the choice to them.
        cache: Folder where results of calibration are kept.

    Raises:
        PipelineSyntaxError, UnknownPassError: The text does not parse.
        ConfigError: There is no such target, or an argument is none of its choices.
    """

    def __init__(
        self,
        pipeline: Pass | str,
        *,
        target: str | Target = "cpu",
        data: Data | None = None,
        oracle: OracleMode = "off",
        on_mismatch: Literal["raise", "revert"] = "revert",
        objective: Objective | None = "cost",
        allow_growth: bool = False,
        fuel: int | None = None,
        instruments: Sequence[Instrument] = (),
        registry: Registry | None = None,
        seeds: Sequence[int] = (0,),
        executor: Executor | None = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        from graphopt.targets import get

        parsed = parse(pipeline, registry) if isinstance(pipeline, str) else pipeline
        self.pipeline = parsed if isinstance(parsed, Pipeline) else Pipeline(passes=(parsed,))
        self.target = get(target)
        self.data = data
        for value, choices in (
            (oracle, ("each", "end", "off")),
            (on_mismatch, ("raise", "revert")),
            (objective, ("cost", "bytes", "nodes", None)),
        ):
            if value not in choices:
                raise ConfigError(f"{value!r} is none of {', '.join(map(str, choices))}")
        self.oracle: OracleMode = oracle
        self.on_mismatch = on_mismatch
        self.objective = objective
        self.allow_growth = allow_growth
        self.instruments = (*instruments, *((Fuel(fuel),) if fuel is not None else ()))
        self.seeds = tuple(seeds)
        self.executor = executor
        self.cache = None if cache is None else Path(cache)

    def context(self, model: ir.Model, allow: Callable[[str], bool] | None = None) -> Context:
        """What passes of this run get besides ``model``."""
        return Context(
            model, self.target, self.data, allow, executor=self.executor, cache=self.cache
        )

    def run(self, model: ir.Model) -> Result:
        """Run the pipeline on a copy of ``model``.

        Returns:
            The result and a report. A model that the IR cannot represent comes back as it is.

        Raises:
            PassFailed: A pass raised or broke the structure (only with ``on_mismatch="raise"``).
            NumericalMismatch: Outputs changed by more than promised (likewise).
        """
        start = time.perf_counter()
        with ir.gc_paused():
            report = Report(
                pipeline=str(self.pipeline),
                target=self.target.name,
                versions=versions(),
                remarks=[*ir.remarks(model), *getattr(self.data, "remarks", ())],
            )
            if ir.opaque(model) is not None:
                report.oracle = {"mode": self.oracle, "verdict": "unchanged"}
                result = ir.clone(model)
                report.before = report.after = Size(bytes=ir.nbytes(model))
            else:
                result = _Run(self, model, report).run()
        report.seconds = time.perf_counter() - start
        for instrument in self.instruments:
            instrument.after_run(report)
        return Result(result, report)


class _Run:
    """One run: attempts, each without the passes that earlier ones had to undo."""

    def __init__(self, manager: PassManager, source: ir.Model, report: Report) -> None:
        self.manager, self.source, self.report = manager, source, report
        self.before = measure(source)
        self.undone: dict[int, _Undone] = {}
        self.mode: OracleMode = manager.oracle
        self._oracle: Oracle | None = None

    def oracle(self) -> Oracle:
        if self._oracle is None:
            from graphopt.runtime.oracle import Oracle

            self._oracle = Oracle(
                self.source,
                data=self.manager.data,
                seeds=self.manager.seeds,
                accepts=self.narrowed(),
            )
        return self._oracle

    def narrowed(self) -> ir.Model | None:
        """The source with the interface that passes leave of it, or None where none narrows it."""
        passes = [p for p in self.manager.pipeline.leaves() if p.narrows]
        if not passes:
            return None
        model = ir.clone(self.source)
        ctx = self.manager.context(model)
        for each in passes:
            with contextlib.suppress(GraphOptError):  # in the pipeline it fails, too, and says so
                each.run(model, ctx)
        return model

    def run(self) -> ir.Model:
        while True:
            attempt = _Attempt(self)
            try:
                attempt.run()
                self.check_end(attempt)
                self.check_growth(attempt)
            except _Restart as restart:
                undone = restart.undone
                if self.manager.on_mismatch == "raise" and not isinstance(undone.error, _Worse):
                    raise undone.error from undone.error.__cause__
                if undone.ordinal < 0:
                    # No single pass is to blame, so none of them is kept.
                    self.undone = {
                        i: dataclasses.replace(undone, ordinal=i) for i in range(attempt.count)
                    }
                else:
                    self.undone[undone.ordinal] = undone
                continue
            break
        compared(attempt.records, attempt.gains, Cost(attempt.model).seconds)
        first, last = attempt.records[:1], attempt.records[-1:]
        self.report.before = first[0].before if first else self.before
        self.report.after = last[0].after if last else self.before
        self.report.passes = attempt.records
        self.report.oracle = self.summary(attempt)
        if self._oracle is not None:
            self.report.remarks += self._oracle.remarks
        if attempt.changed:
            return attempt.model
        # A pass that changed something past the Rewriter and denied it leaves no trace this way.
        model = ir.clone(self.source)
        if attempt.version:
            ir.infer_shapes(model)
        return model

    def check_end(self, attempt: _Attempt) -> None:
        """Compare the result with the original; look for the guilty pass where they differ."""
        if self.mode == "off" or not attempt.changed or not self.oracle().available:
            return
        promise = Exactness.weakest(p.exactness for p in attempt.effective)
        found = self.oracle().check(attempt.model, promise, against="original")
        attempt.promise, attempt.verdict = promise, found.to_json()
        if found.ok:
            return
        error = NumericalMismatch(f"the result differs from the original: {found.reason}")
        if self.mode == "end":
            self.mode = "each"  # run again, and the pass that is wrong is caught in the act
            _Attempt(self).run()
            self.mode = "end"
        raise _Restart(_Undone(-1, error, f"together: {found.reason}"))

    def check_growth(self, attempt: _Attempt) -> None:
        """Undo the pass that added the most bytes if the file became larger."""
        if self.manager.allow_growth or self.manager.objective is None or not attempt.changed:
            return
        if any(p.exactness is Exactness.LOSSY or not p.gated for p in attempt.effective):
            return
        if attempt.size.bytes < 0.98 * self.before.bytes - _SLACK_BYTES:
            return
        before, after = file_bytes(self.source), file_bytes(attempt.model)
        if after <= before:
            return
        growth = [
            (r.after.bytes - r.before.bytes, i)
            for i, r in enumerate(attempt.records)
            if r.status == "ok"
        ]
        worst, ordinal = max(growth)
        reason = f"made the file grow from {before:,} to {after:,} bytes"
        raise _Restart(_Undone(ordinal if worst > 0 else -1, _Worse(reason), reason))

    def summary(self, attempt: _Attempt) -> dict[str, Any]:
        out: dict[str, Any] = {"mode": self.manager.oracle}
        if self.manager.oracle == "off":
            out["verdict"] = "not run"
        elif self._oracle is None:
            out["verdict"] = "unchanged"
        elif not self._oracle.available:
            out["verdict"] = "unavailable"
            out["reason"] = self._oracle.reason
        else:
            out["verdict"] = "equal" if attempt.changed else "unchanged"
            out["feeds"] = self._oracle.feeds_summary
            if attempt.verdict is not None:
                out["promise"] = attempt.promise.value
                out["error"] = attempt.verdict
        return out


class _Worse(GraphOptError):
    """The gate: the model got worse by the objective."""


class _Attempt:
    """One pass over the pipeline."""

    def __init__(self, run: _Run) -> None:
        self.all = run
        self.manager = run.manager
        self.model = ir.clone(run.source)
        self.ctx = run.manager.context(self.model, self.allow)
        self.records: list[PassRecord] = []
        self.effective: list[Pass] = []
        self.count = 0
        self.size = run.before
        self.costs = self.ctx[Cost].nodes
        self.gains: dict[int, float] = {}
        self.version = 0
        self.idle: dict[Pass, int] = {}
        self.promise = Exactness.BITWISE
        self.verdict: dict[str, Any] | None = None
        if run.mode == "each":
            run.oracle().restart()

    @property
    def changed(self) -> bool:
        return bool(self.effective)

    def allow(self, action: str) -> bool:
        # Every instrument is asked, so that each counts every action.
        return all([i.should_run(action) for i in self.manager.instruments])

    def run(self) -> None:
        for instrument in self.manager.instruments:
            instrument.before_run(self.manager.pipeline, self.all.source)
        self.pipeline(self.manager.pipeline)

    def pipeline(self, pipeline: Pipeline) -> bool:
        ever = False
        for _ in range(pipeline.repeat):
            changed = [
                self.pipeline(p) if isinstance(p, Pipeline) else self.leaf(p)
                for p in pipeline.passes
            ]
            ever |= any(changed)
            if not any(changed):
                break
        return ever

    def leaf(self, each: Pass) -> bool:
        ordinal = self.count
        self.count += 1
        record = PassRecord(
            text=str(each),
            name=each.name,
            exactness=each.exactness.value,
            status="unchanged",
            before=self.size,
            after=self.size,
        )
        self.records.append(record)
        undone = self.all.undone.get(ordinal)
        version = ir.opset(self.model)
        if undone is not None:
            record.status, record.reason = "reverted", undone.reason
            record.changed, record.rewrites = True, undone.rewrites
        elif version < each.min_opset and "" in self.model.opset_imports:
            record.status = "not-applicable"
            record.reason = f"needs opset {each.min_opset}, the model has {version}"
        elif self.idle.get(each) == self.version:
            pass  # it found nothing to do in this very model; passes keep no state
        elif not self.allow(f"pass {each}"):
            record.status, record.reason = "skipped", "an instrument did not let it run"
        else:
            self.execute(each, ordinal, record)
            if record.status == "unchanged":
                self.idle[each] = self.version
        for instrument in self.manager.instruments:
            instrument.after_pass(each, self.model, record)
        return record.status == "ok"

    def execute(self, each: Pass, ordinal: int, record: PassRecord) -> None:
        for instrument in self.manager.instruments:
            instrument.before_pass(each, self.model)
        ctx = self.ctx
        ctx.begin()
        start = time.perf_counter()
        try:
            changed = each.run(self.model, ctx) or ctx.rewrote
        except NotApplicable as e:
            if ctx.rewrote:
                self.fail(each, ordinal, e, f"gave up after it had changed the model: {e}")
            record.status, record.reason = "not-applicable", str(e)
            changed = False
        except CalibrationError:
            raise  # the user's data are wrong, not the pass
        except Exception as e:  # noqa: BLE001 - whatever a pass raises, the run survives it
            text = str(e) if isinstance(e, PassFailed) else f"{type(e).__name__}: {e}"
            self.fail(each, ordinal, e, f"raised {text}")
        record.seconds = time.perf_counter() - start
        record.remarks, record.details = list(ctx.remarks), dict(ctx.details)
        record.declined = dict(ctx.stats.declined)
        record.rewrites = dict(ctx.stats.applied)
        record.erased = ctx.stats.erased
        if not changed:
            if ctx.inferred:
                ctx.invalidate()
                self.version += 1  # what is known of the model, if not the model
                self.costs = ctx[Cost].nodes
            return
        record.changed = True
        self.version += 1
        ctx.invalidate(each.preserves)
        try:
            ir.verify(self.model)
        except VerificationError as e:
            self.fail(each, ordinal, e, f"left an invalid model: {e}")
        found = ctx[Cost]
        gain = found.gain(self.costs)
        record.after = measure(self.model, found)
        self.gate(each, ordinal, record, gain)
        self.check(each, ordinal, record)
        record.status = "ok"
        self.size, self.costs = record.after, found.nodes
        self.effective.append(each)
        self.gains[ordinal] = max(gain, 0.0) if ctx.inferred else gain

    def gate(self, each: Pass, ordinal: int, record: PassRecord, gain: float) -> None:
        manager = self.manager
        if manager.objective is None or each.exactness is Exactness.LOSSY or not each.gated:
            return
        before, after = record.before, record.after
        if manager.objective == "cost" and not self.ctx.inferred:
            if gain < -1e-9 * before.cost:
                rise = f"estimated cost would rise by {-gain * 1e6:.3g} us per inference"
                self.undo(ordinal, rise, record)
        else:
            # Sizes that have just become known raise the estimate, not the time the model takes.
            key = "nodes" if manager.objective == "cost" else manager.objective
            old, new = getattr(before, key), getattr(after, key)
            if new > old + (_SLACK_BYTES if key == "bytes" else 0):
                self.undo(ordinal, f"{key} would rise from {old:,} to {new:,}", record)
        if not manager.allow_growth and after.bytes > before.bytes * 1.01 + _SLACK_BYTES:
            self.undo(ordinal, f"bytes would rise from {before.bytes:,} to {after.bytes:,}", record)

    def undo(self, ordinal: int, reason: str, record: PassRecord) -> None:
        raise _Restart(_Undone(ordinal, _Worse(reason), reason, record.rewrites))

    def check(self, each: Pass, ordinal: int, record: PassRecord) -> None:
        if self.all.mode != "each" or not self.all.oracle().available:
            return
        oracle = self.all.oracle()
        found = oracle.check(self.model, each.exactness, against="previous")
        record.error = found.to_json()
        if not found.ok:
            error = NumericalMismatch(f"pass {each} changed the numbers: {found.reason}")
            self.fail(each, ordinal, error, f"changed the numbers: {found.reason}", record)
        oracle.accept()

    def fail(
        self,
        each: Pass,
        ordinal: int,
        error: Exception,
        reason: str,
        record: PassRecord | None = None,
    ) -> None:
        for instrument in self.manager.instruments:
            instrument.on_failure(each, self.model, error)
        wrapped: Exception = error
        if not isinstance(error, NumericalMismatch):
            where = getattr(_find(self.manager.instruments), "written", None)
            wrapped = PassFailed(
                f"pass {each} {reason}",
                pass_text=str(each),
                reproducer=None if where is None else str(where),
            )
            wrapped.__cause__ = error
        rewrites = dict(self.ctx.stats.applied) if record is None else record.rewrites
        raise _Restart(_Undone(ordinal, wrapped, reason, rewrites)) from error


def _find(instruments: Sequence[Instrument]) -> Instrument | None:
    return next((i for i in instruments if hasattr(i, "written")), None)
