"""Which passes and named pipelines exist: those registered, and those that distributions bring.

A distribution brings passes with one entry point in the group ``graphopt.passes`` that names a
module with ``PASSES``, a tuple of pass classes, and ``PIPELINES``, a dict from name to pipeline
text. Either may be missing. The passes of graphopt itself arrive the same way.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import threading
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar, overload

from graphopt.errors import ConfigError, UnknownPassError
from graphopt.manager import options
from graphopt.manager.base import Exactness, Pass
from graphopt.manager.describe import Description, describe_pass, describe_pipeline

__all__ = ["GROUP", "Registry", "default_registry", "register", "validate"]

GROUP = "graphopt.passes"
"""Entry point group that distributions announce passes in."""

_PASS_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_PIPELINE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(-[A-Za-z0-9]+)*")
_OPTION_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_RESERVED = frozenset({"fixpoint", "pipeline"}) | options.KEYWORDS
_RESERVED_OPTIONS = frozenset({"name", "passes", "pipeline", "fixpoint"})

P = TypeVar("P", bound=Pass)


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A pass class or the text of a pipeline, and where it came from."""

    what: type[Pass] | str
    origin: str


class Registry:
    """Passes and named pipelines by name; they share one namespace.

    Entry points are loaded when the first name is looked up. A distribution that fails to load is
    reported by ``problems`` and in the error for a name that is not found; it breaks nothing else.

    Args:
        group: Entry point group to load passes from; none if None.
    """

    def __init__(self, group: str | None = None) -> None:
        """Make a registry; nothing is loaded yet."""
        self._group = group
        self._entries: dict[str, _Entry] = {}
        self._conflicts: dict[str, str] = {}
        self._problems: list[str] = []
        self._loaded = group is None
        self._lock = threading.RLock()

    @overload
    def register(self, pass_class: type[P], /, **pipelines: str) -> type[P]: ...

    @overload
    def register(self, pass_class: None = None, /, **pipelines: str) -> None: ...

    def register(self, pass_class: type[P] | None = None, /, **pipelines: str) -> type[P] | None:
        """Add a pass, named pipelines, or both; usable as a class decorator.

        Registering a class again, as a rerun notebook cell or a reloaded module does, replaces it.

        Args:
            pass_class: A concrete subclass of ``Pass`` with a docstring.
            **pipelines: Pipeline text by name; underscores in names become hyphens.

        Returns:
            The class.

        Raises:
            ConfigError: The class is not a valid pass, a name is malformed, or it is taken.
        """
        origin = "graphopt.register"
        found: list[tuple[str, _Entry]]
        with self._lock:
            found = [_check(options.kebab(name), text, origin) for name, text in pipelines.items()]
            if pass_class is not None:
                found.append(_check(pass_class, None, origin))
            for name, entry in found:
                conflict = self._conflict(name, entry)
                if conflict:
                    raise ConfigError(conflict)
            self._entries.update(found)
        return pass_class

    def lookup(self, name: str) -> type[Pass] | str:
        """Return the class of a pass, or the text of a named pipeline.

        Args:
            name: Name of either.

        Returns:
            A pass class or pipeline text.

        Raises:
            UnknownPassError: There is neither; the message suggests the nearest name.
            ConfigError: Two distributions provide the name.
        """
        self._load()
        if name in self._conflicts:
            raise ConfigError(self._conflicts[name])
        if name not in self._entries:
            raise UnknownPassError(self._unknown(name))
        return self._entries[name].what

    def get(self, name: str) -> type[Pass]:
        """Return the class of a pass.

        Args:
            name: Name of a pass.

        Returns:
            The class.

        Raises:
            UnknownPassError: No pass has this name; it may be a pipeline's.
            ConfigError: Two distributions provide the name.
        """
        found = self.lookup(name)
        if isinstance(found, str):
            raise UnknownPassError(f"{name!r} is a pipeline, not a pass: {found}")
        return found

    def names(self) -> list[str]:
        """Return the names of all passes, sorted."""
        self._load()
        return sorted(n for n, entry in self._entries.items() if not isinstance(entry.what, str))

    def pipelines(self) -> dict[str, str]:
        """Return the text of every named pipeline, sorted by name."""
        self._load()
        found = {n: entry.what for n, entry in self._entries.items() if isinstance(entry.what, str)}
        return dict(sorted(found.items()))

    def origin(self, name: str) -> str:
        """Return the distribution that provides a name, or ``graphopt.register``.

        Args:
            name: Name of a pass or pipeline.

        Raises:
            UnknownPassError: There is neither.
            ConfigError: Two distributions provide the name.
        """
        self.lookup(name)
        return self._entries[name].origin

    def problems(self) -> list[str]:
        """Return what is wrong with installed plugins, a sentence each; usually none."""
        self._load()
        return [*self._problems, *self._conflicts.values()]

    def describe(self, name: str) -> Description:
        """Return the documentation of a pass or named pipeline as data.

        Args:
            name: Name of either.

        Returns:
            Summary, docstring sections, options, and where it comes from.

        Raises:
            UnknownPassError: There is neither.
            ConfigError: Two distributions provide the name.
        """
        found, origin = self.lookup(name), self.origin(name)
        if isinstance(found, str):
            return describe_pipeline(name, found, origin)
        return describe_pass(found, origin)

    # --- loading ---

    def _load(self) -> None:
        """Load the entry points, once."""
        with self._lock:
            if self._loaded or self._group is None:
                return
            # First, so that a plugin may look names up while it is imported.
            self._loaded = True
            points = sorted(entry_points(group=self._group), key=_load_order)
            if not points:
                self._problems.append(
                    f"no distribution provides passes in the entry point group {self._group!r}; "
                    "install graphopt with pip"
                )
            for point in points:
                self._load_one(point)

    def _load_one(self, point: EntryPoint) -> None:
        origin = f"distribution {_distribution(point)!r}"
        try:
            module = point.load()
        except Exception as error:
            # A plugin may fail in any way; that must not break the passes of others.
            self._problems.append(f"{origin} cannot be loaded: {type(error).__name__}: {error}")
            return
        passes, pipelines = getattr(module, "PASSES", ()), getattr(module, "PIPELINES", {})
        if not isinstance(passes, tuple) or not isinstance(pipelines, dict):
            self._problems.append(f"{origin}: PASSES must be a tuple and PIPELINES a dict")
            return
        if not passes and not pipelines:
            self._problems.append(f"{origin}: {point.value} has no PASSES and no PIPELINES")
        found = [(cls, None) for cls in passes] + list(pipelines.items())
        for name, text in found:
            try:
                name, entry = _check(name, text, origin)
            except ConfigError as error:
                self._problems.append(f"{origin}: {error}")
                continue
            conflict = self._conflict(name, entry)
            if conflict:
                self._conflicts[name] = conflict
            else:
                self._entries[name] = entry

    def _conflict(self, name: str, new: _Entry) -> str | None:
        """Return what is wrong with adding an entry: another one has its name."""
        old = self._entries.get(name)
        if old is None or old.what == new.what:
            return None
        if old.origin == new.origin and _same_source(old.what, new.what):
            return None
        return f"{name!r} is provided twice: by {old.origin} and by {new.origin}"

    def _unknown(self, name: str) -> str:
        """Return the message for a name that does not exist."""
        near = options.did_you_mean(name, [*sorted(self._entries), "fixpoint"])
        problems = "".join(f" ({problem})" for problem in self._problems)
        return f"no pass is called {name!r}{near}{problems}"


@functools.cache
def default_registry() -> Registry:
    """Return the registry of installed passes that everything uses unless told otherwise."""
    return Registry(GROUP)


@overload
def register(pass_class: type[P], /, **pipelines: str) -> type[P]: ...


@overload
def register(pass_class: None = None, /, **pipelines: str) -> None: ...


def register(pass_class: type[P] | None = None, /, **pipelines: str) -> type[P] | None:
    """Add a pass, named pipelines, or both to the default registry; see ``Registry.register``.

    Args:
        pass_class: A concrete subclass of ``Pass`` with a docstring.
        **pipelines: Pipeline text by name; underscores in names become hyphens.

    Returns:
        The class, so that this works as a decorator.

    Raises:
        ConfigError: The class is not a valid pass, a name is malformed, or it is taken.
    """
    return default_registry().register(pass_class, **pipelines)


def validate(pass_class: Any) -> None:
    """Check that a class can be registered as a pass.

    Args:
        pass_class: What should be a concrete subclass of ``Pass``.

    Raises:
        ConfigError: It is none, or its name, docstring, promise or options are not in order.
    """
    if not (isinstance(pass_class, type) and issubclass(pass_class, Pass)):
        raise ConfigError(f"{pass_class!r} is not a subclass of Pass")
    where = pass_class.__qualname__
    if inspect.isabstract(pass_class):
        raise ConfigError(f"{where} does not implement run")
    name: object = getattr(pass_class, "name", None)
    if not isinstance(name, str) or not _PASS_NAME.fullmatch(name) or name in _RESERVED:
        raise ConfigError(f"{where} needs a kebab-case name, not {name!r}")
    if not (pass_class.__doc__ or "").strip():
        raise ConfigError(f"pass {name!r} needs a docstring")
    if not isinstance(pass_class.exactness, Exactness):
        raise ConfigError(f"pass {name!r} needs an Exactness, not {pass_class.exactness!r}")
    try:
        annotations = options.option_types(pass_class)
    except TypeError as error:
        raise ConfigError(f"pass {name!r}: {error}") from error
    for field, annotation in annotations.items():
        _validate_option(pass_class, field, annotation)


def _validate_option(pass_class: type[Pass], field: str, annotation: Any) -> None:
    where = f"option {options.kebab(field)!r} of pass {pass_class.name!r}"
    if not _OPTION_NAME.fullmatch(field) or field in _RESERVED_OPTIONS:
        raise ConfigError(f"{where} cannot have that name")
    try:
        options.check_annotation(annotation)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None
    default = options.default_of(options.option_fields(pass_class)[field])
    if default is dataclasses.MISSING:
        return
    try:
        options.convert(options.Raw.of(default), annotation)
    except options.OptionError as error:
        raise ConfigError(f"the default of {where} {error}") from None


def _check(what: Any, text: str | None, origin: str) -> tuple[str, _Entry]:
    """Validate a pass class, or the name and text of a pipeline."""
    if text is None:
        validate(what)
        return what.name, _Entry(what, origin)
    name_ok = isinstance(what, str) and _PIPELINE_NAME.fullmatch(what) and what not in _RESERVED
    if not name_ok:
        raise ConfigError(f"{what!r} cannot be the name of a pipeline")
    if not isinstance(text, str):
        raise ConfigError(f"pipeline {what!r} must be text, not {text!r}")
    return what, _Entry(text, origin)


def _same_source(old: type[Pass] | str, new: type[Pass] | str) -> bool:
    """Return whether two classes come from the same statement, or both are pipelines."""
    if isinstance(old, str) or isinstance(new, str):
        return isinstance(old, str) and isinstance(new, str)
    return (old.__module__, old.__qualname__) == (new.__module__, new.__qualname__)


def _distribution(point: EntryPoint) -> str:
    """Return the name of the distribution an entry point belongs to."""
    return point.dist.name if point.dist is not None else point.value


def _load_order(point: EntryPoint) -> tuple[bool, str, str]:
    """Order graphopt first, then by name: what is found does not depend on the file system."""
    distribution = _distribution(point)
    return distribution != "graphopt", distribution, point.name
