"""Asks Kafka for the workers of consumer groups, also of groups that this worker is not in."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata
from aiokafka.errors import IncompatibleBrokerVersion, KafkaError, for_code
from aiokafka.protocol.admin import DescribeGroupsRequest
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from order_relay.kafka.auth import faust_credentials
from order_relay.kafka.consumer.assignor import url_of
from order_relay.logs.log_line import LogLine
from order_relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

logger = logging.getLogger(__name__)

ASK_SECONDS = 3.0
KEEP_SECONDS = 10.0
# A broker that knows no DescribeGroups is asked again after this time: it may be upgraded.
NOT_SUPPORTED_SECONDS = 600.0


class GroupAdmin(Protocol):
    """The part of a client that is needed."""

    async def members(self, group: str) -> Collection[bytes]:
        """Return the metadata of each member.

        Raises:
            KafkaError: Kafka refuses, or the connection failed.
            IncompatibleBrokerVersion, NotImplementedError: The broker cannot describe groups.
        """


class GroupMembers:
    """Knows the workers of consumer groups, by the URL in each member's metadata.

    A worker without a partition is a member, too. The answer is kept for 10 s, and Kafka is asked
    only when ``urls`` is called.
    """

    def __init__(
        self,
        groups: Collection[str],
        connect: Callable[[], AbstractAsyncContextManager[GroupAdmin]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            groups: The groups to ask for.
            connect: Connects to Kafka.
            clock: Seconds.
        """
        self._groups = groups
        self._connect = connect
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
                keep_seconds = KEEP_SECONDS
                problem = ""
                try:
                    self._found, problem = await self._ask()
                except (KafkaError, OSError, TimeoutError, NotImplementedError) as error:
                    self._found, problem = {}, str(error) or type(error).__name__
                    if isinstance(error, IncompatibleBrokerVersion | NotImplementedError):
                        keep_seconds = NOT_SUPPORTED_SECONDS
                if problem and problem != self._logged:
                    logger.info(LogLine("Members of consumer groups are not known", error=problem))
                self._logged = problem
                self._ask_again_at = self._clock() + keep_seconds
        return self._found

    async def _ask(self) -> tuple[dict[str, frozenset[str]], str]:
        found: dict[str, frozenset[str]] = {}
        problem = ""
        async with asyncio.timeout(ASK_SECONDS), self._connect() as admin:
            for group in self._groups:
                try:
                    members = await admin.members(group)
                except IncompatibleBrokerVersion:
                    raise
                except KafkaError as error:  # one group may be refused, and another not
                    problem = str(error) or type(error).__name__
                    continue
                urls = (_url(metadata) for metadata in members)
                found[group] = frozenset(url for url in urls if url is not None)
        return found, problem


def group_members(settings: Settings, groups: Collection[str]) -> GroupMembers:
    """Return what asks the brokers of these settings."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[GroupAdmin]:
        client = AIOKafkaAdminClient(
            **credentials_to_aiokafka_auth(faust_credentials(settings)),
            bootstrap_servers=settings.kafka_bootstrap_servers.split(","),
            client_id="order-relay-console",
        )
        try:
            await client.start()
            yield _Admin(client)
        finally:
            await client.close()

    return GroupMembers(groups, connect)


class _Admin:
    def __init__(self, client: Any) -> None:
        self._client = client

    async def members(self, group: str) -> Collection[bytes]:
        coordinator = await self._client.find_coordinator(group)
        # One group a request: aiokafka 0.14 decodes version 3 of the response with the schema of
        # version 2, which is right up to the end of the first group.
        answer = await self._client._client.send(coordinator, DescribeGroupsRequest([group]))
        error_code, _, _, _, _, members, *_ = answer.groups[0]
        if error_code:
            raise for_code(error_code)(group)
        return [metadata for _, _, _, metadata, _ in members]


def _url(metadata: bytes) -> str | None:
    """Return the URL of a member; None: it is no worker, or the group rebalances."""
    try:
        return url_of(ConsumerProtocolMemberMetadata.decode(metadata).user_data)
    except Exception:  # noqa: BLE001 - other clients write what they like
        return None
