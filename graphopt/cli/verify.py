"""``graphopt verify``."""

from __future__ import annotations

import click

from graphopt.cli.common import data_option, json_option, write_json

__all__ = ["command"]


@click.command("verify")
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@data_option
@click.option(
    "--exactness", type=click.Choice(["bitwise", "rounding", "lossy"]), default="rounding",
    help="How equal outputs have to be; lossy compares types and shapes and reports the SQNR.",
)  # fmt: skip
@click.option("--seed", "seeds", type=int, multiple=True, help="Seed of made-up inputs; repeatable.")
@json_option
def command(
    a: str, b: str, data: str | None, exactness: str, seeds: tuple[int, ...], json_file: str | None
) -> int:
    """Compare the outputs of models A and B, with ONNX Runtime's optimizations off.

    Exit code 0 if they are equal, 4 if they are not.
    """
    from graphopt import api

    found = api.verify(a, b, data=data, exactness=exactness, seeds=seeds or (0, 1))
    if not write_json(found.to_json(), json_file):
        if found.ok:
            click.echo(
                f"equal ({exactness}): largest difference {found.max_abs:.3g} in "
                f"{found.worst_output!r}, SQNR {found.sqnr_db:.1f} dB"
            )
        else:
            click.echo(f"different: {found.reason}")
    return 0 if found.ok else 4
