"""Pipeline text: the laws of round trip, and the message of every mistake."""

from __future__ import annotations

import enum
from typing import Literal, Optional

import pytest

from graphopt.errors import PipelineSyntaxError, UnknownPassError
from graphopt.manager.base import Pipeline, RewritePass
from graphopt.manager.registry import Registry
from graphopt.manager.text import parse


class Scheme(enum.Enum):
    MINMAX = "minmax"
    ENTROPY = "entropy"
    NONE = "none"


class Quantize(RewritePass):
    """Quantize weights."""

    name = "quantize"
    scheme: Scheme = Scheme.MINMAX
    per_channel: bool = False
    skip: tuple[str, ...] = ()
    percentile: float = 99.9
    step: float | int = 1
    bits: int = 8
    limit: int | None = 3
    mode: Literal["a", "b", 4, None, True] = "a"
    pads: tuple[tuple[int, int], ...] = ()
    # The old spelling of an optional type must work, too.
    fallback: Optional[Scheme] = None  # noqa: UP045

    def __post_init__(self) -> None:
        if self.bits < 2:
            raise ValueError(f"bits must be 2 or more, not {self.bits}")


class Prune(RewritePass):
    """Prune weights."""

    name = "prune"
    ratio: float


class Clean(RewritePass):
    """Clean up."""

    name = "clean"


@pytest.fixture(scope="module")
def registry() -> Registry:
    made = Registry()
    for each in (Quantize, Prune, Clean):
        made.register(each)
    made.register(
        tidy="clean,prune{ratio=.5}",
        nested="tidy, clean",
        broken="clean,prunee",
        first="clean,second",
        second="clean,first",
    )
    return made


CANONICAL = [
    ("", ""),
    (" \n\t", ""),
    ("clean", "clean"),
    ("clean{}", "clean"),
    ("clean , clean", "clean,clean"),
    ("prune{ratio=1e-5}", "prune{ratio=1e-05}"),
    ("prune{ratio=1e-05}", "prune{ratio=1e-05}"),
    ("prune{ratio=.5}", "prune{ratio=0.5}"),
    ("prune{ratio=5.}", "prune{ratio=5.0}"),
    ("prune{ratio=-3}", "prune{ratio=-3.0}"),
    ("prune{ratio=+1E+3}", "prune{ratio=1000.0}"),
    ("prune{ratio=1}", "prune{ratio=1.0}"),
    ("prune{ratio=inf}", "prune{ratio=inf}"),
    ("prune{ratio=+inf}", "prune{ratio=inf}"),
    ("prune{ratio=-inf}", "prune{ratio=-inf}"),
    ("prune {\n  ratio = 1\n}\n,\nclean", "prune{ratio=1.0},clean"),
    ("quantize{per-channel}", "quantize{per-channel}"),
    ("quantize{per_channel}", "quantize{per-channel}"),
    ("quantize{per-channel=true}", "quantize{per-channel}"),
    ("quantize{per-channel=false}", "quantize"),
    ("quantize{scheme=minmax}", "quantize"),
    ("quantize{scheme=entropy}", "quantize{scheme=entropy}"),
    ("quantize{scheme=none}", 'quantize{scheme="none"}'),
    ("quantize{fallback=none}", "quantize"),
    ('quantize{fallback="none"}', 'quantize{fallback="none"}'),
    ("quantize{limit=none}", "quantize{limit=none}"),
    ("quantize{limit=-7}", "quantize{limit=-7}"),
    ("quantize{mode=4}", "quantize{mode=4}"),
    ("quantize{mode=none}", "quantize{mode=none}"),
    ("quantize{mode=true}", "quantize{mode}"),
    ("quantize{mode}", "quantize{mode}"),
    ("quantize{skip=a}", "quantize{skip=a}"),
    ("quantize{skip=(a)}", "quantize{skip=a}"),
    ("quantize{skip=()}", "quantize"),
    ('quantize{skip="a", "b c",d.e-f}', 'quantize{skip=a,"b c",d.e-f}'),
    ('quantize{skip="true","","7"}', 'quantize{skip="true","","7"}'),
    ('quantize{skip="/head.*\\\\d\\"\\u00e9\\n"}', 'quantize{skip="/head.*\\\\d\\"é\\n"}'),
    ('quantize{skip="two\nlines"}', 'quantize{skip="two\\nlines"}'),
    ("quantize{pads=(1,2),(3,4)}", "quantize{pads=(1,2),(3,4)}"),
    ("quantize{pads=((1,2))}", "quantize{pads=((1,2))}"),
    ("quantize{pads=((1,2),(3,4),)}", "quantize{pads=(1,2),(3,4)}"),
    ("quantize{bits=4 skip=a}", "quantize{skip=a bits=4}"),
    ("fixpoint(clean)", "fixpoint{max=10}(clean)"),
    ("fixpoint{max=4}(clean,prune{ratio=1})", "fixpoint{max=4}(clean,prune{ratio=1.0})"),
    ("fixpoint{max=1}(clean,clean),clean", "clean,clean,clean"),
    ("fixpoint{max=3}()", "fixpoint{max=3}()"),
    ("fixpoint{max=3}(fixpoint{max=2}(clean))", "fixpoint{max=3}(fixpoint{max=2}(clean))"),
    ("tidy", "clean,prune{ratio=0.5}"),
    ("fixpoint{max=2}(nested)", "fixpoint{max=2}(clean,prune{ratio=0.5},clean)"),
]


@pytest.mark.parametrize(("text", "canonical"), CANONICAL)
def test_canonical(text: str, canonical: str, registry: Registry) -> None:
    made = parse(text, registry)
    assert str(made) == canonical
    assert parse(canonical, registry) == made


def test_values_have_the_annotated_types(registry: Registry) -> None:
    text = "quantize{scheme=entropy percentile=99 limit=none skip=a,b pads=((1,2)) fallback=none}"
    (made,) = parse(text, registry).passes
    assert made == Quantize(
        scheme=Scheme.ENTROPY, percentile=99.0, limit=None, skip=("a", "b"), pads=((1, 2),)
    )
    assert isinstance(made, Quantize)
    assert type(made.percentile) is float


def test_integers_stay_integers_where_both_are_allowed(registry: Registry) -> None:
    made = parse("quantize{step=2},quantize{step=2.0}", registry)
    assert [type(each.step) for each in made.passes if isinstance(each, Quantize)] == [int, float]
    assert str(made) == "quantize{step=2},quantize{step=2.0}"


def test_characters_are_not_merged(registry: Registry) -> None:
    halves = Pipeline(passes=(Quantize(skip=("\ud83d\ude00", "\U0001f600")),))
    assert parse(str(halves), registry) == halves


MISTAKES = [
    ("clean,prun{ratio=1}", "no pass is called 'prun'; did you mean 'prune'?", 7),
    ("zzz", "no pass is called 'zzz'", 1),
    ("fixpont(clean)", "only fixpoint takes passes in parentheses", 8),
    ("tidy{ratio=1}", "tidy is a pipeline, which takes no options", 1),
    ("clean,", "expected a pass name, found the end", 7),
    ("clean clean", "expected ',' or the end, found 'clean'", 7),
    ("clean;prune{ratio=1}", "passes are separated by commas", 6),
    ("clean{lim=1}", "clean has no option 'lim'; it has none", 7),
    ("prune{raio=1}", "prune has no option 'raio'; it has ratio; did you mean 'ratio'?", 7),
    ("prune", "prune needs option 'ratio'", 1),
    ("prune{ratio=.5 ratio=.5}", "option 'ratio' is given twice", 16),
    ("quantize{per-channel per_channel}", "option 'per-channel' is given twice", 22),
    ("prune{ratio=", "expected a value, found the end", 13),
    ("prune{ratio=1", "expected an option or '}', found the end", 14),
    ("prune{ratio=(1,2}", "expected ',' or ')', found '}'", 17),
    ("prune{ratio}", "option 'ratio' needs a value: a number", 7),
    ("prune{ratio=half}", "option 'ratio' wants a number, not half", 13),
    ("prune{ratio=nan}", "option 'ratio' wants a number, not nan", 13),
    ("prune{ratio=1e400}", "the number is too large; write inf for infinity", 13),
    ("prune{ratio=2:4}", "option 'ratio' wants a number, not 2:4", 13),
    ("prune{ratio=2:4:8}", "'2:4:8' is not a number; quote it if it is text", 13),
    ("prune{ratio=2:}", "'2:' is not a number; quote it if it is text", 13),
    ("prune{ratio=1,2}", "option 'ratio' wants a number, not (1,2)", 13),
    ("quantize{bits=4, percentile=1}", "options are separated by spaces, not commas", 16),
    ("quantize{per-channel, bits=4}", "options are separated by spaces, not commas", 21),
    ("quantize{bits=4.0}", "option 'bits' wants an integer, not 4.0", 15),
    ("quantize{bits=true}", "option 'bits' wants an integer, not true", 15),
    ("quantize{percentile=5 bits=1}", "quantize: bits must be 2 or more, not 1", 1),
    (
        "quantize{scheme=entrpy}",
        "option 'scheme' wants one of minmax, entropy, \"none\", not entrpy; "
        "did you mean 'entropy'?",
        17,
    ),
    ("quantize{mode=c}", "option 'mode' wants one of a, b, 4, none, true, not c", 15),
    ("quantize{limit=many}", "option 'limit' wants an integer or none, not many", 16),
    ("quantize{per-channel=1}", "option 'per-channel' wants true or false, not 1", 22),
    ("quantize{skip=a,none}", "option 'skip' wants text, not none", 17),
    (
        "quantize{pads=1,2}",
        "option 'pads' wants 2 values (an integer, an integer) in parentheses, not 1",
        15,
    ),
    (
        "quantize{pads=(1,2),(3,4,5)}",
        "option 'pads' wants 2 values (an integer, an integer), not (3,4,5)",
        21,
    ),
    ('quantize{skip="a}', "the quote is never closed", 15),
    ("quantize{skip='a'}", "text is quoted with double quotes", 15),
    ("fixpoint", "expected '(' and the passes to repeat, found the end", 9),
    ("fixpoint{mx=2}(clean)", "fixpoint has no option 'mx'; it has max; did you mean 'max'?", 10),
    ("fixpoint{max=2 max=3}(clean)", "option 'max' is given twice", 16),
    ("fixpoint{max=0}(clean)", "option 'max' wants at least 1, not 0", 14),
    ("fixpoint{max=x}(clean)", "option 'max' wants an integer, not x", 14),
    ("fixpoint{max=2}(clean", "expected ',' or ')', found the end", 22),
    ("clean)", "expected ',' or the end, found ')'", 6),
    ("clean,$", "unexpected character '$'", 7),
    (r'quantize{skip="a\d"}', r"the escape \d is unknown; a backslash is written \\", 17),
    (r'quantize{skip="\u12"}', r"the escape \u is unknown; a backslash is written \\", 16),
]


@pytest.mark.parametrize(("text", "message", "column"), MISTAKES)
def test_mistakes(text: str, message: str, column: int, registry: Registry) -> None:
    unknown = message.startswith("no pass is called")
    with pytest.raises(UnknownPassError if unknown else PipelineSyntaxError) as raised:
        parse(text, registry)
    caret = " " * (column - 1) + "^"
    assert str(raised.value) == f"{message} at column {column}\n  {text}\n  {caret}"


def test_mistakes_in_several_lines(registry: Registry) -> None:
    with pytest.raises(PipelineSyntaxError) as raised:
        parse("clean,\n\tprune{ratio=x},\nclean", registry)
    assert str(raised.value) == (
        "option 'ratio' wants a number, not x at line 2, column 14\n"
        "   prune{ratio=x},\n"
        "               ^"
    )


def test_mistakes_in_named_pipelines(registry: Registry) -> None:
    with pytest.raises(UnknownPassError) as raised:
        parse("clean,broken", registry)
    assert str(raised.value) == (
        "in pipeline 'broken': no pass is called 'prunee'; did you mean 'prune'? at column 7\n"
        "  clean,prunee\n"
        "        ^"
    )


def test_pipelines_that_contain_themselves(registry: Registry) -> None:
    with pytest.raises(PipelineSyntaxError) as raised:
        parse("first", registry)
    assert str(raised.value) == (
        "in pipeline 'first': in pipeline 'second': "
        "pipeline 'first' contains itself: first -> second -> first at column 7\n"
        "  clean,first\n"
        "        ^"
    )


def test_the_error_of_a_pass_is_the_cause(registry: Registry) -> None:
    with pytest.raises(PipelineSyntaxError) as raised:
        parse("quantize{bits=1}", registry)
    assert isinstance(raised.value.__cause__, ValueError)


def test_deep_nesting_is_an_error_and_not_a_crash(registry: Registry) -> None:
    def nested(depth: int) -> str:
        return "fixpoint{max=2}(" * depth + "clean" + ")" * depth

    assert str(parse(nested(50), registry)) == nested(50)
    with pytest.raises(PipelineSyntaxError, match=r"^nested more than 50 deep at column 817\n"):
        parse(nested(10_000), registry)


def test_long_numbers(registry: Registry) -> None:
    with pytest.raises(
        PipelineSyntaxError, match=r"^the number has too many digits at column 13\n"
    ):
        parse(f"prune{{ratio={'9' * 5000}}}", registry)
    with pytest.raises(PipelineSyntaxError, match=r"^option 'ratio' wants a number, not 9999"):
        parse(f"prune{{ratio={'9' * 400}}}", registry)
