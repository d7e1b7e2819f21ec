"""The problems of layers in the model as it is."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from graphopt import ir
from graphopt.reconstruct.layers import layers
from graphopt.reconstruct.problem import Problem, accumulate, too_large
from graphopt.reconstruct.rebuild import RIDGE
from graphopt.reconstruct.walk import Walk
from graphopt.runtime import Feeds

__all__ = ["observe"]


def observe(
    model: ir.Model,
    batches: Sequence[Feeds],
    names: Collection[str],
    *,
    ridge: float = RIDGE,
    threads: int = 1,
) -> dict[str, Problem]:
    """Gather what layers read in a model; their best weights are those that they have.

    Args:
        model: The model.
        batches: Its inputs.
        names: Names of the layers.
        ridge: See :func:`~graphopt.reconstruct.problem.accumulate`.
        threads: Threads within an operator.

    Returns:
        Problems by name, but for layers that are too large to have one.

    Raises:
        CalibrationError: There are no samples, or a layer reads or computes NaN or infinity.
        SessionError: ONNX Runtime does not run a part of the model.
    """
    place = {node: i for i, node in enumerate(model.graph)}
    found: dict[str, Problem] = {}
    named = [layer for layer in layers(model) if layer.name in names]
    pending = [layer for layer in named if too_large(layer) is None]
    with Walk(model, batches, threads=threads) as walk:
        while pending:
            kept = {layer.input.name or "" for layer in pending}
            layer = pending.pop(0)
            walk.to(place[layer.node], keep=kept)
            walk.to(place[layer.adds or layer.node] + 1, keep={layer.name, *kept})
            inputs, targets = walk.values(layer.input.name or ""), walk.values(layer.name)
            found[layer.name] = accumulate(layer, inputs, targets, walk.batches, ridge)
    return found
