"""The settings of each consumer: environment variables, its declaration, defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import combinations, permutations
from typing import Annotated, Any, cast

from pydantic import Field, ValidationError, create_model

from order_relay.errors import InvalidConsumer
from order_relay.model.consumer import Consumer, HttpPost
from order_relay.settings.rules import split
from order_relay.settings.secret_files import (
    EnvironmentSettings,
    describe,
    secret_fields,
    variable_names,
)
from order_relay.settings.settings import Settings

ORDER_LOGGING = "order_logging"
"""The consumer whose variables have no prefix: they are older than other consumers."""

# Arguments of Consumer, and the field of Settings that holds each.
OPTIONS = {
    "topic": "order_paid_topic",
    "group": "consumer_group_id",
    "dead_letter_topic": "dlq_topic",
    "auto_redrive": "dlq_auto_redrive",
    "auto_redrive_rate": "dlq_auto_redrive_rate",
    "max_in_flight": "max_in_flight",
    "retry_max_attempts": "consumer_retry_max_attempts",
    "retry_initial_interval_ms": "consumer_retry_initial_interval_ms",
    "retry_multiplier": "consumer_retry_multiplier",
    "retry_max_interval_ms": "consumer_retry_max_interval_ms",
    "breaker_failure_threshold": "breaker_failure_threshold",
    "breaker_probe_interval_seconds": "breaker_probe_interval_seconds",
    "deliveries_store": "deliveries_store",
    "deliveries_retention_hours": "deliveries_retention_hours",
    "deliveries_max_entries": "deliveries_max_entries",
    # These apply to handlers that are functions, too.
    "timeout_seconds": "external_logger_timeout_seconds",
    "max_rate": "external_logger_max_rate",
}
_HTTP_PREFIX = "external_logger_"
# The same for arguments of HttpPost.
HTTP_OPTIONS = {
    field.removeprefix(_HTTP_PREFIX): field
    for field in Settings.model_fields
    if field.startswith(_HTTP_PREFIX) and field not in OPTIONS.values()
}
# A variable whose name is so similar to that of a setting is probably a mistake.
SIMILAR = 0.9
UNITS = ("seconds", "ms", "hours", "days")


@dataclass(frozen=True, slots=True)
class ConfiguredConsumer:
    """A consumer with its settings.

    Attributes:
        declaration: The consumer as declared in its file.
        settings: The worker's settings, with the consumer's own values.
    """

    declaration: Consumer
    settings: Settings

    @property
    def name(self) -> str:
        """The consumer's name."""
        return self.declaration.name

    @property
    def target(self) -> str:
        """Where records go, as text for people: a URL without its query, or a function's name."""
        handler = self.declaration.handled_by()
        if isinstance(handler, HttpPost):
            return self.settings.external_logger_url.partition("?")[0]
        return str(getattr(handler, "__qualname__", type(handler).__qualname__))


def configure(consumers: Sequence[Consumer], settings: Settings) -> list[ConfiguredConsumer]:
    """Return all consumers, each with its settings.

    Raises:
        InvalidConsumer: There is no consumer, a setting is wrong, two consumers share a group or a
            dead-letter topic, or one reads another's dead letters; one line.
    """
    if not consumers:
        raise InvalidConsumer("no consumer is declared: add one to agents/")
    with_prefix = [one.name for one in consumers if one.name != ORDER_LOGGING]
    for name, other_name in combinations(with_prefix, 2):
        for variable in sorted(_prefixed(name) & _prefixed(other_name)):
            raise InvalidConsumer(
                f"consumers {name} and {other_name} share the variable {variable}: give one of "
                "them another name"
            )
    configured = [ConfiguredConsumer(one, settings_of(one, settings)) for one in consumers]
    for one, other in permutations(configured, 2):
        for what, field in (("group", "consumer_group_id"), ("dead-letter topic", "dlq_topic")):
            if (shared := getattr(one.settings, field)) == getattr(other.settings, field):
                raise InvalidConsumer(
                    f"consumers {one.name} and {other.name} have the same {what} {shared!r}: each "
                    "needs its own"
                )
        if one.settings.dlq_topic == other.settings.order_paid_topic:
            raise InvalidConsumer(
                f"consumer {other.name} reads {one.settings.dlq_topic!r}, which is the dead-letter "
                f"topic of {one.name}"
            )
    return configured


def _prefixed(consumer: str) -> set[str]:
    return {f"{consumer}_{option}".upper() for option in OPTIONS | HTTP_OPTIONS}


def choose(consumers: Sequence[ConfiguredConsumer], named: str | None) -> list[ConfiguredConsumer]:
    """Return the consumers that CONSUMERS names, or all if it is not set.

    Raises:
        InvalidConsumer: It names no consumer, or an unknown one; one line.
    """
    if named is None:
        return list(consumers)
    wanted = set(split(named))
    names = [one.name for one in consumers]
    if not wanted or wanted - set(names):
        raise InvalidConsumer(
            f"CONSUMERS={named!r} must name consumers, separated by commas, of these: "
            f"{', '.join(names)}"
        )
    return [one for one in consumers if one.name in wanted]


def settings_of(consumer: Consumer, settings: Settings) -> Settings:
    """Return the worker's settings with a consumer's own values.

    An environment variable overrides the consumer's file, which overrides the default.

    Raises:
        InvalidConsumer: A value is wrong; one line.
    """
    name, handler = consumer.name, consumer.handled_by()
    given, fields = dict(consumer.options), OPTIONS
    if isinstance(handler, HttpPost):
        given |= handler.options
        fields = OPTIONS | HTTP_OPTIONS
    if name == ORDER_LOGGING:
        # What the environment sets of these is in the settings already.
        done = settings.model_fields_set
        variables = {option: field for option, field in fields.items() if field not in done}
        values, prefix = {}, "EXTERNAL_LOGGER"
    else:
        variables = {option: f"{name}_{option}" for option in fields}
        if taken := sorted(variables.values() & Settings.model_fields.keys()):
            raise InvalidConsumer(
                f"consumer {name}: its variable {taken[0].upper()} is a setting of the worker, "
                "give the consumer another name"
            )
        # What is set for order_logging does not count.
        values = {field: Settings.model_fields[field].default for field in HTTP_OPTIONS.values()}
        prefix = name.upper()
    model = _variables(
        f"Settings of {name}",
        {variable: (fields[option], given.get(option)) for option, variable in variables.items()},
    )
    try:
        read = model()
    except ValidationError as error:
        raise InvalidConsumer(describe(error, model)) from None
    values |= {fields[option]: getattr(read, variable) for option, variable in variables.items()}
    if name != ORDER_LOGGING:
        known = {variables[option] for option in given} | read.model_fields_set
        if variables["dead_letter_topic"] not in known:
            values["dlq_topic"] = f"{values['order_paid_topic']}.{name}.DLQ"
        if isinstance(handler, HttpPost) and variables["url"] not in known:
            raise InvalidConsumer(f"consumer {name}: HttpPost needs a url, or {prefix}_URL")
    merged = settings.model_copy(update=values)
    try:
        merged.check_together()
    except ValueError as error:
        text = str(error).replace("EXTERNAL_LOGGER", prefix)
        for option in ("topic", "dead_letter_topic", "group") if name != ORDER_LOGGING else ():
            text = text.replace(OPTIONS[option].upper(), variables[option].upper())
        raise InvalidConsumer(f"consumer {name}: {text}") from None
    return merged


def misspelled(consumers: Iterable[ConfiguredConsumer]) -> dict[str, str]:
    """Return variables spelled almost like a setting that is not set, each with that setting."""
    known = {*Settings.model_fields, *(f"{name}_file" for name in secret_fields(Settings))}
    for consumer in consumers:
        known.update(variable.lower() for variable in _prefixed(consumer.name))
    given = variable_names()
    missing = sorted(known - given)
    found = {}
    for name in sorted(given - known):
        without_unit = [one for unit in UNITS if (one := f"{name}_{unit}") in missing]
        if near := without_unit or get_close_matches(name, missing, 1, SIMILAR):
            found[name.upper()] = near[0].upper()
    return found


def _variables(name: str, fields: Mapping[str, tuple[str, Any]]) -> type[EnvironmentSettings]:
    """Return a model of variables, each with the type of a setting, and with the given default."""
    definitions: dict[str, Any] = {}
    for variable, (field, given) in fields.items():
        setting = Settings.model_fields[field]
        kind = cast(Any, Annotated)[setting.annotation, Field(), *setting.metadata]
        definitions[variable] = kind, setting.default if given is None else given
    return create_model(name, __base__=EnvironmentSettings, **definitions)
