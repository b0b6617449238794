"""The settings of each consumer: environment variables, its declaration, defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from order_relay.errors import InvalidConsumer
from order_relay.model.consumer import Consumer, HttpPost
from order_relay.settings import Settings
from order_relay.settings.secret_files import SecretFiles, reject_bad_file
from order_relay.settings.settings import describe

ORDER_LOGGING = "order_logging"
"""The consumer whose variables have no prefix: they are older than other consumers."""

# Arguments of Consumer, and the field of Settings that holds each.
OPTIONS = {
    "topic": "order_paid_topic",
    "group": "consumer_group_id",
    "dead_letter_topic": "dlq_topic",
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
        InvalidConsumer: There is no consumer, a setting is wrong, or two consumers have the same
            group or dead-letter topic; one line.
    """
    if not consumers:
        raise InvalidConsumer("no consumer is declared: add one to agents/")
    configured = [ConfiguredConsumer(one, settings_of(one, settings)) for one in consumers]
    _check_apart(configured)
    return configured


def choose(consumers: Sequence[ConfiguredConsumer], named: str | None) -> list[ConfiguredConsumer]:
    """Return the consumers that CONSUMERS names, or all if it is not set.

    Raises:
        InvalidConsumer: It names no consumer, or an unknown one; one line.
    """
    if named is None:
        return list(consumers)
    wanted = {name.strip() for name in named.split(",") if name.strip()}
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
    handler = consumer.handled_by()
    given = dict(consumer.options)
    fields = dict(OPTIONS)
    if isinstance(handler, HttpPost):
        fields |= HTTP_OPTIONS
        given |= handler.options
    own = consumer.name == ORDER_LOGGING
    if not own:
        _check_variables(consumer.name, fields)
    model = _variables_of(consumer.name, fields, from_environment=not own)
    try:
        values = model(**given)
    except ValidationError as error:
        prefix = f"{consumer.name}: " if own else f"{consumer.name}_"
        raise InvalidConsumer(describe(error, model, prefix=prefix)) from None
    chosen: dict[str, Any] = {
        fields[option]: getattr(values, option) for option in values.model_fields_set
    }
    if own:
        of_environment = settings.model_fields_set
        chosen = {field: value for field, value in chosen.items() if field not in of_environment}
    else:
        chosen = _defaults(fields) | chosen
        if "dead_letter_topic" not in values.model_fields_set:
            chosen["dlq_topic"] = f"{chosen['order_paid_topic']}.{consumer.name}.DLQ"
        if isinstance(handler, HttpPost) and "url" not in values.model_fields_set:
            raise InvalidConsumer(
                f"consumer {consumer.name}: HttpPost needs a url, or {consumer.name.upper()}_URL"
            )
    merged = settings.with_values(chosen)
    try:
        merged.check_together()
    except ValueError as error:
        text = str(error)
        if not own:
            text = text.replace("EXTERNAL_LOGGER", consumer.name.upper())
        raise InvalidConsumer(f"consumer {consumer.name}: {text}") from None
    return merged


def _defaults(fields: Mapping[str, str]) -> dict[str, Any]:
    """Return the defaults of all consumer settings, which hide the values of order_logging."""
    names = {*fields.values(), *HTTP_OPTIONS.values()}
    return {name: Settings.model_fields[name].get_default() for name in names}


def _check_variables(name: str, fields: Mapping[str, str]) -> None:
    taken = [option for option in fields if f"{name}_{option}" in Settings.model_fields]
    if taken:
        raise InvalidConsumer(
            f"consumer {name}: its variable {name.upper()}_{taken[0].upper()} is a setting of the "
            "worker, give the consumer another name"
        )


class _Declared(BaseModel):
    """A consumer's file alone: the variables of order_logging are the worker's own."""

    model_config = ConfigDict(allow_inf_nan=False, hide_input_in_errors=True)


class _Variables(BaseSettings):
    """Environment variables, which override the consumer's file."""

    model_config = Settings.model_config

    _check_secret_file = field_validator("*", mode="before")(reject_bad_file)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        files = SecretFiles(settings_cls, env_settings, dotenv_settings)
        return files, env_settings, dotenv_settings, init_settings


def _variables_of(
    name: str, fields: Mapping[str, str], *, from_environment: bool
) -> type[BaseModel]:
    """Return a model of a consumer's settings, which takes its file's values as arguments."""
    given: dict[str, Any] = {
        option: (Settings.model_fields[field].annotation, copy(Settings.model_fields[field]))
        for option, field in fields.items()
    }
    model = create_model(
        f"Variables of {name}", __base__=_Variables if from_environment else _Declared, **given
    )
    if from_environment:
        model.model_config = SettingsConfigDict(
            **{**Settings.model_config, "env_prefix": f"{name}_"}
        )
    return model


def _check_apart(consumers: Sequence[ConfiguredConsumer]) -> None:
    """Check that consumers do not share a group or a dead-letter topic.

    Raises:
        InvalidConsumer: Two share a group or a dead-letter topic, or one reads another's dead
            letters.
    """
    for first, second in combinations(consumers, 2):
        for what, field in (("group", "consumer_group_id"), ("dead-letter topic", "dlq_topic")):
            if getattr(first.settings, field) == getattr(second.settings, field):
                raise InvalidConsumer(
                    f"consumers {first.name} and {second.name} have the same {what} "
                    f"{getattr(first.settings, field)!r}: each needs its own"
                )
    for one in consumers:
        for other in consumers:
            if one.settings.dlq_topic == other.settings.order_paid_topic:
                raise InvalidConsumer(
                    f"consumer {other.name} reads {one.settings.dlq_topic!r}, which is the "
                    f"dead-letter topic of {one.name}"
                )
