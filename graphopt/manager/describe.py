"""Documentation of passes as data, read from their docstrings and options.

The docstring of a pass is a summary line and sections: a heading at the left margin ends with a
colon, its text follows on the same line or indented below::

    Drop a Relu that a following Clip makes redundant.

    What it does: ``Clip(Relu(x), lo, hi)`` becomes ``Clip(x, lo, hi)``.
    Exactness: bitwise; both clamp the same numbers.
    Options:
        limit: How many to drop at most.

In running text, ``limit (how many to drop at most)`` explains an option, too.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

from graphopt.manager import options
from graphopt.manager.base import Pass

__all__ = ["HEADINGS", "Description", "Option", "describe_pass", "describe_pipeline", "sections"]

HEADINGS = (
    "What it does",
    "Exactness",
    "Needs",
    "Options",
    "Example",
    "Declines when",
    "References",
)
"""Sections in the docstring of a pass, in order."""

_HEADING = re.compile(rf"({'|'.join(HEADINGS)}):(?:\s+(.*))?")


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a pass.

    Attributes:
        name: As written in pipeline text.
        type: What it wants, in words.
        default: As written in pipeline text, or None if the option is required.
        help: What it does.
    """

    name: str
    type: str
    default: str | None
    help: str


@dataclasses.dataclass(frozen=True)
class Description:
    """Documentation of a pass or a named pipeline.

    Attributes:
        name: The name in pipeline text.
        kind: ``pass`` or ``pipeline``.
        summary: First line of the docstring; for a pipeline, its text.
        sections: Text of each section of the docstring by heading.
        options: The options, in the order of the fields.
        exactness: What a pass promises, such as ``bitwise``; None for a pipeline.
        min_opset: Oldest opset of the default domain that a pass touches; None for a pipeline.
        origin: The distribution that provides it, or ``graphopt.register``.
    """

    name: str
    kind: str
    summary: str
    sections: dict[str, str]
    options: tuple[Option, ...]
    exactness: str | None
    min_opset: int | None
    origin: str


def describe_pipeline(name: str, text: str, origin: str) -> Description:
    """Return the description of a named pipeline."""
    return Description(name, "pipeline", text, {}, (), None, None, origin)


def describe_pass(pass_class: type[Pass], origin: str) -> Description:
    """Return the description of a pass class.

    Args:
        pass_class: A class that passed ``validate``.
        origin: Where it comes from.

    Returns:
        Its documentation.
    """
    summary, found = sections(pass_class.__doc__ or "")
    return Description(
        name=pass_class.name,
        kind="pass",
        summary=summary,
        sections=found,
        options=_options(pass_class, found.get("Options", "")),
        exactness=pass_class.exactness.value,
        min_opset=pass_class.min_opset,
        origin=origin,
    )


def sections(doc: str) -> tuple[str, dict[str, str]]:
    """Split the docstring of a pass.

    Args:
        doc: The docstring, indented as it is in the source.

    Returns:
        The summary, and the text of each section by heading. Text before the first heading other
        than the summary is under ``What it does`` if there is no such heading.
    """
    lines = inspect.cleandoc(doc).splitlines()
    found: dict[str, list[str]] = {"": []}
    heading = ""
    for line in lines:
        match = _HEADING.fullmatch(line)
        if match:
            heading = match.group(1)
            found[heading] = [match.group(2) or ""]
        else:
            found[heading].append(line)
    summary, _, preface = "\n".join(found.pop("")).partition("\n\n")
    texts = {heading: _dedent(body) for heading, body in found.items()}
    if preface.strip() and "What it does" not in texts:
        texts = {"What it does": preface.strip(), **texts}
    return " ".join(summary.split()), texts


def _dedent(body: list[str]) -> str:
    """Join the text beside a heading and the indented text below it."""
    return "\n".join([body[0], inspect.cleandoc("\n".join(["", *body[1:]]))]).strip()


def _options(pass_class: type[Pass], text: str) -> tuple[Option, ...]:
    """Return the options, with help from the section ``Options``."""
    annotations = options.option_types(pass_class)
    return tuple(
        Option(
            options.kebab(name),
            options.type_text(annotations[name]),
            _default(field),
            _help(name, text),
        )
        for name, field in options.option_fields(pass_class).items()
    )


def _help(name: str, text: str) -> str:
    """Return what ``name: help`` or ``name (help)`` says, on as many lines as it takes."""
    spelled = f"(?:{re.escape(name)}|{re.escape(options.kebab(name))})"
    listed = re.search(rf"^{spelled}:(.*(?:\n[ \t].*)*)", text, re.MULTILINE)
    inline = re.search(rf"(?<![\w-])`*{spelled}`*\s+\(((?:[^()]|\([^()]*\))*)\)", text)
    found = listed or inline
    return " ".join(found.group(1).split()) if found else ""


def _default(field: dataclasses.Field[Any]) -> str | None:
    """Return the default of a field as pipeline text."""
    value = options.default_of(field)
    return None if value is dataclasses.MISSING else options.format_value(value)
