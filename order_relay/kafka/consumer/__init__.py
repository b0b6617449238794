"""Faust's Kafka transport, with our own idea of what may be committed.

Stock Faust commits what was acked, and acks on paths that lose data: out-of-order acks, errors
that leave an agent, undecodable records, skipped events, cancelled ones (docs/decisions/0001).
Here an offset is committed only when the delivery code says that every record before it is
finished. Faust's acks are not consulted: topics are declared with ``acks=False`` and agents read
``stream.noack()``.

Records go to the streams in batches, one event for what a fetch brought of a partition: Faust's
work for an event (queue, guards, sensors) would be the largest cost of a record after the POST.

What is overridden is private to Faust 0.15.3, which is therefore pinned exactly.
"""

from order_relay.kafka.consumer.assignor import partition_of
from order_relay.kafka.consumer.record_batches import RecordBatches
from order_relay.kafka.consumer.relay_consumer import RelayConsumer, RelayTransport

__all__ = ["RecordBatches", "RelayConsumer", "RelayTransport", "partition_of"]
