"""``python -m demo``: see the package."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

try:
    from rich.console import Console

    from demo.command_line import parse_options
    from demo.scenario import run_scenario
    from order_relay.errors import RelayError
    from order_relay.logs.standard_streams import escape_unencodable
except ModuleNotFoundError as error:
    sys.exit(
        f"quickstart: the Python package {error.name!r} is not installed: start it with "
        "`make run`, which installs what it needs"
    )


def main() -> int:
    """Run the demo; returns the exit status."""
    escape_unencodable()
    os.umask(0o077)  # databases and logs hold orders
    options = parse_options(sys.argv[1:], os.environ)
    try:
        folder = Path(tempfile.mkdtemp(prefix="order-relay-"))
    except OSError as error:
        sys.stderr.write(
            f"quickstart: no folder can be made for the worker's log ({error}): "
            "choose another place with TMPDIR\n"
        )
        return 1
    # Our own log would run through the live view.
    logging.basicConfig(
        filename=folder / "demo.log",
        level=logging.INFO,
        format="[%(asctime)s] [%(process)d] [%(levelname)s] %(name)s: %(message)s",
    )
    try:
        return asyncio.run(run_scenario(options, Console(), folder, os.environ))
    except RelayError as error:
        shutil.rmtree(folder, ignore_errors=True)
        sys.stderr.write(f"quickstart: {error}\n")
        return 1
    except KeyboardInterrupt:  # before Ctrl-C was handled
        return 130


if __name__ == "__main__":
    sys.exit(main())
