"""The wheels of the lock files: fetched once, checked against their hashes, kept in a cache.

They are kept beside Kafka's jars, in a folder for these lock files and this Python. Pip checks the
hashes again whenever it takes one from there. With the folder in place no network is needed.
"""

import hashlib
import platform
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.kafka.distribution import cache_directory

ROOT = Path(__file__).parents[2]
LOCKS = [ROOT / "requirements" / name for name in ("build.txt", "run.txt")]
FETCH_LIMIT_SECONDS = 300


def wheel_source(locks: Sequence[Path] = LOCKS) -> dict[str, str]:
    """The environment that lets pip take the locked wheels from the cache, fetched if need be.

    Empty on arm64, where one package has no wheel and is built from its source.
    """
    if platform.machine() in ("aarch64", "arm64"):
        return {}
    folder = _folder(locks)
    if not folder.is_dir():
        _fetch(folder, locks)
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}


def _folder(locks: Sequence[Path]) -> Path:
    made_for = [sys.version, sysconfig.get_platform(), *(lock.read_text() for lock in locks)]
    digest = hashlib.sha256("\n".join(made_for).encode()).hexdigest()
    return cache_directory().with_name(f"wheels-{digest[:16]}")


def _fetch(folder: Path, locks: Sequence[Path]) -> None:
    """Fetch beside the folder and move it into place in one step, in case the run is killed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wheels-", dir=folder.parent) as temporary:
        fetched = Path(temporary) / "fetched"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--no-cache-dir", "--no-deps"),
                *("--require-hashes", "--only-binary", ":all:", "--dest", fetched),
                *(word for lock in locks for word in ("-r", lock)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=FETCH_LIMIT_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        try:
            fetched.rename(folder)
        except OSError:  # another run was faster
            if not folder.is_dir():
                raise
