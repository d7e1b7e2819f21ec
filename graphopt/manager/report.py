"""What a run did, as data. Terminal and HTML are views of it; JSON is its exchange format."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any, Literal, cast, get_args

from graphopt.errors import ConfigError

__all__ = ["SCHEMA", "PassRecord", "Report", "Size", "Status"]

SCHEMA = "graphopt.report/1"
"""Name and version of the JSON form; the number rises when a reader of the old one would fail."""

Status = Literal["ok", "unchanged", "reverted", "not-applicable", "skipped"]
"""How a pass ended.

``ok``: it changed the model; ``unchanged``: it found nothing to do; ``reverted``: it broke its
promise, failed, or made the model worse, and the model is as before; ``not-applicable``: it lacks
something it needs; ``skipped``: an instrument or the fuel kept it from running.
"""


@dataclasses.dataclass(frozen=True)
class Size:
    """How large a model is.

    Attributes:
        nodes: Number of nodes, those of subgraphs included.
        bytes: Bytes of the file, estimated.
        parameters: Number of elements in all weights.
        cost: Estimated seconds per inference.
    """

    nodes: int = 0
    bytes: int = 0
    parameters: int = 0
    cost: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the size as plain data."""
        return {
            "nodes": int(self.nodes),
            "bytes": int(self.bytes),
            "parameters": int(self.parameters),
            "cost": _plain(float(self.cost)),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Size:
        """Return the size that ``to_json`` described.

        Args:
            data: What ``to_json`` returned.

        Raises:
            KeyError: A key is missing.
        """
        return cls(data["nodes"], data["bytes"], data["parameters"], float(data["cost"]))


@dataclasses.dataclass(kw_only=True)
class PassRecord:
    """What one pass did in one run.

    Attributes:
        text: The pass in pipeline syntax.
        name: Its name.
        exactness: What it promises: ``bitwise``, ``rounding`` or ``lossy``.
        seconds: Wall-clock time of the pass alone, without verification.
        changed: Whether it reported a change, also if that was reverted.
        status: How it ended.
        reason: Why it was reverted, not applicable or skipped, in a sentence.
        before: Size of the model before it.
        after: Size of the model after it; equal to ``before`` if it was reverted.
        rewrites: How often each rule was applied.
        erased: Nodes removed because nothing used them any more.
        declined: How often a rule declined, by ``rule: reason``.
        remarks: What the pass had to say.
        details: What it had to report as data; its documentation says what that is.
        error: Measured difference of the outputs from the original's, if the oracle ran.
    """

    text: str
    name: str
    exactness: str = "rounding"
    seconds: float = 0.0
    changed: bool = False
    status: Status = "ok"
    reason: str | None = None
    before: Size = dataclasses.field(default_factory=Size)
    after: Size = dataclasses.field(default_factory=Size)
    rewrites: dict[str, int] = dataclasses.field(default_factory=dict)
    erased: int = 0
    declined: dict[str, int] = dataclasses.field(default_factory=dict)
    remarks: list[str] = dataclasses.field(default_factory=list)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return _fields(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PassRecord:
        """Return the record that ``to_json`` described.

        Args:
            data: What ``to_json`` returned.

        Raises:
            KeyError: A key is missing.
            ConfigError: The status is not one of ``Status``.
        """
        if data["status"] not in get_args(Status):
            raise ConfigError(f"a report has no status {data['status']!r}")
        return cls(
            text=data["text"],
            name=data["name"],
            exactness=data["exactness"],
            seconds=float(data["seconds"]),
            changed=data["changed"],
            status=data["status"],
            reason=data["reason"],
            before=Size.from_json(data["before"]),
            after=Size.from_json(data["after"]),
            rewrites=dict(data["rewrites"]),
            erased=data["erased"],
            declined=dict(data["declined"]),
            remarks=list(data["remarks"]),
            details=dict(data.get("details", {})),  # reports of 0.1 had none
            error=data["error"],
        )


@dataclasses.dataclass(kw_only=True)
class Report:
    """What a run of a pipeline did.

    Attributes:
        pipeline: The pipeline as text.
        target: Name of the target.
        before: Size of the input model.
        after: Size of the result.
        passes: A record per pass that came to its turn, in order.
        oracle: What the oracle did. ``mode``: off, end or each; ``verdict``: not run, unavailable
            (with a ``reason``), unchanged or equal; ``feeds``: what outputs were compared on;
            ``promise``: how equal they had to be; ``error``: largest differences, as the comparison
            states them.
        remarks: What the importer and the runner had to say.
        versions: Version of each library that took part.
        seconds: Wall-clock time of the whole run, with verification.
    """

    pipeline: str = ""
    target: str = "cpu"
    before: Size = dataclasses.field(default_factory=Size)
    after: Size = dataclasses.field(default_factory=Size)
    passes: list[PassRecord] = dataclasses.field(default_factory=list)
    oracle: dict[str, Any] = dataclasses.field(default_factory=dict)
    remarks: list[str] = dataclasses.field(default_factory=list)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    @property
    def changed(self) -> bool:
        """Whether the result differs from the input model."""
        return any(record.changed and record.status == "ok" for record in self.passes)

    @property
    def reverted(self) -> list[PassRecord]:
        """The passes whose work was undone."""
        return [record for record in self.passes if record.status == "reverted"]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data.

        Returns:
            Data for ``json.dumps``. JSON has no infinity and no NaN: they become the strings
            ``inf``, ``-inf`` and ``nan``.
        """
        return {"schema": SCHEMA, "changed": self.changed, **_fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """Return the report that ``to_json`` described.

        Args:
            data: What ``to_json`` returned, possibly with keys that a later graphopt added.

        Returns:
            The report. Infinity and NaN in ``oracle`` and in ``error`` of a pass stay strings.

        Raises:
            ConfigError: The data is no report, or one of another version.
        """
        found = data.get("schema")
        if found != SCHEMA:
            raise ConfigError(f"expected a report with the schema {SCHEMA!r}, found {found!r}")
        try:
            return cls(
                pipeline=data["pipeline"],
                target=data["target"],
                before=Size.from_json(data["before"]),
                after=Size.from_json(data["after"]),
                passes=[PassRecord.from_json(record) for record in data["passes"]],
                oracle=dict(data["oracle"]),
                remarks=list(data["remarks"]),
                versions=dict(data["versions"]),
                seconds=float(data["seconds"]),
            )
        except KeyError as error:
            raise ConfigError(f"the report lacks the key {error.args[0]!r}") from error


def _fields(record: PassRecord | Report) -> dict[str, Any]:
    return {each.name: _plain(getattr(record, each.name)) for each in dataclasses.fields(record)}


def _plain(value: object) -> Any:
    """Return plain data: arrays' scalars as numbers, tuples as lists, paths as text."""
    if isinstance(value, (Size, PassRecord)):
        return value.to_json()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, PathLike):
        return fspath(cast("PathLike[str]", value))
    item = getattr(value, "item", None)
    if callable(item):
        return _plain(item())
    raise TypeError(f"a report cannot hold {value!r}")
