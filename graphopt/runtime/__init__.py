"""ONNX Runtime: sessions, probe inputs, comparison, the oracle, and latency."""
