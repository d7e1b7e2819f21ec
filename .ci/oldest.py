"""Print the lowest supported version of every dependency of the project and of some extras."""

from __future__ import annotations

import sys
from pathlib import Path

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def oldest(pyproject: Path, extras: list[str]) -> list[str]:
    """Requirements that pin each dependency to its lower bound, e.g. ``numpy==1.26``."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    texts = list(project["dependencies"])
    for extra in extras:
        texts += project["optional-dependencies"][extra]
    pins = []
    for requirement in map(Requirement, texts):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        bounds = [s.version for s in requirement.specifier if s.operator in {">=", "==", "~="}]
        if len(bounds) != 1:
            raise SystemExit(f"{requirement} has no single lower bound")
        pins.append(f"{requirement.name}=={bounds[0]}")
    return pins


if __name__ == "__main__":
    print("\n".join(oldest(Path(sys.argv[1]), sys.argv[2:])))
