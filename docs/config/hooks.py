"""Fills the page of built-in passes from the registry, so that it lists what there is."""

from __future__ import annotations

from typing import Any

from graphopt.manager.describe import HEADINGS, Description
from graphopt.manager.registry import default_registry

MARK = "<!-- passes -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the mark by the documentation of every built-in pass; called by MkDocs."""
    if MARK not in markdown:
        return markdown
    registry = default_registry()
    if registry.problems():
        raise RuntimeError("; ".join(registry.problems()))
    described = [registry.describe(name) for name in registry.names()]
    built_in = [each for each in described if "graphopt'" in each.origin]
    return markdown.replace(MARK, "\n\n".join(map(_section, built_in)))


def _section(each: Description) -> str:
    parts = [f"## {each.name}", each.summary]
    for heading in HEADINGS:
        if heading == "Options" and each.options:
            rows = ["| option | value | default | |", "|---|---|---|---|"]
            for option in each.options:
                default = "required" if option.default is None else f"`{option.default}`"
                rows.append(f"| `{option.name}` | {option.type} | {default} | {option.help} |")
            parts.append("\n".join(rows))
        elif heading == "Example" and heading in each.sections:
            parts.append(f"**Example.**\n\n```text\n{each.sections[heading]}\n```")
        elif heading != "Options" and heading in each.sections:
            parts.append(f"**{heading}.** {each.sections[heading]}")
    return "\n\n".join(parts)
