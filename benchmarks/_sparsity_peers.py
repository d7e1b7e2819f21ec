"""onnxsim's pruning of single weights as a program, so that its memory and time can be measured.

``python _sparsity_peers.py NAME SOURCE CALIBRATION OUTPUT``, the calibration a .npy of inputs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx

_HALF: dict[str, Any] = {"sparsity": 0.5}
_GROUPS: dict[str, Any] = {"n": 2, "m": 4}
# Function of onnxsim.pruning, its options, and whether it takes samples.
NAMES = {
    "magnitude": ("apply_magnitude_pruning", _HALF, False),
    "magnitude-global": ("apply_magnitude_pruning", {**_HALF, "global_sparsity": True}, False),
    "wanda": ("apply_wanda_pruning", _HALF, True),
    "sparsegpt": ("apply_sparsegpt_pruning", _HALF, True),
    "magnitude-2:4": ("apply_magnitude_pruning", _GROUPS, False),
    "sparsegpt-2:4": ("apply_sparsegpt_pruning", _GROUPS, True),
}


def prune(name: str, source: Path, calibration: Path, output: Path) -> None:
    """Prune a model file."""
    import onnxsim.pruning

    function, settings, wants_samples = NAMES[name]
    model = onnx.load(source)
    if wants_samples:
        images = np.load(calibration)
        key = model.graph.input[0].name
        batches = [{key: images[i : i + 32]} for i in range(0, len(images), 32)]
        settings = {**settings, "calibration_data": batches}
    onnx.save(getattr(onnxsim.pruning, function)(model, **settings), output)


if __name__ == "__main__":
    prune(sys.argv[1], *map(Path, sys.argv[2:5]))
