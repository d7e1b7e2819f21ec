"""onnxsim's structured pruning as a program, so that its memory and time can be measured.

``python _prune_peers.py NAME SOURCE CALIBRATION OUTPUT SHARE``. For ``l2`` and ``wanda`` the
calibration is a .npy of inputs, and SHARE the multiply-accumulates to leave: onnxsim takes a share
of the channels instead, so that all of 64 are tried and the nearest counts. ``bert-l2``,
``bert-wanda`` and ``bert-ridge`` (Wanda, then its least squares) take a folder of .npz batches and
remove two of twelve heads and a share of 1 - SHARE of the neurons. onnxsim finds neither in a plain
MiniLM, so that it gets what ONNX Runtime's optimizer for transformers makes of it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx

HEADS = 2 / 12
_STEPS = 64


def prune_cnn(name: str, source: Path, calibration: Path, left: float) -> onnx.ModelProto:
    """Prune to nearly so many multiply-accumulates."""
    from onnxsim import pruning

    model = onnx.load(source)
    whole = macs(model)

    def off(sparsity: float) -> float:
        return abs(macs(pruning.apply_structured_pruning(model, sparsity)) / whole - left)

    sparsity = min((i / _STEPS for i in range(1, _STEPS)), key=off)
    if name == "l2":
        return pruning.apply_structured_pruning(model, sparsity)
    images = np.load(calibration)
    key = model.graph.input[0].name
    batches = [{key: images[i : i + 32]} for i in range(0, len(images), 32)]
    return pruning.apply_structured_wanda_pruning(model, batches, sparsity=sparsity)


def macs(model: onnx.ModelProto) -> int:
    """Multiply-accumulates for one sample."""
    from graphopt import ir
    from graphopt.analyses import Cost

    loaded = ir.load(model)
    ir.infer_shapes(loaded)
    return Cost(loaded).macs


def prune_bert(name: str, source: Path, calibration: Path, left: float) -> onnx.ModelProto:
    """Prune heads and neurons of a BERT."""
    import onnxsim
    from onnxruntime.transformers.optimizer import optimize_model
    from onnxsim import pruning

    fused = optimize_model(
        str(source), model_type="bert", num_heads=12, hidden_size=384, opt_level=0
    )
    original = fused.model
    if name == "bert-l2":
        model = pruning.apply_attention_head_pruning(original, HEADS)
        return pruning.apply_structured_pruning(model, 1 - left)
    batches: list[dict[str, Any]] = []
    for path in sorted(calibration.glob("*.npz"), key=lambda p: int(p.stem)):
        with np.load(path) as archive:
            batches.append(dict(archive))
    model = pruning.apply_attention_head_wanda_pruning(original, batches, sparsity=HEADS)
    model = pruning.apply_structured_wanda_pruning(model, batches, sparsity=1 - left)
    if name == "bert-ridge":
        model = onnxsim.apply_pruning_finetune(original, model, batches)
    return model


if __name__ == "__main__":
    prune = prune_bert if sys.argv[1].startswith("bert-") else prune_cnn
    done = prune(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[5]))
    onnx.save(done, sys.argv[4])
