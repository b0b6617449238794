"""Finds consumers: imports the modules of packages and folders, and collects their consumers."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from order_relay.errors import InvalidConsumer
from order_relay.model.consumer import DECLARED, Consumer
from order_relay.model.events import Events
from order_relay.settings.consumers import ORDER_LOGGING
from order_relay.settings.rules import split

T = TypeVar("T")


def import_modules(packages: Sequence[str], folders: str | None = None) -> list[ModuleType]:
    """Import every module of these packages, and every Python file of these folders.

    Skips those whose names begin with an underscore.

    Raises:
        InvalidConsumer: A module cannot be imported, a folder does not exist, or a consumer is
            declared that is not the value of a module's variable; one line.
    """
    declared: list[Consumer] = []
    collecting = DECLARED.set(declared)
    try:
        imported = _import_all(packages, folders)
    finally:
        DECLARED.reset(collecting)
    found = {id(value) for module in imported for value in vars(module).values()}
    for consumer in declared:
        if id(consumer) not in found:
            raise InvalidConsumer(
                f"consumer {consumer.name} would not run: each Consumer(...) must be the value of "
                "a variable of its module, also after a loop or another one in the same variable"
            )
    return imported


def _import_all(packages: Sequence[str], folders: str | None) -> list[ModuleType]:
    imported = []
    for package in packages:
        imported.append(_import_module(package))
        path = getattr(imported[-1], "__path__", ())
        names = [one.name for one in pkgutil.iter_modules(path) if not one.name.startswith("_")]
        imported += [_import_module(f"{package}.{name}") for name in names]
    for folder in (split(folders) or [folders]) if folders else ():
        path = Path(folder)
        if not path.is_dir():
            raise InvalidConsumer(f"CONSUMER_FOLDERS={folder!r} must be a folder")
        files = [file for file in sorted(path.glob("*.py")) if not file.name.startswith("_")]
        imported += [_in_one_line(str(file), partial(_import_file, file)) for file in files]
    return imported


def _import_module(name: str) -> ModuleType:
    return _in_one_line(f"{name.replace('.', '/')}.py", partial(importlib.import_module, name))


def _import_file(file: Path) -> ModuleType:
    name = f"order_relay_consumers.{file.stem}"
    while name in sys.modules:  # of another folder: annotations must find their own module
        name += "_"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"not a Python file: {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def call_register(modules: Sequence[ModuleType], app: object) -> None:
    """Call ``register(app)`` of each module that has it.

    Raises:
        InvalidConsumer: One cannot be called, or fails; one line.
    """
    for module in modules:
        if (function := getattr(module, "register", None)) is None:
            continue
        file = module.__file__ or module.__name__
        if not callable(function) or inspect.iscoroutinefunction(function):
            raise InvalidConsumer(f"{file}: register must be a function (app), without async")
        _in_one_line(file, partial(function, app), ": register(app) failed")


def _in_one_line(file: str, call: Callable[[], T], failed: str = " cannot be imported") -> T:
    try:
        return call()
    except InvalidConsumer as error:
        raise InvalidConsumer(f"{file}: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # such as of a test's pytest.skip
        raise InvalidConsumer(f"{file}{failed}: {_describe(error, file)}") from error


def _describe(error: BaseException, file: str) -> str:
    text = " ".join(str(error).split())
    line = next(
        (
            frame.lineno
            for frame in reversed(traceback.extract_tb(error.__traceback__))
            if frame.filename.endswith(file)
        ),
        None,
    )
    where = f" (line {line})" if line is not None and not isinstance(error, SyntaxError) else ""
    return f"{type(error).__name__}: {text}{where}"


def find_consumers(modules: Sequence[ModuleType]) -> list[Consumer]:
    """Return the consumers that these modules declare, ``order_logging`` first, then by name.

    Raises:
        InvalidConsumer: Two consumers have the same name, one has no handler, or no value can be
            decoded to its event.
    """
    found: dict[str, tuple[Consumer, str]] = {}
    for module in modules:
        for value in vars(module).values():
            if not isinstance(value, Consumer):
                continue
            known, where = found.setdefault(value.name, (value, module.__name__))
            if known is not value:
                raise InvalidConsumer(
                    f"consumer {value.name} is declared twice, in {where} and in "
                    f"{module.__name__}: names must differ"
                )
            value.handled_by()
            _check_event(value)
    consumers = [consumer for consumer, _ in found.values()]
    return sorted(consumers, key=lambda one: (one.name != ORDER_LOGGING, one.name))


def _check_event(consumer: Consumer) -> None:
    # Not in the declaration: an annotation may name a class that follows it.
    try:
        Events(consumer.event)
    except Exception as error:
        text = " ".join(str(error).split())
        raise InvalidConsumer(
            f"consumer {consumer.name}: values cannot be decoded to event="
            f"{consumer.event.__name__}: {type(error).__name__}: {text}"
        ) from error
