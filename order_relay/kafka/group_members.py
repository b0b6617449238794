"""Asks Kafka for the workers of consumer groups, also of groups that this worker is not in."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata
from aiokafka.errors import KafkaError, for_code
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from order_relay.kafka.auth import faust_credentials
from order_relay.kafka.consumer.assignor import url_of
from order_relay.logs.log_line import LogLine
from order_relay.settings import Settings

logger = logging.getLogger(__name__)

ASK_SECONDS = 3.0
KEEP_SECONDS = 10.0


class GroupMembers:
    """Knows the workers of consumer groups, by the URL in each member's metadata.

    A worker without a partition is a member, too. The answer is kept for 10 s, and Kafka is asked
    only when ``urls`` is called.
    """

    def __init__(
        self,
        settings: Settings,
        groups: Collection[str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            settings: How to connect to Kafka.
            groups: The groups to ask for.
            clock: Seconds.
        """
        self._settings = settings
        self._groups = groups
        self._clock = clock
        self._found: dict[str, frozenset[str]] = {}
        self._ask_again_at = float("-inf")
        self._asking = asyncio.Lock()
        self._logged = ""

    async def urls(self) -> Mapping[str, Collection[str]]:
        """Return the URLs of each group's workers, as far as Kafka says. Never raises.

        A group that Kafka does not describe is left out.
        """
        async with self._asking:
            if self._clock() >= self._ask_again_at:
                try:
                    self._found, problem = await self._ask()
                except (KafkaError, OSError, TimeoutError, NotImplementedError) as error:
                    self._found, problem = {}, str(error) or type(error).__name__
                if problem and problem != self._logged:
                    logger.info(LogLine("Members of consumer groups are not known", error=problem))
                self._logged = problem
                self._ask_again_at = self._clock() + KEEP_SECONDS
        return self._found

    async def _ask(self) -> tuple[dict[str, frozenset[str]], str]:
        found: dict[str, frozenset[str]] = {}
        problem = ""
        client = AIOKafkaAdminClient(
            **credentials_to_aiokafka_auth(faust_credentials(self._settings)),
            bootstrap_servers=self._settings.kafka_bootstrap_servers.split(","),
            client_id="order-relay-console",
        )
        try:
            async with asyncio.timeout(ASK_SECONDS):
                await client.start()
                for group in self._groups:
                    try:
                        found[group] = await _ask_group(client, group)
                    except KafkaError as error:  # one group may be refused, and another not
                        problem = str(error) or type(error).__name__
        finally:
            await client.close()
        return found, problem


async def _ask_group(client: AIOKafkaAdminClient, group: str) -> frozenset[str]:
    # One group a request: aiokafka 0.14 decodes version 3 of the response with the schema of
    # version 2, which is right up to the end of the first group.
    (answer,) = await client.describe_consumer_groups([group])
    error_code, _, _, _, _, members, *_ = answer.groups[0]
    if error_code:
        raise for_code(error_code)(group)
    urls = (_url(metadata) for _, _, _, metadata, _ in members)
    return frozenset(url for url in urls if url is not None)


def _url(metadata: bytes) -> str | None:
    """Return the URL of a member; None: it is no worker, or the group rebalances."""
    try:
        return url_of(ConsumerProtocolMemberMetadata.decode(metadata).user_data)
    except Exception:  # noqa: BLE001 - other clients write what they like
        return None
