"""The targets by name."""

from __future__ import annotations

import difflib

from graphopt.errors import ConfigError
from graphopt.targets import cpu, mobile, nnapi, nvidia, portable
from graphopt.targets.profile import Target

__all__ = ["TARGETS", "get"]

TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        cpu.CPU,
        cpu.X64,
        cpu.X64_AVX2,
        cpu.ARM64,
        nvidia.CUDA,
        nvidia.TENSORRT,
        nnapi.NNAPI,
        mobile.XNNPACK,
        mobile.QNN,
        portable.OPENVINO,
        portable.WEB,
        portable.PORTABLE,
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
