"""``python -m demo.logger``: the sample external logger by itself, until SIGTERM."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from demo.errors import CannotRun
from demo.interruption import Interruption
from demo.logger_script import LoggerScript, Outages
from demo.options import LOGGER_PORT, SEED, OneLineParser, port, seed
from demo.sample_logger import HOST, SampleLogger


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM or Ctrl-C; returns the exit status."""
    parser = OneLineParser(
        prog="python -m demo.logger",
        description="A sample external logger: POST /logs is mostly fine, sometimes slow, refusing "
        "or down; GET / says what it did so far.",
        allow_abbrev=False,
    )
    parser.add_argument("--host", default=HOST, help=f"address to listen on (default {HOST})")
    parser.add_argument(
        "--logger-port", type=port, default=LOGGER_PORT, metavar="PORT", help="default 3000"
    )
    parser.add_argument("--seed", type=seed, default=SEED, help="another seed, other mishaps")
    given = parser.parse_args(arguments)
    try:
        asyncio.run(_serve(given.host, given.logger_port, given.seed))
    except CannotRun as error:
        sys.stderr.write(f"quickstart: {error}\n")
        return 1
    return 0


async def _serve(host: str, logger_port: int, its_seed: int) -> None:
    interruption = Interruption()
    interruption.listen()
    logger = SampleLogger(LoggerScript(its_seed, Outages()), lambda _: None)
    await logger.start(logger_port, host)
    try:
        await interruption.first.wait()
    finally:
        await logger.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
