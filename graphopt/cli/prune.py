"""``graphopt prune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphopt.cli.common import (
    budget_options,
    cache_option,
    data_option,
    json_option,
    target_option,
)

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.runner import Result

__all__ = ["command"]


@click.command("prune")
@click.argument("model", type=click.Path())
@click.option(
    "-o", "--output", "destination", type=click.Path(), metavar="OUTPUT",
    help="Where to write the result; MODEL itself is allowed.",
)  # fmt: skip
@data_option
@click.option("--macs", type=float, metavar="F", help="Share of multiply-accumulates that remains.")
@click.option("--params", type=float, metavar="F", help="Share of parameters that remains.")
@click.option(
    "--bytes", type=float, metavar="F", help="Share of the bytes of weights that remains."
)
@click.option(
    "--latency", type=float, metavar="F", help="Share of the measured latency that remains."
)
@click.option("--channels", type=float, metavar="F", help="Share of channels that remains.")
@click.option("--heads", type=float, metavar="F", help="Share of attention heads that remains.")
@click.option("--layers", type=int, metavar="N", help="How many layers beside shortcuts go.")
@click.option(
    "--criterion",
    type=click.Choice(
        ["obs", "l1", "l2", "median", "bn-scale", "activation", "taylor", "random"]
    ),
    help="Which channels of a group go first: those that the layers behind miss least (obs, "
    "default), or those of the lowest score.",
)  # fmt: skip
@click.option(
    "--ranking", type=click.Choice(["measured", "global", "local"]),
    help="How losses are spread over groups: by measured noise and time (default), by scores, or "
    "the same share of each.",
)  # fmt: skip
@click.option("--least", type=float, metavar="F", help="Least share of a group that stays (0.1).")
@click.option(
    "--round-to", type=int, metavar="N",
    help="What numbers of channels are multiples of; by default 4 where there are 16 or more.",
)  # fmt: skip
@click.option(
    "--skip", multiple=True, metavar="PATTERN",
    help="Names, with * and ?, of values and nodes whose channels stay; repeatable.",
)  # fmt: skip
@click.option("--no-recover", is_flag=True, help="Do not fit the layers that stay.")
@budget_options
@target_option
@click.option(
    "--dry-run", is_flag=True,
    help="Write nothing; list what could be pruned, what it would do, and why the rest cannot.",
)  # fmt: skip
@cache_option
@json_option
@click.option("-v", "--verbose", is_flag=True, help="List every group, and all that is frozen.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    model: str,
    destination: str | None,
    data: str | None,
    heads: float | None,
    layers: int | None,
    no_recover: bool,
    target: str | None,
    dry_run: bool,
    cache: str | None,
    json_file: str | None,
    verbose: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Remove the channels, heads and layers of MODEL that its outputs miss least.

    What stays is fitted to what MODEL computes on the samples. One of --macs, --params, --bytes,
    --latency and --channels says which share of it may remain, of what --heads and --layers leave.
    Nothing is written, and the exit code is 6, where that cannot be had, or not with --max-drop and
    --min-sqnr.

    A dry run without a goal looks for three quarters of the multiply-accumulates, and four fifths
    of the heads.
    """
    from graphopt import compressing
    from graphopt.cli.optimize import optimize
    from graphopt.cli.prune_view import show_result
    from graphopt.manager.config import Config

    if destination is None and not dry_run:
        raise click.UsageError("missing option '-o' / '--output'; --dry-run does without")
    given = {name: value for name, value in options.items() if value is not None}
    pipeline = compressing.pruning(
        {**given, "recover": not no_recover, "dry": dry_run}, heads=heads, layers=layers, first="O2"
    )
    config = Config(
        pipeline=pipeline,
        target=target or "cpu",
        data=None if data is None else Path(data),
        cache=None if cache is None else Path(cache),
    )

    def accept(result: Result, source: ir.Model) -> None:
        compressing.require_pruned(result, source, pipeline, target=config.target, data=config.data)

    optimize(
        config, Path(model), None if dry_run or destination is None else Path(destination),
        json_file=json_file, verbose=verbose, quiet=quiet, accept=accept, view=show_result,
    )  # fmt: skip
