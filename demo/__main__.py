"""``python -m demo``: see the package."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from demo.command_line import parse_options
from demo.scenario import Scenario
from order_relay.errors import RelayError
from order_relay.logs.standard_streams import escape_unencodable


def main() -> int:
    """Run the demo; returns the exit status."""
    escape_unencodable()
    os.umask(0o077)  # databases and logs hold orders
    options = parse_options(sys.argv[1:], os.environ)
    folder = Path(tempfile.mkdtemp(prefix="order-relay-"))
    # Our own log would run through the live view.
    logging.basicConfig(
        filename=folder / "demo.log",
        level=logging.INFO,
        format="[%(asctime)s] [%(process)d] [%(levelname)s] %(name)s: %(message)s",
    )
    try:
        return asyncio.run(Scenario(options, Console(), folder).run())
    except RelayError as error:
        shutil.rmtree(folder, ignore_errors=True)
        sys.stderr.write(f"quickstart: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
