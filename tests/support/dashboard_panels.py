"""The queries of the committed dashboards, as Grafana sends them."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "grafana" / "dashboards"


@dataclass(frozen=True, slots=True)
class Question:
    """One query of one panel."""

    dashboard: str
    panel: str
    expr: str

    def asked(self, variables: Mapping[str, str]) -> str:
        """The expression with the dashboard's variables filled in."""
        expr = re.sub(r"\$(\w+)", lambda found: variables[found[1]], self.expr)
        assert "$" not in expr
        return expr


def boards() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every committed dashboard, by the name of its file."""
    for file in sorted(FOLDER.glob("*.json")):
        yield file.stem, json.loads(file.read_text(encoding="utf-8"))


def panels(board: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A dashboard's panels, without row titles; no panel may be in a collapsed row."""
    for panel in board["panels"]:
        assert not panel.get("panels"), panel["title"]
        if panel["type"] != "row":
            yield panel


def questions() -> Iterator[Question]:
    """Every query of every panel and of every mark over them."""
    for name, board in boards():
        for panel in panels(board):
            for target in panel["targets"]:
                yield Question(name, panel["title"], target["expr"])
        for marks in board["annotations"]["list"]:
            yield Question(name, f"marks: {marks['name']}", marks["expr"])
