"""TOML configuration: three spellings of one pipeline, and the message of every mistake."""

from __future__ import annotations

import dataclasses
import enum
import re
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from graphopt.errors import ConfigError, PipelineSyntaxError, UnknownPassError
from graphopt.manager.base import Pipeline, RewritePass
from graphopt.manager.config import Config, load_config, parse_config
from graphopt.manager.registry import Registry
from graphopt.manager.text import parse


class Scheme(enum.Enum):
    MINMAX = "minmax"
    NONE = "none"


class Quantize(RewritePass):
    """Quantize weights."""

    name = "quantize"
    scheme: Scheme = Scheme.MINMAX
    per_channel: bool = False
    skip: tuple[str, ...] = ()
    percentile: float = 99.9
    bits: int = 8
    limit: int | None = 3
    pads: tuple[tuple[int, int | None], ...] = ()
    label: str | None = "x"

    def __post_init__(self) -> None:
        if self.bits < 2:
            raise ValueError(f"bits must be 2 or more, not {self.bits}")


class Clean(RewritePass):
    """Clean up."""

    name = "clean"


@pytest.fixture(scope="module")
def registry() -> Registry:
    made = Registry()
    made.register(Quantize)
    made.register(Clean, tidy="clean,clean")
    return made


# --- reading ------------------------------------------------------------------------------------


def test_three_spellings(registry: Registry) -> None:
    text = 'tidy,fixpoint{max=4}(clean,quantize{bits=4}),quantize{per-channel skip="/a.*",b}'
    tables = parse_config(
        """
        [[passes]]
        name = "tidy"

        [[passes]]
        fixpoint = 4
        passes = ["clean", { name = "quantize", bits = 4 }]

        [[passes]]
        name = "quantize"
        per-channel = true
        skip = ["/a.*", "b"]
        """,
        registry=registry,
    )
    inline = parse_config(f"pipeline = '{text}'", registry=registry)
    python = Pipeline(
        passes=(
            Clean(),
            Clean(),
            Pipeline(passes=(Clean(), Quantize(bits=4)), repeat=4),
            Quantize(per_channel=True, skip=("/a.*", "b")),
        )
    )
    assert tables.pipeline == inline.pipeline == python == parse(text, registry)


def test_every_setting(tmp_path: Path, registry: Registry) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        """
        model = "a.onnx"
        output = "../b.onnx"
        data = "/samples/calib.npz"
        target = "gpu"
        oracle = "each"
        on-mismatch = "raise"
        objective = "bytes"
        allow-growth = true
        seeds = [1, 2]
        pipeline = "clean"
        """
    )
    assert load_config(file, registry) == Config(
        pipeline=Pipeline(passes=(Clean(),)),
        model=tmp_path / "a.onnx",
        output=tmp_path / "../b.onnx",
        data=Path("/samples/calib.npz"),
        target="gpu",
        oracle="each",
        on_mismatch="raise",
        objective="bytes",
        allow_growth=True,
        seeds=(1, 2),
    )


def test_defaults(registry: Registry) -> None:
    config = parse_config('pipeline = ""', registry=registry)
    assert config == Config(pipeline=Pipeline())
    assert (config.model, config.output, config.data) == (None, None, None)
    assert (config.target, config.oracle, config.on_mismatch) == ("cpu", "end", "revert")
    assert (config.objective, config.allow_growth, config.seeds) == ("cost", False, (0,))


def test_objective_none(registry: Registry) -> None:
    assert parse_config('pipeline = ""\nobjective = "none"', registry=registry).objective is None


def test_option_values(registry: Registry) -> None:
    config = parse_config(
        """
        [[passes]]
        name = "quantize"
        scheme = "none"
        per_channel = true
        skip = "one"
        percentile = 99
        limit = 7
        pads = [[1, 2], [3, 4]]
        label = "none"
        """,
        registry=registry,
    )
    (made,) = config.pipeline.passes
    assert made == Quantize(
        scheme=Scheme.NONE,
        per_channel=True,
        skip=("one",),
        percentile=99.0,
        limit=7,
        pads=((1, 2), (3, 4)),
        label="none",
    )
    assert isinstance(made, Quantize)
    assert type(made.percentile) is float


# --- mistakes -----------------------------------------------------------------------------------

PASS = "[[passes]]\nname = 'quantize'\n"

MISTAKES: list[tuple[str, type[Exception], str]] = [
    ("modle = 'a'\npipeline = ''", ConfigError, "unknown key 'modle'; did you mean 'model'?"),
    ("pass = 'a'\npipeline = ''", ConfigError, "unknown key 'pass'; did you mean 'passes'?"),
    ("zzz = 1\npipeline = ''", ConfigError, "unknown key 'zzz'"),
    (
        "oracle = 'ech'\npipeline = ''",
        ConfigError,
        "key 'oracle' wants one of off, end, each, not ech; did you mean 'each'?",
    ),
    ("model = 3\npipeline = ''", ConfigError, "key 'model' wants text, not 3"),
    (
        "allow-growth = 'yes'\npipeline = ''",
        ConfigError,
        "key 'allow-growth' wants true or false, not yes",
    ),
    (
        "allow-growth = true\nallow_growth = true\npipeline = ''",
        ConfigError,
        "key 'allow-growth' is given twice",
    ),
    (
        "seeds = [1, 'b']\npipeline = ''",
        ConfigError,
        "key 'seeds' wants an integer, not b",
    ),
    (
        "model = 'a'",
        ConfigError,
        "give the passes under 'pipeline' or under 'passes'; one is needed",
    ),
    (
        "pipeline = ''\npasses = []",
        ConfigError,
        "give the passes under 'pipeline' or under 'passes'; one is needed",
    ),
    ("pipeline = 3", ConfigError, "key 'pipeline' wants text, not 3"),
    ("passes = 3", ConfigError, "key 'passes' wants an array of tables, not 3"),
    ("passes = ['clean', 3]", ConfigError, "pass 2 must be a table or text, not 3"),
    (
        "[[passes]]\nnam = 'clean'",
        ConfigError,
        "pass 1: needs one of 'name', 'pipeline' and 'fixpoint'; did you mean 'name'?",
    ),
    (
        "[[passes]]\nname = 'clean'\npipeline = 'clean'",
        ConfigError,
        "pass 1: needs one of 'name', 'pipeline' and 'fixpoint'",
    ),
    ("[[passes]]\nname = 3", ConfigError, "pass 1: key 'name' wants text, not 3"),
    (
        "[[passes]]\npipeline = 'clean'\nbits = 3",
        ConfigError,
        "pass 1: 'pipeline' stands alone, without 'bits'",
    ),
    (
        "[[passes]]\nname = 'tidy'\nbits = 3",
        ConfigError,
        "pass 1: tidy is a pipeline, which takes no options",
    ),
    (
        "[[passes]]\nname = 'clean'\n[[passes]]\nname = 'quantise'",
        UnknownPassError,
        "pass 2: no pass is called 'quantise'; did you mean 'quantize'?",
    ),
    (PASS + "bits = 'four'", ConfigError, "pass 1: option 'bits' wants an integer, not four"),
    (PASS + "bits = 1", ConfigError, "pass 1: quantize: bits must be 2 or more, not 1"),
    (
        PASS + "bits = 4\nper-channel = true\nper_channel = true",
        ConfigError,
        "pass 1: option 'per-channel' is given twice",
    ),
    (
        PASS + "pads = [1, 2]",
        ConfigError,
        "pass 1: option 'pads' wants 2 values (an integer, an integer or none) in parentheses, "
        "not 1",
    ),
    (
        PASS + "skip = { a = 1 }",
        ConfigError,
        "pass 1: option 'skip' wants text, not \"{'a': 1}\"",
    ),
    (
        PASS + "percentil = 4",
        ConfigError,
        "pass 1: quantize has no option 'percentil'; it has bits, label, limit, pads, "
        "per-channel, percentile, scheme, skip; did you mean 'percentile'?",
    ),
    (
        "[[passes]]\nfixpoint = 0\npasses = []",
        ConfigError,
        "pass 1: fixpoint wants an integer from 1, not 0",
    ),
    (
        "[[passes]]\nfixpoint = true\npasses = []",
        ConfigError,
        "pass 1: fixpoint wants an integer from 1, not True",
    ),
    ("[[passes]]\nfixpoint = 2", ConfigError, "pass 1: fixpoint needs 'passes'"),
    (
        "[[passes]]\nfixpoint = 2\npass = []",
        ConfigError,
        "pass 1: fixpoint has no key 'pass'; did you mean 'passes'?",
    ),
    (
        "passes = ['clean', { fixpoint = 2, passes = ['clean', { name = 'cleen' }] }]",
        UnknownPassError,
        "pass 2.2: no pass is called 'cleen'; did you mean 'clean'?",
    ),
    (
        "pipeline = 'clean,clea'",
        UnknownPassError,
        "no pass is called 'clea'; did you mean 'clean'? at column 7\n  clean,clea\n        ^",
    ),
    (
        "passes = ['clean', 'clean{']",
        PipelineSyntaxError,
        "pass 2: expected an option or '}', found the end at column 7\n  clean{\n        ^",
    ),
]


@pytest.mark.parametrize(("text", "kind", "message"), MISTAKES)
def test_mistakes(
    text: str, kind: type[Exception], message: str, tmp_path: Path, registry: Registry
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(kind) as raised:
        load_config(file, registry)
    assert type(raised.value) is kind
    assert str(raised.value) == f"{file}: {message}"


def test_what_is_not_toml(registry: Registry) -> None:
    with pytest.raises(ConfigError, match=r"^config: .*line 2, column 6"):
        parse_config("model = 'a'\nname ! 3", registry=registry)


def test_files_that_cannot_be_read(tmp_path: Path, registry: Registry) -> None:
    missing = tmp_path / "missing.toml"
    with pytest.raises(ConfigError) as raised:
        load_config(missing, registry)
    assert str(raised.value) == f"cannot read {missing}: No such file or directory"
    with pytest.raises(ConfigError, match=rf"^cannot read {re.escape(str(tmp_path))}: "):
        load_config(tmp_path, registry)
    binary = tmp_path / "model.onnx"
    binary.write_bytes(b"\x08\x07\xff\xfe")
    with pytest.raises(ConfigError) as raised:
        load_config(binary, registry)
    assert str(raised.value) == f"cannot read {binary}: it is not UTF-8 text"


# --- writing ------------------------------------------------------------------------------------


def test_to_toml(registry: Registry) -> None:
    config = Config(
        pipeline=parse(
            "clean,fixpoint{max=3}(clean,quantize{bits=4},fixpoint{max=2}(clean)),"
            'quantize{scheme="none" per-channel skip="a\\"b",c percentile=inf pads=(1,2),(3,4)},'
            "quantize{limit=none}",
            registry,
        ),
        model=Path("/runs/one/a.onnx"),
        output=Path("/elsewhere/b.onnx"),
        objective=None,
        seeds=(1, 2),
    )
    text = config.to_toml(Path("/runs/one"))
    assert text == (
        'model = "a.onnx"\n'
        'output = "/elsewhere/b.onnx"\n'
        'objective = "none"\n'
        "seeds = [1, 2]\n"
        "\n"
        "[[passes]]\n"
        'name = "clean"\n'
        "\n"
        "[[passes]]\n"
        "fixpoint = 3\n"
        'passes = [{ name = "clean" }, { name = "quantize", bits = 4 }, '
        '{ fixpoint = 2, passes = [{ name = "clean" }] }]\n'
        "\n"
        "[[passes]]\n"
        'name = "quantize"\n'
        'scheme = "none"\n'
        "per-channel = true\n"
        'skip = ["a\\"b", "c"]\n'
        "percentile = inf\n"
        "pads = [[1, 2], [3, 4]]\n"
        "\n"
        "[[passes]]\n"
        'pipeline = "quantize{limit=none}"\n'
    )
    assert parse_config(text, base=Path("/runs/one"), registry=registry) == config


# TOML is UTF-8, which has no lone surrogates.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
PASSES: st.SearchStrategy[Any] = st.just(Clean()) | st.builds(
    Quantize,
    scheme=st.sampled_from(Scheme),
    per_channel=st.booleans(),
    skip=st.lists(TEXTS, max_size=3).map(tuple),
    percentile=st.floats(allow_nan=False),
    bits=st.integers(2),
    limit=st.none() | st.integers(),
    pads=st.lists(st.tuples(st.integers(), st.none() | st.integers()), max_size=2).map(tuple),
    label=st.none() | TEXTS,
)
PIPELINES = st.recursive(
    PASSES,
    lambda inner: st.builds(
        Pipeline, passes=st.lists(inner, max_size=3).map(tuple), repeat=st.integers(1, 3)
    ),
    max_leaves=5,
)


@hypothesis.given(
    st.builds(
        Config,
        pipeline=st.lists(PIPELINES, max_size=3).map(lambda some: Pipeline(passes=tuple(some))),
        model=st.none() | st.just(Path("a/b.onnx")),
        target=TEXTS,
        oracle=st.sampled_from(["off", "end", "each"]),
        objective=st.sampled_from(["cost", "bytes", "nodes", None]),
        allow_growth=st.booleans(),
        seeds=st.lists(st.integers(0), max_size=3).map(tuple),
    )
)
def test_round_trip(registry: Registry, config: Config) -> None:
    assert parse_config(config.to_toml(), registry=registry) == config


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config(pipeline=Pipeline()).target = "gpu"  # type: ignore[misc]
