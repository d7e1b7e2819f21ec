"""What the passes about quantized models ask of a target."""

from __future__ import annotations

from graphopt import Context, NotApplicable
from graphopt.targets import Scheme

__all__ = ["static_scheme"]


def static_scheme(ctx: Context) -> Scheme:
    """The scheme of the target.

    Raises:
        NotApplicable: The target computes nothing on integers of known scales.
    """
    scheme = ctx.target.scheme
    if scheme is None or all("static" not in k.forms for k in scheme.kernels.values()):
        raise NotApplicable(f"target {ctx.target.name} has no kernels for static quantization")
    return scheme
