"""The oracle: runs a model before and after a change and says whether the promise was kept."""

from __future__ import annotations

import collections
import enum
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.errors import CalibrationError, GraphOptError, RuntimeUnavailable, SessionError
from graphopt.runtime.compare import Comparison, compare, merge, promised
from graphopt.runtime.probe import InputSpec, Probe, input_specs, probes
from graphopt.runtime.session import ModelSource, Session, open_session
from graphopt.runtime.values import Feeds

__all__ = ["Oracle"]


# ONNX Runtime's CPU provider computes most operators on these in float32, between casts that cancel
# where two of them meet: a node that goes moves bits of a model that is the same.
_WIDENED = frozenset({"bfloat16", "float16"})


class Oracle:
    """Reference outputs of a model, to judge changed versions of it by.

    Sessions compute the graph node by node as it stands, with ONNX Runtime's optimizer off. One
    session is alive at a time, weights are not copied, and nothing is written to disk.

    Attributes:
        available: Whether the original could be loaded and run.
        reason: Why not, or None.
        remarks: Outputs that are not compared and why, inputs that were refused, and the like.
        probes: The inputs that the models are compared on.
        seconds: Time spent so far.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        data: Iterable[Mapping[str, Any]] | None = None,
        seeds: Sequence[int] = (0,),
        settings: int = 2,
        samples: int | None = None,
        threads: int = 1,
        budget: float = 300.0,
        custom_ops: Sequence[str] = (),
        accepts: ir.Model | None = None,
    ) -> None:
        """Run the original; never raises on account of the model.

        Args:
            model: The original, which is not referred to afterwards.
            data: Batches of samples of the user.
            seeds: Seeds of made-up inputs.
            settings: How many settings of the dynamic dimensions to compare on.
            samples: How many batches of the data to compare on at most; ``settings`` by default.
            threads: Threads within an operator.
            budget: Seconds that a single run may take, and that looking for inputs may take
                altogether once one is found.
            custom_ops: Shared libraries of custom operators to load.
            accepts: A model that accepts less, such as fewer shapes: inputs are made up for it, and
                samples that it cannot be fed are left out.
        """
        self.available = False
        self.reason: str | None = None
        self.remarks: list[str] = []
        self.probes: list[Probe] = []
        self.seconds = 0.0
        self._threads, self._budget, self._custom = threads, budget, tuple(custom_ops)
        # A pass behind one that made floats coarser rounds as coarsely as these.
        self._coarsest = self._previous_coarsest = self._pending_coarsest = coarsest_float(model)
        self._original: list[dict[str, Any]] = []
        self._previous: list[dict[str, Any]] = []
        self._pending: list[dict[str, Any]] | None = None
        self._ignored: set[str] = set()
        size = getattr(data, "__len__", None)
        self._batches: int | None = None if size is None else size()
        started = time.perf_counter()
        try:
            with self._open(model) as session:
                batches = settings if samples is None else samples
                self._reference(model, accepts, session, data, seeds, settings, batches)
        except (SessionError, RuntimeUnavailable) as e:
            self.reason = str(e)
        else:
            self.available = bool(self.probes)
        self.seconds += time.perf_counter() - started

    @property
    def feeds(self) -> list[Feeds]:
        """The inputs that the models are compared on."""
        return [p.feeds for p in self.probes]

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """Outputs of the original, one dict per feed."""
        return self._original

    @property
    def feeds_summary(self) -> dict[str, Any]:
        """What the models are compared on, as plain data.

        ``samples``: batches of the user's data, out of ``batches`` (None if unknown); ``made``:
        made-up inputs, with ``dims``, the settings of their dynamic dimensions, and ``seeds``.
        """
        made = [p for p in self.probes if p.source == "made"]
        settings = list(dict.fromkeys(tuple(p.dims.items()) for p in made))
        return {
            "samples": len(self.probes) - len(made),
            "batches": self._batches,
            "made": len(made),
            "dims": [dict(s) for s in settings],
            "seeds": sorted({p.seed for p in made if p.seed is not None}),
        }

    def check(
        self, model: ModelSource, exactness: str | enum.Enum, against: str = "original"
    ) -> Comparison:
        """Run a changed model and compare its outputs. Raises nothing on account of the model.

        Where nodes compute in 16-bit floats, promised bits are compared up to rounding.

        What a lossy pass keeps, it keeps where the user's data are: with data the differences are
        those on data. Made-up inputs have to run and to give finite outputs all the same.

        Args:
            model: The changed model.
            exactness: What was promised: an ``Exactness`` or its value.
            against: "original", or "previous" for the model last accepted.

        Returns:
            The outcome. A model that does not load or run where the original did fails.

        Raises:
            ValueError: The oracle is not available, or ``against`` is neither of the two.
        """
        if not self.available:
            raise ValueError(f"the oracle is not available: {self.reason}")
        if against not in ("original", "previous"):
            raise ValueError(f"against must be 'original' or 'previous', not {against!r}")
        original = against == "original"
        base = self._original if original else self._previous
        coarsest = self._coarsest if original else self._previous_coarsest
        on_data = promised(exactness) == "lossy" and any(p.source == "data" for p in self.probes)
        started = time.perf_counter()
        self._pending = None
        if promised(exactness) == "bitwise" and coarsest in _WIDENED:
            exactness = "rounding"
        found: list[dict[str, Any]] = []
        parts: list[Comparison] = []
        try:
            with self._open(model) as session:
                for probe, reference in zip(self.probes, base, strict=True):
                    got = self._compared(session.run(probe.feeds, timeout=4 * self._budget))
                    found.append(got)
                    part = compare(reference, got, exactness, coarsest=coarsest)
                    if not part.ok:
                        parts.append(part)
                        break
                    if probe.source == "data" or not on_data:
                        parts.append(part)
        except GraphOptError as e:
            parts.append(Comparison(False, reason=f"the model no longer runs: {e}"))
        finally:
            self.seconds += time.perf_counter() - started
        outcome = merge(parts)
        if len(found) == len(self.probes):
            self._pending = found
            self._pending_coarsest = (
                coarsest_float(model) if isinstance(model, ir.Model) else self._coarsest
            )
        return outcome

    def accept(self) -> None:
        """Make the model last checked the "previous" one.

        Raises:
            ValueError: No model was checked since the last call, or it did not run.
        """
        if self._pending is None:
            raise ValueError("there is no checked model to accept")
        self._previous, self._pending = self._pending, None
        self._previous_coarsest = self._pending_coarsest

    def restart(self) -> None:
        """Make the original the "previous" one again."""
        self._previous, self._pending = self._original, None
        self._previous_coarsest = self._coarsest

    def _open(self, model: ModelSource) -> Session:
        return open_session(model, threads=self._threads, custom_ops=self._custom)

    def _compared(self, outputs: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in outputs.items() if k not in self._ignored}

    def _reference(
        self,
        model: ir.Model,
        accepts: ir.Model | None,
        session: Session,
        data: Iterable[Mapping[str, Any]] | None,
        seeds: Sequence[int],
        settings: int,
        batches: int,
    ) -> None:
        """Find inputs that the original accepts, and keep what it makes of them."""
        self._ignored = random_outputs(model)
        search = _Search(self, session)
        fixed = [] if accepts is None else input_specs(ir.inputs(accepts))
        fitting = (dict(s) for s in (() if data is None else data) if _fits(s, fixed))
        samples = list(itertools.islice(fitting, batches))
        if data is not None and accepts is not None and not samples:
            self.remarks.append("no batch of the data has the shapes that the result accepts")
        given = [Probe(s, "data") for s in samples if search.accepts(s)]
        if len(given) < len(samples):
            self.remarks.append(f"the original refuses samples: {search.complaint()}")
        made: list[Probe] = []
        try:
            specs = fixed or _specs(model, session)
            made = probes(specs, seeds=seeds, settings=settings, runs=search.says_something)
            if not made and not given:
                made = probes(specs, seeds=seeds, settings=settings, runs=search.accepts)
                if made:
                    self.remarks.append("most outputs are NaN or infinite for made-up inputs")
        except CalibrationError as e:
            search.refuse(str(e))
        self.probes = given + made
        if not self.probes:
            self.reason = f"no inputs were found that the original accepts: {search.complaint()}"
            return
        self._original = [search.results[id(p.feeds)] for p in self.probes]
        again = session.run(self.probes[0].feeds, timeout=self._budget)
        for name, value in again.items():
            first = self._original[0][name]
            if not compare({name: first}, {name: value}, "bitwise").ok:
                self._ignored.add(name)
        for name in sorted(self._ignored):
            self.remarks.append(f"output {name!r} is random and is not compared")
        self._original = [self._compared(r) for r in self._original]
        self._previous = self._original
        if self._original and not self._original[0]:
            self.reason, self.probes = "all outputs of the original are random", []


class _Search:
    """Runs of the original while inputs are looked for; results are kept for those accepted."""

    def __init__(self, oracle: Oracle, session: Session) -> None:
        self._oracle, self._session = oracle, session
        self._started = time.perf_counter()
        self._refusals: collections.Counter[str] = collections.Counter()
        self._fed: list[Feeds] = []  # keeps ids unique
        self.results: dict[int, dict[str, Any]] = {}

    def accepts(self, feeds: Feeds) -> bool:
        budget = self._oracle._budget
        if self.results and time.perf_counter() - self._started > budget:
            return False
        try:
            found = self._session.run(feeds, timeout=budget)
        except SessionError as e:
            self.refuse(str(e))
            return False
        self._fed.append(feeds)
        self.results[id(feeds)] = found
        return True

    def says_something(self, feeds: Feeds) -> bool:
        """Accept feeds whose outputs are mostly finite."""
        if not self.accepts(feeds):
            return False
        if mostly_finite(self.results[id(feeds)]):
            return True
        del self.results[id(feeds)]
        return False

    def refuse(self, why: str) -> None:
        """Count a refusal."""
        self._refusals[why] += 1

    def complaint(self) -> str:
        """The most frequent refusal."""
        return max(self._refusals, key=self._refusals.__getitem__, default="no reason known")


def _specs(model: ir.Model, session: Session) -> list[InputSpec]:
    if ir.opaque(model) is None:
        return input_specs(ir.inputs(model))
    return [InputSpec(name, type_, session.dims[name]) for name, type_ in session.inputs.items()]


def _fits(feeds: Mapping[str, Any], specs: Sequence[InputSpec]) -> bool:
    """Whether arrays have the sizes that are fixed."""
    for spec in specs:
        shape = getattr(feeds.get(spec.name), "shape", None)
        if shape is None or spec.dims is None:
            continue
        if len(shape) != len(spec.dims):
            return False
        if any(isinstance(d, int) and d != n for d, n in zip(spec.dims, shape, strict=True)):
            return False
    return True


def mostly_finite(outputs: dict[str, Any]) -> bool:
    """Whether at least half of every floating-point output is finite."""
    for value in outputs.values():
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fc":
            continue
        if 2 * int(np.isfinite(value).sum()) < value.size:
            return False
    return True


def coarsest_float(model: ir.Model) -> str | None:
    """NumPy name of the coarsest floating-point type that nodes of the model compute in."""
    if ir.opaque(model) is not None:
        return None
    found = {
        v.dtype.name for node in ir.all_nodes(model) for v in node.outputs if v.dtype is not None
    }
    for name, spelled in (("FLOAT8", "float8"), ("BFLOAT16", "bfloat16"), ("FLOAT16", "float16")):
        if any(f.startswith(name) for f in found):
            return spelled
    return "float32" if "FLOAT" in found else None


def random_outputs(model: ir.Model) -> set[str]:
    """Outputs of the model that depend on random numbers."""
    if ir.opaque(model) is not None or all(map(ir.is_deterministic, model.graph)):
        return set()
    tainted: set[ir.Value] = set()
    _taint(model.graph, tainted)
    return {v.name or "" for v in model.graph.outputs if v in tainted}


def _taint(graph: ir.Graph, tainted: set[ir.Value]) -> bool:
    """Add the values of ``graph`` that depend on random numbers; whether there are any."""
    any_tainted = False
    for node in graph:
        spread = any(v in tainted for v in node.inputs)
        # An unknown operator is not taken for a random one: running it twice tells.
        spread |= not ir.is_deterministic(node) and (
            ir.schema(node.domain, node.op_type, ir.opset(node, node.domain)) is not None
        )
        for inner in ir.subgraphs(node):
            spread |= _taint(inner, tainted)
        if spread:
            tainted.update(node.outputs)
            any_tainted = True
    return any_tainted
