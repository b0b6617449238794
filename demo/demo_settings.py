"""The worker's settings in the quickstart, kept apart from whatever the user has configured."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from demo.options import ORDER_LOGGING
from order_relay.settings import Settings

# What a Python process may need from its surroundings. Everything else stays out: variables of
# this project, and Faust's own (BROKER_URL, APP_DATADIR, ...), would change the demonstration.
_KEPT = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
        *("LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP"),
    }
)
_KEPT_PREFIXES = ("LC_", "PYTHON", "DYLD_", "COVERAGE_")
_PROJECT = Path(__file__).resolve().parent.parent


class DemoSettings(Settings):
    """The defaults, and what is given; neither the environment nor ``.env`` has a say."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave only what is given."""
        return (init_settings,)


def demo_settings(
    *,
    servers: str,
    database_url: str,
    logger_port: int,
    web_port: int,
    consumers: Sequence[str] = (ORDER_LOGGING,),
    consumer_folders: str = "",
) -> Settings:
    """Return the settings of the quickstart."""
    return DemoSettings(
        consumers=",".join(consumers),
        consumer_folders=_folders(consumers, consumer_folders),
        kafka_bootstrap_servers=servers,
        kafka_declare_topics=False,
        external_logger_url=f"http://127.0.0.1:{logger_port}/logs",
        # Shorter than usual, so that a hanging request is not the longest thing to watch.
        external_logger_timeout_seconds=4.0,
        shutdown_grace_seconds=10.0,
        # So short that an outage of seconds is a refusal, and what was saved follows soon after.
        producer_request_timeout_ms=1500,
        producer_delivery_timeout_ms=2000,
        producer_retry_backoff_ms=200,
        database_url=SecretStr(database_url),
        fallback_replay_interval_seconds=1.0,
        fallback_backoff_base_seconds=1.0,
        web_host="127.0.0.1",
        web_port=web_port,
    )


def _folders(consumers: Sequence[str], given: str) -> str | None:
    """Return where consumers are besides agents/, for a worker that runs in another folder."""
    examples = _PROJECT / "examples" / "consumers"  # an installed package has none
    if given:
        return ",".join(str(Path(folder.strip()).resolve()) for folder in given.split(","))
    return str(examples) if len(consumers) > 1 and examples.is_dir() else None


def worker_environment(settings: Settings, surroundings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that gives a worker exactly these settings.

    Further consumers keep the variables of their own names, such as ``COUPONS_URL``.
    The worker must also start in a folder without a ``.env`` file.

    Args:
        settings: What the worker is to read.
        surroundings: This process's environment.
    """
    names = (settings.consumers or "").upper().split(",")
    own = tuple(f"{name}_" for name in names if name != ORDER_LOGGING.upper())
    environment = {
        name: value
        for name, value in surroundings.items()
        if name.upper() in _KEPT
        or name.upper().startswith(_KEPT_PREFIXES)
        or (name.upper().startswith(own) and name.lower() not in Settings.model_fields)
    }
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        if value is not None:
            environment[name.upper()] = str(value)
    # The worker runs in another folder, and this package need not be installed.
    paths = [str(_PROJECT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    environment["PYTHONUNBUFFERED"] = "1"
    return environment
