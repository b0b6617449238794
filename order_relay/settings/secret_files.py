"""Settings from the environment and from secret files, and redacting secrets in text.

``<SECRET>_FILE`` names the file that contains a secret setting. Docker and Kubernetes give secrets
to a container as files, since everyone with access to the container's description can read its
variables. Every setting of type ``SecretStr`` can be given as a file.
"""

from __future__ import annotations

import re
from functools import cache
from html.entities import codepoint2name
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

ENV_FILE = ".env"
MAX_SECRET_BYTES = 64 * 1024
ALLOWED = "it must name a file of UTF-8 text that holds the secret and nothing else"
ENTITIES = {**codepoint2name, ord("'"): "apos"}


class SecretOfFile(str):
    """A secret that was read from a file.

    Attributes:
        source: The variable and the file.
        problem: Why the file cannot be used; the secret is empty then.
    """

    source = ""
    problem = ""


class EnvironmentSettings(BaseSettings):
    """Settings from arguments, else secret files, else the environment, else ``.env``."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILE,
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Add the files that ``<SECRET>_FILE`` names, in the environment or in ``.env``.

        pydantic-settings has ``secrets_dir``, but that fixes the folder and the file names, and
        treats a missing file as a secret that is not set.
        """
        variables: dict[str, str | None] = {}
        for source in (dotenv_settings, env_settings):  # the environment overrides .env
            if isinstance(source, EnvSettingsSource):
                variables.update(source.env_vars)
        secrets = {
            name: _secret(name.upper(), variables.get(name), file)
            for name in secret_fields(settings_cls)
            if (file := variables.get(f"{name}_file"))
        }
        files = InitSettingsSource(settings_cls, secrets)
        return init_settings, files, env_settings, dotenv_settings

    @field_validator("*", mode="before")
    @classmethod
    def _reject_bad_file(cls, value: Any) -> Any:
        if problem := getattr(value, "problem", ""):
            raise ValueError(problem)
        return value


def variable_names() -> set[str]:
    """Return the names of all variables of the environment and ``.env``, in lower case."""
    sources = EnvSettingsSource(EnvironmentSettings), DotEnvSettingsSource(EnvironmentSettings)
    return {name for source in sources for name in source.env_vars}


def secret_fields(settings_cls: type[BaseModel]) -> tuple[str, ...]:
    """Return the names of the secret settings."""
    return tuple(
        name
        for name, field in settings_cls.model_fields.items()
        if SecretStr.__name__ in str(field.annotation)
    )


def describe(error: ValidationError, settings_cls: type[BaseModel]) -> str:
    """Return pydantic's errors as one line that names the environment variables."""
    secrets = secret_fields(settings_cls)
    parts = []
    for item in error.errors():
        message = item["msg"].removeprefix("Value error, ").removeprefix("Path ")
        message = message.replace("Input should be", "must be").partition(", unable to ")[0]
        message = message.replace("a valid boolean", "true or false")
        value = item["input"]
        if item["loc"] and message != getattr(value, "problem", ""):
            name = str(item["loc"][0])
            message = f"{name.upper()}{'' if name in secrets else f'={shown(value)}'} {message}"
            if isinstance(value, SecretOfFile):
                message += f" ({value.source})"
        parts.append(message)
    return f"invalid settings: {'; '.join(parts)}"


def _secret(variable: str, given: str | None, file: str) -> SecretOfFile:
    source = f"{variable}_FILE={shown(file)}"
    text = problem = ""
    if given:
        problem = f"{variable} and {variable}_FILE are both set: set one of them"
    else:
        try:
            text = _read(Path(file))
        except (OSError, ValueError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            problem = f"{source} cannot be used ({why}): {ALLOWED}"
    secret = SecretOfFile(text)
    secret.source, secret.problem = source, problem
    return secret


def _read(path: Path) -> str:
    """Return a file's text without a line end at its end.

    Raises:
        OSError: It cannot be read.
        ValueError: It does not contain a secret. The message contains nothing of the file.
    """
    if path.exists() and not path.is_file():
        raise ValueError("not a file")  # a device could be endless and block the start
    with path.open("rb") as file:
        content = file.read(MAX_SECRET_BYTES + 1)
    if len(content) > MAX_SECRET_BYTES:
        raise ValueError(f"over {MAX_SECRET_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")  # editors on Windows write a byte order mark
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text.strip():
        raise ValueError("empty")
    if "\0" in text:
        raise ValueError("not text")
    return text


# --- redacting --------------------------------------------------------------------------------


def shown(value: object) -> str:
    """Return a wrong value for an error message.

    Text before an @ in a URL or an address may be a password, and is redacted.
    """
    text = re.sub(r"(?s)^([A-Za-z][A-Za-z0-9+._]*://)?.*@", r"\1[redacted]@", str(value))
    return repr(text[:200])


def redact(text: str, secrets: tuple[str, ...]) -> str:
    r"""Replace secrets in text that comes from outside.

    Finds them also as JSON, HTML and URLs encode them: ``/`` may be written as ``\/``, ``=`` as
    ``\u003d``, ``&#x3D;`` or ``%3D``.
    """
    for secret in sorted(secrets, key=len, reverse=True):  # one may be a part of another
        text = _pattern(secret).sub("[redacted]", text)
    return text


@cache
def _pattern(secret: str) -> re.Pattern[str]:
    parts = re.findall(r"(?s)(\\*)([^\\]?)", secret)
    return re.compile("".join(_run(run, then) if run else _forms(then) for run, then in parts))


def _run(backslashes: str, then: str) -> str:
    """Return a regular expression for backslashes and the character after them.

    Escaped backslashes are ambiguous. Matching them one by one takes exponential time, so that all
    of them are matched at once.
    """
    number = len(backslashes)
    at_once = rf"\\{{{number},{9 * number + 8}}}+{_forms(then, least=0)}"
    escaped = "".join(map(_escaped, backslashes)) + _forms(then)
    return rf"(?:{at_once}|{escaped})"


def _forms(character: str, least: int = 1) -> str:
    """Return a regular expression for a character in all its encodings.

    Its first escape has at least ``least`` backslashes.
    """
    if (character.isascii() and character.isalnum()) or not character:
        return character
    # JSON inside JSON has more than one backslash before a character.
    return rf"(?:\\{{0,8}}{re.escape(character)}|{_escaped(character, least)})"


def _escaped(character: str, least: int = 1) -> str:
    number, units = ord(character), character.encode("utf-16-be", "surrogatepass").hex()
    first, second = units[:4], units[4:]
    forms = [
        rf"\\{{{least},8}}u{first}" + (rf"\\{{1,8}}u{second}" if second else ""),
        "".join(f"%{byte:02x}" for byte in character.encode("utf-8", "surrogatepass")),
        f"&#(?:x0*{number:x}|0*{number});",
    ]
    if name := ENTITIES.get(number):
        forms.append(f"&{name};")
    return f"(?i:{'|'.join(forms)})"
