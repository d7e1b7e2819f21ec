"""What a target is: facts about an execution provider, and requirements on nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from graphopt.targets.scheme import Predicate, Scheme

__all__ = ["Requirement", "Target"]


@dataclasses.dataclass(frozen=True)
class Requirement:
    """What a target requires of nodes.

    Attributes:
        name: Short name, such as ``conv-weight``.
        why: Why a node does not meet it, or None if it does.
        operators: Operators it is about; those of other domains as ``com.microsoft.Gelu``. Empty
            for all.
        slow: Nodes that do not meet it run, but slower than they could.
        hint: What to do about a node that does not meet it.
        fix: A pass that rewrites such nodes, if there is one.
        source: Where the requirement is known from.
    """

    name: str
    why: Predicate
    operators: frozenset[str] = frozenset()
    slow: bool = False
    hint: str = ""
    fix: str = ""
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Target:
    """What a model is optimized for.

    Attributes:
        name: Name on the command line.
        providers: ONNX Runtime execution providers, the preferred one first.
        description: One line for people.
        provider_options: Options by provider.
        processors: What ``platform.machine`` says, in lower case, on machines whose CPU is the
            target; empty where it is something else.
        session: Session configuration entries that models are run with.
        optimize: Whether ONNX Runtime should optimize the graph before the provider gets it.
        opsets: Smallest and largest opset of the default domain.
        ir_version: Largest version of the file format.
        domains: Operator domains, besides the default one, that the target takes.
        operators: Operators that the target computes; those of other domains as
            ``com.microsoft.Gelu``. None where these are all that ONNX Runtime knows.
        static_shapes: Every shape has to be known.
        max_rank: Most dimensions of a tensor, or None.
        dtypes: Element types of tensors, in lower case; None for all.
        external_data: Weights may be in a file of their own.
        fp16: Whether tensors of 16-bit floats are welcome (``native``), slow (``slow``) or refused
            (``none``). Some providers compute in them on their own.
        scheme: How it wants models quantized; None if not at all.
        requirements: What it requires of nodes.
        sources: Where facts are known from, by the name of the attribute.
    """

    name: str
    providers: tuple[str, ...]
    description: str
    provider_options: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    processors: frozenset[str] = frozenset()
    session: Mapping[str, str] = dataclasses.field(default_factory=dict)
    optimize: bool = True
    opsets: tuple[int, int] = (7, 26)
    ir_version: int = 14
    domains: frozenset[str] = frozenset()
    operators: frozenset[str] | None = None
    static_shapes: bool = False
    max_rank: int | None = None
    dtypes: frozenset[str] | None = None
    external_data: bool = True
    fp16: Literal["native", "slow", "none"] = "native"
    scheme: Scheme | None = None
    requirements: tuple[Requirement, ...] = ()
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def with_options(self) -> tuple[tuple[str, dict[str, str]], ...]:
        """The providers, each with its options, as sessions take them."""
        return tuple((p, dict(self.provider_options.get(p, {}))) for p in self.providers)
