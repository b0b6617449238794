"""Secrets: reading them from files, and redacting them in text.

``<SECRET>_FILE`` names the file that contains a secret setting. Docker and Kubernetes give secrets
to a container as files, since everyone with access to the container's description can read its
variables. Every setting of type ``SecretStr`` can be given as a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from html.entities import codepoint2name
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource

MAX_SECRET_BYTES = 64 * 1024
ALLOWED = "it must name a file of UTF-8 text that holds the secret and nothing else"
# The type of pydantic errors whose message needs no variable in front of it.
ERROR_KIND = "secret_file"
ENTITIES = {**codepoint2name, ord("'"): "apos"}


@dataclass(frozen=True, slots=True)
class BadSecretFile:
    """Takes a secret's place if its file cannot be used."""

    problem: str


class SecretOfFile(str):
    """A secret, and ``source``: the variable and the file that it was read from."""

    source: str

    def __new__(cls, text: str, source: str) -> Self:
        """Make a secret of ``text``, which was read from ``source``."""
        secret = super().__new__(cls, text)
        secret.source = source
        return secret


class SecretFiles(PydanticBaseSettingsSource):
    """Reads the files that ``<SECRET>_FILE`` names, in the environment or in ``.env``.

    pydantic-settings has ``secrets_dir``, but that fixes the folder and the file names, and treats
    a missing file as a secret that is not set.
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
        for source in (dot_env, environment):  # the environment overrides .env
            if isinstance(source, EnvSettingsSource):
                self._variables.update(source.env_vars)

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the secret or a ``BadSecretFile``; ``None`` if no file is named."""
        return _secret(self._prefix + field_name, self._variables), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the secrets that are given as files, by field name."""
        found = {
            name: _secret(self._prefix + name, self._variables)
            for name in secret_fields(self.settings_cls)
        }
        return {name: value for name, value in found.items() if value is not None}


def secret_fields(settings_cls: type[BaseModel]) -> tuple[str, ...]:
    """Return the names of the secret settings."""
    return tuple(
        name
        for name, field in settings_cls.model_fields.items()
        if SecretStr.__name__ in str(field.annotation)
    )


def reject_bad_file(value: Any) -> Any:
    """Raise the problem of a secret's file, so that it is reported with all other errors."""
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
