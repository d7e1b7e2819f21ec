"""Documents that cannot drift: their code runs, their commands and names exist."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import graphopt
from graphopt.manager.registry import default_registry

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> Iterator[tuple[int, str]]:
    """First line number and code of every fenced block of a language."""
    for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, match.start(1)) + 1, match.group(1)


@pytest.fixture
def clean_registry() -> Iterator[None]:
    """A default registry of its own, so that passes of a page do not reach other tests."""
    default_registry.cache_clear()
    yield
    default_registry.cache_clear()


@pytest.fixture
def beside_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the reference models in it."""
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("*.py"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("clean_registry", "beside_models")
@pytest.mark.parametrize(
    "page",
    [
        "docs/tutorial_pass.md",
        "docs/getting_started.md",
        "docs/quantization.md",
        "docs/pruning.md",
        "docs/targets.md",
        "docs/export.md",
        "docs/reconstruction.md",
        "README.md",
    ],
)
def test_python_blocks_run(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python blocks of a page run in order, as one module."""
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    found = list(blocks((ROOT / page).read_text(encoding="utf-8"), "python"))
    assert found
    for line, code in found:
        # Padded so that a traceback shows the line of the page.
        exec(compile("\n" * (line - 1) + code, page, "exec"), vars(module))


def test_reference_names_exist() -> None:
    """Every `::: module` of the reference is a module, and every exported name has a page."""
    directives = {
        name
        for page in PAGES
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    documented: list[object] = []
    for name in directives:
        module, _, attribute = name.rpartition(".")
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError:
            found = getattr(importlib.import_module(module), attribute)
        documented += [found, *(getattr(found, each) for each in getattr(found, "__all__", ()))]
    for name in graphopt.__all__:
        if name != "__version__":
            value = getattr(graphopt, name)
            assert any(value is each for each in documented), f"{name} is not in the reference"


def test_adrs_are_listed() -> None:
    """Every decision is in the index and in the navigation."""
    records = sorted(p.name for p in (DOCS / "adr").glob("[0-9]*.md"))
    index = (DOCS / "adr" / "index.md").read_text(encoding="utf-8")
    navigation = (DOCS / "config" / "mkdocs.yml").read_text(encoding="utf-8")
    for number, name in enumerate(records, 1):
        assert name.startswith(f"{number:04d}-")
        assert f"({name})" in index
        assert f"adr/{name}" in navigation


def cli_help(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from graphopt.cli import main; main()", *arguments, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
    )
    return done.stdout


def verbs() -> list[str]:
    text = cli_help().split("Commands:")[1]
    return re.findall(r"^  ([a-z][\w-]*) ", text, re.MULTILINE)


def test_cli_page_is_complete() -> None:
    """Every verb has a section, and every option of a verb stands in it, and nothing else does."""
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## ([a-z]+)\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    assert sorted(sections) == sorted(verbs())
    for verb, text in sections.items():
        options = set(re.findall(r"(?<!\w)--[a-z][\w-]*", cli_help(verb))) - {"--help"}
        mentioned = set(re.findall(r"(?<!\w)--[a-z][\w-]*", text))
        assert options == mentioned, verb


def test_pipelines_page_is_complete() -> None:
    page = (DOCS / "pipelines.md").read_text(encoding="utf-8")
    for name, text in default_registry().pipelines().items():
        assert f"| `{name}` |" in page, name
        assert text in page, f"the page shows another text for {name}"


def test_readme_commands() -> None:
    """Two set-up commands, one line each, that stand on their own."""
    found = re.findall(r"<!-- setup:(\w+) -->\n```\w*\n(.*)\n```\n<!-- /setup -->", README)
    assert [name for name, _ in found] == ["main", "test"]
    for _, command in found:
        assert command.startswith("python3 -m venv .venv && ")


def test_links_between_pages() -> None:
    """Relative links of Markdown files outside of the site lead somewhere."""
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            if target != "...":
                assert (page.parent / target).exists(), f"{page.name}: {target}"
