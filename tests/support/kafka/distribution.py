"""Apache Kafka's own jars: fetched once by Maven, checked, kept in a cache.

They are kept in `kafka-<version>` under `$RELAY_KAFKA_CACHE`, or under `~/.cache/order-relay`.
Jars are fetched beside that directory, checked against jars.sha256 and moved into place in one
step, so neither a killed download nor two test runs at once leave half a cache behind. With the
cache in place neither Maven nor a network is needed.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
POM = HERE / "pom.xml"
DIGESTS = HERE / "jars.sha256"
JAVA_NEEDED = 17
FETCH_TRIES = 3
FETCH_LIMIT_SECONDS = 600


class KafkaUnavailable(RuntimeError):
    """Real Kafka cannot run on this machine; the text is one line saying what is missing."""


def kafka_version() -> str:
    """The Apache Kafka version pinned in pom.xml."""
    found = re.search("<kafka.version>(.+)</kafka.version>", POM.read_text(encoding="utf-8"))
    if found is None:
        raise KafkaUnavailable(f"{POM} has no property kafka.version")
    return found.group(1)


def cache_directory() -> Path:
    """Where the jars are, or will be."""
    configured = os.environ.get("RELAY_KAFKA_CACHE")
    parent = Path(configured) if configured else Path("~/.cache/order-relay")
    return parent.expanduser().absolute() / f"kafka-{kafka_version()}"


def java_executable() -> str | None:
    """Path of `java`: from JAVA_HOME when that is set, else from PATH."""
    home = os.environ.get("JAVA_HOME")
    if home and (found := shutil.which("java", path=str(Path(home) / "bin"))):
        return found
    return shutil.which("java")


def _missing() -> str | None:
    """What this machine lacks, or None. Starts `java -version` once; fetches nothing."""
    java = java_executable()
    if java is None:
        return f"Java {JAVA_NEEDED} or newer: no java in JAVA_HOME or PATH"
    done = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    found = re.search(r'version "(\d+)', done.stderr + done.stdout)
    if found is None or int(found[1]) < JAVA_NEEDED:
        is_version = f"Java {found[1]}" if found else "of an unknown version"
        return f"Java {JAVA_NEEDED} or newer: {java} is {is_version}"
    if not _is_complete(cache_directory()) and shutil.which("mvn") is None:
        return f"Maven to fetch its jars: no mvn in PATH, no {cache_directory()}"
    return None


def fetch_jars() -> Path:
    """Return the directory with all the jars, fetching them first if they are not there.

    Safe to call from several processes at once: one fetches, the others wait for it.

    Raises:
        KafkaUnavailable: Java or Maven is missing, or Maven could not fetch the pinned jars.
    """
    if (missing := _missing()) is not None:
        raise KafkaUnavailable(f"real Kafka needs {missing}")
    cache = cache_directory()
    if _is_complete(cache):
        return cache
    cache.parent.mkdir(parents=True, exist_ok=True)
    with _locked(cache.with_name(cache.name + ".lock")):
        if not _is_complete(cache):
            _fetch_into(cache)
    return cache


def _fetch_into(cache: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache.parent, prefix=cache.name + ".part-") as part:
        jars = Path(part) / "jars"
        _run_maven(jars)
        if wrong := dict(_expected().items() ^ _digests_of(jars).items()):
            names = ", ".join(sorted(wrong))
            raise KafkaUnavailable(f"the jars Maven fetched are not those of {DIGESTS}: {names}")
        # An existing set is incomplete: its jars are older than a change of the pom.
        if cache.exists():
            shutil.rmtree(cache)
        jars.rename(cache)


def _run_maven(jars: Path) -> None:
    command = [
        *("mvn", "--batch-mode", "--quiet", "--file", str(POM)),
        *("dependency:copy-dependencies", f"-DoutputDirectory={jars}"),
    ]
    complaint = ""
    for _ in range(FETCH_TRIES):
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=FETCH_LIMIT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            complaint = f"no end after {FETCH_LIMIT_SECONDS} s"
            continue
        if done.returncode == 0:
            return
        lines = [line for line in done.stdout.splitlines() if "ERROR" in line]
        complaint = lines[0] if lines else f"mvn ended with {done.returncode}"
    raise KafkaUnavailable(f"Maven could not fetch Apache Kafka {kafka_version()}: {complaint}")


def _expected() -> dict[str, str]:
    lines = (line.split() for line in DIGESTS.read_text(encoding="ascii").splitlines())
    return {name: digest for digest, name in lines}


def _digests_of(directory: Path) -> dict[str, str]:
    return {
        jar.name: hashlib.sha256(jar.read_bytes()).hexdigest() for jar in directory.glob("*.jar")
    }


def _is_complete(directory: Path) -> bool:
    """Names only: the digests were checked before the directory got its name."""
    return {jar.name for jar in directory.glob("*.jar")} >= set(_expected())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_digests() -> None:
    """Fetch what pom.xml asks for and rewrite jars.sha256, after a version change."""
    with tempfile.TemporaryDirectory() as directory:
        jars = Path(directory)
        _run_maven(jars)
        lines = [f"{digest}  {name}\n" for name, digest in sorted(_digests_of(jars).items())]
    DIGESTS.write_text("".join(lines), encoding="ascii")
    sys.stdout.write(f"{DIGESTS}: {len(lines)} jars of Apache Kafka {kafka_version()}\n")


if __name__ == "__main__":
    write_digests()
