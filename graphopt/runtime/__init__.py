"""ONNX Runtime: sessions, probe inputs, comparison, the oracle, and latency.

Importing this does not import onnxruntime; opening a session does.
"""

from graphopt.runtime.compare import Comparison, Tolerance, compare, tolerance
from graphopt.runtime.latency import Latency, Timing, compare_latency, interleaved
from graphopt.runtime.oracle import Oracle
from graphopt.runtime.probe import Probe, probe_feeds
from graphopt.runtime.session import Session, open_session, ort
from graphopt.runtime.values import Feeds

__all__ = [
    "Comparison",
    "Feeds",
    "Latency",
    "Oracle",
    "Probe",
    "Session",
    "Timing",
    "Tolerance",
    "compare",
    "compare_latency",
    "interleaved",
    "open_session",
    "ort",
    "probe_feeds",
    "tolerance",
]
