"""Processes that end with this one, whichever way it ends."""

import os
import sys

from demo import die_with_parent


def on_leash(*command: object) -> list[str]:
    """A command for ``subprocess.Popen`` that the kernel kills when this process dies (Linux).

    A test run that is killed with SIGKILL runs no cleanup of its own, and its JVMs and workers
    would stay. The kernel goes by the thread that starts the process: it must live as long.
    """
    leash_script = [sys.executable, "-I", "-S", die_with_parent.__file__, os.getpid()]
    return [str(word) for word in (*leash_script, *command)]
