"""The relay's spans: their names, kinds and attributes.

They follow OpenTelemetry's semantic conventions for messaging, Kafka and HTTP
(https://opentelemetry.io/docs/specs/semconv/messaging/kafka/). No attribute contains anything of an
order, of an answer's text, or of a URL beyond host and port.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TypeAlias

import msgspec
from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)
from yarl import URL

from order_relay.delivery.answer import JSON, Answer, PostHandler, Verdict
from order_relay.delivery.dead_letters import DeadLetter, DeadLetterSink, full_name
from order_relay.kafka.producer import Acknowledged
from order_relay.model.headers import Header, Headers
from order_relay.model.record import Record
from order_relay.model.trace_context import TraceContext, of_record, with_trace_context
from order_relay.tracing.export import SpanExport

Attributes: TypeAlias = dict[str, str | int]

_ERROR = Status(StatusCode.ERROR)
# An attempt whose record has no parent must not get the span that happens to be current.
_NO_PARENT = Context()


class SentSpan:
    """The span of a record that goes to Kafka.

    Attributes:
        headers: The record's headers with this span as parent: to be sent.
    """

    __slots__ = ("_span", "headers")

    def __init__(self, span: Span, headers: Headers) -> None:
        """Put the span into the record's headers."""
        self._span = span
        own = _context_of(span)
        self.headers = tuple(headers) if own is None else with_trace_context(headers, own)

    def acknowledged(self, acknowledged: Acknowledged) -> None:
        """Note where the record is."""
        self._span.set_attribute("messaging.destination.partition.id", str(acknowledged.partition))
        if acknowledged.offset is not None:
            self._span.set_attribute("messaging.kafka.offset", acknowledged.offset)

    def of_row(self, row_id: int) -> None:
        """Note the record's row in the fallback table."""
        self._span.set_attribute("order_relay.fallback.row_id", row_id)

    def failed(self, error: BaseException | str) -> None:
        """Note that the record is not in Kafka."""
        _fail(self._span, error)


class Tracing:
    """Makes spans. Safe to use in any thread.

    Attributes:
        export: Sends the spans, from its start on.
    """

    def __init__(self, export: SpanExport) -> None:
        """Send the spans by ``export``; the caller starts and stops it."""
        self.export = export

    @contextmanager
    def sending(
        self,
        operation: str,
        topic: str,
        headers: Headers,
        *,
        by_caller: bool = False,
        **attributes: str | int,
    ) -> Iterator[SentSpan]:
        """Trace a record that goes to Kafka. An error that leaves the block is noted.

        Args:
            operation: ``publish``, ``replay``, ``dead_letter`` or ``redrive``.
            topic: Where to.
            headers: The record's headers, whose trace context is the parent.
            by_caller: Whether the caller's current span is the parent if there is no trace context.
            attributes: Further attributes of the relay's own.
        """
        given: Attributes = {
            "messaging.system": "kafka",
            "messaging.operation.name": operation,
            "messaging.operation.type": "send",
            "messaging.destination.name": topic,
        }
        given |= {f"order_relay.{name}": value for name, value in attributes.items()}
        parent = of_record(headers)
        with self.span(
            f"{operation} {topic}", SpanKind.PRODUCER, parent, given, by_caller=by_caller
        ) as span:
            yield SentSpan(span, headers)

    @contextmanager
    def span(
        self,
        name: str,
        kind: SpanKind,
        parent: TraceContext | None,
        attributes: Attributes,
        *,
        by_caller: bool = False,
    ) -> Iterator[Span]:
        """Make a span that is the current one within the block."""
        context = None if parent is None and by_caller else _parent(parent)
        span = self.export.tracer.start_span(name, context, kind, attributes)
        with otel.use_span(
            span, end_on_exit=True, record_exception=False, set_status_on_exception=False
        ):
            try:
                yield span
            except BaseException as error:
                _fail(span, error)
                raise

    @staticmethod
    def with_caller_context(headers: Headers) -> tuple[Header, ...]:
        """Return headers with the caller's current span as parent, unless they have a parent."""
        own = _context_of(otel.get_current_span())
        if own is None or of_record(headers) is not None:
            return tuple(headers)
        return with_trace_context(headers, own)

    def of_consumer(self, consumer: str, group: str) -> ConsumerSpans:
        """Return the spans of a consumer's deliveries."""
        return ConsumerSpans(self, consumer, group)

    def posts(self, posts: PostHandler, url: str) -> TracedPosts:
        """Return a handler that posts to ``url`` with a span for each POST."""
        return TracedPosts(posts, self, url)

    def dead_letters(self, sink: DeadLetterSink, topic: str) -> TracedDeadLetters:
        """Return a sink that sends letters to ``topic`` with a span for each."""
        return TracedDeadLetters(sink, self, topic)


class ConsumerSpans:
    """The spans of one consumer's deliveries. It is an ``AttemptTracer``."""

    def __init__(self, tracing: Tracing, consumer: str, group: str) -> None:
        """Make spans for a consumer and its consumer group."""
        self._tracing = tracing
        self._consumer = consumer
        self._group = group

    def received(self, record: Record) -> Record:
        """Return the record with a trace context; one without gets the span ``receive``."""
        if of_record(record.headers) is not None:
            return record
        with self._span("receive", SpanKind.CLIENT, record, None) as span:
            own = _context_of(span)
        if own is None:
            return record
        return msgspec.structs.replace(record, headers=with_trace_context(record.headers, own))

    async def attempt(
        self,
        record: Record,
        trace: TraceContext | None,
        number: int,
        make: Callable[[TraceContext | None], Awaitable[Answer]],
    ) -> Answer:
        """See ``AttemptTracer.attempt``."""
        attempt: Attributes = {"order_relay.attempt": number}
        with self._span("process", SpanKind.CONSUMER, record, trace, attempt) as span:
            answer = await make(_context_of(span) or trace)
            _note_answer(span, answer)
            span.set_attribute("order_relay.verdict", answer.verdict.value)
            return answer

    def _span(
        self,
        operation: str,
        kind: SpanKind,
        record: Record,
        parent: TraceContext | None,
        more: Attributes | None = None,
    ) -> AbstractContextManager[Span]:
        attributes: Attributes = {
            "messaging.system": "kafka",
            "messaging.operation.name": operation,
            "messaging.operation.type": operation,
            "messaging.destination.name": record.topic,
            "messaging.destination.partition.id": str(record.partition),
            "messaging.kafka.offset": record.offset,
            "messaging.consumer.group.name": self._group,
            "messaging.message.id": record.idempotency_key(),
            "order_relay.consumer": self._consumer,
            **(more or {}),
        }
        return self._tracing.span(f"{operation} {record.topic}", kind, parent, attributes)


class TracedPosts:
    """A ``PostHandler`` with a span for each POST of a single record.

    A POST of several records belongs to several traces: it has no span, as it has no traceparent.
    """

    def __init__(self, posts: PostHandler, tracing: Tracing, url: str) -> None:
        """Post by ``posts``, whose target is ``url``."""
        self._posts = posts
        self._tracing = tracing
        target = URL(url)
        # The path may be a secret, as those of webhooks are.
        self._attributes: Attributes = {
            "http.request.method": "POST",
            "url.scheme": target.scheme,
            "server.address": target.host or "",
            "server.port": target.port or 80,
        }

    async def post(
        self,
        body: bytes,
        idempotency_key: str,
        trace: TraceContext | None = None,
        *,
        content_type: str = JSON,
    ) -> Answer:
        """See ``PostHandler.post``."""
        if trace is None:
            return await self._posts.post(body, idempotency_key, content_type=content_type)
        with self._tracing.span("POST", SpanKind.CLIENT, trace, self._attributes) as span:
            answer = await self._posts.post(
                body, idempotency_key, _context_of(span) or trace, content_type=content_type
            )
            _note_answer(span, answer)
            return answer

    def redact(self, text: str) -> str:
        """See ``PostHandler.redact``."""
        return self._posts.redact(text)


class TracedDeadLetters:
    """A ``DeadLetterSink`` with a span for each letter, which is the parent of its redrive."""

    def __init__(self, sink: DeadLetterSink, tracing: Tracing, topic: str) -> None:
        """Send by ``sink``, whose topic is ``topic``."""
        self._sink = sink
        self._tracing = tracing
        self._topic = topic

    async def send(self, letter: DeadLetter) -> None:
        """See ``DeadLetterSink.send``."""
        record = letter.record
        with self._tracing.sending(
            "dead_letter", self._topic, record.headers, dead_letter_reason=letter.reason
        ) as span:
            record = msgspec.structs.replace(record, headers=tuple(span.headers))
            await self._sink.send(replace(letter, record=record))


def _note_answer(span: Span, answer: Answer) -> None:
    if answer.status is not None:
        span.set_attribute("http.response.status_code", answer.status)
    # A 2xx may contain a failure of its own: the result of one record of a batch.
    if answer.verdict is not Verdict.SUCCESS:
        why = answer.error_type or answer.failure if answer.status is None else answer.status
        _fail(span, str(why))


def _fail(span: Span, error: BaseException | str) -> None:
    span.set_attribute("error.type", error if isinstance(error, str) else full_name(error))
    span.set_status(_ERROR)


def _parent(trace: TraceContext | None) -> Context:
    """Return the context whose current span is the parent ``trace``; without one a new trace."""
    if trace is None:
        return _NO_PARENT
    _, trace_id, span_id, flags = trace.traceparent.split("-")[:4]
    state = TraceState.from_header([trace.tracestate]) if trace.tracestate else None
    parent = SpanContext(
        int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)), state
    )
    return otel.set_span_in_context(NonRecordingSpan(parent), _NO_PARENT)


def _context_of(span: Span) -> TraceContext | None:
    """Return a span as the parent of others; ``None`` without a span (OTEL_SDK_DISABLED)."""
    own = span.get_span_context()
    if not own.is_valid:
        return None
    traceparent = f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"
    return TraceContext(traceparent, own.trace_state.to_header())
