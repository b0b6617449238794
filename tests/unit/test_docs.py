"""The documents say what the code says: settings, metrics, log phrases, commands, links."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import annotated_types
import pytest
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from sqlalchemy import make_url

from app.operations import commands
from app.operations.metrics import (
    DEAD_LETTER_REASONS,
    PREFIX,
    PUBLISH_RESULTS,
    REPLAY_RESULTS,
    Metrics,
)
from app.settings import Settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
COMMANDS = {name.replace("_", "-") for name in commands.__all__}
FIELDS = {name.upper(): field for name, field in Settings.model_fields.items()}
# The largest value of a client's 32-bit setting says nothing to a reader.
BOUNDS_WORTH_TELLING = range(1_000_000)


def read(name: str) -> str:
    """A document of this project."""
    return (ROOT / name).read_text(encoding="utf-8")


def default_text(field: FieldInfo, none: str) -> str:
    """A default as a person writes it."""
    value = field.default
    if value is None:
        return none
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return f"{value:g}" if isinstance(value, float) else str(value)


def bounds(field: FieldInfo) -> Iterator[float]:
    """The smallest and the largest value that a number may have."""
    for rule in field.metadata:
        for kind, name in (
            (annotated_types.Ge, "ge"), (annotated_types.Gt, "gt"), (annotated_types.Le, "le"),
        ):  # fmt: skip
            if isinstance(rule, kind):
                yield getattr(rule, name)


def settings_of_readme() -> dict[str, str]:
    """Name to default, from the settings table of the README, in its order."""
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\S+) \| .+ \|$", read("README.md"), re.MULTILINE)
    return {name: default.strip("`") for name, default in rows}


def settings_of_example() -> dict[str, tuple[str, str]]:
    """Name to default and the comment above it, from ``.env.example``, in its order."""
    rows = re.findall(r"^# (.+)\n([A-Z_]+)=(.*)$", read(".env.example"), re.MULTILINE)
    return {name: (default, comment) for comment, name, default in rows}


def catalogue() -> set[str]:
    """Every metric name as Prometheus and its users spell it."""
    names = set()
    for family in Metrics().registry.collect():
        if family.type == "counter":
            names.add(f"{family.name}_total")
        else:
            names.add(family.name)
    return names


def test_the_readme_lists_every_setting_with_its_default() -> None:
    """No setting is missing, made up, or shown with another default; the order is the code's."""
    expected = {name: default_text(field, "none") for name, field in FIELDS.items()}
    assert settings_of_readme() == expected
    assert list(settings_of_readme()) == list(expected)


def test_the_example_lists_every_setting_with_its_default() -> None:
    """``.env.example`` has every setting, each with its default and a comment, and no other."""
    expected = {name: default_text(field, "") for name, field in FIELDS.items()}
    assert {name: default for name, (default, _) in settings_of_example().items()} == expected
    assert list(settings_of_example()) == list(expected)
    assert len(re.findall(r"^[A-Z_]+=", read(".env.example"), re.MULTILINE)) == len(expected)


def test_the_example_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied to ``.env`` as it is, the example gives the settings that hold without it."""
    for name in FIELDS:
        monkeypatch.delenv(name, raising=False)
    as_it_is = Settings(_env_file=ROOT / ".env.example")  # type: ignore[call-arg]
    assert as_it_is == Settings(_env_file=None)  # type: ignore[call-arg]


def test_the_example_tells_units_and_bounds() -> None:
    """The comment of a time names its unit, that of a number its bounds."""
    for name, (_, comment) in settings_of_example().items():
        if name.endswith("_SECONDS"):
            assert "Seconds" in comment, name
        if name.endswith("_MS"):
            assert "Milliseconds" in comment, name
        if name.endswith("_DAYS"):
            assert "Days" in comment, name
        for bound in bounds(FIELDS[name]):
            if bound in BOUNDS_WORTH_TELLING:
                assert re.search(rf"\b{bound:.0f}\b", comment), f"{name} does not tell {bound}"


def test_secrets_have_no_default() -> None:
    """No secret is written down as a default; of the database's URL only its password is one."""
    secrets = {name for name, field in FIELDS.items() if "SecretStr" in str(field.annotation)}
    assert len(secrets) >= 5  # else this looks for the wrong thing
    database_url = settings_of_example()["DATABASE_URL"][0]
    assert make_url(database_url).password is None
    assert {settings_of_example()[name][0] for name in secrets - {"DATABASE_URL"}} == {""}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_metrics_that_are_named_exist(document: Path) -> None:
    """Whatever looks like one of our metrics in a document is in the catalogue."""
    named = set(re.findall(rf"\b{PREFIX}_[a-z_]+", document.read_text(encoding="utf-8")))
    assert named <= catalogue()


def test_every_metric_and_every_label_is_explained() -> None:
    """The page for people on call has the whole catalogue, and the values of its labels."""
    text = read("docs/operations.md")
    assert {name for name in catalogue() if f"| `{name}` |" not in text} == set()
    values = {*DEAD_LETTER_REASONS, *PUBLISH_RESULTS.values(), *REPLAY_RESULTS.values()}
    assert {value for value in values if f"`{value}`" not in text} == set()


def test_log_phrases_that_are_explained_are_logged() -> None:
    """A phrase that the page for people on call explains stands in the code as it is there."""
    phrases = explained_phrases()
    assert len(phrases) > 30  # else the table was not found
    texts = "\n".join(strings_of_the_code())
    assert [phrase for phrase in phrases if phrase not in texts] == []


def test_errors_that_are_logged_are_explained() -> None:
    """Whatever a person must act on stands in the table of the page for people on call."""
    logged = list(errors_of_the_code())
    assert len(logged) > 10  # else they were not found
    phrases = explained_phrases()
    assert [text for text in logged if not any(phrase in text for phrase in phrases)] == []


def explained_phrases() -> list[str]:
    """The phrases in the first column of the table of log lines."""
    table = read("docs/operations.md").split("## Logs")[1].split("## ")[0]
    cells = re.findall(r"^\| (`.+?`) \| \w", table, re.MULTILINE)
    return [phrase for cell in cells for phrase in re.findall(r"`(.+?)`", cell)]


def strings_of_the_code() -> Iterator[str]:
    """Every string of the application, those in parts put together."""
    for path in (ROOT / "app").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def errors_of_the_code() -> Iterator[str]:
    """What the worker and an order service log as an error or worse, as it stands in the code.

    And whatever they log with data beside it.
    """
    for path in [*ROOT.glob("app/**/*.py"), *ROOT.glob("agents/*.py")]:
        if "quickstart" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(
                        value=ast.Name(id="logger"), attr="error" | "exception" | "critical"
                    ),
                    args=[ast.Constant(value=str(text)), *_],
                ) if not text.startswith("%s"):
                    yield text
                # Lines with data of their own, whatever their level.
                case ast.Call(
                    func=ast.Name(id="LogLine" | "FiguresLine"),
                    args=[ast.Constant(value=str(text))],
                ):
                    yield text


def test_the_readme_lists_every_command() -> None:
    """Every command beside the worker stands in the README's table, and no other."""
    rows = re.findall(r"^\| `([a-z-]+)(?: [A-Z]+)?` \| .+ \|$", read("README.md"), re.MULTILINE)
    assert sorted(rows) == sorted(COMMANDS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_that_are_named_exist(document: Path) -> None:
    """Whatever a document runs with ``faust -A app`` can be run."""
    named = set(re.findall(r"faust -A app ([a-z][a-z-]*)", document.read_text(encoding="utf-8")))
    assert named <= COMMANDS | {"worker"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Every link to another file of the project leads to a file, and to a heading that it has."""
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", document.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        file = document.parent / name if name else document
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}
