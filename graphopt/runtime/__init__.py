"""ONNX Runtime: sessions, probe inputs, comparison, the oracle, and latency.

Importing this does not import onnxruntime; opening a session does.
"""

from graphopt.runtime.compare import Comparison, Tolerance, compare, tolerance
from graphopt.runtime.latency import Latency, Timing, compare_latency, interleaved
from graphopt.runtime.oracle import Oracle
from graphopt.runtime.probe import Probe, probe_feeds
from graphopt.runtime.providers import (
    Assignment,
    ProviderStatus,
    assignment,
    provider_status,
)
from graphopt.runtime.session import Session, open_session, ort
from graphopt.runtime.values import Feeds, batch_size

__all__ = [
    "Assignment",
    "Comparison",
    "Feeds",
    "Latency",
    "Oracle",
    "Probe",
    "ProviderStatus",
    "Session",
    "Timing",
    "Tolerance",
    "assignment",
    "batch_size",
    "compare",
    "compare_latency",
    "interleaved",
    "open_session",
    "ort",
    "probe_feeds",
    "provider_status",
    "tolerance",
]
