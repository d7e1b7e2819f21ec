"""Layers with the forms that they may take, and what these save and cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.decompose.emit import stand_in
from graphopt.decompose.forms import Form, Kind, fitted, forms
from graphopt.decompose.product import Metric, Product
from graphopt.measure import Trial
from graphopt.pruning.batches import first
from graphopt.pruning.sizes import MEASURES, Measure, totals
from graphopt.reconstruct import Layer, Problem, layers, rebuild
from graphopt.reconstruct.problem import why_fixed
from graphopt.rewrite import Rewriter
from graphopt.runtime import Feeds

__all__ = [
    "Part",
    "dense",
    "find_parts",
    "likely",
    "measure_noise",
    "products",
    "set_apart",
    "set_noise",
    "skipped",
]

Array = np.ndarray[Any, Any]

# How often factors are fitted to each other, where only the error of a form is wanted.
_SWEEPS = 1
# Samples that noise is measured on, and the part of the batches that they are taken from, which
# nothing is fitted to then.
_SAMPLES, _PART = 128, 4
# Error of the form that noise is measured with, as a share of the energy: the noise of others
# follows from their errors.
_LIKELY = 0.03
# Noise beyond this is all the same, and less is rounding.
_MOST, _ROUNDING = 1e30, 1e-10


@dataclasses.dataclass(eq=False)
class Part:
    """A layer.

    Attributes:
        name: Name of what it computes.
        sign: What tells its operator, its weights and its sizes.
        forms: What it may become; None is the layer as it is, and comes first.
        saved: What each form saves of the sizes of the model, ``[forms]``, in their units.
        errors: What each adds to what the layer computes, as a share of its energy, ``[forms]``.
        noise: What each adds to the outputs of the model, as a share of their energy, ``[forms]``.
        faster: What each saves of the latency of the model, as a share, ``[forms]``.
    """

    name: str
    sign: str
    forms: tuple[Form | None, ...]
    saved: dict[Measure, Array]
    errors: Array
    noise: Array
    faster: Array


def find_parts(
    model: ir.Model, kinds: Sequence[Kind], skip: Sequence[str]
) -> tuple[list[Part], dict[str, str]]:
    """Layers that have forms, and why others have none.

    Args:
        model: A model with shapes inferred.
        kinds: Forms to consider.
        skip: Patterns of names, or operators, that stay.

    Returns:
        The parts in the order of the graph, and reasons by name.
    """
    parts: list[Part] = []
    reasons: dict[str, str] = {}
    known: dict[str, tuple[tuple[Form | None, ...], dict[Measure, Array]]] = {}
    for layer in layers(model):
        why = _why_not(layer, skip)
        sign = _sign(layer)
        if why is None:
            if sign not in known:
                known[sign] = _sized(model, layer, [None, *forms(layer, kinds)])
            if len(known[sign][0]) == 1:
                why = "no form of it is smaller"
        if why is not None:
            reasons[layer.name] = why
            continue
        found, saved = known[sign]
        blank = np.zeros(len(found))
        parts.append(Part(layer.name, sign, found, saved, blank, blank.copy(), blank.copy()))
    return parts, reasons


def _why_not(layer: Layer, skip: Sequence[str]) -> str | None:
    return "skip names it" if skipped(layer, skip) else why_fixed(layer)


def skipped(layer: Layer, skip: Sequence[str]) -> bool:
    """Whether a pattern names a layer."""
    nodes = [layer.node] if layer.adds is None else [layer.node, layer.adds]
    return any(ir.matches(node, skip) for node in nodes)


def _sign(layer: Layer) -> str:
    node = layer.node
    cut = "" if layer.patches is None else layer.patches.text
    weight = ir.static_shape(node.inputs[1])
    return f"{node.op_type}{weight}{ir.dims(layer.input)}{cut}{layer.turned}".replace(" ", "")


def _sized(
    model: ir.Model, layer: Layer, found: Sequence[Form | None]
) -> tuple[tuple[Form | None, ...], dict[Measure, Array]]:
    """Forms, and what each saves."""
    rng = np.random.default_rng(0)
    sizes = []
    for form in found:
        part = ir.segment(model, [layer.input], [layer.output])
        if form is not None:
            part = ir.clone(part)
            (own,) = layers(part)
            rw = Rewriter(part)
            stand_in(rw, own, form, rng)
            rw.remove_initializers()
            ir.infer_shapes(part)
        sizes.append(totals(part))
    saved = {what: np.array([sizes[0][what] - s[what] for s in sizes]) for what in MEASURES}
    return tuple(found), saved


def products(problem: Problem, form: Form, sweeps: int) -> tuple[list[Product], Array]:
    """The factors of each group, and the weights they make, in the form of ``Problem.optimum``."""
    layer = problem.layer
    found, whole = [], []
    for gram, best in zip(problem.gram, problem.optimum, strict=True):
        metric = Metric(gram, best, bias=layer.takes_bias)
        product = fitted(form, layer, metric, sweeps)
        found.append(product)
        whole.append(metric.with_bias(product.weights()))
    return found, np.stack(whole)


def measure_noise(
    model: ir.Model, parts: Sequence[Part], batches: Sequence[Feeds], threads: int
) -> None:
    """Set errors and noise of the forms of parts.

    The error that a form makes in what the layer computes follows from the moments of its inputs;
    what that does to the outputs is measured, with one form of this layer alone.

    Args:
        model: The model.
        parts: The layers; ``errors`` and ``noise`` are set.
        batches: Samples.
        threads: Threads within an operator.
    """
    named = {part.name: part for part in parts}
    tried: dict[str, Array] = {}
    places: dict[str, int] = {}

    def look(problem: Problem) -> None:
        part = named[problem.layer.name]
        whole: list[Array] = []
        for i, form in enumerate(part.forms[1:], 1):
            if form is not None and form.joined:
                part.errors[i] = part.errors[i - 1]
                whole.append(whole[-1])
                continue
            assert form is not None
            weights = products(problem, form, _SWEEPS)[1]
            part.errors[i] = max(problem.error(weights), 0.0)
            whole.append(weights)
        places[part.name] = likely(part)
        tried[part.name] = whole[places[part.name] - 1].astype(np.float32)

    fit, others = set_apart(batches)
    rebuild(
        model, ir.clone(model), fit, look,
        wanted=lambda layer: layer.name in named, only=lambda layer: layer.name in named,
        threads=threads,
    )  # fmt: skip
    trial = Trial(model, others)
    noises = trial.noises(lambda part: dense(model, part.name, tried[part.name]), parts)
    for part, noise in zip(parts, noises, strict=True):
        set_noise(part, places[part.name], noise)
        _drop_dominated(part)


def likely(part: Part) -> int:
    """The place of the form that noise is measured with: neither exact nor hopeless."""
    off = np.abs(np.log(np.maximum(part.errors[1:], 1e-12) / _LIKELY))
    return 1 + int(np.argmin(off))


def set_noise(part: Part, place: int, noise: float) -> None:
    """Set the noise of all forms from that of one: it goes with the error."""
    # Outputs may be no numbers any more; the layer as it is adds nothing even then.
    found = part.errors * (min(noise, _MOST) / max(float(part.errors[place]), 1e-300))
    part.noise = np.where(found < _ROUNDING, 0.0, found)


def set_apart(batches: Sequence[Feeds]) -> tuple[Sequence[Feeds], list[Feeds]]:
    """Batches to fit on, and samples to measure noise on; the same where there is one batch."""
    start = len(batches) - max(len(batches) // _PART, 1) if len(batches) > 1 else 1
    return batches[:start], first(batches[start:] or batches, _SAMPLES)


def _terms(form: Form | None) -> tuple[Kind, tuple[int, ...]] | None:
    """A form, however its terms are joined."""
    return None if form is None else (form.kind, form.ranks)


def _drop_dominated(part: Part) -> None:
    """Leave out forms that another one beats in noise, in work and in the number of operators."""
    macs, params = part.saved["macs"], part.saved["params"]
    counts = np.array([0 if form is None else form.operators for form in part.forms])
    kept = [0]
    for i in range(1, len(part.forms)):
        better = (part.noise <= part.noise[i]) & (macs >= macs[i]) & (params >= params[i])
        better &= counts <= counts[i]
        # Which of two ways to join the same terms is faster has to be measured.
        better &= np.array([_terms(form) != _terms(part.forms[i]) for form in part.forms])
        equal = better & (part.noise == part.noise[i]) & (counts == counts[i])
        equal[:i] = False  # of two that are equal in all, the first one stays
        if not (better & ~equal).any():
            kept.append(i)
    part.forms = tuple(part.forms[i] for i in kept)
    part.saved = {what: saved[kept] for what, saved in part.saved.items()}
    part.errors, part.noise, part.faster = part.errors[kept], part.noise[kept], part.faster[kept]


def dense(model: ir.Model, name: str, weights: Array) -> ir.Model:
    """A copy of a model with other weights of one layer."""
    changed = ir.clone(model)
    (layer,) = (each for each in layers(changed) if each.name == name)
    rw = Rewriter(changed)
    _write(rw, layer, weights)
    rw.remove_initializers()
    return changed


def _write(rw: Rewriter, layer: Layer, weights: Array) -> None:
    """Give a layer weights in the form of ``Problem.optimum``."""
    k = weights.shape[1] - int(layer.takes_bias)
    bias = weights[:, k] if layer.takes_bias else None
    layer.write(rw, weights[:, :k].transpose(0, 2, 1), bias)
