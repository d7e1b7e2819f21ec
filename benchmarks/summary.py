"""Write the tables of benchmarks/results into docs/benchmarks.md.

Run it after the benchmarks, so that the documentation says what they printed.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
MARKED = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.DOTALL)

# Result file -> heading, and the command that makes it.
SECTIONS = {
    "corpus": ("Every ONNX node test, and the models in the onnx wheel", "corpus.py --tool "
               "graphopt,onnxsim,onnxslim,onnxscript,onnxoptimizer"),
    "corpus_free_dims": ("The same with every dimension symbolic",
                         "corpus.py --free-dims --json benchmarks/results/corpus_free_dims.json"),
    "real_models": ("Real models on real data", "real_models.py"),
    "cnn_int8": ("CNNs in int8", "cnn_int8.py"),
    "minilm_int8": ("MiniLM in int8", "minilm_int8.py --ablate"),
    "channels_last": ("Quantized convolutions with the channels last", "channels_last.py"),
    "nnapi_export": ("CNNs exported to NNAPI", "nnapi_export.py --samples 500 --calibrate 128"),
    "repair": ("Other tools' int8 models, repaired", "repair.py --peer quark=PYTHON "
               "--peer modelopt=PYTHON --peer nncf=PYTHON"),
    "calibration": ("Calibration", "calibration.py"),
    "dask_kill": ("Calibration with a worker killed", "dask_kill.py"),
    "coupling": ("Structured pruning of every architecture", "coupling.py"),
    "prune_cnn": ("Channels of CNNs removed", "prune_cnn.py"),
    "prune_resnet20": ("Channels of a smaller CNN removed", "prune_cnn.py --models resnet20 "
                       "--json benchmarks/results/prune_resnet20.json"),
    "depth": ("Layers left out", "depth.py"),
    "prune_minilm": ("Heads and neurons of MiniLM removed", "prune_minilm.py"),
    "sparsity": ("Zeros in the weights of ResNet-56", "sparsity.py"),
    "sharing": ("Few values for the weights", "sharing.py"),
    "storage": ("Weights of few values in fewer bytes", "storage.py"),
    "large_sharing": ("2.4 GB of weights, tied and shared", "large_sharing.py"),
    "decompose": ("Layers in parts", "decompose.py"),
    "time_scale": ("Time and scale", "time_scale.py --rounds 5 --scale-tools graphopt"),
    "large_model": ("2.4 GB of external data", "large_model.py"),
    "fuzz": ("Random models through random pipelines, and wrong passes", "fuzz.py"),
    "kill_save": ("Kills while saving in place", "kill_save.py"),
    "startup": ("Start-up", "startup.py"),
}  # fmt: skip


def main() -> int:
    """Rewrite the page; returns 1 where a result file is missing."""
    parts, missing = [], []
    for name, (title, command) in SECTIONS.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            missing.append(name)
            continue
        data = json.loads(path.read_text(encoding="utf-8"))
        machine = data["environment"]
        versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
        tables = "\n\n".join(text.strip("\n") for text in data["tables"])
        parts.append(
            f"\n## {title}\n\n```console\n$ python benchmarks/{command}\n```\n\n"
            f"```text\n{tables}\n```\n\n"
            f"{machine['cpus']} CPUs, Python {machine['python']}, {versions}.\n"
        )
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(MARKED.sub(lambda _: "".join(parts) + "\n", text), encoding="utf-8")
    for name in missing:
        print(f"no results: {name}")
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
