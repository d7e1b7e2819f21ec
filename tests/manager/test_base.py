"""Passes and pipelines as objects."""

from __future__ import annotations

import dataclasses

import pytest

from graphopt.manager.base import Exactness, Pipeline, RewritePass


class Clean(RewritePass):
    """Clean up."""

    name = "clean"


class Prune(RewritePass):
    """Prune weights."""

    name = "prune"
    ratio: float
    names: tuple[str, ...] = ()


def test_text() -> None:
    assert str(Clean()) == "clean"
    assert str(Prune(ratio=0.5)) == "prune{ratio=0.5}"
    assert str(Prune(ratio=1e-7, names=("a", "b c"))) == 'prune{ratio=1e-07 names=a,"b c"}'


def test_pipelines_normalize() -> None:
    clean = Clean()
    plain = Pipeline(passes=(clean, Pipeline(passes=(clean, Prune(ratio=1)))))
    assert plain == Pipeline(passes=(clean, clean, Prune(ratio=1)))
    repeated = Pipeline(passes=(clean,), repeat=3)
    assert Pipeline(passes=(repeated,)) == repeated
    assert Pipeline(passes=(Pipeline(), repeated)) == repeated
    assert Pipeline(passes=(repeated,), repeat=2) != repeated
    assert hash(plain) == hash(Pipeline(passes=plain.passes))
    assert list(Pipeline(passes=(repeated, clean), repeat=2).leaves()) == [clean, clean]


def test_pipelines_check_their_fields() -> None:
    with pytest.raises(ValueError, match=r"^a pipeline runs at least once, not 0 times$"):
        Pipeline(repeat=0)
    with pytest.raises(
        TypeError, match=r"^a pipeline holds passes, not <class .*>; write Clean\(\)"
    ):
        Pipeline(passes=(Clean,))  # type: ignore[arg-type]


def test_promise_is_the_weakest() -> None:
    class Bitwise(Clean):
        name = "bitwise"
        exactness = Exactness.BITWISE

    class Lossy(Clean):
        name = "lossy"
        exactness = Exactness.LOSSY

    assert Pipeline().promise is Exactness.BITWISE
    assert Pipeline(passes=(Bitwise(),)).promise is Exactness.BITWISE
    assert Pipeline(passes=(Bitwise(), Clean())).promise is Exactness.ROUNDING
    repeated = Pipeline(passes=(Lossy(),), repeat=2)
    assert Pipeline(passes=(repeated, Bitwise())).promise is Exactness.LOSSY


def test_passes_are_frozen_comparable_keyword_only() -> None:
    made = Prune(ratio=4)
    assert made == Prune(ratio=4)
    assert hash(made) == hash(Prune(ratio=4))
    assert made != Prune(ratio=5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.ratio = 5  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional argument"):
        Prune(0.5)  # type: ignore[call-arg]
