"""A real Prometheus for a test: the project's configuration, with other targets and intervals.

async with PrometheusServer(tmp_path, [f"127.0.0.1:{worker.web_port}"]) as prometheus:
    await eventually(lambda: prometheus.values("up == 1"))
"""

import math
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
import yaml

from tests.support.child import on_leash, run
from tests.support.http_request import ask
from tests.support.kafka.ports import LOOPBACK, free_ports
from tests.support.waiting import eventually

FOLDER = Path(__file__).parents[2] / "prometheus"
CONFIGURATION = FOLDER / "prometheus.yml"
ALERTS = FOLDER / "alerts.yml"
JOB = "order-relay"
SCRAPE_SECONDS = 1
START_SECONDS = 60.0


def unavailable_reason() -> str | None:
    """Return why there can be no Prometheus here, or None."""
    for name in ("prometheus", "promtool"):
        if shutil.which(name) is None:
            return f"{name} is not installed (Debian: apt-get install prometheus)"
    return None


def promtool(*arguments: str | Path, folder: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    """Run promtool in a folder; any exit status is OK."""
    return run("promtool", *arguments, folder=folder)


@dataclass(frozen=True, slots=True)
class Series:
    """A series of an answer: its labels, and its values that are numbers."""

    labels: Mapping[str, str]
    values: Sequence[float]


class PrometheusServer:
    """The server; it scrapes itself, and these targets as the job of the workers, every second."""

    def __init__(self, directory: Path, targets: Sequence[str]) -> None:
        self.port = free_ports(1)[0]
        self.started_at = time.time()
        self._targets = list(targets)
        self._folder = directory / "prometheus"
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        self._start()
        await eventually(self._ready, START_SECONDS, self._last_words)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def values(self, expr: str) -> list[Series]:
        """Evaluate an expression now.

        Raises:
            RuntimeError: Prometheus refuses the expression; the text says why.
        """
        found = await self._get("query", query=expr)
        if found["resultType"] == "scalar":
            return [Series({}, _numbers([found["result"]]))]
        return [Series(one["metric"], _numbers([one["value"]])) for one in found["result"]]

    async def history(self, expr: str) -> list[Series]:
        """Evaluate an expression for every second since the server started.

        Raises:
            RuntimeError: Prometheus refuses the expression; the text says why.
        """
        found = await self._get(
            "query_range",
            query=expr,
            start=str(self.started_at),
            end=str(time.time()),
            step=str(SCRAPE_SECONDS),
        )
        return [Series(one["metric"], _numbers(one["values"])) for one in found["result"]]

    async def label_values(self, series: str, label: str) -> set[str]:
        """Ask which values a label of these series has, as Grafana does for its variables."""
        return set(await self._get(f"label/{label}/values", **{"match[]": series}))

    async def rules(self) -> list[dict[str, Any]]:
        """Ask for all alerts."""
        found = await self._get("rules")
        return [rule for group in found["groups"] for rule in group["rules"]]

    async def _get(self, path: str, **parameters: str) -> Any:
        url = f"http://{LOOPBACK}:{self.port}/api/v1/{path}"
        answer = (await ask(url, params=parameters)).json
        if answer["status"] != "success":
            raise RuntimeError(f"{answer['error']}: {parameters}")
        return answer["data"]

    def _start(self) -> None:
        self._folder.mkdir()
        config = self._folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(self._configuration()), encoding="utf-8")
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                on_leash(
                    shutil.which("prometheus") or "prometheus",
                    f"--config.file={config}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    f"--web.listen-address={LOOPBACK}:{self.port}",
                ),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def _ready(self) -> bool:
        try:
            return (await ask(f"http://{LOOPBACK}:{self.port}/-/ready")).status == 200
        except aiohttp.ClientError:
            return False

    def _last_words(self) -> str:
        return (self._folder / "log").read_text(encoding="utf-8", errors="replace")[-2000:]

    def _configuration(self) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load(CONFIGURATION.read_text(encoding="utf-8"))
        seconds = f"{SCRAPE_SECONDS}s"
        config["global"] |= {
            "scrape_interval": seconds,
            "scrape_timeout": seconds,
            "evaluation_interval": seconds,
        }
        config["rule_files"] = [str(ALERTS)]
        # The other services of docker-compose.yml do not run.
        del config["alerting"]
        config["scrape_configs"] = [
            scraped
            for scraped in config["scrape_configs"]
            if scraped["job_name"] in (JOB, "prometheus")
        ]
        for scraped in config["scrape_configs"]:
            ours = scraped["job_name"] == JOB
            scraped.pop("dns_sd_configs", None)
            own = [f"{LOOPBACK}:{self.port}"]
            scraped["static_configs"] = [{"targets": self._targets if ours else own}]
        return config


def _numbers(pairs: Sequence[tuple[float, str]]) -> list[float]:
    numbers = [float(text) for _, text in pairs]
    return [number for number in numbers if math.isfinite(number)]
