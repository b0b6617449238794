"""Child processes of tests: killed with this one, or run to their end."""

import os
import subprocess
import sys
from pathlib import Path

from demo import die_with_parent

ROOT = Path(__file__).parents[2]


def on_leash(*command: object) -> list[str]:
    """A command for ``subprocess.Popen`` that the kernel kills when this process dies (Linux).

    A test run that is killed with SIGKILL cannot clean up, and its JVMs and workers would stay.
    The kernel watches the thread that starts the process: it must live as long.
    """
    leash_script = [sys.executable, "-I", "-S", die_with_parent.__file__, os.getpid()]
    return [str(word) for word in (*leash_script, *command)]


def run_python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter, in the test's folder; any exit status is OK."""
    return subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
