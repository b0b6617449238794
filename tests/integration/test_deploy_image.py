"""The Dockerfile, executed in a clean folder, and the worker that it builds."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.support.child import until_sigterm
from tests.support.dockerfile import MOVED, ROOT, Build, BuildContext, Dockerfile
from tests.support.kafka.ports import free_ports
from tests.support.orders import order
from tests.support.sink import ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import LIMIT_SECONDS

IMAGE_USER = 10001
# About a hundred packages are downloaded and installed.
BUILD_LIMIT_SECONDS = 600

pytestmark = [
    pytest.mark.timeout(BUILD_LIMIT_SECONDS),
    pytest.mark.xdist_group("image"),  # it is built once
]


class Container:
    """Runs commands with the image's user, environment and folder."""

    def __init__(self, build: Build, dockerfile: Dockerfile, **environment: str) -> None:
        self._build = build
        self._dockerfile = dockerfile
        given = {name: build.moved(value) for name, value in dockerfile.environment.items()}
        given["PATH"] = given["PATH"].replace("$PATH", os.environ["PATH"])
        self.environment = given | build.surroundings | environment
        self.folder = Path(build.moved(dockerfile.last("WORKDIR").rest))
        self.log = self.folder / "log"

    def start(self) -> subprocess.Popen[bytes]:
        """Start the image's command, without a shell."""
        command = [*self._dockerfile.last("ENTRYPOINT").words, *self._dockerfile.last("CMD").words]
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [shutil.which(command[0], path=self.environment["PATH"]) or "", *command[1:]],
                stdout=log,
                stderr=subprocess.STDOUT,
                **self._how(),
            )

    def running(self) -> AbstractAsyncContextManager[None]:
        """Run the image's command, and stop it by SIGTERM with status 0."""
        return until_sigterm(self.start(), self.log.read_text)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run another command in it, to its end."""
        return subprocess.run(
            [shutil.which(command[0], path=self.environment["PATH"]) or "", *command[1:]],
            capture_output=True,
            text=True,
            check=False,
            **self._how(),
        )

    def healthy(self) -> bool:
        """Whether the image's health check passes."""
        check = self._dockerfile.last("HEALTHCHECK").rest.removeprefix("CMD ")
        return self.run(*json.loads(check)).returncode == 0

    def data(self, name: str) -> list[Path]:
        """The files of that name in its data folder."""
        return list(Path(self.environment["DATA_DIR"]).rglob(name))

    def _how(self) -> dict[str, Any]:
        how: dict[str, Any] = {"env": self.environment, "cwd": self.folder}
        if os.geteuid() == 0:  # else the folders are read-only for us already
            how |= {"user": IMAGE_USER, "group": IMAGE_USER, "extra_groups": []}
        return how


@pytest.fixture(scope="module")
def dockerfile() -> Dockerfile:
    """The file."""
    return Dockerfile()


@pytest.fixture(scope="module")
def build(dockerfile: Dockerfile) -> Iterator[Build]:
    """Execute the file; the result is read-only for all users."""
    # Not pytest's folders: the image's user may not read them.
    folder = Path(tempfile.mkdtemp(prefix="order-relay-image-"))
    try:
        folder.chmod(0o755)
        build = Build(dockerfile, folder)
        build.run()
        for path in folder.glob("opt/**/*"):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o222)
        yield build
    finally:
        for path in folder.glob("opt/**/"):
            path.chmod(0o755)
        shutil.rmtree(folder)


def test_the_base_is_pinned(dockerfile: Dockerfile) -> None:
    """Every stage begins with the same full version of Python."""
    (base,) = set(dockerfile.bases)
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", base)


def test_it_does_not_run_as_root(dockerfile: Dockerfile) -> None:
    """The user is a number other than root's, and the worker is not behind a shell."""
    assert dockerfile.last("USER").rest == f"{IMAGE_USER}:{IMAGE_USER}"
    assert dockerfile.last("ENTRYPOINT").words == ["order-relay"]
    assert dockerfile.last("CMD").words[0] == "worker"
    for word in ("ENTRYPOINT", "CMD"):
        assert dockerfile.last(word).rest.startswith("[")


def test_all_folders_of_the_image_are_known(dockerfile: Dockerfile) -> None:
    """All paths in the image are moved under the test's folder here."""
    text = " ".join(one.rest for stage in dockerfile.stages for one in stage if one.word != "RUN")
    absolute = set(re.findall(r"(?<![\w:/.])/(?:\w[\w.-]*/?)+", text))
    assert {path for path in absolute if not path.startswith(MOVED)} == {"/health/live"}


def test_only_what_is_needed_is_sent(dockerfile: Dockerfile) -> None:
    """The build context has no settings, secrets, history or tests, but all copied files."""
    context = BuildContext()
    for path in (".env", ".git/config", "deploy/dev-secrets/api_token", "tests/conftest.py",
                 ".venv/bin/python", "docker-compose.yml", "app/__pycache__/__init__.pyc",
                 "order_relay/publishing/__pycache__/x.cpython-311.pyc", "orders.db"):  # fmt: skip
        assert not context.lets_through(path), path
    copied = [
        source
        for stage in dockerfile.stages
        for one in stage
        if one.word == "COPY" and not one.flags
        for source in one.words[:-1]
    ]
    for source in copied:
        assert context.lets_through(source), source
        assert (context.folder / source).exists(), source


def test_what_runs_has_no_tools_to_build(build: Build) -> None:
    """Every RUN line works; the image has the engine and the app, without pip and setuptools.

    All modules are compiled, as the image is read-only.
    """
    assert len(build.commands) >= 5
    home = Path(build.moved("/opt/order-relay"))
    (packages,) = home.glob("lib/python3*/site-packages")
    names = {path.name for path in packages.iterdir()}
    assert {"order_relay", "faust"} <= names
    assert not {"pip", "setuptools", "wheel", "Cython", "tests", "app", "agents", "tables"} & names
    application = home / "application"
    assert {path.name for path in application.iterdir()} == {"app", "agents", "tables", "demo"}
    for folder in (packages / "order_relay", application):
        sources = {path.stem for path in folder.rglob("*.py")}
        assert {path.name.split(".")[0] for path in folder.rglob("*.pyc")} == sources


async def test_the_worker_of_the_image(
    build: Build, dockerfile: Dockerfile, stage: Stage, sink: ScriptedSink
) -> None:
    """A user other than root runs it on read-only files; it delivers, and stops with status 0."""
    (web_port,) = free_ports(1)
    container = Container(
        build,
        dockerfile,
        KAFKA_BOOTSTRAP_SERVERS=stage.bootstrap_servers,
        KAFKA_DECLARE_TOPICS="false",
        ORDER_PAID_TOPIC=stage.topic,
        DLQ_TOPIC=stage.dlq_topic,
        CONSUMER_GROUP_ID=stage.group_id,
        EXTERNAL_LOGGER_URL=sink.url,
        DELIVERIES_STORE="rocksdb",
        WEB_HOST="127.0.0.1",
        WEB_PORT=str(web_port),
    )
    assert not container.healthy()
    async with container.running():
        await eventually(container.healthy, LIMIT_SECONDS, container.log.read_text)
        await stage.publish([order(1)])
        await eventually(lambda: sink.accepted, LIMIT_SECONDS, container.log.read_text)
        written = container.run("python", "-c", "import app; print(open(app.__file__, 'a'))")
        assert "PermissionError" in written.stderr
    assert container.data("CURRENT")  # RocksDB's
    counted = container.run("order-relay", "fallback", "stats", "--json")
    assert counted.returncode == 0, counted.stderr


async def test_an_image_with_consumers_of_its_own(
    build: Build, dockerfile: Dockerfile, stage: Stage, sink: ScriptedSink
) -> None:
    """examples/own-repository adds its app and consumers: they run instead of ours."""
    repository = ROOT / "examples" / "own-repository"
    own = Dockerfile(repository / "Dockerfile")
    (base,) = own.bases
    assert base.startswith("order-relay:")
    build.extend(own, repository)
    (web_port,) = free_ports(1)
    container = Container(
        build,
        dockerfile,
        KAFKA_BOOTSTRAP_SERVERS=stage.bootstrap_servers,
        KAFKA_DECLARE_TOPICS="false",
        COUPONS_TOPIC=stage.topic,
        COUPONS_DEAD_LETTER_TOPIC=stage.dlq_topic,
        COUPONS_GROUP=stage.group_id,
        WEB_HOST="127.0.0.1",
        WEB_PORT=str(web_port),
        **{name: build.moved(value) for name, value in own.environment.items()},
    )
    async with container.running():
        await stage.publish([order(1)])
        await eventually(
            lambda: "Coupon issued" in container.log.read_text(),
            LIMIT_SECONDS,
            container.log.read_text,
        )
    assert "consumers=coupons " in container.log.read_text()
    assert sink.requests == []
