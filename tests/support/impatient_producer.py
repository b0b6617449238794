"""A producer that takes brokers for away as soon as the test says, not after five seconds."""

from order_relay.kafka.producer import KafkaProducer

SHORT_SECONDS = 0.3


class ImpatientProducer(KafkaProducer):
    """As the product's, but for how long it asks.

    Attributes:
        patience_seconds: The longest wait for an answer to a question.
    """

    patience_seconds = 30.0

    async def ping(self, timeout_seconds: float = 5.0) -> None:
        """See ``KafkaProducer.ping``."""
        await super().ping(min(timeout_seconds, self.patience_seconds))
