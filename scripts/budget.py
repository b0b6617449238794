"""Hold each package of the product to its budget of lines, so that growth is a decision.

    python -m scripts.budget

The budgets stand in pyproject.toml, [tool.budget.lines]. A package may shrink at any time; one that
must grow gets a larger number in the same commit.
"""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def lines_of(package: str) -> int:
    """Return how many lines the Python files of a package have."""
    files = (ROOT / package.replace(".", "/")).rglob("*.py")
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)


def problems() -> list[str]:
    """Return a line for each package over its budget, and for each without one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    budgets: dict[str, int] = project["tool"]["budget"]["lines"]
    parts = [f"order_relay.{path.name}" for path in (ROOT / "order_relay").glob("[!_]*/")]
    missing = sorted({*parts, "app", "agents", "tables", "demo"} - budgets.keys())
    found = [f"{package} has no budget in pyproject.toml" for package in missing]
    for package, budget in budgets.items():
        if (lines := lines_of(package)) > budget:
            found.append(f"{package} has {lines} lines, its budget is {budget}")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(problems()) or 0)
