r"""Prints the alerts of ``prometheus/alerts.yml`` with links to a runbook and console of your own.

python -m scripts.alerts --runbook-base-url https://docs.example.com/how-to/runbook/ \
    --console-base-url https://relay.example.com > alerts.yml
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from yarl import URL

from grafana.links import CONSOLE, RUNBOOK

ALERTS = Path(__file__).parents[1] / "prometheus" / "alerts.yml"


def alerts(runbook_base_url: str = RUNBOOK, console_base_url: str = CONSOLE) -> str:
    """Return the rules.

    Each ``runbook_url`` is the runbook's URL with the section of the alert, each ``console_url`` a
    page of the console at its URL.
    """
    rules = ALERTS.read_text(encoding="utf-8").replace(f"{RUNBOOK}#", f"{runbook_base_url}#")
    return rules.replace(f"{CONSOLE}/", f"{console_base_url.rstrip('/')}/")


def _base_url(text: str) -> str:
    try:
        url = URL(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.host or url.raw_fragment:
        raise argparse.ArgumentTypeError(f"{text!r} must be an http or https URL without #")
    return text


def main(arguments: list[str] | None = None) -> None:
    """Print them."""
    parser = argparse.ArgumentParser(prog="python -m scripts.alerts", description=__doc__)
    for of, what, default in (
        ("runbook", "the runbook page is served", RUNBOOK),
        ("console", "a worker's web server is reached", CONSOLE),
    ):
        parser.add_argument(
            f"--{of}-base-url",
            metavar="URL",
            type=_base_url,
            help=f"where {what} (default: {default})",
        )
    given = {key: url for key, url in vars(parser.parse_args(arguments)).items() if url}
    sys.stdout.write(alerts(**given))


if __name__ == "__main__":
    main()
