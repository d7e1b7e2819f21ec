"""Target profiles."""

from __future__ import annotations

import dataclasses
import difflib

from graphopt.errors import ConfigError

__all__ = ["TARGETS", "Target", "get"]


@dataclasses.dataclass(frozen=True)
class Target:
    """What a model is optimized for.

    Attributes:
        name: Name on the command line.
        providers: ONNX Runtime execution providers, the preferred one first.
        description: One line for people.
    """

    name: str
    providers: tuple[str, ...]
    description: str


TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target("cpu", ("CPUExecutionProvider",), "ONNX Runtime on any CPU"),
        Target("cpu-x64", ("CPUExecutionProvider",), "ONNX Runtime on an x86-64 CPU"),
        Target("cpu-arm64", ("CPUExecutionProvider",), "ONNX Runtime on a 64-bit Arm CPU"),
        Target(
            "cuda",
            ("CUDAExecutionProvider", "CPUExecutionProvider"),
            "ONNX Runtime on an NVIDIA GPU",
        ),
        Target(
            "nnapi",
            ("NnapiExecutionProvider", "CPUExecutionProvider"),
            "ONNX Runtime with Android's NNAPI",
        ),
        Target("portable", ("CPUExecutionProvider",), "standard operators for any consumer"),
    )
}


def get(name: str | Target) -> Target:
    """The target of a name.

    Raises:
        ConfigError: There is no such target; the message suggests the nearest.
    """
    if isinstance(name, Target):
        return name
    found = TARGETS.get(name)
    if found is None:
        near = difflib.get_close_matches(name, TARGETS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(TARGETS)}"
        raise ConfigError(f"there is no target {name!r}{hint}")
    return found
