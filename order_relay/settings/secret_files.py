"""Secrets: by file, and out of what is said.

``<SECRET>_FILE`` names the file that holds a secret setting. Docker and Kubernetes hand secrets to
a container as files; a variable would show them to everybody who may inspect the container. Every
setting of type ``SecretStr`` can be given so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from html.entities import codepoint2name
from pathlib import Path
from typing import Any, Self

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource

MAX_SECRET_BYTES = 64 * 1024
ALLOWED = "it must name a file of UTF-8 text that holds the secret and nothing else"
# The kind of pydantic's error whose message is complete as it is.
ERROR_KIND = "secret_file"
ENTITIES = {**codepoint2name, ord("'"): "apos"}


@dataclass(frozen=True, slots=True)
class BadSecretFile:
    """What stands in a secret's place where its file cannot be used."""

    problem: str


class SecretOfFile(str):
    """A secret, and where it was read."""

    source: str

    def __new__(cls, text: str, source: str) -> Self:
        """Return the text; ``source`` is the variable with the file's path."""
        secret = super().__new__(cls, text)
        secret.source = source
        return secret


class SecretFiles(PydanticBaseSettingsSource):
    """Reads the files that ``<SECRET>_FILE`` names, in the environment or in ``.env``.

    pydantic-settings' own ``secrets_dir`` is one folder with file names of its choice, and takes a
    file that is missing for a secret that is not set.
    """

    def __init__(
        self,
        settings_cls: type[BaseSettings],
        environment: PydanticBaseSettingsSource,
        dot_env: PydanticBaseSettingsSource,
    ) -> None:
        super().__init__(settings_cls)
        self._prefix = str(settings_cls.model_config.get("env_prefix") or "")
        self._variables: dict[str, str | None] = {}
        for source in (dot_env, environment):  # the environment wins
            if isinstance(source, EnvSettingsSource):
                self._variables.update(source.env_vars)

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the secret or a ``BadSecretFile``; ``None`` where no file is named."""
        return _secret(self._prefix + field_name, self._variables), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the secrets whose files are named, by the names of their fields."""
        found = {
            name: _secret(self._prefix + name, self._variables)
            for name in secret_fields(self.settings_cls)
        }
        return {name: value for name, value in found.items() if value is not None}


def secret_fields(settings_cls: type[BaseSettings]) -> tuple[str, ...]:
    """Return the names of the settings that are secret."""
    return tuple(
        name
        for name, field in settings_cls.model_fields.items()
        if SecretStr.__name__ in str(field.annotation)
    )


def refuse_bad_file(value: Any) -> Any:
    """Raise what is wrong with a secret's file, so that it is told with all other mistakes."""
    if isinstance(value, BadSecretFile):
        raise PydanticCustomError(ERROR_KIND, "{problem}", {"problem": value.problem})
    return value


def _secret(name: str, variables: Mapping[str, str | None]) -> str | BadSecretFile | None:
    file = variables.get(f"{name}_file")
    if not file:
        return None
    variable = f"{name.upper()}_FILE"
    if variables.get(name):
        return BadSecretFile(f"{name.upper()} and {variable} are both set: set one of them")
    try:
        return SecretOfFile(_read(Path(file)), f"{variable}={shown(file)}")
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return BadSecretFile(f"{variable}={shown(file)} cannot be used ({why}): {ALLOWED}")


def _read(path: Path) -> str:
    """Return what a file holds, without one line end after it.

    Raises:
        OSError: It cannot be read.
        ValueError: It does not hold a secret; the message has nothing of what it holds.
    """
    if path.exists() and not path.is_file():
        raise ValueError("not a file")  # one that never ends would hold up the start
    with path.open("rb") as file:
        content = file.read(MAX_SECRET_BYTES + 1)
    if len(content) > MAX_SECRET_BYTES:
        raise ValueError(f"over {MAX_SECRET_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")  # Windows' editors put a mark at the beginning
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text.strip():
        raise ValueError("empty")
    if "\0" in text:
        raise ValueError("not text")
    return text


# --- out of what is said ----------------------------------------------------------------------


def shown(value: object) -> str:
    """Return a wrong value as a message may show it.

    What stands before an @ in a URL or an address may be a password.
    """
    text = re.sub(r"(?s)^([A-Za-z][A-Za-z0-9+._]*://)?.*@", r"\1[redacted]@", str(value))
    return repr(text[:200])


def redact(text: str, secrets: tuple[str, ...]) -> str:
    r"""Replace secrets in text that comes from outside.

    Also as JSON, HTML and URLs write them: ``/`` may stand there as ``\/``, ``=`` as ``\u003d``,
    ``&#x3D;`` or ``%3D``.
    """
    for secret in sorted(secrets, key=len, reverse=True):  # one may be part of another
        text = _pattern(secret).sub("[redacted]", text)
    return text


@cache
def _pattern(secret: str) -> re.Pattern[str]:
    parts = re.findall(r"(?s)(\\*)([^\\]?)", secret)
    return re.compile("".join(_run(run, then) if run else _forms(then) for run, then in parts))


def _run(backslashes: str, then: str) -> str:
    """Return a regular expression for backslashes and the character after them.

    Which of those in a text belong to which cannot be told: taken one by one there would be more
    ways to read them than time, so that all there are are taken at once.
    """
    number = len(backslashes)
    at_once = rf"\\{{{number},{9 * number + 8}}}+{_forms(then, least=0)}"
    escaped = "".join(map(_escaped, backslashes)) + _forms(then)
    return rf"(?:{at_once}|{escaped})"


def _forms(character: str, least: int = 1) -> str:
    """Return a regular expression for a character, however it is written.

    Its first escape has ``least`` backslashes or more.
    """
    if (character.isascii() and character.isalnum()) or not character:
        return character
    # JSON within JSON has more than one backslash before a character.
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
