"""Which consumer a command is about."""

from types import SimpleNamespace
from typing import cast

import click
import pytest

from order_relay.cli.command import Application, choose_consumer
from order_relay.settings.consumers import ConfiguredConsumer


def chosen(given: str | None, runs: str, declared: str) -> ConfiguredConsumer:
    """The consumer of a command: with this option, where CONSUMERS names some of all."""
    made = {name: SimpleNamespace(name=name, settings=f"of {name}") for name in declared.split()}
    app = SimpleNamespace(
        consumers=[made[name] for name in runs.split()], declared=list(made.values())
    )
    return choose_consumer(cast(Application, app), given)


@pytest.mark.parametrize(
    ("given", "runs", "declared", "expected"),
    [
        (None, "order_logging", "order_logging", "order_logging"),
        (None, "coupons", "order_logging coupons", "coupons"),
        ("coupons", "order_logging coupons", "order_logging coupons", "coupons"),
        # Also one that this worker does not run.
        ("order_logging", "coupons", "order_logging coupons", "order_logging"),
    ],
)
def test_the_consumer_of_a_command(
    given: str | None, runs: str, declared: str, expected: str
) -> None:
    """The one that is named; where one alone runs, none has to be."""
    assert chosen(given, runs, declared).name == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "--consumer must name one of: order_logging, coupons"),
        ("coupon", "--consumer 'coupon' must name one of: order_logging, coupons"),
    ],
)
def test_one_must_be_named_where_there_are_several(given: str | None, said: str) -> None:
    """One line that names them, and the exit status of a wrong argument."""
    both = "order_logging coupons"
    with pytest.raises(click.ClickException, match=said) as raised:
        chosen(given, both, both)
    assert raised.value.exit_code == 2
