"""A log line: a stable phrase and its data, written once, for people and for programs.

    logger.warning(LogLine("Retrying message", topic=record.topic, offset=record.offset))

As text it reads ``Retrying message topic=order-paid-events offset=41``; with ``LOG_FORMAT=json``
the phrase is the message, and each of its data a field of its own.
"""

from __future__ import annotations

from contextvars import ContextVar

CONSUMER: ContextVar[str] = ContextVar("consumer")
"""The consumer whose work it is that logs."""

# Text from outside, which may hold anything.
_QUOTED = frozenset({"detail"})
# Text of ours, of several lines.
_AS_IT_IS = frozenset({"stacks"})
_SECONDS = "_seconds"


class LogLine:
    """What the logging module takes as a message; formatted only if somebody reads it.

    Attributes:
        phrase: What people grep.
        fields: Its data by name, in their order; names are snake_case.
    """

    __slots__ = ("fields", "phrase")

    def __init__(self, phrase: str, /, *, trace_id: str | None = None, **fields: object) -> None:
        """Say ``phrase`` with these fields; ``trace_id`` comes last, where there is one."""
        self.phrase = phrase
        self.fields = fields
        if trace_id is not None:
            fields["trace_id"] = trace_id

    def also(self, **fields: object) -> LogLine:
        """Return the same line with more data at its end."""
        line = type(self)(self.phrase)
        line.fields = self.fields | fields
        return line

    @property
    def message(self) -> str:
        """The message of the JSON line."""
        return self.phrase

    def __str__(self) -> str:
        pairs = (
            f"{name}={value!r}" if name in _QUOTED else f"{name}={_shown(name, value)}"
            for name, value in self.fields.items()
        )
        return " ".join((self.phrase, *pairs))


class FiguresLine(LogLine):
    """Figures as people write them: ``Fallback message stats - pending: 2, published: 45``.

    Names in ``_seconds`` are times, in seconds.
    """

    __slots__ = ()

    @property
    def message(self) -> str:
        """The message of the JSON line: the whole, since that is what people grep."""
        return str(self)

    def __str__(self) -> str:
        figures = (_figure(name, value) for name, value in self.fields.items())
        return f"{self.phrase} - {', '.join(figures)}"


def printable(text: str) -> str:
    """Return text on one line, with nothing in it that could steer a terminal or fake a line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _shown(name: str, value: object) -> str:
    return str(value) if name in _AS_IT_IS else printable(str(value))


def _figure(name: str, value: object) -> str:
    unit = " s" if name.endswith(_SECONDS) else ""
    return f"{name.removesuffix(_SECONDS).replace('_', ' ')}: {value}{unit}"
