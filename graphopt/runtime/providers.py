"""Execution providers: whether one works here, and which nodes one takes.

That ONNX Runtime lists a provider says little: without the hardware or its libraries, sessions
quietly run on the CPU instead.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from graphopt import ir
from graphopt.errors import SessionError
from graphopt.runtime.session import ModelSource, open_session

__all__ = ["Assignment", "ProviderStatus", "assignment", "provider_status"]

_CPU = "CPUExecutionProvider"

# Small integers, so that products are exact in every floating point type.
_MODEL = """
<ir_version: 8, opset_import: ["": 13]>
probe (float[2,3] x) => (float[2,2] y) {
    w = Constant<value = float[3,2] {1, 2, 3, 4, 5, 6}>()
    y = MatMul(x, w)
}
"""
# It imports nothing of graphopt: a provider that crashes takes no more with it than it has to.
_PROGRAM = """
import json, sys
import numpy as np
import onnxruntime as ort

def probe(provider, options):
    present = ort.get_available_providers()
    if provider not in present:
        return "this onnxruntime lacks it: it has " + ", ".join(present)
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    if provider != "CPUExecutionProvider":
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    model = sys.stdin.buffer.read()
    session = ort.InferenceSession(model, settings, providers=[(provider, options)])
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    (got,) = session.run(None, {"x": x})
    wanted = x @ np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    if provider not in session.get_providers():
        return "sessions run on " + ", ".join(session.get_providers()) + " instead"
    if not np.array_equal(got, wanted):
        return f"it computes {got.tolist()}, not {wanted.tolist()}"
    return ""

ort.set_default_logger_severity(4)
try:
    reason = probe(*json.loads(sys.argv[1]))
except Exception as e:
    reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
print(json.dumps(reason))
"""


@dataclasses.dataclass(frozen=True)
class ProviderStatus:
    """Whether an execution provider computes on this machine.

    Attributes:
        provider: Its name.
        ok: It ran a small model itself, and the result was right.
        reason: Why not; empty if it is ok.
    """

    provider: str
    ok: bool
    reason: str = ""


def provider_status(
    provider: str, options: Mapping[str, str] | None = None, *, timeout: float = 60.0
) -> ProviderStatus:
    """Try an execution provider in another process, with the CPU provider as no way out.

    The answer is remembered for as long as this process lives.

    Args:
        provider: Such as ``CUDAExecutionProvider``.
        options: Its options.
        timeout: Seconds after which it counts as broken.

    Returns:
        Whether it works. Crashes and hangs of drivers are reasons, too.
    """
    return _status(provider, tuple(sorted((options or {}).items())), timeout)


@functools.cache
def _status(provider: str, options: tuple[tuple[str, str], ...], timeout: float) -> ProviderStatus:
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _PROGRAM, json.dumps([provider, dict(options)])],
            input=ir.to_bytes(ir.parse_text(_MODEL)),
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return ProviderStatus(provider, False, f"it did not answer within {timeout:g} s")
    lines = done.stdout.decode(errors="replace").splitlines()
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return ProviderStatus(provider, False, f"the process that tried it died of {name}")
    if done.returncode or not lines or not lines[-1]:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        why = said[-1] if said else "it said nothing of use"
        return ProviderStatus(provider, False, f"the process that tried it failed: {why}")
    reason: str = json.loads(lines[-1])
    if "fallback to CPU EP has been explicitly disabled" in reason:
        reason = "it does not start, or leaves a small model to the CPU"
    return ProviderStatus(provider, not reason, reason)


@dataclasses.dataclass(frozen=True)
class Assignment:
    """Which execution provider takes which nodes.

    Attributes:
        nodes: Provider, operator and name of every node of the graph that ONNX Runtime runs, after
            the optimizations that it does before it asks the providers.
        partitions: Parts by provider. A provider that compiles what it gets has the model to itself
            where there is one part and nothing on the CPU. On the CPU every node is a part.
    """

    nodes: tuple[tuple[str, str, str], ...]
    partitions: dict[str, int]

    @property
    def counts(self) -> dict[str, int]:
        """Nodes by provider."""
        return dict(Counter(provider for provider, _, _ in self.nodes))


def assignment(
    model: ModelSource,
    providers: Sequence[str | tuple[str, dict[str, Any]]] = (_CPU,),
    *,
    optimize: bool = True,
    config: Mapping[str, str] | None = None,
) -> Assignment:
    """Ask ONNX Runtime which execution provider takes which nodes of a model.

    Args:
        model: A model, a ``ModelProto``, serialized bytes, or the path of a file.
        providers: Execution providers, preferred first, each with options if it needs them.
        optimize: Let ONNX Runtime optimize the graph, as its users run it.
        config: Further session configuration entries.

    Raises:
        RuntimeUnavailable: onnxruntime is not installed.
        SessionError: ONNX Runtime does not load the model, or is too old to tell.
    """
    wanted = {**(config or {}), "session.record_ep_graph_assignment_info": "1"}
    with open_session(model, optimize=optimize, providers=providers, config=wanted) as session:
        tell = getattr(session._session, "get_provider_graph_assignment_info", None)
        if tell is None:
            raise SessionError(
                "this onnxruntime does not tell which provider takes which nodes; newer ones do"
            )
        parts = tell()
        nodes = tuple(
            (str(part.ep_name), _name(node.domain, node.op_type), str(node.name))
            for part in parts
            for node in part.get_nodes()
        )
        return Assignment(nodes, dict(Counter(str(part.ep_name) for part in parts)))


def _name(domain: str, op_type: str) -> str:
    return f"{domain}.{op_type}" if domain else op_type
