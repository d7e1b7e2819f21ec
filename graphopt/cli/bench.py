"""``graphopt bench``."""

from __future__ import annotations

import click

from graphopt.cli.common import data_option, json_option, target_option, write_json

__all__ = ["command"]


@click.command("bench")
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@data_option
@target_option
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1), default=5.0, show_default=True)
@click.option(
    "--ort-optimizations/--no-ort-optimizations", "optimize", default=True,
    help="Let ONNX Runtime optimize both models, as its users run them (default).",
)  # fmt: skip
@json_option
def command(
    a: str,
    b: str,
    data: str | None,
    target: str | None,
    threads: int,
    seconds: float,
    optimize: bool,
    json_file: str | None,
) -> None:
    """Compare the latency of models A and B by interleaved runs.

    The speedup is one over the median, over rounds, of B's time in units of A's: above 1, B is
    faster.
    """
    from graphopt import api

    found = api.bench(
        a, b, data=data, threads=threads, optimize=optimize, target=target or "cpu", seconds=seconds
    )  # fmt: skip
    if not write_json(found.to_json(), json_file):
        for name, path in (("a", a), ("b", b)):
            t = found[name]
            click.echo(
                f"{name}  {path}: median {t.median * 1e3:.3f} ms, "
                f"quartiles {t.low * 1e3:.3f} to {t.high * 1e3:.3f}, {t.rounds} rounds"
            )
        t = found["b"]
        click.echo(
            f"speedup of b over a: {1 / t.ratio:.2f}x, "
            f"quartiles {1 / t.ratio_high:.2f} to {1 / t.ratio_low:.2f}"
        )
