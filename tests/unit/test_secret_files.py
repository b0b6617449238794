"""Secrets by file: every secret setting can be given as ``<SECRET>_FILE``."""

import os
from pathlib import Path

import pytest

from order_relay.errors import InvalidSettings
from order_relay.settings import Settings, load_settings
from order_relay.settings.secret_files import MAX_SECRET_BYTES, secret_fields

pytestmark = pytest.mark.usefixtures("empty_environment")

SECRETS = secret_fields(Settings)
VALUES = {
    "external_logger_proxy": "http://us:hunter2@proxy:3128",
    "external_logger_headers": "X-Key: hunter2",
    "external_logger_signing_secrets": f"whsec_{'hunter2+' * 4}",
    "database_url": "sqlite+aiosqlite:///hunter2.db",
}
POSTGRES = "postgresql+asyncpg://relay@localhost/relay"
ALLOWED = "it must name a file of UTF-8 text that holds the secret and nothing else"


def _value(settings: Settings, name: str) -> str:
    value: str = getattr(settings, name).get_secret_value()
    return value


def _complaint() -> str:
    with pytest.raises(InvalidSettings) as caught:
        load_settings()
    text = str(caught.value)
    assert text.startswith("invalid settings: ")
    assert "\n" not in text
    assert "hunter2" not in text
    return text


def test_every_secret_is_found() -> None:
    """The list is the model's own; no setting is called like the file of a secret."""
    assert {"kafka_sasl_password", "kafka_sasl_oauth_client_secret", "kafka_ssl_key_password",
            "external_logger_token", "api_token", "database_password", "database_url"} <= {
        *SECRETS
    }  # fmt: skip
    assert not {f"{name}_file" for name in SECRETS} & Settings.model_fields.keys()


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_every_secret_can_be_a_file(
    name: str, end: str, empty_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's text is the secret, without the line end that an editor leaves."""
    if name == "database_password":
        monkeypatch.setenv("DATABASE_URL", POSTGRES)
    value = VALUES.get(name, "hunter2-\u00e9" if "password" in name else "hunter2")
    file = empty_environment / "secret"
    file.write_bytes(f"{value}{end}".encode())
    monkeypatch.setenv(f"{name.upper()}_FILE", str(file))

    assert _value(load_settings(), name) == value


def test_only_one_line_end_is_stripped(
    empty_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Space at the ends of a password, and what stands in its middle, is part of it."""
    (empty_environment / "secret").write_bytes(b" hun\nter2 \n\n")
    monkeypatch.setenv("KAFKA_SASL_PASSWORD_FILE", "secret")

    assert _value(load_settings(), "kafka_sasl_password") == " hun\nter2 \n"


def test_a_mark_of_windows_editors_is_no_part_of_it(
    empty_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The byte order mark that some editors begin a file with is left out."""
    (empty_environment / "secret").write_bytes(b"\xef\xbb\xbfhunter2\r\n")
    monkeypatch.setenv("API_TOKEN_FILE", "secret")

    assert _value(load_settings(), "api_token") == "hunter2"


def test_files_can_be_named_in_dot_env(
    empty_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file named in .env counts; one named in the environment counts more."""
    (empty_environment / "one").write_text("hunter1")
    (empty_environment / "two").write_text("hunter2")
    (empty_environment / ".env").write_text("API_TOKEN_FILE=one\nEXTERNAL_LOGGER_TOKEN_FILE=one\n")
    monkeypatch.setenv("API_TOKEN_FILE", "two")

    settings = load_settings()

    assert _value(settings, "api_token") == "hunter2"
    assert _value(settings, "external_logger_token") == "hunter1"


def test_names_are_in_any_case(empty_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with every setting, lower case does as well."""
    (empty_environment / "secret").write_text("hunter2")
    monkeypatch.setenv("api_token_file", "secret")

    assert _value(load_settings(), "api_token") == "hunter2"


def test_what_is_empty_counts_as_not_set(
    empty_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty X or X_FILE is none, as in a compose file with a variable that is not set."""
    (empty_environment / "secret").write_text("hunter2")
    monkeypatch.setenv("API_TOKEN", "")
    monkeypatch.setenv("API_TOKEN_FILE", "secret")
    monkeypatch.setenv("EXTERNAL_LOGGER_TOKEN", "hunter2")
    monkeypatch.setenv("EXTERNAL_LOGGER_TOKEN_FILE", "")

    assert load_settings().secrets == ("hunter2", "hunter2")


def test_what_is_given_in_code_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tools and tests that give a secret do not read its file."""
    monkeypatch.setenv("API_TOKEN_FILE", "missing")

    assert _value(load_settings(api_token="given"), "api_token") == "given"


@pytest.mark.parametrize("place", ["environment", ".env", "both"])
def test_a_secret_and_its_file_together_are_a_mistake(
    place: str, empty_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which one is meant is unknown: neither is taken, wherever they are set."""
    (empty_environment / "secret").write_text("hunter2")
    dot_env = {
        "environment": "",
        ".env": "API_TOKEN=hunter2\nAPI_TOKEN_FILE=secret\n",
        "both": "API_TOKEN=hunter2\n",
    }[place]
    (empty_environment / ".env").write_text(dot_env)
    if place != ".env":
        monkeypatch.setenv("API_TOKEN_FILE", "secret")
    if place == "environment":
        monkeypatch.setenv("API_TOKEN", "hunter2")

    assert _complaint() == (
        "invalid settings: API_TOKEN and API_TOKEN_FILE are both set: set one of them"
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file or directory"),
        (b"", "empty"),
        (b"\n", "empty"),
        (b" \n\n", "empty"),
        (b"hunter2-caf\xe9", "not UTF-8"),
        (b"hunter2\0", "not text"),
        (b"hunter2" * MAX_SECRET_BYTES, f"over {MAX_SECRET_BYTES} bytes"),
    ],
)
@pytest.mark.parametrize("name", ["kafka_sasl_password", "database_url"])
def test_a_file_that_cannot_be_used(
    name: str,
    content: bytes | None,
    why: str,
    empty_environment: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line names the variable, the path, what is wrong and what is allowed, not the content."""
    path = empty_environment / "the secret"
    if content is not None:
        path.write_bytes(content)
    variable = f"{name.upper()}_FILE"
    monkeypatch.setenv(variable, str(path))

    assert _complaint() == (
        f"invalid settings: {variable}='{path}' cannot be used ({why}): {ALLOWED}"
    )


def test_what_is_no_file(empty_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is refused, and so is a pipe, which would hold up the start."""
    os.mkfifo(empty_environment / "pipe")
    for path in (empty_environment, empty_environment / "pipe"):
        monkeypatch.setenv("API_TOKEN_FILE", str(path))
        assert f"API_TOKEN_FILE='{path}' cannot be used (not a file)" in _complaint()


def test_paths_that_lead_nowhere(empty_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the system says of a path is passed on."""
    (empty_environment / "file").write_text("hunter2")
    for path, why in (("file/inside", "Not a directory"), ("x" * 300, "File name too long")):
        monkeypatch.setenv("API_TOKEN_FILE", path)
        assert f"API_TOKEN_FILE={path[:200]!r} cannot be used ({why})" in _complaint()


def test_mistakes_of_files_stand_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is wrong is told at once; rules of a setting hold for what its file says."""
    Path("token").write_text("hunter2 hunter2")
    monkeypatch.setenv("API_TOKEN_FILE", "missing")
    monkeypatch.setenv("EXTERNAL_LOGGER_TOKEN_FILE", "token")
    monkeypatch.setenv("MAX_IN_FLIGHT", "many")

    text = _complaint()

    assert "API_TOKEN_FILE='missing' cannot be used" in text
    assert "EXTERNAL_LOGGER_TOKEN must be visible ASCII characters only" in text
    assert "MAX_IN_FLIGHT='many' must be a valid integer" in text


def test_what_sasl_needs_may_come_from_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be read is told alone, not also as a password that is missing."""
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("KAFKA_SASL_USERNAME", "relay")
    monkeypatch.setenv("KAFKA_SASL_PASSWORD_FILE", "missing")
    assert "needs" not in _complaint()

    Path("missing").write_text("hunter2\n")
    assert load_settings().secrets == ("hunter2",)
