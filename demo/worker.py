"""The real worker, ``faust -A app worker -l info``, as a child process with its log in a file.

Its settings are kept apart from what the user has configured.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic_settings import PydanticBaseSettingsSource

from demo import die_with_parent
from demo.command_line import ORDER_LOGGING, Options
from demo.shop import FIRST_ORDER_ID
from order_relay.settings import Settings

# What a Python process may need from its surroundings. Everything else stays out: variables of
# this project, and Faust's own (BROKER_URL, APP_DATADIR, ...), would change the demo.
_KEPT = frozenset(
    "PATH HOME USER LOGNAME SHELL VIRTUAL_ENV LD_LIBRARY_PATH "
    "LANG LANGUAGE TZ TMPDIR TEMP TMP".split()
)
_KEPT_PREFIXES = ("LC_", "PYTHON", "DYLD_", "COVERAGE_")
_PROJECT = Path(__file__).resolve().parent.parent


class DemoSettings(Settings):
    """The defaults, and what is given; neither the environment nor ``.env`` counts."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: object, init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave only what is given."""
        return (init_settings,)


def demo_settings(options: Options, folder: Path, servers: str) -> Settings:
    """Return the worker's settings; the shop's database is in ``folder``."""
    examples = str(_PROJECT / "examples" / "consumers")
    return DemoSettings(
        consumers=",".join(options.consumers),
        consumer_folders=examples if len(options.consumers) > 1 else None,
        kafka_bootstrap_servers=servers,
        kafka_declare_topics=False,
        external_logger_url=f"http://127.0.0.1:{options.logger_port}/logs",
        # Shorter than usual, so that a hanging request is not the longest thing to watch.
        external_logger_timeout_seconds=4.0,
        shutdown_grace_seconds=10.0,
        # So short that an outage of seconds is a refusal, and what was saved follows soon after.
        producer_request_timeout_ms=1500,
        producer_delivery_timeout_ms=2000,
        producer_retry_backoff_ms=200,
        database_url=SecretStr(f"sqlite+aiosqlite:///{folder / 'shop.db'}"),
        fallback_replay_interval_seconds=1.0,
        fallback_backoff_base_seconds=1.0,
        web_port=options.web_port,
    )


def worker_environment(settings: Settings, surroundings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that gives a worker exactly these settings.

    Further consumers keep the variables of their own names, such as ``COUPONS_URL``, from the
    environment of this process. The worker must also start in a folder without a ``.env`` file.
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
    database_url = settings.database_url.get_secret_value()  # the only secret there is
    values = settings.model_dump(exclude_none=True) | {"database_url": database_url}
    environment |= {name.upper(): str(value) for name, value in values.items()}
    # The worker runs in another folder, and this package need not be installed.
    paths = [str(_PROJECT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def write_commands(folder: Path, environment: Mapping[str, str]) -> list[str]:
    """Write a file that gives another shell the worker's settings.

    Returns:
        Commands to be pasted one after the other; the first one reads the file.
    """
    exports = [
        f"export {name}={shlex.quote(value)}\n"
        for name, value in environment.items()
        if name not in _KEPT
    ]
    programs = shlex.quote(str(Path(sys.executable).parent))
    path = folder / "commands.sh"
    path.write_text("".join(exports) + f'export PATH={programs}:"$PATH"\n')
    option = f" --consumer {ORDER_LOGGING}" if "," in environment["CONSUMERS"] else ""
    return [
        f". {shlex.quote(str(path))}",
        f"order-relay order{option} {FIRST_ORDER_ID}",
        f"order-relay dlq list{option}",
        f"order-relay dlq redrive{option} --all --yes",
        f"order-relay audit{option} --since 1h",
        "order-relay status",
    ]


async def start_worker(log_path: Path, environment: Mapping[str, str]) -> Process:
    """Start the worker, in the folder of its log."""
    with log_path.open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, die_with_parent.__file__, str(os.getpid())),
            *(sys.executable, "-m", "faust", "-A", "app", "worker", "-l", "info"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=log_path.parent,
            env=environment,
            # Ctrl-C reaches the whole group; the worker is stopped after the shop.
            start_new_session=True,
        )


def kill_worker(worker: Process) -> None:
    """End it at once. May be called at any time, also twice."""
    if worker.returncode is None:
        worker.kill()


async def stop_worker(worker: Process, grace_seconds: float = 0.0) -> None:
    """Send SIGTERM and wait; after this time it is killed. May be called twice."""
    if worker.returncode is None:
        worker.terminate()
        killing = asyncio.get_running_loop().call_later(grace_seconds, kill_worker, worker)
        await worker.wait()
        killing.cancel()
