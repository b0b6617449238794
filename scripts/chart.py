"""Writes into the Helm chart what has its source elsewhere: ``python -m scripts.chart``.

Helm packages only files of the chart's own folder. So it has copies of the alerts and dashboards,
and the version of pyproject.toml.
"""

from __future__ import annotations

import re
from pathlib import Path

from order_relay.version import VERSION

ROOT = Path(__file__).parents[1]
CHART = ROOT / "deploy" / "helm" / "order-relay"
ALERTS = ROOT / "prometheus" / "alerts.yml"
DASHBOARDS = ROOT / "grafana" / "dashboards"


def files() -> dict[Path, str]:
    """Return the text of each file of the chart that is written here."""
    description = (CHART / "Chart.yaml").read_text(encoding="utf-8")
    description = re.sub(
        r"^(version|appVersion): .*$", rf"\1: {VERSION}", description, flags=re.MULTILINE
    )
    copies = {
        CHART / "files" / "dashboards" / source.name: source.read_text(encoding="utf-8")
        for source in sorted(DASHBOARDS.glob("*.json"))
    }
    return {
        CHART / "Chart.yaml": description,
        CHART / "files" / "alerts.yml": ALERTS.read_text(encoding="utf-8"),
        **copies,
    }


def main() -> None:
    """Write them, and remove dashboards that no longer exist."""
    written = files()
    for old in (CHART / "files" / "dashboards").glob("*.json"):
        if old not in written:
            old.unlink()
    for path, text in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
