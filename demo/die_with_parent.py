"""Run a command that ends when its parent does: ``die_with_parent.py PARENT COMMAND…``.

If the demo is killed with SIGKILL, it cannot stop its worker, which would keep its port and look
for Kafka without end. On Linux this script asks the kernel for a SIGKILL in that case, and then
becomes the command. Elsewhere it only becomes the command.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main() -> None:
    """Tie this process to its parent, then become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the request was made
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - becoming the command is the point


if __name__ == "__main__":
    main()
