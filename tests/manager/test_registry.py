"""The registry: names, plugins found through the metadata of their distributions, descriptions."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

import graphopt
from graphopt import ir
from graphopt.errors import ConfigError, UnknownPassError
from graphopt.manager.base import Exactness, Pass, Pipeline, RewritePass
from graphopt.manager.describe import Option, sections
from graphopt.manager.registry import Registry, default_registry
from graphopt.manager.text import parse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PLUGIN = Path(__file__).resolve().parent.parent / "plugin"


class Clean(RewritePass):
    """Clean up."""

    name = "clean"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that distributions can be installed in."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("graphopt_example", "plugin_")):
            del sys.modules[name]


def install(site: Path, name: str, entry_points: dict[str, dict[str, str]], code: str = "") -> None:
    """Install a distribution: metadata as an installer writes it, and a module."""
    folder = site / f"{name.replace('-', '_')}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for group, points in entry_points.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in points.items())]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
    if code:
        (site / f"{name.replace('-', '_')}.py").write_text(textwrap.dedent(code))
    importlib.invalidate_caches()


def plugin(site: Path, name: str, code: str) -> None:
    """Install a distribution of one module with passes in the test's own entry point group."""
    install(site, name, {"test.passes": {"any": name.replace("-", "_")}}, code)


A_PASS = """
    from graphopt.manager.base import RewritePass

    class Polish(RewritePass):
        '''Polish.'''
        name = "polish"

    PASSES = (Polish,)
"""


# --- plugins ------------------------------------------------------------------------------------


def test_third_party_distribution(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    install(site, project["name"], project["entry-points"])
    monkeypatch.syspath_prepend(PLUGIN)

    registry = Registry("graphopt.passes")
    assert "drop-double-negation" in registry.names()
    assert registry.pipelines()["example"] == "drop-double-negation{ops=neg}"
    assert registry.origin("drop-double-negation") == "distribution 'graphopt-example'"
    assert not any("graphopt-example" in problem for problem in registry.problems())
    (made,) = parse("example", registry).passes
    assert made == registry.get("drop-double-negation")(ops=("neg",))  # type: ignore[call-arg]

    model = ir.parse_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N] x, bool[N] b) => (float[N] y, bool[N] c)
        { n = Neg(x)  nn = Neg(n)  y = Relu(nn)  i = Not(b)  ii = Not(i)  c = Not(ii) }"""
    )
    result = graphopt.PassManager("example", registry=registry).run(model)
    assert [node.op_type for node in result.model.graph] == ["Relu", "Not", "Not", "Not"]

    described = registry.describe("drop-double-negation")
    assert described.kind == "pass"
    assert described.summary == "Drop two negations in a row."
    assert described.exactness == "bitwise"
    assert described.min_opset == 1
    assert described.sections["Example"] == "``drop-double-negation{ops=not}``"
    assert described.options == (
        Option(
            "ops",
            "a comma-separated list, each one of neg, not",
            "(neg,not)",
            "Which of ``neg`` and ``not`` to look for.",
        ),
    )


def test_entry_points_are_loaded_once_and_when_needed(site: Path) -> None:
    plugin(site, "plugin-lazy", A_PASS)
    registry = Registry("test.passes")
    registry.register(Clean)
    assert "plugin_lazy" not in sys.modules
    assert registry.names() == ["clean", "polish"]
    assert registry.get("polish") is sys.modules["plugin_lazy"].Polish
    plugin(site, "plugin-late", A_PASS.replace("polish", "late"))
    assert registry.names() == ["clean", "polish"]


def test_broken_plugins_break_nothing_else(site: Path) -> None:
    plugin(site, "plugin-broken", "import plugin_that_is_missing")
    plugin(site, "plugin-empty", "ANSWER = 42")
    plugin(site, "plugin-list", "PASSES = []")
    plugin(site, "plugin-nameless", A_PASS.replace('"polish"', '"Polish_It"'))
    plugin(site, "plugin-odd", "PIPELINES = {'two words': 'polish', 'number': 3}")
    plugin(site, "plugin-works", A_PASS)
    registry = Registry("test.passes")
    assert registry.names() == ["polish"]
    assert registry.pipelines() == {}
    assert registry.problems() == [
        "distribution 'plugin-broken' cannot be loaded: "
        "ModuleNotFoundError: No module named 'plugin_that_is_missing'",
        "distribution 'plugin-empty': plugin_empty has no PASSES and no PIPELINES",
        "distribution 'plugin-list': PASSES must be a tuple and PIPELINES a dict",
        "distribution 'plugin-nameless': Polish needs a kebab-case name, not 'Polish_It'",
        "distribution 'plugin-odd': 'two words' cannot be the name of a pipeline",
        "distribution 'plugin-odd': pipeline 'number' must be text, not 3",
    ]


def test_an_unknown_name_may_be_the_fault_of_a_broken_plugin(site: Path) -> None:
    plugin(site, "plugin-broken", "1 / 0")
    plugin(site, "plugin-works", A_PASS)
    with pytest.raises(UnknownPassError) as raised:
        Registry("test.passes").get("polsh")
    assert str(raised.value) == (
        "no pass is called 'polsh'; did you mean 'polish'? "
        "(distribution 'plugin-broken' cannot be loaded: ZeroDivisionError: division by zero)"
    )


def test_names_provided_twice(site: Path) -> None:
    plugin(site, "plugin-one", A_PASS + "\n    PIPELINES = {'shine': 'polish'}")
    plugin(site, "plugin-two", A_PASS)
    registry = Registry("test.passes")
    message = (
        "'polish' is provided twice: by distribution 'plugin-one' and by distribution 'plugin-two'"
    )
    assert registry.problems() == [message]
    assert registry.pipelines() == {"shine": "polish"}
    with pytest.raises(ConfigError) as raised:
        parse("shine", registry)
    assert str(raised.value) == message


def test_no_distribution_at_all() -> None:
    with pytest.raises(UnknownPassError) as raised:
        Registry("test.passes").get("clean")
    assert str(raised.value) == (
        "no pass is called 'clean' (no distribution provides passes in the entry point group "
        "'test.passes'; install graphopt with pip)"
    )


def test_a_plugin_may_register_while_it_is_imported(site: Path) -> None:
    code = A_PASS + "\n    import plugin_shared\n    plugin_shared.registry.register(Polish)"
    plugin(site, "plugin-eager", code)
    (site / "plugin_shared.py").write_text("")
    shared: Any = importlib.import_module("plugin_shared")
    shared.registry = Registry("test.passes")
    assert shared.registry.get("polish").name == "polish"
    assert shared.registry.problems() == []


# --- registering --------------------------------------------------------------------------------


def test_register() -> None:
    registry = Registry()
    assert registry.register(Clean) is Clean
    registry.register(two_times="clean,clean", O9="clean")
    assert registry.names() == ["clean"]
    assert registry.pipelines() == {"O9": "clean", "two-times": "clean,clean"}
    assert registry.get("clean") is Clean
    assert registry.lookup("O9") == "clean"
    assert registry.origin("O9") == "graphopt.register"
    assert registry.problems() == []
    assert parse("two-times", registry) == Pipeline(passes=(Clean(), Clean()))
    with pytest.raises(UnknownPassError) as raised:
        registry.get("O9")
    assert str(raised.value) == "'O9' is a pipeline, not a pass: clean"


def test_register_is_public_and_feeds_the_default_registry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    default = Registry()
    monkeypatch.setattr("graphopt.manager.registry.default_registry", lambda: default)
    graphopt.register(Clean, spotless="clean")
    assert default.names() == ["clean"]
    assert default.pipelines() == {"spotless": "clean"}


def test_there_is_one_default_registry() -> None:
    assert default_registry() is default_registry()


def test_registering_again_replaces() -> None:
    def cell() -> type[Pass]:
        class Again(RewritePass):
            """As a notebook cell that runs twice."""

            name = "again"

        return Again

    registry = Registry()
    registry.register(cell())
    second = registry.register(cell(), often="again")
    registry.register(often="again,again")
    assert registry.get("again") is second
    assert registry.pipelines() == {"often": "again,again"}


def test_taken_names_change_nothing() -> None:
    class Other(RewritePass):
        """Another pass of the same name."""

        name = "clean"

    registry = Registry()
    registry.register(Clean)
    for register in (
        lambda: registry.register(Other, fresh="clean"),
        lambda: registry.register(clean="clean"),
    ):
        with pytest.raises(ConfigError) as raised:
            register()
        assert str(raised.value) == (
            "'clean' is provided twice: by graphopt.register and by graphopt.register"
        )
    assert registry.get("clean") is Clean
    assert registry.pipelines() == {}


class Fruit(enum.Enum):
    APPLE = (1, 2)


class Mixed(enum.Enum):
    ONE = "one"


def made(annotation: Any = int, default: Any = 1, **more: Any) -> type[Pass]:
    """A pass class with one option named ``option``, unless told otherwise."""
    space: dict[str, Any] = {"name": "made", "__doc__": "Made.", "__module__": __name__}
    space |= {"__annotations__": {"option": annotation}, "option": default, **more}
    return type("Made", (RewritePass,), space)


class Abstract(Pass):
    """It has no run."""

    name = "abstract"


class Nameless(RewritePass):
    """It has no name."""


INVALID: list[tuple[Any, str]] = [
    (3, "3 is not a subclass of Pass"),
    (int, "<class 'int'> is not a subclass of Pass"),
    (Abstract, "Abstract does not implement run"),
    (Nameless, "Nameless needs a kebab-case name, not None"),
    (made(name="fuseConv"), "Made needs a kebab-case name, not 'fuseConv'"),
    (made(name="fuse_conv"), "Made needs a kebab-case name, not 'fuse_conv'"),
    (made(name="-fuse"), "Made needs a kebab-case name, not '-fuse'"),
    (made(name="fixpoint"), "Made needs a kebab-case name, not 'fixpoint'"),
    (made(name="none"), "Made needs a kebab-case name, not 'none'"),
    (made(__doc__=None), "pass 'made' needs a docstring"),
    (made(__doc__=" \n"), "pass 'made' needs a docstring"),
    (made(exactness="bitwise"), "pass 'made' needs an Exactness, not 'bitwise'"),
    (
        made("Missing"),
        "pass 'made': the annotation of option 'option': name 'Missing' is not defined",
    ),
    (
        made(list[int], None),
        "option 'option' of pass 'made': options cannot have the type list[int]",
    ),
    (made(dict, None), "option 'option' of pass 'made': options cannot have the type dict"),
    (
        made(tuple[list[int], ...], ()),
        "option 'option' of pass 'made': options cannot have the type list[int]",
    ),
    (
        made(Fruit, Fruit.APPLE),
        "option 'option' of pass 'made': members of Fruit must have int or str values",
    ),
    (
        made(Mixed | str, "one"),
        "option 'option' of pass 'made': "
        "values of test_registry.Mixed | str cannot be told apart in text",
    ),
    (
        made(tuple[int, ...] | int, 1),
        "option 'option' of pass 'made': "
        "values of tuple[int, ...] | int cannot be told apart in text",
    ),
    (made(int, 0.5), "the default of option 'option' of pass 'made' wants an integer, not 0.5"),
    (
        made(float, float("nan")),
        "the default of option 'option' of pass 'made' wants a number, not nan",
    ),
    (made(str, None), "the default of option 'option' of pass 'made' wants text, not none"),
    (
        made(Mixed, "two"),
        "the default of option 'option' of pass 'made' wants one of one, not two",
    ),
    (
        made(__annotations__={"_hidden": int}, _hidden=1),
        "option '-hidden' of pass 'made' cannot have that name",
    ),
    (
        made(__annotations__={"passes": int}, passes=1),
        "option 'passes' of pass 'made' cannot have that name",
    ),
]


@pytest.mark.parametrize(("bad", "message"), INVALID)
def test_invalid_passes(bad: Any, message: str) -> None:
    registry = Registry()
    with pytest.raises(ConfigError) as raised:
        registry.register(bad)
    assert str(raised.value).replace(f"{__name__}.", "test_registry.") == message
    assert registry.names() == []


def test_valid_options() -> None:
    class Valid(RewritePass):
        """Every kind of option."""

        name = "valid"
        shared: ClassVar[list[int]] = []
        fruit: Mixed | None = None
        sizes: tuple[tuple[int, float], ...] = ((1, 2),)
        fresh: tuple[str, ...] = dataclasses.field(default_factory=tuple)
        needed: int | float | str
        derived: int = dataclasses.field(default=0, init=False)

    registry = Registry()
    registry.register(Valid)
    assert str(Valid(needed="x", sizes=())) == "valid{sizes=() needed=x}"
    assert [option.name for option in registry.describe("valid").options] == [
        "fruit",
        "sizes",
        "fresh",
        "needed",
    ]


# --- describing ---------------------------------------------------------------------------------


def test_describe() -> None:
    class Squeeze(RewritePass):
        """Squeeze
        weights.

        A preface.

        Exactness: lossy;
            judged by a budget.
        Needs: nothing.
        Options:
            ratio: How much of each weight
                to keep.
            per_channel: Whether each channel
                has its own ratio: yes or no.
            unknown: Not an option.
        Declines when:
            * there is nothing to squeeze;
            * or too much.
        """

        name = "squeeze"
        exactness = Exactness.LOSSY
        min_opset = 13
        ratio: float
        per_channel: bool = True
        limit: int | None = None

    registry = Registry()
    registry.register(Squeeze, tight="squeeze{ratio=0.1}")
    described = registry.describe("squeeze")
    assert described.summary == "Squeeze weights."
    assert described.exactness == "lossy"
    assert described.min_opset == 13
    assert described.origin == "graphopt.register"
    assert list(described.sections) == [
        "What it does",
        "Exactness",
        "Needs",
        "Options",
        "Declines when",
    ]
    assert described.sections["What it does"] == "A preface."
    assert described.sections["Exactness"] == "lossy;\njudged by a budget."
    assert described.sections["Declines when"] == "* there is nothing to squeeze;\n* or too much."
    assert described.options == (
        Option("ratio", "a number", None, "How much of each weight to keep."),
        Option(
            "per-channel",
            "true or false",
            "true",
            "Whether each channel has its own ratio: yes or no.",
        ),
        Option("limit", "an integer or none", "none", ""),
    )
    pipeline = registry.describe("tight")
    assert (pipeline.kind, pipeline.summary) == ("pipeline", "squeeze{ratio=0.1}")
    assert (pipeline.exactness, pipeline.min_opset, pipeline.options) == (None, None, ())


def test_options_in_running_text() -> None:
    class Squash(RewritePass):
        """Squash.

        Options: min-bytes (smaller ones (in bytes)
        stay, default 0); ``keep`` (names to keep), and bytes.
        """

        name = "squash"
        min_bytes: int = 0
        keep: tuple[str, ...] = ()
        bytes: int = 0

    registry = Registry()
    registry.register(Squash)
    assert [option.help for option in registry.describe("squash").options] == [
        "smaller ones (in bytes) stay, default 0",
        "names to keep",
        "",
    ]


def test_sections_of_a_plain_docstring() -> None:
    assert sections("One line.") == ("One line.", {})
    assert sections("One line.\n\n    More.\n    Note: text.\n    ") == (
        "One line.",
        {"What it does": "More.\nNote: text."},
    )
