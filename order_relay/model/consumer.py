"""The declaration of a consumer: what it reads, and what handles it."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import msgspec

from order_relay.errors import InvalidConsumer
from order_relay.model.order_paid import OrderId, OrderPaid

# The name is used in metrics, log lines and environment variables.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")

YIELDS = (inspect.isgeneratorfunction, inspect.isasyncgenfunction)
ASYNC_OR_YIELDS = (inspect.iscoroutinefunction, *YIELDS)
# Arguments of a consumer that no variable sets.
_NOT_OPTIONS = {"self", "name", "event", "handler", "key", "subject"}

# The consumers that are declared while their modules are imported.
DECLARED: ContextVar[list[Consumer]] = ContextVar("declared")

Handler = Callable[[Any, "Delivery"], Any]
EventKey = Callable[[Any], str | bytes | int | None]
F = TypeVar("F", bound=Handler)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One attempt to handle a record, as its handler sees it.

    Attributes:
        consumer: The consumer's name.
        idempotency_key: The same for all attempts, redrives and replays of one event, and
            different for each event. Pass it to the target, or store it, to handle each event once.
        attempt: 1 for the first attempt in this worker.
        topic: The record's topic.
        partition: Its partition.
        offset: Its offset.
        key: Its key; ``None`` without one.
        value: Its value, byte for byte.
        headers: All its headers in their order, including duplicates.
        timestamp_ms: Its timestamp in milliseconds since the epoch.
    """

    consumer: str
    idempotency_key: str
    attempt: int
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp_ms: int


class HttpPost:
    """A handler that POSTs each record's value, byte for byte.

    2xx finishes the record; docs/explanation/giving-up.md says what other answers mean.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        connect_timeout_seconds: float | None = None,
        batch_size: int | None = None,
        batch_bytes: int | None = None,
        batch_linger_ms: int | None = None,
        batch_format: Literal["json_array", "ndjson"] | None = None,
        content_type: str | None = None,
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
    ) -> None:
        """Post to ``url``; without it, ``<NAME>_URL`` must be set.

        The variable of its name overrides each argument, such as ``<NAME>_BATCH_SIZE``. Secrets
        come from variables only, or from files that ``<VARIABLE>_FILE`` names: ``<NAME>_TOKEN``,
        ``<NAME>_HEADERS``, ``<NAME>_SIGNING_SECRETS``, ``<NAME>_PROXY``.

        Args:
            url: http:// or https://.
            connect_timeout_seconds: Maximum time for a new connection; 5.
            batch_size: Maximum records in one POST; 1.
            batch_bytes: Maximum size of the body of a batch; 1,000,000.
            batch_linger_ms: How long a record waits for others; 20.
            batch_format: ``json_array`` or ``ndjson``; ``json_array``.
            content_type: Content type of the body; ``application/json``.
            ca_file: PEM file of the authorities to trust instead of the system's.
            cert_file: PEM file of our own certificate.
            key_file: PEM file of its key.
        """
        self.options = _given(locals())
        """The arguments that were given, by name."""


class Consumer:
    """Reads a topic in its own consumer group, and handles each record.

    Records of one key are handled one after another, those of different keys concurrently. A
    record is finished when its handler returns (HTTP: 2xx), or when its dead letter is stored.

    Attributes:
        name: Its name in metrics, log lines and commands; in upper case, the prefix of its
            variables.
        event: The type that the records' values are decoded to.
        key: The function that orders events, or ``None``: by the records' keys.
        subject: The function that returns an event's id, or ``None``: its ``orderId``.
        options: The other arguments that were given, by name.
    """

    def __init__(
        self,
        name: str,
        *,
        topic: str,
        group: str,
        event: type[msgspec.Struct] | type[bytes] = OrderPaid,
        handler: HttpPost | Handler | None = None,
        dead_letter_topic: str | None = None,
        key: EventKey | None = None,
        subject: Callable[[Any], OrderId | None] | None = None,
        max_in_flight: int | None = None,
        max_rate: float | None = None,
        timeout_seconds: float | None = None,
        retry_max_attempts: int | None = None,
        retry_initial_interval_ms: int | None = None,
        retry_multiplier: float | None = None,
        retry_max_interval_ms: int | None = None,
        auto_redrive: str | None = None,
        auto_redrive_rate: float | None = None,
        breaker_failure_threshold: int | None = None,
        breaker_probe_interval_seconds: float | None = None,
        deliveries_store: Literal["memory", "rocksdb", "off"] | None = None,
        deliveries_retention_hours: float | None = None,
        deliveries_max_entries: int | None = None,
    ) -> None:
        """Declare a consumer; nothing is connected or started.

        The variable ``<NAME>_<ARGUMENT>``, such as ``COUPONS_MAX_IN_FLIGHT=64``, overrides each
        argument except ``event``, ``handler``, ``key`` and ``subject``.

        Args:
            name: Lower-case letters, digits and underscores, starting with a letter.
            topic: The topic to read.
            group: Its consumer group; it must differ from those of other consumers.
            event: The msgspec Struct that each value is decoded to; ``bytes``: no decoding.
            handler: ``HttpPost(...)`` or a function; or decorate a function with ``.handler``.
            dead_letter_topic: The topic for records given up; ``<topic>.<name>.DLQ``.
            key: Returns what orders the events of a partition, in place of the record's key;
                ``None``: nothing does.
            subject: Returns an event's id in ``/orders/<id>`` and the deliveries table.
            max_in_flight: Maximum concurrent records in one worker; 256.
            max_rate: Maximum attempts a second in one worker; as many as the target accepts.
            timeout_seconds: Maximum time of an attempt; 10. It cannot stop a plain function.
            retry_max_attempts: Attempts after the first one; 3.
            retry_initial_interval_ms: Wait before the first retry; 1,000.
            retry_multiplier: Factor from one wait to the next; 2.
            retry_max_interval_ms: Longest wait between retries; 10,000.
            auto_redrive: Waits such as ``10m,1h,6h``: a dead letter that ran out of retries is
                redriven after each of them; none.
            auto_redrive_rate: Such letters a second at most; 10.
            breaker_failure_threshold: Failed first attempts in a row that open the breaker; 20.
                0: it never opens.
            breaker_probe_interval_seconds: Time between two probes while it is open; 5.
            deliveries_store: Where the deliveries table is stored; ``memory``.
            deliveries_retention_hours: How long an entry is kept; 24.
            deliveries_max_entries: Maximum entries in memory; 1,000,000.

        Raises:
            InvalidConsumer: An argument cannot be used; the message is one line.
        """
        self.options = _given(locals())
        self.name = name
        if not _NAME.fullmatch(str(name)):
            raise InvalidConsumer(
                f"consumer {str(name)[:80]!r}: a name has small letters, digits and underscores, "
                "at most 63, and begins with a letter"
            )
        for argument, given in (("topic", topic), ("group", group)):
            if given is None:  # such as a variable that is not set
                raise InvalidConsumer(f"consumer {name}: {argument}=None must be a name")
        if event is not bytes and not _is_struct(event):
            raise InvalidConsumer(
                f"consumer {name}: event={event!r} must be a msgspec.Struct class, or bytes"
            )
        for argument, function in (("key", key), ("subject", subject)):
            if function is not None:
                _check_function(name, f"{argument}=", function, 1)
                if runs(function, *ASYNC_OR_YIELDS):
                    raise InvalidConsumer(
                        f"consumer {name}: {argument}= must be a function without async or yield"
                    )
        self.event = event
        self.key = key
        self.subject = subject
        self._handler: HttpPost | Handler | None = None
        if isinstance(handler, HttpPost):
            self._handler = handler
        elif handler is not None:
            self.handler(handler)
        DECLARED.get([]).append(self)

    def handler(self, function: F) -> F:
        """Set the function that handles the records; a decorator.

        It is called with an event and a ``Delivery``. If it returns, the record is finished.
        ``Reject``, ``RetryLater`` and ``Unavailable`` have the meanings in
        ``order_relay.errors``; any other exception is a failed attempt. A plain function runs in a
        thread.

        Raises:
            InvalidConsumer: There is a handler already, or the function has the wrong form.
        """
        if self._handler is not None:
            raise InvalidConsumer(f"consumer {self.name} has a handler already")
        if runs(function, *YIELDS):
            raise InvalidConsumer(
                f"consumer {self.name}: its handler must be a function without yield"
            )
        _check_function(self.name, "its handler", function, 2)
        self._handler = function
        return function

    def handled_by(self) -> HttpPost | Handler:
        """Return the handler.

        Raises:
            InvalidConsumer: The consumer has no handler.
        """
        if self._handler is None:
            raise InvalidConsumer(
                f"consumer {self.name} has no handler: give it handler=HttpPost(...), or decorate "
                f"a function with @<its variable>.handler"
            )
        return self._handler

    def __repr__(self) -> str:
        return f"<Consumer {self.name}>"


def runs(function: object, *kinds: Callable[[object], bool]) -> bool:
    """Whether a call of a function or an object runs a function of these kinds of ``inspect``."""
    while isinstance(function, functools.partial):
        function = function.func
    # Of a static method, and of an object that can be called.
    called = (function, *(getattr(function, name, None) for name in ("__func__", "__call__")))
    return any(kind(one) for one in called for kind in kinds)


def _is_struct(event: object) -> bool:
    return isinstance(event, type) and issubclass(event, msgspec.Struct)


def _given(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments of ``__init__`` that were given and are not kept as attributes."""
    given = {
        name: value
        for name, value in arguments.items()
        if value is not None and name not in _NOT_OPTIONS
    }
    for option, value in given.items():
        if isinstance(value, bool | bytes):  # pydantic would make 1 or text of it
            owner = f"consumer {arguments['name']}" if "name" in arguments else "HttpPost"
            raise InvalidConsumer(f"{owner}: {option}={value!r} must be a number or text")
    return MappingProxyType(given)


def _check_function(name: str, what: str, function: object, arguments: int) -> None:
    wanted = "(event, delivery)" if arguments == 2 else "(event)"
    # A class would only be instantiated.
    if not callable(function) or (arguments == 2 and isinstance(function, type)):
        raise InvalidConsumer(
            f"consumer {name}: {what} {function!r} must be a function {wanted}"
            + (", or HttpPost(...)" if arguments == 2 else "")
        )
    try:
        inspect.signature(function).bind(*[None] * arguments)
    except TypeError:
        raise InvalidConsumer(
            f"consumer {name}: {what} must be a function {wanted}, not "
            f"{getattr(function, '__name__', function)}{inspect.signature(function)}"
        ) from None
    except ValueError:
        pass  # a function without a signature, such as a built-in
