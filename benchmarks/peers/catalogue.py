"""The peers: how each is installed in its own cache and started, for a fair comparison.

A peer in Python has a virtual environment, one in Java a folder of jars.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks import subjects
from benchmarks.processes import Child
from benchmarks.subjects import Job, Start, log_file
from order_relay.version import VERSION
from tests.support.kafka.distribution import cache_directory, java_executable

LIMIT_SECONDS = 600
HERE = Path(__file__).parent


class CannotSetUp(Exception):
    """A peer cannot run on this machine; the one-line message says what is missing."""


def version_of(peer: str) -> str:
    """The measured version: the first one in its requirements.txt or pom.xml."""
    for name, pattern in (
        ("requirements.txt", r"==(\S+)"),
        ("pom.xml", r"(?s)<dependency>.*?<version>(.+?)</version>"),
    ):
        file = HERE / peer / name
        if file.exists() and (found := re.search(pattern, file.read_text(encoding="utf-8"))):
            return found[1]
    raise ValueError(f"{peer} names no version")


def java_version() -> str:
    """The Java of the broker and of two peers."""
    java = java_executable()
    if java is None:
        return "missing"
    done = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    found = re.search(r'version "(.+?)"', done.stderr + done.stdout)
    return found[1] if found else "unknown"


def python_of(peer: str, at_least: tuple[int, int] = (3, 11)) -> str:
    """The interpreter of a virtual environment with the peer's requirements.txt.

    Args:
        peer: Its folder beside this file.
        at_least: The oldest Python that its package supports.

    Raises:
        CannotSetUp: No such Python, or a package cannot be installed.
    """
    requirements = HERE / peer / "requirements.txt"

    def install(folder: Path) -> None:
        _run([_interpreter(at_least), "-m", "venv", str(folder)])
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet"]
        _run([*pip, "--disable-pip-version-check", "-r", str(requirements)])

    return str(_cached(peer, requirements, install) / "bin/python")


def jars_of(peer: str) -> Path:
    """A folder with the jars of the peer's pom.xml.

    Raises:
        CannotSetUp: Java, Maven or a jar is missing.
    """
    pom = HERE / peer / "pom.xml"
    if java_executable() is None:
        raise CannotSetUp("it needs Java 17 or newer: no java in JAVA_HOME or PATH")

    def install(folder: Path) -> None:
        maven = shutil.which("mvn")
        if maven is None:
            raise CannotSetUp("it needs Maven to fetch its jars: no mvn in PATH")
        quietly = ("--batch-mode", "--quiet", "-Dstyle.color=never")
        goal = ("dependency:copy-dependencies", "-DincludeScope=runtime")
        _run([maven, *quietly, "--file", str(pom), *goal, f"-DoutputDirectory={folder}"])

    return _cached(peer, pom, install)


def _cached(peer: str, wanted: Path, install: Callable[[Path], None]) -> Path:
    """The folder for ``wanted``, installed the first time."""
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()[:12]
    folder = cache_directory().parent / "peers" / f"{peer}-{digest}"
    complete = folder / ".complete"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        print(f"setting up {peer}", file=sys.stderr, flush=True)
        install(folder)
        complete.touch()
    return folder


def _interpreter(at_least: tuple[int, int]) -> str:
    names = [sys.executable, "python3", *(f"python3.{minor}" for minor in range(20, 10, -1))]
    question = f"import sys, venv; sys.exit(sys.version_info < {at_least})"
    for path in filter(None, map(shutil.which, names)):
        if subprocess.run([path, "-c", question], capture_output=True, check=False).returncode == 0:
            return path
    raise CannotSetUp(f"it needs Python {'.'.join(map(str, at_least))} or newer in PATH")


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CannotSetUp(f"no end after {LIMIT_SECONDS} s: {command[0]}") from None
    if done.returncode:
        lines = f"{done.stdout}\n{done.stderr}".splitlines()
        errors = [line for line in lines if "ERROR" in line] or [line for line in lines if line]
        raise CannotSetUp(errors[0] if errors else f"{command[0]} ended with {done.returncode}")


@dataclass(frozen=True, slots=True)
class Peer:
    """One row of the table.

    Attributes:
        name: Its usual name.
        version: The measured version.
        set_up: Installs it if necessary; returns a function that starts it. Raises
            ``CannotSetUp``.
        threads: Deliveries at a time if it has its own number, else ``None``.
    """

    name: str
    version: str
    set_up: Callable[[], Start]
    threads: int | None = None


def _java(folder: str) -> Start:
    jars = jars_of(folder)

    def start(job: Job) -> Child:
        return Child(
            [
                "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
                *("-cp", f"{jars}/*", str(HERE / folder / "Peer.java")),
                *_arguments(job),
            ],
            program=str(java_executable()),
            log=log_file(folder),
        )

    return start


def _python(folder: str, at_least: tuple[int, int] = (3, 11)) -> Start:
    python = python_of(folder, at_least)

    def start(job: Job) -> Child:
        return Child(
            [str(HERE / folder / "peer.py"), *_arguments(job)],
            program=python,
            log=log_file(folder),
        )

    return start


def _arguments(job: Job) -> list[str]:
    return [
        job.brokers.servers,
        job.topic.name,
        job.group,
        job.sink.url,
        str(job.in_flight),
    ]


PEERS = (
    Peer("relay", VERSION, lambda: subjects.relay),
    Peer(
        "Confluent Parallel Consumer, vert.x",
        version_of("parallel_consumer"),
        lambda: _java("parallel_consumer"),
    ),
    Peer(
        "Spring Kafka, 3 threads",
        version_of("spring_kafka"),
        lambda: _java("spring_kafka"),
        threads=3,
    ),
    Peer(
        "Pyrallel Consumer, asyncio",
        version_of("pyrallel_consumer"),
        lambda: _python("pyrallel_consumer", (3, 12)),
    ),
    Peer("mq-bridge", version_of("mq_bridge"), lambda: _python("mq_bridge")),
    Peer(
        "plain aiokafka and aiohttp",
        f"{version('aiokafka')}, {version('aiohttp')}",
        lambda: subjects.unordered,
    ),
)
