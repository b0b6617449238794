"""Run a command that the kernel kills when its parent dies: `die_with_parent.py PARENT COMMAND…`.

A test run that is killed with SIGKILL runs no cleanup of its own, and three JVMs would stay. This
script asks Linux for a SIGKILL at the parent's death and then becomes the command. It is a script
and not a `preexec_fn`, because Python 3.12 warns of forking from a process with threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Bind this process to its parent, then become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before prctl took effect
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - becoming the command is the point


if __name__ == "__main__":
    main()
