"""Writes the dashboards that Grafana reads: ``python -m grafana.build``."""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Panel

from grafana.delivery import delivery
from grafana.links import add_links
from grafana.publishing import publishing
from grafana.worker import worker

FOLDER = Path(__file__).with_name("dashboards")


def dashboards() -> dict[str, str]:
    """Return the JSON of each dashboard by its file's name."""
    made = (delivery().build(), publishing().build(), worker().build())
    for board in made:
        for number, panel in enumerate(board.panels or [], start=1):
            # Links to a panel lead to its number; Grafana would give it one at random.
            panel.id_val = number
            if isinstance(panel, Panel):  # and not a row
                add_links(str(board.uid), panel)
    return {
        f"{board.uid}.json": json.dumps(board, cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"
        for board in made
    }


def main() -> None:
    """Write them, and remove those that are no more."""
    FOLDER.mkdir(exist_ok=True)
    texts = dashboards()
    for old in FOLDER.glob("*.json"):
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
