"""The end of the worker's log, and its last warnings, read as the file grows."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path

SHOWN_WARNINGS = 3
_KEPT_WARNINGS = 50
TAIL_LINES = 15
_MAX_READ_BYTES = 1_000_000

_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# Faust: [2025-12-19 10:30:00,123] [4711] [WARNING] text
_FAUST = re.compile(
    r"^\[\d{4}-\d\d-\d\d (?P<time>\d\d:\d\d:\d\d)[^\]]*\] \[\d+\] "
    r"\[(?P<level>[A-Z]+)\] (?P<text>.*)$"
)
# A log line is a phrase and then key=value pairs; where a record is matters less than its id.
_PAIR = re.compile(r"\s\w+=")
_POSITION = re.compile(r"\s(?:topic|partition|offset)=\S+")
_EVENT_ID = re.compile(r"(event_id=[0-9a-f]{8})[-0-9a-f]{28}")
_WORTH_SHOWING = frozenset({"WARNING", "ERROR", "CRITICAL"})


@dataclass(frozen=True, slots=True)
class Warned:
    """A warning, the last one of its kind.

    Attributes:
        time: When, as the log has it.
        text: What, without the less important.
        times: How many of its kind there were.
    """

    time: str
    text: str
    times: int

    def __str__(self) -> str:
        often = f"{self.times:,} times " if self.times > 1 else ""
        return f"{self.time} {often}{self.text}"


class WorkerLog:
    """Follows a log file that may not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._rest = b""
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._warnings: dict[str, Warned] = {}

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines."""
        return tuple(self._tail)

    @property
    def warnings(self) -> tuple[Warned, ...]:
        """The last warnings and errors, one of each kind, the latest at the end."""
        return tuple(self._warnings.values())[-SHOWN_WARNINGS:]

    def read_on(self) -> None:
        """Take in what has been written since the last time."""
        try:
            with self._path.open("rb") as log:
                log.seek(self._position)
                while new := log.read(_MAX_READ_BYTES):
                    self._position += len(new)
                    *lines, self._rest = (self._rest + new).split(b"\n")
                    for line in lines:
                        self._take(line.decode("utf-8", "replace"))
        except FileNotFoundError:
            return

    def _take(self, line: str) -> None:
        line = _COLOUR.sub("", line).rstrip()
        if not line:
            return
        self._tail.append(line)
        found = _FAUST.match(line)
        if found is not None and found["level"] in _WORTH_SHOWING:
            self._warn(found["time"], found["text"])

    def _warn(self, time: str, text: str) -> None:
        # A storm of one kind must not hide the others.
        kind = _PAIR.split(text, maxsplit=1)[0]
        before = self._warnings.pop(kind, None)
        text = _EVENT_ID.sub(r"\1", _POSITION.sub("", text))
        self._warnings[kind] = Warned(time, text, (before.times if before else 0) + 1)
        if len(self._warnings) > _KEPT_WARNINGS:
            del self._warnings[next(iter(self._warnings))]
