"""``graphopt quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphopt.cli.common import (
    budget_options,
    cache_option,
    check_json,
    console,
    data_option,
    executor_option,
    json_option,
    output,
    target_option,
    write_text,
)

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.runner import Result

__all__ = ["command"]


@click.command("quantize")
@click.argument("model", type=click.Path())
@click.option(
    "-o", "--output", "destination", type=click.Path(), metavar="OUTPUT", required=True,
    help="Where to write the result; MODEL itself is allowed.",
)  # fmt: skip
@data_option
@target_option
@click.option(
    "--form", type=click.Choice(["auto", "static", "dynamic"]), default="auto",
    help="static: ranges of activations are learned from samples; dynamic: found at each run, for "
    "matrix products; auto: what is faster (default).",
)  # fmt: skip
@click.option(
    "--calibrate", metavar="METHOD", default="auto",
    help="How ranges are found: auto tries several for each activation (default); minmax, "
    "moving-average, percentile, entropy, mse or distribution for all.",
)  # fmt: skip
@click.option("--per-tensor", is_flag=True, help="One scale for each weight, not one a channel.")
@budget_options
@click.option(
    "--skip", multiple=True, metavar="PATTERN",
    help="Nodes that stay in floating point: an operator, or a name with * and ?; repeatable.",
)  # fmt: skip
@click.option(
    "--choose", type=click.Choice(["measured", "all"]), default="measured",
    help="Quantize what measured latency and noise say pays (default), or all there is a kernel "
    "for, without measuring.",
)  # fmt: skip
@click.option(
    "--spelling", type=click.Choice(["auto", "qdq", "qoperator"]), default="auto",
    help="QuantizeLinear and DequantizeLinear around operators, or integer operators; by default "
    "what the target runs fastest.",
)  # fmt: skip
@click.option("--no-optimize", is_flag=True, help="Do not run O2 first.")
@executor_option
@cache_option
@click.option(
    "--debug", "debug_file", metavar="FILE",
    help="Write noise, range and histogram of each tensor, and why nodes were left out, as text; "
    "- for stdout.",
)  # fmt: skip
@json_option
@click.option(
    "-v", "--verbose", is_flag=True, help="List all that was tried, and each node left out."
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    model: str,
    destination: str,
    data: str | None,
    target: str | None,
    per_tensor: bool,
    no_optimize: bool,
    executor: str | None,
    cache: str | None,
    debug_file: str | None,
    json_file: str | None,
    verbose: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Compute on 8-bit integers what of MODEL is faster so, accurately enough.

    Where no form in integers is faster, OUTPUT is MODEL in floating point. With --max-drop or
    --min-sqnr nothing is written then, nor where these are not met; exit code 6.
    """
    from graphopt import api
    from graphopt.cli.optimize import optimize
    from graphopt.cli.quantize_view import show_result
    from graphopt.manager.config import Config

    if debug_file == "-" and (quiet or json_file == "-"):
        raise click.UsageError("--debug - cannot be had with --json - or --quiet")
    read = [Path(p) for p in (model, data) if p is not None]
    check_json(debug_file, *read, Path(destination), option="--debug")
    pipeline = api.quantization(
        {**options, "per_channel": not per_tensor, "debug": debug_file is not None},
        "O0" if no_optimize else "O2",
    )
    config = Config(
        pipeline=pipeline,
        target=target or "cpu",
        data=None if data is None else Path(data),
        executor=executor,
        cache=None if cache is None else Path(cache),
    )
    results: list[Result] = []

    def accept(result: Result, _: ir.Model) -> None:
        results.append(result)
        api.require_quantized(result, pipeline)

    try:
        optimize(
            config, Path(model), Path(destination), json_file=json_file, verbose=verbose,
            quiet=quiet, accept=accept, view=show_result,
        )  # fmt: skip
    finally:
        if results and debug_file is not None:
            _debug(results[0], debug_file)


def _debug(result: Result, file: str) -> None:
    import io

    from graphopt.cli.quantize_view import show_debug

    if file == "-":
        with output() as out:
            out.print()
            show_debug(out, result.report)
        return
    text = io.StringIO()
    show_debug(console(file=text), result.report)
    write_text("\n".join(line.rstrip() for line in text.getvalue().split("\n")), file)
