"""Probe inputs: feeds made up from the declared inputs of a model, to see what it computes.

Sizes of dynamic dimensions come from a short list of settings, values from what the consumers of an
input need. Whoever can run the model says which settings it accepts.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.errors import CalibrationError
from graphopt.runtime.domains import COMPARISONS, Draw, Role, fixed_dims, roles, values
from graphopt.runtime.values import Feeds, element_type

__all__ = ["InputSpec", "Probe", "input_specs", "probe_feeds", "probes"]


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """What is known of one input.

    Attributes:
        name: Its name.
        type: Its type as ONNX Runtime spells it, such as ``seq(tensor(float))``; "" if undeclared.
        dims: A size, a symbol or None for each dimension; None for unknown rank.
        uses: The operators that consume it.
    """

    name: str
    type: str
    dims: tuple[int | str | None, ...] | None
    uses: tuple[Role, ...] = ()


@dataclasses.dataclass(frozen=True)
class Probe:
    """One set of inputs and where it came from.

    Attributes:
        feeds: Values by input name.
        source: "data" for a sample of the user, "made" for made-up values.
        seed: Seed of made-up values.
        dims: Sizes given to the dynamic dimensions; anonymous ones are spelled ``input[axis]``.
    """

    feeds: Feeds
    source: str = "made"
    seed: int | None = None
    dims: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Setting:
    batch: int
    sequence: int
    past: int
    height: int
    width: int
    other: int


# Tried in this order until enough are accepted. The first are small and all different, so that two
# dimensions cannot be mixed up unnoticed; the later ones suit pickier models.
_SETTINGS = (
    _Setting(1, 8, 6, 32, 32, 4),
    _Setting(3, 5, 4, 48, 40, 6),
    _Setting(2, 16, 8, 64, 64, 3),
    _Setting(4, 12, 1, 96, 128, 8),
    _Setting(1, 1, 0, 28, 28, 1),
    _Setting(2, 2, 2, 2, 2, 2),
    _Setting(1, 512, 64, 224, 224, 16),
    _Setting(2, 256, 32, 112, 112, 12),
    _Setting(1, 64, 1, 7, 7, 64),
    _Setting(4, 4, 4, 4, 4, 4),
    _Setting(1, 1024, 128, 256, 320, 32),
    _Setting(1, 16000, 16, 299, 299, 80),
    _Setting(8, 8, 8, 8, 8, 8),
)

_KINDS = (
    ("batch", re.compile(r"batch|^n$|^b$|^bs$|num_?samples")),
    ("past", re.compile(r"past|cache|prev")),
    ("height", re.compile(r"height|^h$|^h_?in|rows")),
    ("width", re.compile(r"width|^w$|^w_?in|cols")),
    ("sequence", re.compile(r"seq|len|time|token|frame|step|^s$|^t$|^l$")),
)

_CONVS = ("Conv", "ConvTranspose")
_STATE = re.compile(r"state|hidden|cell|^[hc]_?(\d|n|in)?$")

# How values are drawn: as the consumers suggest, else ever more cautiously.
_VARIANTS = ("natural", "positive", "one", "zero")


def probe_feeds(
    model: ir.Model,
    *,
    seeds: Sequence[int] = (0,),
    settings: int = 2,
    data: Iterable[Mapping[str, Any]] | None = None,
    runs: Callable[[Feeds], bool] | None = None,
) -> list[Feeds]:
    """Make inputs for a model; see :func:`probes`, of which this returns the feeds alone."""
    found = probes(
        input_specs(ir.inputs(model)), seeds=seeds, settings=settings, data=data, runs=runs
    )
    return [p.feeds for p in found]


def input_specs(values: Iterable[ir.Value]) -> list[InputSpec]:
    """Describe graph inputs."""
    return [InputSpec(v.name or "", spell(v.type), ir.dims(v), tuple(roles(v))) for v in values]


def spell(type_: Any) -> str:
    """A type of the IR as ONNX Runtime spells it, "" where it is not declared."""
    if type_ is None:
        return ""
    if isinstance(type_, ir.TensorType):
        return f"tensor({type_.dtype.name.lower()})"
    outer = type(type_).__name__.removesuffix("Type").lower()
    if isinstance(type_.elem_type, ir.DataType):
        return f"{outer.removesuffix('tensor')}_tensor({type_.elem_type.name.lower()})"
    return f"{'seq' if outer == 'sequence' else outer}({spell(type_.elem_type)})"


def probes(
    specs: Sequence[InputSpec],
    *,
    seeds: Sequence[int] = (0,),
    settings: int = 2,
    data: Iterable[Mapping[str, Any]] | None = None,
    runs: Callable[[Feeds], bool] | None = None,
) -> list[Probe]:
    """Make inputs for a model from the declarations of its inputs.

    Args:
        specs: The inputs.
        seeds: Seeds for the values; every setting is made once per seed.
        settings: How many settings of the dynamic dimensions (and of flags and optional inputs) to
            find. Where there are fewer, other values are made for one of them.
        data: Samples of the user, the first ``settings`` of which come before the made-up ones.
        runs: Says whether the model accepts feeds. Without it the first settings are taken as they
            are; with it those that the model refuses are left out, so the result may be empty.

    Returns:
        The probes, the same ones every time. Dimensions of one name agree over all inputs.

    Raises:
        CalibrationError: An input has a type that no values can be made up for.
    """
    accept = runs if runs is not None else lambda _: True
    samples = [dict(s) for s in itertools.islice(data or (), settings)]
    found = [Probe(s, "data") for s in samples if accept(s)]
    seeds = tuple(seeds) or (0,)
    chosen = _choose(specs, seeds[0], settings, accept)
    for i, (setting, turn, variant, first) in enumerate(chosen):
        feeds = _wide(first, accept) if i else first
        found.append(Probe(feeds, "made", seeds[0], _dims(specs, setting)))
        for seed in seeds[1:]:
            feeds = _make(specs, setting, turn, variant, seed)
            if accept(feeds):
                found.append(Probe(feeds, "made", seed, _dims(specs, setting)))
    # Where the model knows only one setting, other values stand in for other dimensions.
    for extra in range(1, settings - len(chosen) + 1 if chosen and specs else 0):
        setting, turn, variant, _ = chosen[0]
        feeds = _make(specs, setting, turn, variant, max(seeds) + extra)
        if accept(feeds):
            feeds = _wide(feeds, accept)
            found.append(Probe(feeds, "made", max(seeds) + extra, _dims(specs, setting)))
    return found


def _wide(feeds: Feeds, accept: Callable[[Feeds], bool]) -> Feeds:
    """The same inputs with large values, where the model has an answer to them.

    Values near zero never reach the bounds of a Clip, and a rewrite that loses them goes unseen.
    """
    wide = dict(feeds)
    for name, value in feeds.items():
        real = isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size
        if real and value.min() < 0 < value.max():
            wide[name] = (value * _WIDE).astype(value.dtype)
    changed = any(wide[name] is not feeds[name] for name in feeds)
    return wide if changed and accept(wide) else feeds


def _choose(
    specs: Sequence[InputSpec], seed: int, wanted: int, accept: Callable[[Feeds], bool]
) -> list[tuple[_Setting, int, str, Feeds]]:
    switched = any(map(_switches, specs))
    if not switched and not _dims(specs, _SETTINGS[0]):
        wanted = 1
    for variant in _VARIANTS:
        chosen: list[tuple[_Setting, int, str, Feeds]] = []
        used: set[tuple[object, ...]] = set()
        tried: set[tuple[object, ...]] = set()
        for setting in _SETTINGS:
            sizes = tuple(_dims(specs, setting).items())
            if len(chosen) == wanted or sizes in used:
                continue
            # First the other position of the switches; the same one, if the model refuses that.
            for turn in (len(chosen), len(chosen) + 1) if switched else (len(chosen),):
                attempt = (sizes, turn if switched else 0)
                if attempt in tried:
                    continue
                tried.add(attempt)
                feeds = _make(specs, setting, turn, variant, seed)
                if accept(feeds):
                    chosen.append((setting, turn, variant, feeds))
                    used.update([sizes] if sizes else [])
                    break
        if chosen:
            return chosen
    return []


def _switches(spec: InputSpec) -> bool:
    """Whether the input decides what a model does, not only what it does it with."""
    single = spec.dims is not None and all(d == 1 for d in spec.dims)
    return spec.type.startswith("optional") or (
        single
        and ("(bool)" in spec.type or any(use.node.op_type in COMPARISONS for use in spec.uses))
    )


def _dims(specs: Sequence[InputSpec], setting: _Setting) -> dict[str, int]:
    """Sizes of the dynamic dimensions under a setting, by symbol or ``input[axis]``."""
    sizes = _sizes(specs, setting)
    return {k if isinstance(k, str) else f"{k[0]}[{k[1]}]": v for k, v in sizes.items()}


def _sizes(specs: Sequence[InputSpec], setting: _Setting) -> dict[tuple[str, int] | str, int]:
    sizes: dict[tuple[str, int] | str, int] = {}
    formulas: list[str] = []
    for spec in specs:
        dims = _ranked(spec)
        dictated = {
            a % len(dims): n
            for a, n in fixed_dims(spec.uses).items()
            if -len(dims) <= a < len(dims)
        }
        for axis, d in enumerate(dims):
            if isinstance(d, int):
                continue
            if d is not None and not d.isidentifier() and _evaluate(d, _Ones()) is not None:
                formulas.append(d)
                continue
            key = d if d is not None else (spec.name, axis)
            if axis in dictated:
                sizes[key] = dictated[axis]
            elif key not in sizes:
                sizes[key] = int(getattr(setting, _kind(spec, d, axis, len(dims))))
    total = sizes.keys() & {"total_sequence_length", "total_seq_len"}
    for name in total:
        parts = [v for k, v in sizes.items() if isinstance(k, str) and k != name and _is_length(k)]
        if len(parts) == 2:  # what came before and what comes now
            sizes[name] = sum(parts)
    for formula in formulas:
        result = _evaluate(formula, {k: v for k, v in sizes.items() if isinstance(k, str)})
        sizes[formula] = result if result is not None and result >= 0 else setting.other
    return sizes


def _is_length(symbol: str) -> bool:
    return bool(_KINDS[1][1].search(symbol.lower()) or _KINDS[4][1].search(symbol.lower()))


def _ranked(spec: InputSpec) -> tuple[int | str | None, ...]:
    if spec.dims is not None:
        return spec.dims
    for use in spec.uses:
        if use.direct and use.node.op_type in _CONVS and use.index == 0:
            weight = ir.rank(use.node.inputs[1])
            if weight is not None:
                return (None,) * weight
    return (None, None)


def _kind(spec: InputSpec, symbol: str | None, axis: int, rank: int) -> str:
    if symbol is not None:
        for kind, pattern in _KINDS:
            if pattern.search(symbol.lower()):
                return kind
    # The state of a recurrent layer is (directions, batch, size).
    first = 1 if rank == 3 and _STATE.search(spec.name.lower()) else 0
    if rank >= 2 and axis == first:
        return "batch"
    convolved = any(u.direct and u.index == 0 and u.node.op_type in _CONVS for u in spec.uses)
    if axis >= 2 and (rank >= 4 or convolved):
        return "width" if axis == rank - 1 else "height"
    return "sequence" if rank in (1, 2) or (rank == 3 and axis == 1) else "other"


class _Ones(Mapping[str, int]):
    """A mapping in which every symbol is one, to see whether a formula is one."""

    def __getitem__(self, key: str) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _evaluate(formula: str, sizes: Mapping[str, int]) -> int | None:
    """Value of a dimension such as ``past_sequence_length + 1``; None if it is no arithmetic."""
    try:
        tree = ast.parse(formula.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        return None

    def walk(node: ast.AST) -> int | None:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.Name):
            return sizes[node.id] if node.id in sizes or isinstance(sizes, _Ones) else None
        if isinstance(node, ast.BinOp):
            a, b = walk(node.left), walk(node.right)
            if a is None or b is None:
                return None
            match node.op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.FloorDiv() | ast.Div() if b != 0:
                    return a // b
        return None

    return walk(tree)


_WIDE = 8
_MOST_ELEMENTS = 100_000_000


def _make(
    specs: Sequence[InputSpec], setting: _Setting, turn: int, variant: str, seed: int
) -> Feeds:
    sizes = _sizes(specs, setting)
    feeds: Feeds = {}
    for spec in specs:
        dims = tuple(
            d if isinstance(d, int) else sizes[d if d is not None else (spec.name, axis)]
            for axis, d in enumerate(_ranked(spec))
        )
        if math.prod(dims) > _MOST_ELEMENTS:
            raise CalibrationError(
                f"input {spec.name!r} has {math.prod(dims):,} elements, too many to make up; "
                "give data"
            )
        # A generator per input: what one input draws does not move the others.
        rng = np.random.default_rng([seed, turn, zlib.crc32(spec.name.encode())])
        feeds[spec.name] = _value(spec, spec.type, dims, sizes, rng, turn, variant)
    return feeds


def _value(
    spec: InputSpec,
    type_: str,
    dims: tuple[int, ...],
    sizes: Mapping[tuple[str, int] | str, int],
    rng: np.random.Generator,
    turn: int,
    variant: str,
) -> Any:
    if type_.startswith("optional("):
        if turn % 2:
            return None
        return _value(spec, type_[9:-1], dims, sizes, rng, turn, variant)
    if type_.startswith("seq("):
        shape = dims if spec.dims else (2, 3)
        return [
            _value(spec, type_[4:-1], shape, sizes, rng, turn, variant) for _ in range(2 + turn)
        ]
    if type_.startswith("map("):
        key = type_[4:].split(",")[0]
        keys: list[Any] = ["a", "b", "c"] if key == "string" else [0, 1, 2]
        item = type_.split(",", 1)[1][:-1].strip()
        drawn = [_value(spec, item, (), sizes, rng, turn, variant) for _ in keys]
        return {k: v.item() if hasattr(v, "item") else v for k, v in zip(keys, drawn, strict=True)}
    name = element_type(type_ or "tensor(float)")
    if name is None:
        raise CalibrationError(f"no values can be made up for input {spec.name!r} of type {type_}")
    if name == "string":
        words = np.array(["", "a", "b c", "Straße", "12", "-1.5"], object)
        return words[rng.integers(0, len(words), dims)] if dims else np.array("a b", object)
    dtype = ir.DataType[name.upper()].numpy()
    draw = Draw(spec.name, dtype, dims, spec.uses, sizes, rng, turn)
    if variant == "one" and dtype.kind not in "fc":
        return draw.full(1)
    if variant == "zero" and dtype.kind not in "fc":
        return draw.full(0)
    found = values(draw)
    return np.abs(found) + draw.full(0.1) if variant == "positive" and dtype.kind == "f" else found
