"""Options of passes: how they are typed, checked and written in text.

Pipeline text, TOML and Python spell the same options. This module turns what was written (``Raw``)
into what the field of a pass is annotated with, and values back into text, such that
``convert(read(format_option(name, value)), annotation) == value``.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import json
import math
import numbers
import re
import sys
import types
import typing
from collections.abc import Iterable
from typing import Any

from graphopt.errors import GraphOptError

__all__ = [
    "OptionError",
    "Raw",
    "Word",
    "build",
    "check_annotation",
    "convert",
    "convert_option",
    "default_of",
    "did_you_mean",
    "format_option",
    "format_value",
    "kebab",
    "no_such_option",
    "non_default_options",
    "option_fields",
    "option_types",
    "type_text",
]

KEYWORDS = frozenset({"true", "false", "none", "inf", "nan"})
"""Words that are not text unless quoted."""

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*|[0-9]+:[0-9]+")


class Word(str):
    """A bare word, as opposed to a quoted string."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True)
class Raw:
    """A value as it was written.

    Attributes:
        value: Word, str, bool, int, float, None, or a tuple of ``Raw``.
        at: Offset into the source text that errors point at.
    """

    value: object
    at: int = 0

    @classmethod
    def of(cls, value: object) -> Raw:
        """Wrap plain data, such as a TOML value; lists become tuples, members their values."""
        if isinstance(value, enum.Enum):
            return cls(value.value)
        if isinstance(value, (list, tuple)):
            return cls(tuple(cls.of(each) for each in value))
        return cls(value)

    def __str__(self) -> str:
        """Return the value as pipeline text."""
        if isinstance(self.value, tuple):
            return f"({','.join(map(str, self.value))})"
        return self.value if isinstance(self.value, Word) else format_value(self.value)


class OptionError(ValueError):
    """An option does not exist, or cannot have this value.

    Attributes:
        at: Offset into the source text of what is wrong.
    """

    def __init__(self, message: str, at: int = 0) -> None:
        """Make an error that points at an offset."""
        super().__init__(message)
        self.at = at


# --- writing ------------------------------------------------------------------------------------


def kebab(name: str) -> str:
    """Return the spelling of a field name outside Python."""
    return name.replace("_", "-")


def format_option(name: str, value: object) -> str:
    """Return ``key=value`` as pipeline text; a bare key means true.

    Args:
        name: Field name, in snake case.
        value: The field's value.

    Returns:
        Text without spaces outside quoted strings.
    """
    if value is True:
        return kebab(name)
    text = format_value(value)
    if isinstance(value, tuple) and value and not _needs_parentheses(value):
        text = text[1:-1]
    return f"{kebab(name)}={text}"


def format_value(value: object) -> str:
    """Return an option value as pipeline text; tuples are in parentheses."""
    if isinstance(value, enum.Enum):
        return format_value(value.value)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        return repr(float(value))
    if isinstance(value, tuple):
        return f"({','.join(map(format_value, value))})"
    if not isinstance(value, str):
        value = repr(value)
    if _WORD.fullmatch(value) and value not in KEYWORDS:
        return str(value)
    # Not ASCII-escaped: JSON would merge two lone surrogates into one character on the way back.
    return json.dumps(value, ensure_ascii=False)


def _needs_parentheses(value: tuple[object, ...]) -> bool:
    """Return whether the only element would read as something else without them."""
    return len(value) == 1 and (value[0] is None or isinstance(value[0], tuple))


# --- types --------------------------------------------------------------------------------------


def option_fields(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields of a pass class that are options, by name."""
    return {field.name: field for field in dataclasses.fields(cls) if field.init}


def default_of(field: dataclasses.Field[Any]) -> object:
    """Return the default of a field, or ``dataclasses.MISSING`` if it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def non_default_options(made: Any) -> dict[str, Any]:
    """Return the options of a pass that differ from their defaults, in the order of the fields."""
    values = {name: getattr(made, name) for name in option_fields(type(made))}
    fields = option_fields(type(made))
    return {name: value for name, value in values.items() if value != default_of(fields[name])}


@functools.cache
def option_types(cls: type) -> dict[str, Any]:
    """Return the evaluated annotations of a pass class's options.

    Annotations are evaluated one by one where they were written: other annotations of the class
    may name things that are imported for type checkers only.

    Args:
        cls: A pass class.

    Returns:
        Annotation by field name.

    Raises:
        TypeError: An annotation names something that its module does not have.
    """
    found: dict[str, Any] = {}
    for name, field in option_fields(cls).items():
        owner = next(
            base
            for base in reversed(cls.__mro__)
            if base.__dict__.get("__dataclass_fields__", {}).get(name) is field
        )
        holder = types.SimpleNamespace(__annotations__={name: field.type})
        module = sys.modules.get(owner.__module__)
        space = vars(module) if module else {}
        try:
            found.update(typing.get_type_hints(holder, space, dict(vars(owner))))
        except NameError as error:
            raise TypeError(f"the annotation of option {kebab(name)!r}: {error}") from error
    return found


def check_annotation(annotation: Any) -> None:
    """Check that options can have this type.

    Args:
        annotation: An evaluated type annotation.

    Raises:
        TypeError: Values of the type have no text, are not hashable, or could not be told apart.
    """
    arms = _arms(annotation)
    for arm in arms:
        if _is_tuple(arm):
            for element in _elements(arm):
                check_annotation(element)
        elif _is_enum(arm):
            if not all(type(_plain(member)) in (int, str) for member in arm):
                raise TypeError(f"members of {arm.__name__} must have int or str values")
        elif typing.get_origin(arm) is typing.Literal:
            if not all(type(choice) in (int, str, bool, type(None)) for choice in arm.__args__):
                raise TypeError(f"{arm} must name int, str, bool or None")
        elif arm not in (bool, int, float, str, type(None)):
            raise TypeError(f"options cannot have the type {_name(arm)}")
    others = [arm for arm in arms if arm is not type(None)]
    if len(others) > 1 and any(arm not in (bool, int, float, str) for arm in others):
        raise TypeError(f"values of {_name(annotation)} cannot be told apart in text")


def type_text(annotation: Any) -> str:
    """Return what an option of this type wants, in words."""
    if _is_tuple(annotation):
        elements = _elements(annotation)
        if annotation.__args__[-1:] == (Ellipsis,):
            return f"a comma-separated list, each {type_text(elements[0])}"
        return f"{len(elements)} values ({', '.join(map(type_text, elements))})"
    if _is_enum(annotation) or typing.get_origin(annotation) is typing.Literal:
        return f"one of {', '.join(_choices(annotation))}"
    arms = _arms(annotation)
    if len(arms) > 1:
        shown = [arm for arm in arms if not (arm is int and float in arms)]
        return " or ".join(map(type_text, sorted(shown, key=lambda arm: arm is type(None))))
    names = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    return names.get(annotation, "none")


def _arms(annotation: Any) -> tuple[Any, ...]:
    """Return the alternatives of a union, None first and float last, as they are tried."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return (type(None) if annotation is None else annotation,)
    order = (type(None), bool, int)
    rank = {arm: order.index(arm) if arm in order else 3 for arm in annotation.__args__}
    rank.update({float: 4})
    return tuple(sorted(annotation.__args__, key=rank.__getitem__))


def _is_tuple(annotation: Any) -> bool:
    return typing.get_origin(annotation) is tuple


def _is_class(annotation: Any) -> bool:
    # In Python 3.10 list[int] is an instance of type.
    return isinstance(annotation, type) and typing.get_origin(annotation) is None


def _is_enum(annotation: Any) -> bool:
    return _is_class(annotation) and issubclass(annotation, enum.Enum)


def _elements(annotation: Any) -> tuple[Any, ...]:
    """Return the element types of a tuple type; one for ``tuple[X, ...]``."""
    return tuple(arg for arg in annotation.__args__ if arg not in (Ellipsis, ()))


def _plain(member: enum.Enum) -> object:
    """Return the value of a member without the enum mixed into its type."""
    value: object = member.value
    return str(value) if isinstance(value, str) else value


def _name(annotation: Any) -> str:
    return str(annotation.__name__ if _is_class(annotation) else annotation)


def _choices(annotation: Any) -> list[str]:
    """Return the text of each member of an enum or literal."""
    members = annotation if _is_enum(annotation) else annotation.__args__
    return [format_value(member) for member in members]


# --- reading ------------------------------------------------------------------------------------


def convert(raw: Raw, annotation: Any) -> Any:
    """Return the value that was written, as its annotation wants it.

    Integers are accepted for floats, and a single value for a tuple of one. ``inf`` is a number;
    ``nan`` is refused, since no two options would be equal.

    Args:
        raw: What was written.
        annotation: The evaluated annotation of the field.

    Returns:
        A value of the annotated type.

    Raises:
        OptionError: The value does not fit; it points at the innermost part that is wrong.
    """
    arms = _arms(annotation)
    for arm in arms:
        if _is_tuple(arm):
            if not isinstance(raw.value, tuple):
                raw = Raw((raw,), raw.at)
            return _convert_tuple(raw, arm)
        found = _scalar(raw, arm)
        if found:
            return found[0]
    wanted = type_text(annotation)
    choices = [text for arm in arms if wanted.startswith("one of") for text in _choices_of(arm)]
    hint = did_you_mean(str(raw), choices)
    raise OptionError(f"wants {wanted}, not {raw}{hint}", raw.at)


def _choices_of(arm: Any) -> list[str]:
    return [] if arm is type(None) else _choices(arm)


def _convert_tuple(raw: Raw, annotation: Any) -> tuple[Any, ...]:
    values = typing.cast("tuple[Raw, ...]", raw.value)
    elements = _elements(annotation)
    if annotation.__args__[-1:] == (Ellipsis,):
        elements *= len(values)
    elif len(elements) != len(values):
        raise OptionError(f"wants {type_text(annotation)}, not {raw}", raw.at)
    for each, element in zip(values, elements, strict=True):
        if _is_tuple(element) and not isinstance(each.value, tuple):
            raise OptionError(f"wants {type_text(element)} in parentheses, not {each}", each.at)
    return tuple(map(convert, values, elements))


def _scalar(raw: Raw, arm: Any) -> tuple[Any, ...]:
    """Return the converted value in a tuple of one, or an empty tuple if it does not fit."""
    value = raw.value
    if _is_enum(arm):
        return tuple(member for member in arm if _same(value, _plain(member)))[:1]
    if typing.get_origin(arm) is typing.Literal:
        typed = [choice for choice in arm.__args__ if _scalar(raw, type(choice)) == (choice,)]
        texts = [choice for choice in arm.__args__ if _same(value, choice)]
        return tuple(typed or texts)[:1]
    if arm is bool:
        if isinstance(value, Word):
            return {"true": (True,), "false": (False,)}.get(value, ())
        return (value,) if isinstance(value, bool) else ()
    if arm is int:
        return (value,) if type(value) is int else ()
    if arm is float:
        return _number(value)
    if arm is str:
        is_text = isinstance(value, str) and not (isinstance(value, Word) and value in KEYWORDS)
        return (str(value),) if is_text else ()
    return (None,) if value is None or (isinstance(value, Word) and value == "none") else ()


def _number(value: object) -> tuple[float, ...]:
    if isinstance(value, Word) and value == "inf":
        return (math.inf,)
    if type(value) is int:
        try:
            return (float(value),)
        except OverflowError:
            return ()
    return (value,) if isinstance(value, float) and not math.isnan(value) else ()


def _same(written: object, choice: object) -> bool:
    """Return whether a choice was written; a keyword may name a choice that is text."""
    if isinstance(choice, str):
        return isinstance(written, str) and str(written) == choice
    return type(written) is type(choice) and written == choice


def build(cls: type, options: Iterable[tuple[str, int, Raw | None]], at: int = 0) -> Any:
    """Make a pass from options as they were written.

    Args:
        cls: A pass class.
        options: Key in kebab or snake case, its offset, and the value; no value means true.
        at: Offset of the pass's name.

    Returns:
        An instance of the class.

    Raises:
        OptionError: An option is unknown, missing, given twice or wrong; or the pass refuses.
    """
    name = cls.name  # type: ignore[attr-defined]
    fields, annotations = option_fields(cls), option_types(cls)
    given: dict[str, Any] = {}
    for written, key_at, raw in options:
        key = written.replace("-", "_")
        if key not in fields:
            raise OptionError(no_such_option(name, written, fields), key_at)
        if key in given:
            raise OptionError(f"option {kebab(key)!r} is given twice", key_at)
        given[key] = convert_option(kebab(key), key_at, raw, annotations[key])
    for key, field in fields.items():
        if key not in given and default_of(field) is dataclasses.MISSING:
            raise OptionError(f"{name} needs option {kebab(key)!r}", at)
    try:
        return cls(**given)
    except (ValueError, GraphOptError) as error:
        raise OptionError(f"{name}: {error}", at) from error


def convert_option(key: str, key_at: int, raw: Raw | None, annotation: Any) -> Any:
    """Convert one option's value; errors name the option.

    Args:
        key: The option, for messages.
        key_at: Offset of the key.
        raw: What was written, or None for a key alone, which means true.
        annotation: The evaluated annotation of the field.

    Returns:
        A value of the annotated type.

    Raises:
        OptionError: The value does not fit.
    """
    try:
        return convert(raw or Raw(True, key_at), annotation)
    except OptionError as error:
        if raw is None:
            wanted = type_text(annotation)
            raise OptionError(f"option {key!r} needs a value: {wanted}", key_at) from None
        raise OptionError(f"option {key!r} {error}", error.at) from None


def no_such_option(owner: str, key: str, fields: Iterable[str]) -> str:
    """Return the message for an option that does not exist."""
    known = sorted(map(kebab, fields))
    if not known:
        return f"{owner} has no option {key!r}; it has none"
    return f"{owner} has no option {key!r}; it has {', '.join(known)}{did_you_mean(key, known)}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a suggestion to append to a message, or an empty string if nothing is near."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""
