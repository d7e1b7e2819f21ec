"""Remove nodes that hand on their input."""

from __future__ import annotations

from graphopt import Exactness, Match, Op, RewritePass, Rewriter, Var, ir, rule

__all__ = ["EliminateIdentity"]

x = Var()


@rule(Op("Identity", x))
def drop_identity(m: Match, rw: Rewriter) -> ir.Value:
    """Identity(x) is x, whatever type x has."""
    return m[x]


@rule(Op("Dropout", x, variadic=True))
def drop_dropout(m: Match, rw: Rewriter) -> ir.Value | None:
    """Dropout in inference is its input."""
    if not ir.is_deterministic(m.root):
        return m.fail("it may run in training mode")
    if any(mask.uses() or mask.is_graph_output() for mask in m.root.outputs[1:]):
        return m.fail("the mask is used")
    return m[x]


class EliminateIdentity(RewritePass):
    """Remove Identity nodes, and Dropout nodes that run in inference.

    What it does: Lets everything that uses the output use the input instead. Works for tensors,
    sequences and optionals, and for Dropout of every opset: ``is_test`` below 7, always in
    inference from 7 to 11, ``training_mode`` from 12 on.

    Exactness: Bitwise.

    Needs: Nothing.

    Options: None.

    Example: ``a = Identity(x); b = Dropout(a); y = Relu(b)`` -> ``y = Relu(x)``

    Declines when: An Identity gives a graph input, a constant or another graph output the name of a
    graph output; the training mode of a Dropout is computed or true; its mask is used.

    References: None; the operators define it.
    """

    name = "eliminate-identity"
    exactness = Exactness.BITWISE
    rules = (drop_identity, drop_dropout)
