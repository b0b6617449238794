"""The demo's options: valid ones pass, a wrong one gets one line."""

from __future__ import annotations

import sys

import pytest

from demo.__main__ import main, read_options
from demo.command_line import Options, run_command


def parse_options(*arguments: str) -> Options:
    """Read a command line."""
    return read_options(main.make_context("demo", [*arguments]).params)


def test_a_counted_run_pays_faster() -> None:
    """100 payments a second, and 20 in a run without end, unless --rate says otherwise."""
    assert (parse_options().orders, parse_options().rate) == (None, 20)
    options = parse_options("--orders", "500", "--seed", "0")
    assert (options.orders, options.rate, options.seed) == (500, 100, 0)
    assert parse_options("--orders", "500", "--rate", "7.5").rate == 7.5


def test_ports_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """LOGGER_PORT and WEB_PORT; an empty variable counts as unset."""
    assert (parse_options().logger_port, parse_options().web_port) == (3000, 6066)
    monkeypatch.setenv("LOGGER_PORT", "3001")
    monkeypatch.setenv("WEB_PORT", "")
    assert (parse_options().logger_port, parse_options().web_port) == (3001, 6066)


@pytest.mark.parametrize("text", ["", ",", "coupons", "coupons, order_logging,coupons,"])
def test_further_consumers_come_from_the_environment(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CONSUMERS names those that run beside order_logging."""
    monkeypatch.setenv("CONSUMERS", text)
    assert parse_options().consumers == ("order_logging", *["coupons"] * ("coupons" in text))


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (["--orders", "abc"], {}, ["--orders", "'abc'"]),
        (["--orders=-5"], {}, ["--orders", "-5", "1<=x<=1000000"]),
        (["--orders", "0"], {}, ["--orders", "0"]),
        (["--orders", "²"], {}, ["--orders"]),
        (["--orders", ""], {}, ["--orders", "''"]),
        (["--rate", "0"], {}, ["--rate", "0.1"]),
        (["--rate", "fast"], {}, ["--rate", "'fast'"]),
        (["--seed", "-1"], {}, ["--seed"]),
        (["--give-up-after", "0"], {}, ["--give-up-after"]),
        ([], {"LOGGER_PORT": "70000"}, ["LOGGER_PORT", "65535"]),
        ([], {"LOGGER_PORT": "http"}, ["LOGGER_PORT", "'http'"]),
        ([], {"WEB_PORT": "0"}, ["WEB_PORT", "0"]),
        (["--nonsense"], {}, ["--nonsense"]),
        (["500"], {}, ["500"]),
    ],
)
def test_wrong_options_get_one_line(
    arguments: list[str],
    environment: dict[str, str],
    named: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line on stderr names what is wrong; the status is 2."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["demo", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert len(said) < 300
    assert all(word in said for word in named)
