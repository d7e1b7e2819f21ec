"""Laws of pipeline text, over generated pass classes, options and pipelines."""

from __future__ import annotations

import enum
import itertools
import keyword
import math
from typing import Any, Literal, Optional

import hypothesis
import hypothesis.strategies as st

from graphopt.errors import PipelineSyntaxError, UnknownPassError
from graphopt.manager.base import Pass, Pipeline, RewritePass
from graphopt.manager.registry import Registry
from graphopt.manager.text import parse


class Scheme(enum.Enum):
    MINMAX = "minmax"
    ENTROPY = "entropy"
    NONE = "none"


class Bits(enum.IntEnum):
    FOUR = 4
    EIGHT = 8


class Clean(RewritePass):
    """Clean up."""

    name = "clean"


class Prune(RewritePass):
    """Prune weights."""

    name = "prune"
    ratio: float


SMALL = Registry()
SMALL.register(Clean)
SMALL.register(Prune)

INTEGERS = st.integers(-(10**20), 10**20)
FLOATS = st.floats(allow_nan=False)
SCALARS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (bool, st.booleans()),
    (int, INTEGERS),
    (float, FLOATS),
    (
        str,
        st.one_of(st.text(), st.sampled_from(["true", "none", "inf", "nan", "-1", "a.b-c", "é"])),
    ),
    (Scheme, st.sampled_from(Scheme)),
    (Bits, st.sampled_from(Bits)),
    (Literal["x", "none", "1e5", 1, None], st.sampled_from(["x", "none", "1e5", 1, None])),
]
UNIONS = [
    (int | float, INTEGERS | FLOATS),
    (int | str, INTEGERS | st.text()),
    (bool | float | str, st.booleans() | FLOATS | st.text()),
]


def _annotated() -> st.SearchStrategy[tuple[Any, st.SearchStrategy[Any]]]:
    """Annotations an option may have, each with a strategy for its values."""

    def optional(pair: tuple[Any, Any]) -> tuple[Any, Any]:
        return Optional[pair[0]], st.none() | pair[1]  # noqa: UP045

    def many(pair: tuple[Any, Any]) -> tuple[Any, Any]:
        return tuple[pair[0], ...], st.lists(pair[1], max_size=3).map(tuple)  # type: ignore[valid-type]

    def fixed(pairs: list[tuple[Any, Any]]) -> tuple[Any, Any]:
        return tuple[tuple(p[0] for p in pairs)], st.tuples(*(p[1] for p in pairs))  # type: ignore[misc]

    scalar = st.sampled_from([*SCALARS, *UNIONS])
    scalar = scalar | scalar.map(optional)
    several = scalar.map(many) | st.lists(scalar, min_size=1, max_size=3).map(fixed)
    nested = several | several.map(many) | several.map(optional)
    return scalar | nested | nested.map(optional)


_numbers = itertools.count()


@st.composite
def _classes(draw: st.DrawFn) -> tuple[type[Pass], dict[str, st.SearchStrategy[Any]]]:
    """A pass class with generated options, and a strategy for each option."""
    names = draw(st.lists(st.from_regex(r"[a-z](_?[a-z0-9]){0,6}", fullmatch=True), unique=True))
    reserved = {"name", "passes", "pipeline", "fixpoint", "rules", "run", "exactness", "preserves"}
    space: dict[str, Any] = {"__doc__": "Generated.", "name": f"generated-{next(_numbers)}"}
    annotations: dict[str, Any] = {}
    values: dict[str, st.SearchStrategy[Any]] = {}
    for name in names:
        if name in reserved or keyword.iskeyword(name) or name in dir(RewritePass):
            continue
        annotations[name], values[name] = draw(_annotated())
        if draw(st.booleans()):
            space[name] = draw(values[name])
    space["__annotations__"] = annotations
    space["__module__"] = __name__
    return type("Generated", (RewritePass,), space), values


@st.composite
def _pipelines(draw: st.DrawFn) -> tuple[Pipeline, Registry]:
    registry = Registry()
    instances: list[st.SearchStrategy[Any]] = []
    for made, values in draw(st.lists(_classes(), min_size=1, max_size=3)):
        registry.register(made)
        instances.append(st.builds(made, **values))
    tree = st.recursive(
        st.one_of(instances),
        lambda inner: st.builds(
            Pipeline, passes=st.lists(inner, max_size=4).map(tuple), repeat=st.integers(1, 4)
        ),
        max_leaves=6,
    )
    passes = draw(st.lists(tree, max_size=3))
    return Pipeline(passes=tuple(passes), repeat=draw(st.integers(1, 3))), registry


@hypothesis.given(_pipelines())
def test_round_trip(made: tuple[Pipeline, Registry]) -> None:
    pipeline, registry = made
    text = str(pipeline)
    again = parse(text, registry)
    assert again == pipeline
    assert str(again) == text


@hypothesis.given(st.text("clean prune{}(),=\"\\\n-1.e+x'", max_size=30))
def test_any_text_parses_or_explains(text: str) -> None:
    try:
        made = parse(text, SMALL)
    except (PipelineSyntaxError, UnknownPassError) as error:
        message, line, caret = str(error).split("\n")
        assert " column " in message
        assert caret.strip() == "^"
        assert len(caret) <= len(line) + 1
    else:
        assert parse(str(made), SMALL) == made


@hypothesis.given(FLOATS)
def test_every_float_has_a_text(value: float) -> None:
    (made,) = parse(str(Prune(ratio=value)), SMALL).passes
    assert made == Prune(ratio=value)
    assert math.copysign(1, made.ratio) == math.copysign(1, value)
