"""What shapes and the constant targets of Reshape have to do with each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphopt.passes.fold._dims import Dim, Element

__all__ = ["matches", "only_ones", "reshape_target"]


def reshape_target(
    given: Sequence[Element],
    have: Sequence[int | Dim],
    allow_zero: bool,
    positive: Callable[[Element], bool],
) -> tuple[list[int], bool] | str:
    """A constant target of a Reshape that does the same.

    Args:
        given: Elements of the present target.
        have: Dimensions of the data.
        allow_zero: Whether a 0 in the present target means an empty dimension, not a copied one.
        positive: Whether a size is certain not to be 0.

    Returns:
        The target, and whether it copies sizes, which needs ``allowzero=0``; or why there is none.
    """
    target: list[int] = []
    unknown = 0
    copies = maybe_empty = False
    for i, size in enumerate(given):
        if isinstance(size, int):
            copied = size == 0 and not allow_zero and i < len(have)
            maybe_empty |= size == 0 and not (copied and positive(have[i]))
            unknown += size == -1
            target.append(size)
        elif size is not None and i < len(have) and size == have[i]:
            copies = True
            maybe_empty |= not positive(size)
            target.append(0)
        else:
            unknown += 1
            target.append(-1)
    if unknown > 1:
        return "more than one size of the target is unknown"
    if copies and allow_zero and 0 in given:
        return "it has both empty and copied dimensions"
    if unknown == 1 and -1 not in given and maybe_empty:
        return "a size cannot be inferred where another may be 0"
    return target, copies


def only_ones(given: Sequence[Element], have: Sequence[int | Dim]) -> tuple[str, list[int]] | None:
    """The axes of ones by which two shapes differ, and the operator that adds or removes them."""
    if len(given) > len(have):
        axes = _extra_ones(given, have)
        return None if axes is None else ("Unsqueeze", axes)
    axes = _extra_ones(have, given)
    return None if axes is None or not axes else ("Squeeze", axes)


def _extra_ones(longer: Sequence[Element], shorter: Sequence[Element]) -> list[int] | None:
    axes: list[int] = []
    for i, size in enumerate(longer):
        j = i - len(axes)
        if size is not None and j < len(shorter) and size == shorter[j]:
            continue
        if size != 1:
            return None
        axes.append(i)
    return axes if len(longer) - len(axes) == len(shorter) else None


def matches(given: list[Element], have: tuple[int | Dim, ...]) -> bool:
    """Whether every size of an Expand target is 1 or that of the data."""
    return len(given) <= len(have) and all(
        size in (1, own) for size, own in zip(given[::-1], have[::-1], strict=False)
    )
