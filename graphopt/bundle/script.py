"""The script that comes with an exported model."""

from __future__ import annotations

__all__ = ["SCRIPT"]

SCRIPT = '''\
"""Run the model beside this file on made-up inputs, with the session options of its manifest.

Needs onnxruntime and numpy. Providers that this build of onnxruntime lacks are left out.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

HERE = Path(__file__).resolve().parent
MANIFEST = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))


def open_session() -> ort.InferenceSession:
    """A session as the manifest describes it."""
    options = ort.SessionOptions()
    level = MANIFEST["session"]["graph_optimization_level"]
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    for key, value in MANIFEST["session"]["config"].items():
        options.add_session_config_entry(key, value)
    present = set(ort.get_available_providers())
    wanted = [(p["name"], p["options"]) for p in MANIFEST["providers"]]
    providers = [p for p in wanted if p[0] in present] or ["CPUExecutionProvider"]
    for name, _ in wanted:
        if name not in present:
            print(f"{name} is not in this build of onnxruntime", file=sys.stderr)
    return ort.InferenceSession(HERE / MANIFEST["files"][0]["path"], options, providers=providers)


def make_input(value: dict) -> np.ndarray:
    """Numbers of the type and shape of an input; open dimensions are 1."""
    if value["dtype"] is None or value["shape"] is None:
        sys.exit(f"input {value['name']!r} is no tensor of known rank: feed it yourself")
    names = {"float": "float32", "double": "float64", "string": "object"}
    dtype = names.get(value["dtype"], value["dtype"])
    shape = [d if isinstance(d, int) else 1 for d in value["shape"]]
    if dtype == "object":
        return np.full(shape, "", dtype=object)
    if dtype.startswith("float"):
        return np.random.default_rng(0).standard_normal(shape).astype(dtype)
    return np.zeros(shape, dtype=dtype)


def main() -> None:
    """Run once and show the outputs."""
    session = open_session()
    feeds = {value["name"]: make_input(value) for value in MANIFEST["inputs"]}
    outputs = session.run(None, feeds)
    print("providers:", ", ".join(session.get_providers()))
    for value, output in zip(session.get_outputs(), outputs):
        print(f"{value.name}: {value.type} {getattr(output, 'shape', '')}")


if __name__ == "__main__":
    main()
'''
