"""Records that no Java client writes: header names that are not UTF-8, broken batches."""

from collections.abc import Iterable, Sequence

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.producer import message_accumulator
from aiokafka.producer import producer as producer_module
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

Row = tuple[bytes | None, bytes | None, Sequence[tuple[str, bytes | None]]]


class OddName(str):
    """A header name of any bytes; aiokafka's producer calls its ``encode``."""

    _name: bytes

    def __new__(cls, name: bytes) -> "OddName":
        """Hold the bytes."""
        made = super().__new__(cls, name.decode("latin-1"))
        made._name = name
        return made

    def encode(self, *_: object) -> bytes:
        """Return the bytes."""
        return self._name


def batch_of(rows: Iterable[Row], codec: int = 0) -> bytes:
    """Return a batch as it stands in Kafka; key, value and headers of each record.

    Args:
        rows: The records.
        codec: 0 for none, 1 gzip, 2 snappy, 3 lz4, 4 zstd.
    """
    builder = _DefaultRecordBatchBuilderPy(2, codec, 0, -1, -1, -1, 1 << 20)
    for offset, (key, value, headers) in enumerate(rows):
        assert builder.append(offset, 1000 + offset, key, value, list(headers)) is not None
    return bytes(builder.build())


async def produce_odd(
    bootstrap_servers: str, topic: str, rows: Iterable[Row], *, partition: int = 0
) -> list[int]:
    """Publish records, with header names of any bytes; return their offsets."""
    with pytest.MonkeyPatch.context() as patch:
        # Its compiled builder does not call ``encode``.
        for module in (message_accumulator, producer_module):
            patch.setattr(module, "DefaultRecordBatchBuilder", _DefaultRecordBatchBuilderPy)
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers, acks="all")
        await producer.start()
        try:
            return [
                (
                    await producer.send_and_wait(
                        topic, value, key, partition=partition, headers=list(headers)
                    )
                ).offset
                for key, value, headers in rows
            ]
        finally:
            await producer.stop()


async def produce_broken(bootstrap_servers: str, topic: str, partition: int) -> None:
    """Publish a batch with a wrong checksum; only embedded brokers accept it."""
    batch = bytearray(batch_of([(b"k", b"v", [])]))
    batch[-1] ^= 0xFF
    client = AIOKafkaClient(bootstrap_servers=bootstrap_servers)
    await client.bootstrap()
    try:
        await client.set_topics([topic])
        leader = client.cluster.leader_for_partition(TopicPartition(topic, partition))
        request = ProduceRequest(None, -1, 10_000, [(topic, [(partition, bytes(batch))])])
        answer = await client.send(leader, request)
        ((_, ((_, error_code, *_),)),) = answer.topics
        assert error_code == 0
    finally:
        await client.close()
