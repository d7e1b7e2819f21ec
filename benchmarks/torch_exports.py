"""Export ten small torch networks the ways torch can, as material for the other benchmarks.

Modes: ``legacy`` (TorchScript exporter, dynamic dims, nothing folded), ``static`` (the same
exporter, fixed dims, its defaults), ``dynamo`` (torch.export with dynamic dims and the exporter's
own optimizer), ``dynamo_raw`` (without it). Needs torch and onnxscript; runs in its own environment
if you like, since it only writes files: NET_MODE.onnx and manifest.json.
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from pathlib import Path
from typing import Any

from _common import environment, names, parser, run_child, table, write_json

MODES = ("legacy", "static", "dynamo", "dynamo_raw")


def export(net: str, mode: str, path: Path, opset: int) -> None:
    """Export one network.

    Args:
        net: A name in ``_torch_nets.NETS``.
        mode: One of ``MODES``.
        path: Where the model goes.
        opset: Opset of the legacy exporter; the other one chooses its own.
    """
    import torch
    from _torch_nets import NETS

    torch.manual_seed(0)
    described = NETS[net]
    module = described.make().eval()
    for layer in module.modules():  # statistics as after training, so that folding them matters
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 2.0)
            layer.weight.data.uniform_(0.5, 1.5)
            layer.bias.data.normal_(0, 0.2)
    inputs = [name for name, _, _ in described.inputs]
    shared: dict[str, Any] = {"input_names": inputs}
    if mode in ("legacy", "static"):
        shared |= {"dynamo": False, "opset_version": opset}
        if mode == "legacy":  # scaffolding and BatchNorm left in, as many published files have them
            shared |= {
                "dynamic_axes": dict.fromkeys(inputs, described.dynamic),
                "do_constant_folding": False,
                "training": torch.onnx.TrainingMode.PRESERVE,
            }
    else:
        dims = {axis: torch.export.Dim.DYNAMIC for axis in described.dynamic}
        shared |= {
            "dynamo": True,
            "external_data": False,
            "optimize": mode == "dynamo",
            "verbose": False,
            "dynamic_shapes": tuple(dims for _ in inputs),
        }
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(module, described.example(), str(path), **shared)


def main(argv: list[str] | None = None) -> int:
    """Export everything that is not there yet."""
    args = parser(__doc__, "torch_exports")
    args.add_argument("--nets", default="", help="comma-separated networks (default: all)")
    args.add_argument("--modes", default=",".join(MODES), help="comma-separated modes")
    args.add_argument("--opset", type=int, default=17, help="opset of the legacy exporter")
    args.add_argument("--again", action="store_true", help="export also what is there already")
    args.add_argument(
        "--one", nargs=3, metavar=("NET", "MODE", "FILE"), help="export one, in this process"
    )
    options = args.parse_args(argv)
    if options.one:
        warnings.simplefilter("ignore")  # exporters warn about deprecations and traced constants
        export(options.one[0], options.one[1], Path(options.one[2]), options.opset)
        return 0
    from _torch_nets import NETS

    folder = options.cache / "torch"
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for net in names(options.nets) or list(NETS):
        for mode in names(options.modes):
            path = folder / f"{net}_{mode}.onnx"
            row: dict[str, Any] = {"model": path.name, "seconds": None, "error": None}
            if options.again or not path.exists():
                path.unlink(missing_ok=True)
                # A process each: the exporters keep state, and one export can break the next.
                argv = [
                    sys.executable,
                    __file__,
                    "--one",
                    net,
                    mode,
                    path,
                    "--opset",
                    str(options.opset),
                ]
                child = run_child(argv, timeout=600, sample=0.2)
                row["seconds"] = child.wall
                if child.code:  # exporters fail on some networks; that is a row, not the end
                    row["error"] = child.reason()
            rows.append(row | facts(path))
            print(f"  {path.name}: {row['error'] or 'ok'}", flush=True)
    headers = ["model", "nodes", "bytes", "opset", "seconds", "error"]
    print(table(headers, [[row.get(h) for h in headers] for row in rows], "Torch exports"))
    payload = {"environment": environment(["torch", "onnxscript"]), "exports": rows}
    write_json(folder / "manifest.json", payload)
    return 0


def facts(path: Path) -> dict[str, Any]:
    """Node count, size and opset of an export; empty where there is none."""
    if not path.exists():
        return {}
    from _models import load, node_count

    model = load(path)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None)
    return {"nodes": node_count(model), "bytes": path.stat().st_size, "opset": opset}


if __name__ == "__main__":
    sys.exit(main())
