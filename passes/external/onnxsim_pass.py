"""onnx-simplifier as one step of a pipeline."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from graphopt import Context, Exactness, GraphOptError, Pass, ir
from graphopt.ir.content import adopt_weights

__all__ = ["Onnxsim"]

_WORKER = Path(__file__).with_name("onnxsim_worker.py")
_INLINE_BYTES = 64 << 20  # larger models are handed over with their weights in a file of their own


class Onnxsim(Pass):
    """Run onnx-simplifier (the package onnxsim) and take over what it makes of the model.

    What it does: Hands the model over in a file, runs onnx-simplifier in a process of its own, and
    reads the result. The manager judges the result as that of any pass: structure, size, cost, and
    numbers if the oracle runs. Whatever goes wrong, a crash of native code, an exception, a result
    that does not load or has another interface, is a remark in the report, and the model stays as
    it was. A process of its own costs a start of Python; the import of onnxsim takes seconds
    anywhere. It contains crashes and output of native code, and gives back the memory.

    Exactness: Rounding. It fuses and reorders arithmetic.

    Needs: The packages onnxsim and onnxruntime.

    Options: max-tensor-bytes (constants larger than that are not made of Tile, Expand and
    ConstantOfShape, default 65536), subgraphs (also simplify the graphs of If, Loop and Scan, which
    onnxsim calls experimental), skip (names of its optimizers to leave out; the default is the one
    that puts reshapes around every MatMul with a bias), timeout (seconds, default 600).

    Example: ``a = Conv(x, w); y = BatchNormalization(a, s, b, m, v)`` -> ``y = Conv(x, w1, b1)``

    Declines when: onnxsim is not installed, fails, or changes the interface; fuel is used up.

    References: https://github.com/onnxsim/onnxsim
    """

    name = "onnxsim"
    exactness = Exactness.ROUNDING
    max_tensor_bytes: int = 1 << 16
    subgraphs: bool = False
    skip: tuple[str, ...] = ("fuse_matmul_add_bias_into_gemm_batched",)
    timeout: float = 600.0

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: A number is out of range.
        """
        if not 0 <= self.max_tensor_bytes < 2**31 - 9999:
            raise ValueError(f"max-tensor-bytes must be below 2 GB, not {self.max_tensor_bytes}")
        if self.timeout <= 0:
            raise ValueError(f"timeout must be positive, not {self.timeout}")

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Simplify a copy, then take it over."""
        with tempfile.TemporaryDirectory(prefix="onnxsim-", ignore_cleanup_errors=True) as name:
            try:
                result = self._simplified(model, Path(name))
                _check_types(model, result)
                if adopt_weights(result, model) and ir.dump(result) == ir.dump(model):
                    return False
                if not ctx.allow("simplify"):
                    return False
                ctx.rewriter().become(result)
            except (GraphOptError, OSError) as e:
                ctx.remark(f"onnxsim left the model as it was: {e}")
                return False
        ctx.stats.applied["simplify"] += 1
        ctx.inferred = True  # loading the result did
        return True

    def _simplified(self, model: ir.Model, folder: Path) -> ir.Model:
        """The result of onnx-simplifier in normal form.

        Raises:
            GraphOptError: There is none; the message says why.
        """
        options = {
            "tensor_size_threshold": f"{self.max_tensor_bytes}B",
            "include_subgraph": self.subgraphs,
            "skipped_optimizers": list(self.skip),
        }
        (folder / "options.json").write_text(json.dumps(options), encoding="utf-8")
        ir.save(model, folder / "model.onnx", external_data=ir.nbytes(model) > _INLINE_BYTES)
        _run_worker(folder, self.timeout)
        return ir.load(folder / "result.onnx")


def _run_worker(folder: Path, timeout: float) -> None:
    if not sys.executable:
        raise GraphOptError("there is no Python to start it with")
    # The worker finds what this process finds, also where that came from sys.path.
    path = os.pathsep.join(p for p in sys.path if p)
    with (folder / "output").open("wb") as output:
        try:
            done = subprocess.run(
                [sys.executable, os.fspath(_WORKER), os.fspath(folder)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": path},
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as e:
            raise GraphOptError(f"it did not finish in {timeout:g} s") from e
    status = folder / "status.json"
    if done.returncode < 0:
        raise GraphOptError(f"it crashed ({_signal(-done.returncode)})")
    if done.returncode or not status.exists():
        said = (folder / "output").read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "no output")
        raise GraphOptError(f"it ended with status {done.returncode}: {last}")
    error = json.loads(status.read_text(encoding="utf-8")).get("error")
    if error:
        raise GraphOptError(error)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _check_types(model: ir.Model, result: ir.Model) -> None:
    """Inputs and outputs of equal names have equal types; become() looks at the names.

    Raises:
        GraphOptError: One differs.
    """
    if ir.opaque(result) is not None:
        raise GraphOptError(f"its result has no representation: {ir.opaque(result)}")
    for kind in ("inputs", "outputs"):
        have = {v.name: v for v in getattr(model.graph, kind)}
        for value in getattr(result.graph, kind):
            old = have.get(value.name)
            if old is not None and old.type is not None and value.type != old.type:
                raise GraphOptError(f"%{value.name} is {value.type} in its result, not {old.type}")
            if old is not None and old.is_initializer() != value.is_initializer():
                raise GraphOptError(f"%{value.name} lost its default value in its result")
