"""Structured pruning of every architecture: is the pruned model the masked original, and smaller?

A random 30 % of the channels of every prunable group are removed: no criterion, no recovery, only
surgery. The outputs are compared with those of the original in which the same channels are masked,
with ONNX Runtime's optimizations off; networks of small integers have to be equal in every bit.
onnxsim's structured pruning takes the same models (its functions for heads and for QDQ included).
It chooses the channels by magnitude; what it removed is found by the values that are left, and the
original is masked at these for comparison.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from _common import REPO, data_dir, environment, names, parser, table, write_json

sys.path.insert(0, str(REPO / "tests"))  # the networks are those of the tests

SHARE = 0.3
REAL = (
    "resnet20", "resnet56", "mobilenetv2_cifar", "mnist", "ultraface_rfb_320", "silero_vad",
    "minilm_l6",
)  # fmt: skip
Feeds = list[dict[str, np.ndarray]]


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where graphopt's result is invalid, unequal or no smaller."""
    args = parser(__doc__, "coupling")
    args.add_argument("--only", default="", help="comma-separated names of networks")
    args.add_argument("--seed", type=int, default=0, help="of the channels that are removed")
    options = args.parse_args(argv)
    only = names(options.only)
    rows = []
    for name, model, feeds, exact in networks():
        if not only or name in only:
            rows.append(measure(name, model, feeds, exact, options.seed))
            print(f"{name}: {'FAILED' if rows[-1]['failed'] else 'ok'}", flush=True)
    print(report(rows))
    write_json(options.json, {"environment": environment(["onnxsim"]), "rows": rows})
    return int(any(row["failed"] for row in rows))


def networks() -> Iterator[tuple[str, Any, Feeds, bool]]:
    """Name, model, inputs, and whether it computes on small integers."""
    from pruning.networks import NETWORKS

    from graphopt import ir
    from graphopt.runtime import open_session, probe_feeds

    for name, build in NETWORKS.items():
        network = build()
        yield name, network.model, network.feeds, network.exact
    files = sorted((REPO / "models").glob("*.onnx"))
    folder = data_dir() / "models"
    if folder.is_dir():
        files += [folder / f"{name}.onnx" for name in REAL]
    else:
        print("skipped: larger models, since the shared data is not there; set GRAPHOPT_DATA")
    for file in files:
        model = ir.load(file)
        with open_session(model, optimize=False) as session:
            feeds = probe_feeds(model, runs=functools.partial(accepts, session))
        yield file.stem, model, feeds, False


def measure(name: str, model: Any, feeds: Feeds, exact: bool, seed: int) -> dict[str, Any]:
    """Prune one network with both."""
    import graphopt
    from graphopt import ir
    from graphopt.analyses import Channels
    from graphopt.pruning.cut import cut
    from graphopt.pruning.masking import masked
    from graphopt.rewrite import Rewriter

    model = graphopt.PassManager("freeze-inputs,O2").run(model).model
    channels = Channels(model)
    prunable = [g for g in channels.groups if g.reason is None and len(g.classes) > 1]
    frozen = Counter(g.reason for g in channels.groups if g.reason is not None)
    rng = np.random.default_rng(seed)
    dead = np.zeros(channels.count, bool)
    for group in prunable:
        count = min(max(1, round(SHARE * len(group.classes))), len(group.classes) - 1)
        dead[rng.choice(group.classes, count, replace=False)] = True
    pruned = ir.clone(model)
    cut(Rewriter(pruned), channels, dead)
    ir.verify(pruned)
    mask = ir.to_proto(masked(channels, dead))
    ours = compare(ir.to_proto(model), ir.to_proto(pruned), mask, feeds)
    equal = ours["same_bits"] if exact else ours["difference"] < 1e-5
    return {
        "network": name,
        "groups": len(prunable),
        "channels": sum(len(g.classes) for g in prunable),
        "frozen": dict(frozen),
        **ours,
        "failed": not (equal and ours["parameters"] < 1),
        "onnxsim": peer(distinct(ir.to_proto(model)), feeds),
    }


def accepts(session: Any, feeds: dict[str, np.ndarray]) -> bool:
    """Whether a model runs on inputs that were made up."""
    from graphopt.errors import SessionError

    try:
        session.run(feeds)
    except SessionError:
        return False
    return True


def compare(original: Any, pruned: Any, mask: Any, feeds: Feeds) -> dict[str, Any]:
    """What is left of the parameters, and how far a model is from its mask.

    Raises:
        ValueError: An output has another shape. What onnx.checker and ONNX Runtime raise where the
            pruned model is not valid goes through.
    """
    import onnx

    onnx.checker.check_model(pruned, full_check=True)
    wants, gots = outputs(mask, feeds), outputs(pruned, feeds)
    worst = 0.0
    for want, got in zip(wants, gots, strict=True):
        if want.shape != got.shape:
            raise ValueError(f"an output has shape {got.shape} instead of {want.shape}")
        far = np.abs(want.astype(float) - got.astype(float)).max(initial=0)
        worst = max(worst, float(far) / max(1e-6, float(np.abs(want).max(initial=0))))
    same = all(np.array_equal(a, b) for a, b in zip(wants, gots, strict=True))
    left = parameter_bytes(pruned) / parameter_bytes(original)
    return {"parameters": left, "difference": worst, "same_bits": same}


def outputs(proto: Any, feeds: Feeds) -> list[np.ndarray]:
    """All outputs; ONNX Runtime's optimizations are off."""
    from graphopt.runtime import open_session

    with open_session(proto, optimize=False) as session:
        return [value for each in feeds for value in session.run(each).values()]


def initializers(graph: Any) -> Iterator[Any]:
    """Initializers, those of nested graphs included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from initializers(attribute.g)


def parameter_bytes(proto: Any) -> int:
    """Bytes of all initializers."""
    from onnx import numpy_helper

    return sum(numpy_helper.to_array(t).nbytes for t in initializers(proto.graph))


# --- onnxsim -------------------------------------------------------------------------------------


def distinct(proto: Any) -> Any:
    """Give all elements of a weight different values, so that those left tell which they are."""
    from onnx import numpy_helper

    rng = np.random.default_rng(0)
    for tensor in initializers(proto.graph):
        data = numpy_helper.to_array(tensor)
        if data.ndim >= 2 and data.dtype == np.float32 and data.size > 1:
            ranks = rng.permutation(data.size).reshape(data.shape) / data.size - 0.5
            fan = data.size / max(data.shape[0], data.shape[-1])
            made = (ranks * 4 / fan**0.5).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(made, tensor.name))
    return proto


def peer(original: Any, feeds: Feeds) -> dict[str, Any]:
    """onnxsim's structured pruning of the same share."""
    try:
        from onnxsim import pruning
    except ImportError:
        return {"outcome": "not installed"}
    import onnx

    pruned = onnx.ModelProto()
    pruned.CopyFrom(original)
    steps = (
        pruning.apply_structured_pruning,
        pruning.apply_attention_head_pruning,
        pruning.apply_structured_pruning_qdq,
    )
    try:
        for step in steps:
            pruned = step(pruned, SHARE)
    except Exception as e:  # a peer's failure is a result, and told
        return {"outcome": "raises", "detail": f"{type(e).__name__}: {e}"}
    if pruned.SerializeToString() == original.SerializeToString():
        return {"outcome": "nothing pruned", "parameters": 1.0}
    mask, comparable = zeroed(original, pruned)
    try:
        found = compare(original, pruned, mask, feeds)
    except Exception as e:
        return {"outcome": "invalid", "detail": f"{type(e).__name__}: {e}"}
    if not comparable:
        return {"outcome": "valid", "parameters": found["parameters"]}
    equal = found["difference"] < 1e-4
    return {"outcome": "equal" if equal else "wrong numbers", **found}


def zeroed(original: Any, pruned: Any) -> tuple[Any, bool]:
    """The original with those weights zero that the pruned one lacks; False if they are unknown."""
    import onnx
    from onnx import numpy_helper

    mask = onnx.ModelProto()
    mask.CopyFrom(original)
    comparable = True
    pairs = zip(initializers(mask.graph), initializers(pruned.graph), strict=True)
    for tensor, left in pairs:
        data, kept = numpy_helper.to_array(tensor), numpy_helper.to_array(left)
        if kept.size == data.size or data.ndim < 2:
            continue
        if data.dtype == np.float32:
            made = np.where(np.isin(data, kept), data, np.float32(0))
            tensor.CopyFrom(numpy_helper.from_array(made, tensor.name))
        else:
            comparable = False  # integers are not distinct
    return mask, comparable


def report(rows: list[dict[str, Any]]) -> str:
    """One table."""
    cells = [
        (
            r["network"], r["groups"], r["channels"], sum(r["frozen"].values()), len(r["frozen"]),
            100 * r["parameters"], r["same_bits"], r["difference"], r["onnxsim"]["outcome"],
            100 * r["onnxsim"]["parameters"] if "parameters" in r["onnxsim"] else None,
        )
        for r in rows
    ]  # fmt: skip
    headers = (
        "network", "groups", "channels", "frozen", "reasons", "bytes left %", "same bits",
        "difference", "onnxsim", "bytes left %",
    )  # fmt: skip
    return table(headers, cells, "30 % of the channels of every prunable group removed")


if __name__ == "__main__":
    sys.exit(main())
