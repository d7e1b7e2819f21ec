"""Constants with few values, written into a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt import Rewriter, ir
from graphopt.passes.sharing._levels import Choice
from graphopt.passes.sharing._plain import tensor_of
from graphopt.reconstruct.problem import Problem
from graphopt.reconstruct.rebuild import Fit, rebuild
from graphopt.runtime import Feeds
from graphopt.sharing.problems import shared_layer, with_bias

__all__ = ["written"]

Array = np.ndarray[Any, Any]


def written(
    original: ir.Model, start: ir.Model, choices: Sequence[Choice], batches: Sequence[Feeds],
    threads: int,
) -> tuple[ir.Model, list[Fit]]:  # fmt: skip
    """The model with few values: constants by themselves, then layer after layer.

    Args:
        original: What layers should compute as closely as they can.
        start: A form of it to start from.
        choices: Constants of ``start``, and what they get.
        batches: Samples, where there are layers to be fitted.
        threads: Threads within an operator.

    Returns:
        The model, and what became of its layers.
    """
    model = ir.clone(start)
    rw = Rewriter(model)
    fitted: dict[str, Choice] = {}
    for choice in choices:
        layer = choice.constant.layer
        if layer is not None:
            fitted[layer.name] = choice
            continue
        value = model.graph.initializers[choice.constant.name]
        rw.replace(value, rw.const(tensor_of(choice.constant, choice.level), choice.constant.name))
    rw.remove_initializers()
    if not fitted:
        return model, []

    def change(problem: Problem) -> Array:
        choice = fitted[problem.layer.name]
        return with_bias(problem, shared_layer(problem, choice.level, same=choice.same))

    fits = rebuild(
        original, model, batches, change,
        wanted=lambda layer: layer.name in fitted,
        only=lambda layer: layer.name in fitted, threads=threads,
    )  # fmt: skip
    return model, fits
