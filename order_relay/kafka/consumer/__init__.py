"""Faust's Kafka transport with commits of our own.

Faust commits what was acked, and acks in cases that lose data: acks out of order, errors that leave
an agent, undecodable records, skipped and cancelled events (docs/decisions/0001). Here an offset is
committed only when every record before it is finished. Faust's acks are not used: topics have
``acks=False``, and agents read ``stream.noack()``.

Records go to the streams in batches, one event for each fetched partition. Faust's work for an
event (queue, guards, sensors) would otherwise be the largest cost of a record after the POST.

The overridden parts are private to Faust 0.15.3, which is therefore pinned exactly.
"""

from order_relay.kafka.consumer.assignor import partition_of
from order_relay.kafka.consumer.relay_consumer import RelayConsumer, RelayTransport

__all__ = ["RelayConsumer", "RelayTransport", "partition_of"]
