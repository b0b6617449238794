"""The documents say what the code says: settings, metrics, log phrases, commands, links."""

import ast
import inspect
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import annotated_types
import pytest
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from sqlalchemy import make_url

from order_relay import Consumer, HttpPost
from order_relay.monitoring.metrics import PREFIX, Metrics
from order_relay.settings import Settings
from order_relay.settings.consumers import HTTP_OPTIONS, OPTIONS
from order_relay.worker.discovery import find_consumers
from order_relay.worker.relay_app import SHUTDOWN_TAIL_SECONDS
from scripts.reference import all_commands, label_values, pages
from tests.support.alert_rules import rules
from tests.support.dashboard_panels import boards

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NOTES = sorted(ROOT.glob("deploy/**/NOTES.txt"))
READMES = sorted([*ROOT.glob("examples/**/README.md"), *ROOT.glob("deploy/**/README.md")])
DECISIONS = sorted(ROOT.glob("docs/decisions/[0-9]*.md"))
ADD_A_CONSUMER = "docs/how-to/add-a-consumer.md"
COMMANDS = {name for name, _ in all_commands()}
# The code that runs, apart from the demo.
PRODUCT = ("order_relay", "app", "agents", "tables")
FIELDS = {name.upper(): field for name, field in Settings.model_fields.items()}
# The maximum of a 32-bit client setting does not help a reader.
BOUNDS_WORTH_TELLING = range(1_000_000)
FLAGS = re.MULTILINE | re.DOTALL


def read(name: str) -> str:
    """A document of this project."""
    return (ROOT / name).read_text(encoding="utf-8")


def product_files() -> list[Path]:
    """The Python files of the product, apart from the demo."""
    return [path for folder in PRODUCT for path in (ROOT / folder).rglob("*.py")]


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


def test_the_example_lists_every_setting_with_its_default() -> None:
    """``.env.example`` has every setting, each with its default and a comment, and no other."""
    expected = {name: default_text(field, "") for name, field in FIELDS.items()}
    assert {name: default for name, (default, _) in settings_of_example().items()} == expected
    assert list(settings_of_example()) == list(expected)
    assert len(re.findall(r"^[A-Z_]+=", read(".env.example"), re.MULTILINE)) == len(expected)


def test_the_example_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied to ``.env`` as it is, the example gives the default settings."""
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
    assert len(secrets) >= 5  # otherwise the search is wrong
    database_url = settings_of_example()["DATABASE_URL"][0]
    assert make_url(database_url).password is None
    assert {settings_of_example()[name][0] for name in secrets - {"DATABASE_URL"}} == {""}


def arguments_of_the_page(heading: str) -> dict[str, tuple[str, str]]:
    """Name to variable and default, from a table of the page about adding a consumer."""
    table = read(ADD_A_CONSUMER).split(heading)[1].split("\n\n| ")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \|(.*?)\| (.+?) \| .+ \|$", table, re.MULTILINE)
    return {name: (variable.strip(" `"), default.strip("`")) for name, variable, default in rows}


@pytest.mark.parametrize(
    ("heading", "made", "fields", "own"),
    [
        (
            "Of `Consumer(",
            Consumer,
            OPTIONS,
            {
                "topic": "needed",
                "group": "needed",
                "event": "OrderPaid",
                "handler": "needed",
                "dead_letter_topic": "<topic>.<name>.DLQ",
                "key": "the record's key",
                "subject": "orderId",
            },
        ),
        ("Of `HttpPost(", HttpPost, HTTP_OPTIONS, {"url": "needed"}),
    ],
)
def test_every_argument_of_a_consumer_is_explained(
    heading: str, made: Callable[..., object], fields: dict[str, str], own: dict[str, str]
) -> None:
    """Each is in the table with its variable and its default, in the code's order."""
    names = [name for name in inspect.signature(made).parameters if name != "name"]
    expected = {
        name: (
            f"COUPONS_{name.upper()}" if name in fields else "",
            own[name] if name in own else default_text(Settings.model_fields[fields[name]], "none"),
        )
        for name in names
    }
    found = arguments_of_the_page(heading)
    assert found == expected
    assert list(found) == names


def test_secrets_of_a_consumer_are_explained() -> None:
    """Each that is only a variable is on the page."""
    alone = HTTP_OPTIONS.keys() - inspect.signature(HttpPost).parameters.keys()
    assert alone
    assert {f"COUPONS_{name.upper()}" for name in alone} <= code_spans(ROOT / ADD_A_CONSUMER)


def test_the_code_about_adding_a_consumer_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file on the page is a consumer, and the page's test of it passes; the README's is one."""
    consumer, test = python_blocks(ADD_A_CONSUMER)
    coupons = run_as_module("agents.coupons", consumer)
    assert [one.name for one in find_consumers([coupons])] == ["coupons"]
    monkeypatch.setitem(sys.modules, "agents.coupons", coupons)
    shown = run_as_module("test_coupons", test)
    (case,) = [value for name, value in vars(shown).items() if name.startswith("test_")]
    case()
    (block,) = python_blocks("README.md")
    assert [one.name for one in find_consumers([run_as_module("short", block)])] == ["coupons"]


def python_blocks(document: str) -> list[str]:
    """The Python code that a document shows."""
    return re.findall(r"^```python\n(.*?)^```", read(document), FLAGS)


def run_as_module(name: str, code: str) -> ModuleType:
    """The module that this code makes."""
    module = ModuleType(name)
    exec(compile(code, name, "exec"), vars(module))  # noqa: S102 - this project's own documents
    return module


@pytest.mark.parametrize(
    "document", DOCUMENTS + READMES, ids=lambda path: str(path.relative_to(ROOT))
)
def test_metrics_that_are_named_exist(document: Path) -> None:
    """Every name of one of our metrics in a document is in the catalogue."""
    named = set(re.findall(rf"\b{PREFIX}_[a-z_]+", document.read_text(encoding="utf-8")))
    assert named <= catalogue()


def test_every_value_of_a_label_is_explained() -> None:
    """Each is on the page of metrics, between backticks or in the text of its metric."""
    text = read("docs/reference/metrics.md")
    known = code_spans(ROOT / "docs/reference/metrics.md")
    known |= set(re.findall(r"(\w+) \(", text))
    values = label_values()
    assert len(values) > 5  # else they were not found
    assert {label: of - known for label, of in values.items() if of - known} == {}


def test_log_phrases_that_are_explained_are_logged() -> None:
    """Each phrase that the page of log lines explains is in the code."""
    phrases = explained_phrases()
    assert len(phrases) > 30  # else the table was not found
    texts = "\n".join(strings_of_the_code())
    assert [phrase for phrase in phrases if phrase not in texts] == []


def test_errors_that_are_logged_are_explained() -> None:
    """Errors, and lines of any level with data, are in the table of log lines."""
    logged = [text for level, text in levels_of_the_code() if level in {"error", "critical"}]
    logged += [text for text, _ in fields_of_lines()]
    assert len(logged) > 10  # else they were not found
    phrases = explained_phrases()
    assert [text for text in logged if not any(phrase in text for phrase in phrases)] == []


def test_levels_of_log_lines_are_those_of_the_code() -> None:
    """Warnings and worse are explained with their level; each explained level is right."""
    logged = list(levels_of_the_code())
    assert len(logged) > 80  # else they were not found
    rows = [
        (re.findall(r"`(.+?)`", cell), level)
        for cell, level in re.findall(r"^\| (`.+?`) \| (\w+) \|", log_table(), re.MULTILINE)
    ]
    for level, text in logged:
        if level in {"warning", "error", "critical"}:
            told = {said for phrases, said in rows if any(one in text for one in phrases)}
            assert level in told, text
    for phrases, said in rows:
        found = {level for level, text in logged if any(one in text for one in phrases)}
        assert not found or said in found, phrases


def levels_of_the_code() -> Iterator[tuple[str, str]]:
    """The level and the text of each line that the code logs with a text of its own."""
    for node in nodes_of_the_code():
        match node:
            case ast.Call(
                func=ast.Attribute(
                    value=ast.Name(id="logger"),
                    attr="debug" | "info" | "warning" | "error" | "exception" | "critical",
                ) as method,
                args=[ast.Constant(value=str(text)), *_]
                | [ast.Call(args=[ast.Constant(value=str(text)), *_]), *_],
            ) if not text.startswith("%s"):
                yield "error" if method.attr == "exception" else method.attr, text


def test_fields_of_log_lines_that_are_explained_are_logged() -> None:
    """A line has in the code what the documents say."""
    rows = [row.split(" | ") for row in log_table().splitlines() if row.startswith("| `")]
    said = [(cells[0], cells[2]) for cells in rows]
    # In the runbook: what follows "the line has", to the end of the sentence.
    said += re.findall(
        r"^- (`.+?`) (?:(?!^- ).)*?line\s+has (.+?\.)\s", read("docs/how-to/runbook.md"), FLAGS
    )
    lines = list(fields_of_lines())
    found = 0
    for phrases, text in said:
        for phrase in re.findall(r"`(.+?)`", phrases):
            if fields := [data for line, data in lines if line.startswith(phrase)]:
                named = set(re.findall(r"`([a-z_]+)`", text)) - {"rocksdb"}  # a setting's value
                assert named <= set().union(*fields), phrase
                found += len(named)
    assert found > 10  # otherwise the search is wrong


def fields_of_lines() -> Iterator[tuple[str, set[str]]]:
    """Every line of the code that has data: its phrase, and the names of its data."""
    for node in nodes_of_the_code():
        match node:
            case ast.Call(
                func=ast.Name(id="LogLine" | "FiguresLine"), args=[ast.Constant(value=str(text))]
            ):
                yield text, {keyword.arg for keyword in node.keywords if keyword.arg}


def log_table() -> str:
    """The table on the page of log lines."""
    return read("docs/reference/logs.md").split("## Lines")[1]


def explained_phrases() -> list[str]:
    """The phrases in the first column of the table of log lines."""
    cells = re.findall(r"^\| (`.+?`) \| \w", log_table(), re.MULTILINE)
    return [phrase for cell in cells for phrase in re.findall(r"`(.+?)`", cell)]


@cache
def nodes_of_the_code() -> list[ast.AST]:
    """The nodes of the product's syntax trees."""
    texts = [path.read_text(encoding="utf-8") for path in product_files()]
    return [node for text in texts for node in ast.walk(ast.parse(text))]


def strings_of_the_code() -> Iterator[str]:
    """Every string of the application; concatenated parts are one."""
    for node in nodes_of_the_code():
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_the_reference_is_what_the_code_writes() -> None:
    """``python -m scripts.reference`` would change nothing in the pages that it writes."""
    made = pages()
    assert len(made) == 3  # settings, metrics, commands
    for page, text in made.items():
        assert page.read_text(encoding="utf-8") == text, f"{page.name}: run make docs"


def test_every_page_is_in_the_navigation() -> None:
    """The navigation has each page once and no other; the index leads to all but decisions."""
    site = tomllib.loads(read("zensical.toml"))["project"]
    listed = list(pages_of_the_navigation(site["nav"]))
    found = sorted(str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md"))
    assert len(found) > 40  # else they were not found
    assert sorted(listed) == found
    linked = set(re.findall(r"\]\(([\w/-]+\.md)", read("docs/index.md")))
    alone = {name for name in found if re.match(r"decisions/\d", name)}
    assert set(found) - alone - linked == {"index.md"}


def pages_of_the_navigation(entry: object) -> Iterator[str]:
    """Every page below an entry of the navigation."""
    match entry:
        case str(page):
            yield page
        case dict() | list():
            for one in entry.values() if isinstance(entry, dict) else entry:
                yield from pages_of_the_navigation(one)


@pytest.mark.parametrize(
    "document", DOCUMENTS + READMES + NOTES, ids=lambda path: str(path.relative_to(ROOT))
)
def test_commands_that_are_named_exist(document: Path) -> None:
    """Every ``order-relay`` command in a document exists; Faust runs only the worker."""
    text = document.read_text(encoding="utf-8")
    if document.name != "CHANGELOG.md":  # it tells the past
        assert set(re.findall(r"faust -A app ([a-z][a-z-]*)", text)) <= {"worker"}
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    for first, second in re.findall(r"order-relay (?:-A \S+ )?([a-z]+)(?: ([a-z]+))?", text):
        if first in groups | COMMANDS and second:
            assert first in COMMANDS or f"{first} {second}" in COMMANDS


@pytest.mark.parametrize(
    "document", DOCUMENTS + READMES, ids=lambda path: str(path.relative_to(ROOT))
)
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


def code_spans(document: Path) -> set[str]:
    """All text between backticks in a document."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=FLAGS)
    return set(re.findall(r"`([^`\n]+)`", text))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(document: Path) -> None:
    """Every file and folder between backticks exists; a module may be named without its folder."""
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir())
    for name in code_spans(document):
        if re.fullmatch(rf"(?:{folders})/[\w./*-]*", name):
            assert list(ROOT.glob(name.rstrip("/"))), name
        elif re.fullmatch(r"\w+\.py", name):
            assert [path for path in product_files() if path.name == name], name


@pytest.fixture(scope="module")
def words_of_the_code() -> set[str]:
    """Every word of the code, and of the tests, which name what libraries have; not of this one."""
    files = [*product_files(), *(ROOT / "demo").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in files if path != Path(__file__)]
    return catalogue().union(*(re.findall(r"\w+", text) for text in texts))


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda path: path.stem)
def test_names_in_decisions_exist(decision: Path, words_of_the_code: set[str]) -> None:
    """Every function, class, setting and module that a decision names is in the code."""
    for span in code_spans(decision):
        # Metrics of Faust's own, which it puts together from parts, have other tests.
        found = re.fullmatch(r"@?(?!faust_)([a-zA-Z_][\w.]*)(?:\(.*\))?(?:=\S+)?", span)
        if found is not None:
            assert set(found[1].split(".")) <= words_of_the_code, span


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_has_a_status_and_a_date(decision: Path) -> None:
    """Both are right under the title, and the list of decisions shows what is superseded."""
    number = int(decision.stem[:4])
    head = re.match(
        r"# (?P<number>\d+)\. (?P<title>.+)\n\n"
        r"Status: (?:accepted|superseded(?P<part> in part)? by \[decision (?P<by>\d+)\]"
        r"\((?P<file>[\w-]+\.md)\)\. [^.]+\.)\n\n"
        r"Date: \d{4}-\d{2}-\d{2}\n\n",
        decision.read_text(encoding="utf-8"),
    )
    assert head is not None
    assert int(head["number"]) == number
    entry = f"{number}. [{head['title']}]({decision.name})"
    if by := head["by"]:
        assert int(head["file"][:4]) == int(by) > 0
        entry += f" (superseded{head['part'] or ''} by decision {by})"
    assert entry in read("docs/decisions/README.md").splitlines()


def test_a_worker_is_given_the_time_that_it_takes_to_stop() -> None:
    """All documents have one rule: the grace and twice the tail, which is one number by default.

    In the first tail the worker ends itself; the second is for the end of the process.
    """
    tail = int(SHUTDOWN_TAIL_SECONDS)
    allowed = int(Settings.model_fields["shutdown_grace_seconds"].default) + 2 * tail
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in DOCUMENTS}
    texts["docker-compose.yml"] = read("docker-compose.yml").split("\n  worker:\n")[1]
    rules_told, numbers_told = {}, {}
    for name, text in texts.items():
        rule = re.findall(r"SHUTDOWN_GRACE_SECONDS`? \+ (\d+)", text)
        number = re.findall(
            r"(?:terminationGracePeriodSeconds|stop_grace_period)`?(?::| is) (\d+)", text
        )
        if rule:
            rules_told[name] = {int(seconds) for seconds in rule}
        if number:
            numbers_told[name] = {int(seconds) for seconds in number}
    assert rules_told == {
        "docs/how-to/deploy.md": {2 * tail},
        "docker-compose.yml": {2 * tail},
        "docs/how-to/operations.md": {tail, 2 * tail},
    }
    assert numbers_told == {name: {allowed} for name in rules_told}


def test_alerts_and_dashboards_are_counted() -> None:
    """Every number of them in a document is right."""
    words = {"two": 2, "three": 3, "four": 4, "five": 5}
    dashboards = len(list(boards()))
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for count in re.findall(r"(\d+) (?:Prometheus )?alerts", text):
            assert int(count) == len(rules()), document.name
        for count in re.findall(r"(\w+) (?:Grafana )?dashboards", text):
            if count.lower() in words:
                assert words[count.lower()] == dashboards, document.name


def test_the_architecture_has_every_package() -> None:
    """Every package of the engine is in the table of packages."""
    table = read("docs/explanation/architecture.md").split("## Packages")[1].split("## ")[0]
    packages = {path.stem for path in (ROOT / "order_relay").glob("[!_]*/")}
    assert len(packages) > 10  # else they were not found
    assert {name for name in packages if f"`{name}`" not in table} == set()


def test_the_tests_of_faults_exist() -> None:
    """Every test that the page of faults names exists."""
    named = re.findall(
        r"`((?:e2e|kafka|integration|unit)/[\w/]+\.py)(?:::(\w+))?`",
        read("docs/explanation/faults.md"),
    )
    assert len(named) > 30
    for path, test in named:
        code = read(f"tests/{path}")
        assert not test or f"def {test}(" in code, (path, test)
