"""Prints the alerts of ``prometheus/alerts.yml`` with links to a runbook of your own.

python -m scripts.alerts --runbook-base-url https://docs.example.com/how-to/runbook/ > alerts.yml
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from yarl import URL

ALERTS = Path(__file__).parents[1] / "prometheus" / "alerts.yml"
RUNBOOK = "docs/how-to/runbook.md"


def alerts(runbook_base_url: str) -> str:
    """Return the rules; each ``runbook_url`` is this URL, with the section of the alert."""
    return ALERTS.read_text(encoding="utf-8").replace(f"{RUNBOOK}#", f"{runbook_base_url}#")


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
    parser.add_argument(
        "--runbook-base-url",
        metavar="URL",
        type=_base_url,
        help=f"where the runbook page is served (default: {RUNBOOK}, its path in the repository)",
    )
    sys.stdout.write(alerts(parser.parse_args(arguments).runbook_base_url or RUNBOOK))


if __name__ == "__main__":
    main()
