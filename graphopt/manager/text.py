r"""Pipeline text: ``cleanup,fixpoint{max=4}(fold-constants,fuse-conv-bn),quantize{per-channel}``.

::

    pipeline = ( element ("," element)* )? ;
    element  = name options? | "fixpoint" options? "(" pipeline ")" ;
    options  = "{" ( key ("=" value ("," value)*)? )* "}" ;
    value    = number | word | string | "(" ( value ("," value)* )? ")" ;
    number   = [+-]? ( digits ("." digits?)? | "." digits ) ( [eE] [+-]? digits )? | [+-] "inf" ;
    word     = [A-Za-z_] [A-Za-z0-9_.-]* | digits ":" digits ;
    string   = '"' characters and the escapes of JSON '"' ;

Options are separated by spaces, a key alone means true, space is free between tokens. The words
``true``, ``false``, ``none`` and ``inf`` mean what they say, unless quoted; ``nan`` is refused.
Several values make a tuple; parentheses do so inside tuples, and ``()`` is the empty one.

Two laws hold: ``parse(str(p)) == p`` for every pipeline ``p``, and ``str(parse(s))`` is canonical.
"""

from __future__ import annotations

import json
import math
import re
from typing import NamedTuple, NoReturn

from graphopt.errors import PipelineSyntaxError, UnknownPassError
from graphopt.manager.base import Pass, Pipeline
from graphopt.manager.options import (
    OptionError,
    Raw,
    Word,
    build,
    convert_option,
    no_such_option,
)
from graphopt.manager.registry import Registry, default_registry

__all__ = ["DEFAULT_REPEAT", "parse"]

DEFAULT_REPEAT = 10
"""How often ``fixpoint`` runs its passes at most when ``max`` is not given."""

_MAX_DEPTH = 50

_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |   (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.:+-])|[-+]inf(?![\w.-]))
    |   (?P<word>[A-Za-z_][\w.-]*|\d+:\d+(?![\w.:+-]))
    |   (?P<string>"(?:[^"\\]|\\.)*")
    |   (?P<mark>[{}(),=])""",
    re.VERBOSE | re.ASCII | re.DOTALL,
)
_NOT_A_NUMBER = re.compile(r"[-+]?\.?\d[\w.:+-]*", re.ASCII)


def parse(text: str, registry: Registry | None = None) -> Pipeline:
    """Parse pipeline text; names of pipelines are replaced by their passes.

    Args:
        text: A pipeline in the syntax above; empty text is the empty pipeline.
        registry: Passes and named pipelines; the default registry if None.

    Returns:
        The pipeline, in the normal form that ``Pipeline`` has after construction.

    Raises:
        PipelineSyntaxError: The text does not parse, or an option is unknown or wrong. The message
            shows the line with a caret under the column.
        UnknownPassError: No pass or pipeline has the name; the message suggests the nearest one.
        ConfigError: Two distributions provide the pass.
    """
    return _Parser(text, default_registry() if registry is None else registry, ()).parse()


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


def _caret(message: str, text: str, at: int) -> str:
    """Return a message followed by the line it is about and a caret under the column."""
    start = text.rfind("\n", 0, at) + 1
    end = text.find("\n", at)
    line = text[start : end if end >= 0 else len(text)]
    column = at - start
    where = f"line {text.count(chr(10), 0, at) + 1}, " if "\n" in text else ""
    shown = "".join(char if char.isprintable() else " " for char in line)
    return f"{message} at {where}column {column + 1}\n  {shown}\n  {' ' * column}^"


def _lex(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise PipelineSyntaxError(_caret(_lexical_error(text, at), text, at))
        kind = str(match.lastgroup)
        if kind != "space":
            tokens.append(_Token(kind, match.group(), at))
        at = match.end()
    tokens.append(_Token("end", "", len(text)))
    return tokens


def _lexical_error(text: str, at: int) -> str:
    number = _NOT_A_NUMBER.match(text, at)
    if number:
        return f"{number.group()!r} is not a number; quote it if it is text"
    if text[at] == '"':
        return "the quote is never closed"
    if text[at] == "'":
        return "text is quoted with double quotes"
    if text[at] == ";":
        return "passes are separated by commas"
    return f"unexpected character {text[at]!r}"


class _Parser:
    """Recursive descent over one text; ``within`` are the named pipelines being expanded."""

    def __init__(self, text: str, registry: Registry, within: tuple[str, ...]) -> None:
        self.text, self.registry, self.within = text, registry, within
        self.tokens, self.position, self.depth = _lex(text), 0, 0

    def parse(self) -> Pipeline:
        passes = self.passes("end")
        if self.here.kind != "end":
            self.fail(f"expected ',' or the end, found {self.here.text!r}")
        return Pipeline(passes=passes)

    # --- tokens ---

    @property
    def here(self) -> _Token:
        return self.tokens[self.position]

    def sees(self, mark: str) -> bool:
        return self.here.kind == "mark" and self.here.text == mark

    def next(self) -> _Token:
        self.position += 1
        return self.tokens[self.position - 1]

    def skip(self, mark: str) -> bool:
        seen = self.sees(mark)
        self.position += seen
        return seen

    def fail(self, message: str, at: int | None = None) -> NoReturn:
        raise PipelineSyntaxError(_caret(message, self.text, self.here.at if at is None else at))

    def expected(self, what: str) -> NoReturn:
        self.fail(f"expected {what}, found {repr(self.here.text) if self.here.text else 'the end'}")

    def enter(self) -> None:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            self.fail(f"nested more than {_MAX_DEPTH} deep")

    # --- grammar ---

    def passes(self, stop: str) -> tuple[Pass, ...]:
        """Parse elements up to the end or a closing parenthesis, which is not consumed."""
        found: list[Pass] = []
        if self.here.kind == stop or self.sees(stop):
            return ()
        found.append(self.element())
        while self.skip(","):
            found.append(self.element())
        return tuple(found)

    def element(self) -> Pass:
        name = self.here
        if name.kind != "word":
            self.expected("a pass name")
        self.next()
        options = self.options() if self.sees("{") else None
        if name.text == "fixpoint":
            return self.fixpoint(name, options or [])
        if self.sees("("):
            self.fail("only fixpoint takes passes in parentheses")
        try:
            known = self.registry.lookup(name.text)
        except UnknownPassError as error:
            raise UnknownPassError(_caret(str(error), self.text, name.at)) from None
        if isinstance(known, str):
            if options is not None:
                self.fail(f"{name.text} is a pipeline, which takes no options", name.at)
            return self.named(name, known)
        try:
            made: Pass = build(known, options or [], name.at)
        except OptionError as error:
            raise PipelineSyntaxError(_caret(str(error), self.text, error.at)) from error.__cause__
        return made

    def named(self, name: _Token, text: str) -> Pipeline:
        """Expand a named pipeline."""
        within = (*self.within, name.text)
        if name.text in self.within:
            self.fail(f"pipeline {name.text!r} contains itself: {' -> '.join(within)}", name.at)
        try:
            return _Parser(text, self.registry, within).parse()
        except (PipelineSyntaxError, UnknownPassError) as error:
            raise type(error)(f"in pipeline {name.text!r}: {error}") from error.__cause__

    def fixpoint(self, name: _Token, options: list[tuple[str, int, Raw | None]]) -> Pipeline:
        repeat = DEFAULT_REPEAT
        for index, (key, at, raw) in enumerate(options):
            if key != "max":
                self.fail(no_such_option("fixpoint", key, ["max"]), at)
            if index:
                self.fail("option 'max' is given twice", at)
            try:
                repeat = convert_option(key, at, raw, int)
            except OptionError as error:
                self.fail(str(error), error.at)
            if repeat < 1:
                self.fail(f"option 'max' wants at least 1, not {repeat}", raw.at if raw else at)
        if not self.sees("("):
            self.expected("'(' and the passes to repeat")
        self.next()
        self.enter()
        passes = self.passes(")")
        self.depth -= 1
        if not self.skip(")"):
            self.expected("',' or ')'")
        return Pipeline(passes=passes, repeat=repeat)

    def options(self) -> list[tuple[str, int, Raw | None]]:
        found: list[tuple[str, int, Raw | None]] = []
        self.next()
        while not self.skip("}"):
            key = self.here
            if key.kind == "mark" and key.text == ",":
                self.fail("options are separated by spaces, not commas")
            if key.kind != "word":
                self.expected("an option or '}'")
            self.next()
            value = self.values() if self.skip("=") else None
            found.append((key.text, key.at, value))
        return found

    def values(self) -> Raw:
        """Parse what follows ``=``: one value, or several, which are a tuple."""
        first = self.value()
        if not self.sees(","):
            return first
        found = [first]
        while self.skip(","):
            found.append(self.value())
            if self.sees("="):
                comma = self.tokens[self.position - 2]
                self.fail("options are separated by spaces, not commas", comma.at)
        return Raw(tuple(found), first.at)

    def value(self) -> Raw:
        token = self.here
        if token.kind == "number":
            return Raw(self.number(), token.at)
        if token.kind == "word":
            return Raw(Word(self.next().text), token.at)
        if token.kind == "string":
            return Raw(self.string(), token.at)
        if not self.skip("("):
            self.expected("a value")
        self.enter()
        found: list[Raw] = []
        while not self.sees(")"):
            found.append(self.value())
            if not self.skip(","):
                break
        self.depth -= 1
        if not self.skip(")"):
            self.expected("',' or ')'")
        return Raw(tuple(found), token.at)

    def number(self) -> int | float:
        token = self.here
        if re.fullmatch(r"[-+]?\d+", token.text):
            try:
                return int(self.next().text)
            except ValueError:
                self.fail("the number has too many digits", token.at)
        number = float(token.text)
        if math.isinf(number) and not token.text.endswith("inf"):
            self.fail("the number is too large; write inf for infinity")
        self.next()
        return number

    def string(self) -> str:
        token = self.here
        try:
            # Not strict: raw line breaks and tabs are fine inside quotes.
            text: str = json.loads(token.text, strict=False)
        except json.JSONDecodeError as error:
            # Where the decoder points differs between its versions; the backslash is what is wrong.
            at = self.text.rfind("\\", token.at, token.at + error.pos + 1)
            escape = self.text[at : at + 2]
            self.fail(f"the escape {escape} is unknown; a backslash is written \\\\", at)
        self.next()
        return text
