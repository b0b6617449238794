"""Child processes of tests: killed with this one, or run to their end."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from demo import die_with_parent
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 300
STOP_SECONDS = 90.0


def on_leash(*command: object) -> list[str]:
    """A command for ``subprocess.Popen`` that the kernel kills when this process dies (Linux).

    A test run that is killed with SIGKILL cannot clean up, and its JVMs and workers would stay.
    The kernel watches the thread that starts the process: it must live as long.
    """
    leash_script = [sys.executable, "-I", "-S", die_with_parent.__file__, os.getpid()]
    return [str(word) for word in (*leash_script, *command)]


def run(
    *command: object, folder: Path = ROOT, **environment: object
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with this environment alone; any exit status is OK.

    ``-…`` as the first word stands for this Python with that option.
    """
    given = {"PYTHONPATH": ROOT, "PATH": os.environ.get("PATH", ""), **environment}
    python = [sys.executable] if str(command[0]).startswith("-") else []
    return subprocess.run(
        [*python, *map(str, command)],
        cwd=folder,
        env={name: str(value) for name, value in given.items()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


@asynccontextmanager
async def until_sigterm(
    process: subprocess.Popen[bytes], log: Callable[[], str]
) -> AsyncIterator[None]:
    """Let a process run, and stop it by SIGTERM with status 0; errors have its log."""
    try:
        yield
        assert process.poll() is None, log()
        process.send_signal(signal.SIGTERM)
        await eventually(lambda: process.poll() is not None, STOP_SECONDS, log)
        assert process.returncode == 0, log()
    finally:
        process.kill()
        process.wait()


def run_python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter, in the test's folder; any exit status is OK."""
    return run("-W", "error::ImportWarning", "-c", code, folder=folder, PATH="", **environment)
