"""Constants that are nearly the same become one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt import Rewriter, ir
from graphopt.passes.sharing._constants import Constant
from graphopt.sharing.similar import Distance, classes

__all__ = ["channels", "merge"]

Array = np.ndarray[Any, Any]


def merge(model: ir.Model, found: Sequence[Constant], most: float, distance: Distance) -> int:
    """Let constants of one shape and type that are close be their mean.

    Args:
        model: The model, which is changed.
        found: Its constants that may change.
        most: Largest distance.
        distance: Which distance.

    Returns:
        How many constants there are fewer.
    """
    alike: dict[object, list[Constant]] = defaultdict(list)
    for each in found:
        if not each.whole:
            alike[each.tensor.dtype, tuple(each.tensor.shape.numpy())].append(each)
    rw, gone = Rewriter(model), 0
    for some in alike.values():
        if len(some) < 2:
            continue
        flat = np.stack([each.tensor.numpy().reshape(-1) for each in some]).astype(np.float64)
        of = classes(flat, most, distance)
        for label in np.flatnonzero(np.bincount(of) > 1):
            members = [some[i] for i in np.flatnonzero(of == label)]
            mean = flat[of == label].mean(axis=0).reshape(members[0].tensor.shape.numpy())
            one = rw.const(mean.astype(members[0].tensor.dtype.numpy()), members[0].name)
            for each in members:
                rw.replace(each.value, one)
            gone += len(members) - 1
    rw.remove_initializers()
    return gone


def channels(constant: Constant, most: float, distance: Distance) -> Array | None:
    """Classes of output channels of a layer that are close; None where all differ."""
    layer = constant.layer
    if layer is None or layer.groups > 1 or constant.listed is not None:
        return None
    of = classes(layer.matrix()[0], most, distance)
    return of if of.max() + 1 < len(of) else None
