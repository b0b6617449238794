"""Secrets by file: every secret setting can be given as ``<SECRET>_FILE``."""

import os
from pathlib import Path

import pytest

from order_relay.settings import Settings, load_settings
from order_relay.settings.secret_files import MAX_SECRET_BYTES, secret_fields
from tests.unit.test_settings_mistakes import complaint

pytestmark = pytest.mark.usefixtures("empty_environment")

SECRETS = secret_fields(Settings)
VALUES = {
    "external_logger_proxy": "http://us:hunter2@proxy:3128",
    "external_logger_headers": "X-Key: hunter2",
    "external_logger_signing_secrets": f"whsec_{'hunter2+' * 4}",
    "database_url": "sqlite+aiosqlite:///hunter2.db",
}
ALLOWED = "it must name a file of UTF-8 text that holds the secret and nothing else"


def _value(settings: Settings, name: str) -> str:
    value: str = getattr(settings, name).get_secret_value()
    return value


def test_no_setting_is_called_like_the_file_of_a_secret() -> None:
    """The file's name would be ambiguous."""
    assert not {f"{name}_file" for name in SECRETS} & Settings.model_fields.keys()


@pytest.mark.parametrize("name", SECRETS)
def test_every_secret_can_be_a_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's text is the secret, without its last line end."""
    if name == "database_password":
        monkeypatch.setenv("DATABASE_URL", "postgresql+asyncpg://relay@localhost/relay")
    value = VALUES.get(name, "hunter2-\u00e9" if "password" in name else "hunter2")
    monkeypatch.setenv(f"{name.upper()}_FILE", "secret")
    for end in ("", "\n", "\r\n"):
        Path("secret").write_bytes(f"{value}{end}".encode())
        assert _value(load_settings(), name) == value


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        # Only one line end is stripped: other space is part of the secret.
        (b" hun\nter2 \n\n", " hun\nter2 \n"),
        # The byte order mark of some editors is removed.
        (b"\xef\xbb\xbfhunter2\r\n", "hunter2"),
    ],
)
@pytest.mark.parametrize("variable", ["KAFKA_SASL_PASSWORD_FILE", "kafka_sasl_password_file"])
def test_what_is_the_secret_of_a_file(
    content: bytes, secret: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable's name may be in lower case, like that of any setting."""
    Path("secret").write_bytes(content)
    monkeypatch.setenv(variable, "secret")

    assert _value(load_settings(), "kafka_sasl_password") == secret


def test_files_can_be_named_in_dot_env(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file named in .env counts; one named in the environment counts more."""
    Path("one").write_text("hunter1")
    Path("two").write_text("hunter2")
    Path(".env").write_text("API_TOKEN_FILE=one\nEXTERNAL_LOGGER_TOKEN_FILE=one\n")
    monkeypatch.setenv("API_TOKEN_FILE", "two")

    settings = load_settings()

    assert _value(settings, "api_token") == "hunter2"
    assert _value(settings, "external_logger_token") == "hunter1"


def test_what_is_empty_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty X or X_FILE is not set, as in a compose file with an unset variable."""
    Path("secret").write_text("hunter2")
    monkeypatch.setenv("API_TOKEN", "")
    monkeypatch.setenv("API_TOKEN_FILE", "secret")
    monkeypatch.setenv("EXTERNAL_LOGGER_TOKEN", "hunter2")
    monkeypatch.setenv("EXTERNAL_LOGGER_TOKEN_FILE", "")

    assert load_settings().secrets == ("hunter2", "hunter2")


def test_what_is_given_in_code_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tools and tests that give a secret do not read its file."""
    monkeypatch.setenv("API_TOKEN_FILE", "missing")

    assert _value(load_settings(api_token="given"), "api_token") == "given"


@pytest.mark.parametrize("secret_in_dot_env", [False, True])
@pytest.mark.parametrize("file_in_dot_env", [False, True])
def test_a_secret_and_its_file_together_are_a_mistake(
    secret_in_dot_env: bool, file_in_dot_env: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is unclear which is meant: neither is used, wherever they are set."""
    Path("secret").write_text("hunter2")
    with Path(".env").open("w") as dot_env:
        for name, value, there in (
            ("API_TOKEN", "hunter2", secret_in_dot_env),
            ("API_TOKEN_FILE", "secret", file_in_dot_env),
        ):
            if there:
                print(f"{name}={value}", file=dot_env)
            else:
                monkeypatch.setenv(name, value)

    assert complaint() == (
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
    name: str, content: bytes | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line names the variable, the path, what is wrong and what is allowed, not the content."""
    if content is not None:
        Path("the secret").write_bytes(content)
    variable = f"{name.upper()}_FILE"
    monkeypatch.setenv(variable, "the secret")

    assert complaint() == (
        f"invalid settings: {variable}='the secret' cannot be used ({why}): {ALLOWED}"
    )


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (".", "not a file"),
        ("pipe", "not a file"),  # it would block the start
        ("file/inside", "Not a directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_paths_that_are_not_files(path: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's error is passed on."""
    os.mkfifo("pipe")
    Path("file").write_text("hunter2")
    monkeypatch.setenv("API_TOKEN_FILE", path)

    assert f"API_TOKEN_FILE={path[:200]!r} cannot be used ({why})" in complaint()


def test_mistakes_of_files_stand_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """All mistakes are reported at once; a file's text follows the rules of its setting."""
    Path("token").write_text("hunter2 hunter2")
    monkeypatch.setenv("API_TOKEN_FILE", "missing")
    monkeypatch.setenv("EXTERNAL_LOGGER_TOKEN_FILE", "token")
    monkeypatch.setenv("MAX_IN_FLIGHT", "many")

    text = complaint()

    assert "API_TOKEN_FILE='missing' cannot be used" in text
    assert "EXTERNAL_LOGGER_TOKEN must be visible ASCII characters only" in text
    assert "MAX_IN_FLIGHT='many' must be a valid integer;" in text


def test_what_sasl_needs_may_come_from_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be read is reported alone, not also as a missing password."""
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("KAFKA_SASL_USERNAME", "relay")
    monkeypatch.setenv("KAFKA_SASL_PASSWORD_FILE", "missing")
    assert "needs" not in complaint()

    Path("missing").write_text("hunter2\n")
    assert load_settings().secrets == ("hunter2",)
