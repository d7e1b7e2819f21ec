"""The shape of the project: exported names, packages, layers, import cost."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import graphopt

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Layer -> the layers it may import. The first set counts wherever the import stands, the second
# only inside functions: what a layer above it provides on demand. Imports under TYPE_CHECKING do
# not run and are free. Names not in the table (api, cli, exporting, testing, __init__) may import
# every layer.
LAYERS: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), set()),
    "ir": ({"errors"}, set()),
    "rewrite": ({"errors", "ir"}, set()),
    "manager": ({"analyses", "errors", "ir", "rewrite"}, {"runtime", "targets"}),
    "analyses": ({"errors", "ir"}, set()),
    "targets": ({"errors", "ir"}, set()),
    "runtime": ({"errors", "ir"}, set()),
    "calibration": ({"errors", "ir", "runtime"}, set()),
    "measure": ({"errors", "ir", "rewrite", "runtime", "targets"}, set()),
    "quant": (
        {"analyses", "calibration", "errors", "ir", "measure", "rewrite", "runtime", "targets"},
        set(),
    ),
    "reconstruct": (
        {"analyses", "calibration", "errors", "ir", "measure", "rewrite", "runtime"},
        set(),
    ),
    "pruning": (
        {
            "analyses",
            "calibration",
            "errors",
            "ir",
            "measure",
            "reconstruct",
            "rewrite",
            "runtime",
            "targets",
        },
        set(),
    ),
    "sharing": ({"errors", "reconstruct", "storage"}, set()),
    "decompose": (
        {
            "analyses",
            "calibration",
            "errors",
            "ir",
            "measure",
            "pruning",
            "reconstruct",
            "rewrite",
            "runtime",
            "targets",
        },
        set(),
    ),
    "storage": ({"errors", "ir", "rewrite"}, set()),
    "frontends": ({"errors", "ir", "targets", "runtime"}, set()),
    "bundle": ({"errors", "ir", "targets", "runtime"}, set()),
}
TOP = {"__init__", "__main__", "api", "cli", "compressing", "exporting", "testing"}
# What built-in passes may import, as third-party ones may: names exported by graphopt, and these.
PUBLIC = {
    "analyses",
    "calibration",
    "decompose",
    "ir",
    "measure",
    "passes",
    "pruning",
    "quant",
    "reconstruct",
    "runtime",
    "sharing",
    "storage",
    "targets",
    "testing",
}
# Who may import onnx and onnx_ir: the IR, code that turns other formats into ONNX, and passes that
# hand a model to another program.
ONNX_USERS = ("graphopt/ir/", "graphopt/frontends/", "passes/external/")


class Import(NamedTuple):
    """One imported module, absolute, and where and when it is imported."""

    module: str
    line: int
    lazy: bool
    typing_only: bool


def sources(folder: str) -> list[Path]:
    """Python files of a folder; the symlink graphopt/passes is not followed."""
    passes = ROOT / "graphopt" / "passes"
    return sorted(p for p in (ROOT / folder).rglob("*.py") if passes not in p.parents)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.Module, package: str) -> Iterator[Import]:
    """Every import of a module; `from a import b` yields a, and a.b where b is a submodule."""

    def walk(node: ast.AST, lazy: bool, typing_only: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, lazy, typing_only)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base] if base else parent)
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno, lazy, typing_only)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in {"__import__", "import_module", "importlib.import_module"} and node.args:
                target = node.args[0]
                if isinstance(target, ast.Constant) and isinstance(target.value, str):
                    yield Import(target.value, node.lineno, lazy, typing_only)
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from walk(child, inside, True)
            for child in node.orelse:
                yield from walk(child, inside, typing_only)
            return
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside, typing_only)

    yield from walk(tree, False, False)


def imports_of(path: Path) -> Iterator[Import]:
    parts = list(path.relative_to(ROOT).parts)
    if parts[0] == "passes":
        parts.insert(0, "graphopt")
    package = ".".join(parts[:-1])
    yield from imports(ast.parse(path.read_text(encoding="utf-8")), package)


def layer(path: Path) -> str:
    part = path.relative_to(ROOT / "graphopt").parts[0]
    return part.removesuffix(".py")


def layer_violations(name: str, found: Iterator[Import]) -> Iterator[str]:
    """What one module of layer `name` imports from graphopt without being allowed to."""
    for item in found:
        parts = item.module.split(".")
        if parts[0] != "graphopt":
            continue
        target = parts[1] if len(parts) > 1 else "__init__"
        where = f"line {item.line}: {name} imports {item.module}"
        if target == "passes":
            yield f"{where}: passes are found through their entry point"
        elif name in TOP or item.typing_only or target == name:
            continue
        elif target not in LAYERS:
            yield f"{where}: import it from the layer that defines it"
        else:
            always, on_demand = LAYERS[name]
            if target not in always and not (item.lazy and target in on_demand):
                yield where


def parsed(text: str, package: str) -> Iterator[Import]:
    return imports(ast.parse(text), package)


@pytest.mark.parametrize("path", sources("graphopt"), ids=relative)
def test_layers(path: Path) -> None:
    assert layer(path) in TOP | set(LAYERS), "a new layer needs a row in LAYERS and in the docs"
    assert list(layer_violations(layer(path), imports_of(path))) == []


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("rewrite", "from graphopt import ir", True),
        ("rewrite", "from graphopt.manager import Pass", False),
        ("manager", "from graphopt.runtime import oracle", False),
        ("manager", "def f():\n    from graphopt.runtime import oracle", True),
        ("analyses", "if TYPE_CHECKING:\n    from graphopt.manager import Context", True),
        ("ir", "from .. import rewrite", False),
        ("ir", "from . import verify", True),
        ("runtime", "from graphopt import Pass", False),
        ("api", "from graphopt.passes import PASSES", False),
        ("cli", "import importlib\nimportlib.import_module('graphopt.passes')", False),
        ("testing", "from graphopt.manager import Pass", True),
    ],
)
def test_layer_check_itself(name: str, text: str, allowed: bool) -> None:
    assert (list(layer_violations(name, parsed(text, f"graphopt.{name}"))) == []) is allowed


@pytest.mark.parametrize("path", sources("passes"), ids=relative)
def test_passes_use_the_public_api(path: Path) -> None:
    for item in imports_of(path):
        parts = item.module.split(".")
        if parts[0] == "graphopt":
            public = parts[1] in PUBLIC or parts[1] in graphopt.__all__
            assert public, f"line {item.line}: {item.module} is not public"


@pytest.mark.parametrize("path", sources("graphopt") + sources("passes"), ids=relative)
def test_foreign_imports(path: Path) -> None:
    for item in imports_of(path):
        package = item.module.split(".")[0]
        where = f"line {item.line}: {item.module}"
        assert package != "passes", f"{where}: the import name is graphopt.passes"
        if package in {"onnx", "onnx_ir"}:
            assert relative(path).startswith(ONNX_USERS), f"{where}: go through graphopt.ir"
        if package in {"onnxruntime", "onnxsim", "torch"}:
            assert item.lazy or item.typing_only, f"{where}: import it inside a function"


@pytest.mark.parametrize("path", sources("graphopt") + sources("passes"), ids=relative)
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


def test_packages_match_folders() -> None:
    folders = {p.parent for p in sources("graphopt") + sources("passes")}
    bare = sorted(relative(f) for f in folders if not (f / "__init__.py").exists())
    assert bare == [], "folders with modules but without __init__.py"
    names = {relative(f).replace("/", ".") for f in folders}
    names = {"graphopt." + n if n.split(".")[0] == "passes" else n for n in names}
    declared = PYPROJECT["tool"]["setuptools"]["packages"]
    assert sorted(declared) == sorted(names)


def test_mapping_and_symlink_agree() -> None:
    assert PYPROJECT["tool"]["setuptools"]["package-dir"]["graphopt.passes"] == "passes"
    link = ROOT / "graphopt" / "passes"
    # A checkout without symlinks holds a text file with the link's target.
    target = link.readlink().as_posix() if link.is_symlink() else link.read_text().strip()
    assert target == "../passes"


def test_typed_marker() -> None:
    assert (ROOT / "graphopt" / "py.typed").exists()


def test_version_has_one_place() -> None:
    assert "version" not in PYPROJECT["project"]
    assert importlib.metadata.version("graphopt") == graphopt.__version__


def test_all_is_what_is_exported() -> None:
    names = graphopt.__all__
    assert names == sorted(set(names))
    for name in names:
        assert getattr(graphopt, name) is not None
    assert set(names) <= set(dir(graphopt))
    # What is there besides are the modules that hold those names, which are not public.
    others = {
        name
        for name, value in vars(graphopt).items()
        if str(getattr(value, "__module__", "")).startswith("graphopt")
        and not name.startswith("__")
    }
    assert others <= set(names)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = graphopt.no_such_name


def test_type_checkers_see_the_same_names() -> None:
    """The names are loaded lazily; type checkers read them from an import that never runs."""
    tree = ast.parse((ROOT / "graphopt" / "__init__.py").read_text(encoding="utf-8"))
    guards = [n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n)]
    seen = {
        alias.asname or alias.name
        for guard in guards
        for node in ast.walk(guard)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen | {"__version__"} == set(graphopt.__all__)


def loaded_by(code: str) -> set[str]:
    """Top-level packages in sys.modules after a fresh interpreter ran the code."""
    tail = "\nimport sys; print('\\n' + ' '.join({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code + tail], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


HEAVY = {"onnx", "onnx_ir", "onnxruntime", "onnxsim", "numpy", "networkx", "sympy", "ml_dtypes"}


def test_import_is_light() -> None:
    assert loaded_by("import graphopt") & (HEAVY | {"rich", "click", "torch"}) == set()
    assert loaded_by("import " + ", ".join(sorted(HEAVY))) >= HEAVY, "the check sees nothing"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_is_light(arguments: list[str]) -> None:
    code = f"from graphopt.cli import main; assert main({arguments}) == 0"
    assert loaded_by(code) & (HEAVY | {"torch"}) == set()


def test_nothing_names_a_place_on_one_machine() -> None:
    place = re.compile(r"(?<![\w.$}])/(?:home|Users|root|work|tmp|opt)/\w|\b[A-Z]:\\\\?\w")
    found = [
        f"{relative(path)}:{number}: {line.strip()}"
        for folder in ("graphopt", "passes", "tests", "models", "benchmarks", "docs", ".ci")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in {".py", ".md", ".toml", ".yml", ".json", ".txt", ".sh", ""}
        and path.is_file()
        and "__pycache__" not in path.parts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if place.search(line)
    ]
    assert found == []
