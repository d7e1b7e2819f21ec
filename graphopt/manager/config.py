"""Runs described by a TOML file: the model, the pipeline, and how to verify it.

The pipeline is text under ``pipeline``, or a table per pass; both spell the same::

    model = "a.onnx"            # paths are relative to this file
    output = "b.onnx"
    data = "calib.npz"
    target = "cpu"
    oracle = "end"

    [[passes]]
    name = "cleanup"            # a pass or a named pipeline

    [[passes]]
    fixpoint = 4                # at most 4 times, until nothing changes
    passes = ["fold-constants", { name = "fuse-conv-bn" }]

    [[passes]]
    name = "quantize-int8"      # other keys are the options of the pass
    per-channel = true
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from graphopt.errors import ConfigError, PipelineSyntaxError, UnknownPassError
from graphopt.manager.base import Pass, Pipeline
from graphopt.manager.options import (
    OptionError,
    Raw,
    build,
    convert,
    did_you_mean,
    format_value,
    kebab,
    non_default_options,
)
from graphopt.manager.registry import Registry, default_registry
from graphopt.manager.text import parse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Config", "load_config", "parse_config"]

_FUNCTION = re.compile(r"[\w.]+:[\w.]+")  # what data may be instead of a path
_PATHS = ("model", "output", "data", "cache")
_SETTINGS: dict[str, Any] = {
    "model": str,
    "output": str,
    "target": str,
    "data": str,
    "oracle": Literal["off", "end", "each"],
    "on_mismatch": Literal["revert", "raise"],
    "objective": Literal["cost", "bytes", "nodes", "none"],
    "allow_growth": bool,
    "seeds": tuple[int, ...],
    "executor": str,
    "cache": str,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A run: what to optimize and how.

    Attributes:
        pipeline: The passes to run.
        model: The model to read, or None if it is given elsewhere.
        output: Where to write the result, or None.
        target: Name of the target.
        data: Samples for the oracle and for calibration: an npz file, a folder, or
            ``module:function``; or None.
        oracle: When outputs are compared: ``off``, at the ``end``, or after ``each`` pass.
        on_mismatch: ``revert`` the passes that break their promise, or ``raise``.
        objective: What a pass must not make worse: ``cost``, ``bytes`` or ``nodes``; None for any.
        allow_growth: Whether the file may become larger.
        seeds: Seeds of the oracle's random inputs, one set of inputs each.
        executor: Where calibration runs, such as ``processes:4``, or None.
        cache: Folder where results of calibration are kept, or None.
    """

    pipeline: Pipeline
    model: Path | None = None
    output: Path | None = None
    target: str = "cpu"
    data: Path | None = None
    oracle: Literal["off", "end", "each"] = "end"
    on_mismatch: Literal["revert", "raise"] = "revert"
    objective: Literal["cost", "bytes", "nodes"] | None = "cost"
    allow_growth: bool = False
    seeds: tuple[int, ...] = (0,)
    executor: str | None = None
    cache: Path | None = None

    def to_toml(self, base: Path | None = None) -> str:
        """Return the TOML text of this run, a table per pass.

        Args:
            base: Folder the text will be stored in; paths below it are written relative to it.

        Returns:
            Text that ``parse_config`` turns back into an equal ``Config``.
        """
        lines = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "pipeline" or value == field.default:
                continue
            if isinstance(value, Path):
                inside = base is not None and value.is_relative_to(base)
                value = (value.relative_to(base) if base and inside else value).as_posix()
            lines.append(f"{kebab(field.name)} = {_toml('none' if value is None else value)}")
        top = self.pipeline.passes if self.pipeline.repeat == 1 else (self.pipeline,)
        if not top:
            lines.append('pipeline = ""')
        for each in top:
            lines += ["", "[[passes]]", *(f"{key} = {text}" for key, text in _entry(each))]
        return "\n".join(lines).lstrip("\n") + "\n"


def load_config(path: str | Path, registry: Registry | None = None) -> Config:
    """Read a run from a TOML file; its paths are relative to the file.

    Args:
        path: The file.
        registry: Passes and named pipelines; the default registry if None.

    Returns:
        The run.

    Raises:
        ConfigError: The file cannot be read, or a key or value is wrong; names the file.
        PipelineSyntaxError: Pipeline text in the file does not parse.
        UnknownPassError: No pass or pipeline has the name.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read {path}: it is not UTF-8 text") from error
    return parse_config(text, base=path.parent, source=str(path), registry=registry)


def parse_config(
    text: str,
    *,
    base: Path | None = None,
    source: str = "config",
    registry: Registry | None = None,
) -> Config:
    """Read a run from TOML text.

    Args:
        text: The TOML text.
        base: Folder that paths are relative to; they are kept as they are if None.
        source: Name of the text in error messages.
        registry: Passes and named pipelines; the default registry if None.

    Returns:
        The run.

    Raises:
        ConfigError: The text is not TOML, or a key or value is wrong.
        PipelineSyntaxError: Pipeline text does not parse.
        UnknownPassError: No pass or pipeline has the name.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: {error}") from error
    try:
        return _config(table, base, default_registry() if registry is None else registry)
    except (ConfigError, PipelineSyntaxError, UnknownPassError) as error:
        raise type(error)(f"{source}: {error}") from error.__cause__


def _config(table: Mapping[str, Any], base: Path | None, registry: Registry) -> Config:
    known = [*map(kebab, _SETTINGS), "pipeline", "passes"]
    settings: dict[str, Any] = {}
    for written, value in table.items():
        if written in ("pipeline", "passes"):
            continue
        key = written.replace("-", "_")
        if key not in _SETTINGS:
            raise ConfigError(f"unknown key {written!r}{did_you_mean(written, known)}")
        if key in settings:
            raise ConfigError(f"key {kebab(key)!r} is given twice")
        try:
            settings[key] = convert(Raw.of(value), _SETTINGS[key])
        except OptionError as error:
            raise ConfigError(f"key {written!r} {error}") from None
    for key in _PATHS:
        if key in settings:
            path, below = Path(settings[key]), Path() if base is None else base
            function = key == "data" and _FUNCTION.fullmatch(settings[key])
            settings[key] = path if function and not (below / path).exists() else below / path
    if settings.get("objective") == "none":
        settings["objective"] = None
    if ("pipeline" in table) == ("passes" in table):
        raise ConfigError("give the passes under 'pipeline' or under 'passes'; one is needed")
    if "pipeline" in table:
        return Config(pipeline=_text(table["pipeline"], registry), **settings)
    return Config(pipeline=Pipeline(passes=_passes(table["passes"], "", registry)), **settings)


def _text(value: object, registry: Registry) -> Pipeline:
    if not isinstance(value, str):
        raise ConfigError(f"key 'pipeline' wants text, not {value!r}")
    return parse(value, registry)


def _passes(entries: object, where: str, registry: Registry) -> tuple[Pass, ...]:
    """Make passes of an array of tables or pipeline texts; ``where`` is its place in messages."""
    if not isinstance(entries, list):
        raise ConfigError(f"key 'passes' wants an array of tables, not {entries!r}")
    found: list[Pass] = []
    for number, entry in enumerate(entries, 1):
        place = f"{where}{number}"
        if isinstance(entry, str):
            entry = {"pipeline": entry}
        if not isinstance(entry, dict):
            raise ConfigError(f"pass {place} must be a table or text, not {entry!r}")
        if "fixpoint" in entry:
            found.append(_fixpoint(entry, place, registry))
            continue
        try:
            found.append(_pass(entry, registry))
        except (ConfigError, PipelineSyntaxError, UnknownPassError) as error:
            raise type(error)(f"pass {place}: {error}") from error.__cause__
    return tuple(found)


def _fixpoint(entry: dict[str, Any], place: str, registry: Registry) -> Pipeline:
    """Make a repeated pipeline of a table with ``fixpoint`` and ``passes``."""
    repeat = entry["fixpoint"]
    if type(repeat) is not int or repeat < 1:
        raise ConfigError(f"pass {place}: fixpoint wants an integer from 1, not {repeat!r}")
    for key in entry:
        if key not in ("fixpoint", "passes"):
            hint = did_you_mean(key, ["passes"])
            raise ConfigError(f"pass {place}: fixpoint has no key {key!r}{hint}")
    if "passes" not in entry:
        raise ConfigError(f"pass {place}: fixpoint needs 'passes'")
    return Pipeline(passes=_passes(entry["passes"], f"{place}.", registry), repeat=repeat)


def _pass(entry: dict[str, Any], registry: Registry) -> Pass:
    """Make a pass of a table with ``name`` and options, or a pipeline of one with ``pipeline``."""
    options = {key: value for key, value in entry.items() if key not in ("name", "pipeline")}
    if ("name" in entry) == ("pipeline" in entry):
        hint = "".join(did_you_mean(key, ["name", "pipeline", "fixpoint"]) for key in options)
        raise ConfigError(f"needs one of 'name', 'pipeline' and 'fixpoint'{hint}")
    if "pipeline" in entry:
        if options:
            raise ConfigError(f"'pipeline' stands alone, without {next(iter(options))!r}")
        return _text(entry["pipeline"], registry)
    name = entry["name"]
    if not isinstance(name, str):
        raise ConfigError(f"key 'name' wants text, not {name!r}")
    known = registry.lookup(name)
    if isinstance(known, str):
        if options:
            raise ConfigError(f"{name} is a pipeline, which takes no options")
        return parse(name, registry)
    try:
        return cast("Pass", build(known, [(key, 0, Raw.of(options[key])) for key in options]))
    except OptionError as error:
        raise ConfigError(str(error)) from error.__cause__


def _entry(each: Pass) -> Iterable[tuple[str, str]]:
    """Return the keys and TOML values of the table that describes a pass."""
    if isinstance(each, Pipeline):
        inner = ", ".join(
            "{ " + ", ".join(f"{key} = {text}" for key, text in _entry(one)) + " }"
            for one in each.passes
        )
        return [("fixpoint", str(each.repeat)), ("passes", f"[{inner}]")]
    options = non_default_options(each)
    if any(_has_none(value) for value in options.values()):
        # TOML has no null; pipeline text has.
        return [("pipeline", _toml(str(each)))]
    found = [("name", _toml(each.name))]
    found += [(kebab(key), _toml(Raw.of(value))) for key, value in options.items()]
    return found


def _has_none(value: object) -> bool:
    return any(map(_has_none, value)) if isinstance(value, tuple) else value is None


def _toml(value: object) -> str:
    """Return a value in TOML syntax."""
    if isinstance(value, Raw):
        return _toml(value.value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON strings are TOML strings, but for one control character that TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return format_value(value)
