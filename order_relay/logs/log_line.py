"""A log line: a fixed phrase and its fields, readable for people and for programs.

    logger.warning(LogLine("Retrying message", topic=record.topic, offset=record.offset))

As text it reads ``Retrying message topic=order-paid-events offset=41``. With ``LOG_FORMAT=json``
the phrase is the message, and each field is a field of the JSON object.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from urllib.parse import urlencode

CONSUMER: ContextVar[str] = ContextVar("consumer")
"""The consumer that the current task works for."""
CONSOLE_URL: ContextVar[str] = ContextVar("console_url", default="")
"""Where this process serves the console; empty: it does not."""


class LogLine:
    """A message for the ``logging`` module. It is formatted only when a handler writes it.

    Attributes:
        phrase: The fixed text that people search for.
        fields: The data by name, in order. Names are snake_case.
    """

    __slots__ = ("fields", "phrase")

    def __init__(
        self,
        phrase: str,
        /,
        *,
        trace_id: str | None = None,
        page: tuple[str, Mapping[str, str]] | None = None,
        **fields: object,
    ) -> None:
        """Make a line of ``phrase`` and fields. ``trace_id`` comes last if it is given.

        ``page`` is a path and the query of the console's page about it. Its URL is the field
        ``console`` where this process serves the console.
        """
        self.phrase = phrase
        self.fields = fields
        if page is not None and (base := CONSOLE_URL.get()):
            path, query = page
            fields["console"] = f"{base}{path}{'?' if query else ''}{urlencode(query)}"
        if trace_id is not None:
            fields["trace_id"] = trace_id

    @property
    def message(self) -> str:
        """The message of the JSON line."""
        return self.phrase

    def __str__(self) -> str:
        pairs = (f"{name}={_shown(name, value)}" for name, value in self.fields.items())
        return " ".join((self.phrase, *pairs))


class FiguresLine(LogLine):
    """A line of figures: ``Fallback message stats - pending: 2, published: 45``.

    A figure whose name ends in ``_seconds`` is a time in seconds.
    """

    __slots__ = ()

    @property
    def message(self) -> str:
        """The message of the JSON line: all of it, since people search for it."""
        return str(self)

    def __str__(self) -> str:
        figures = (
            f"{name.removesuffix('_seconds').replace('_', ' ')}: {value}"
            + (" s" if name.endswith("_seconds") else "")
            for name, value in self.fields.items()
        )
        return f"{self.phrase} - {', '.join(figures)}"


def printable(text: str) -> str:
    """Return text as one line, with control characters escaped.

    They could change what a terminal shows, or look like another log line.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _shown(name: str, value: object) -> str:
    if name == "detail":  # text from outside, which can contain anything
        return repr(value)
    # Stacks are our own text of several lines.
    return str(value) if name == "stacks" else printable(str(value))
