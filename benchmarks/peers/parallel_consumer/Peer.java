import io.confluent.parallelconsumer.ParallelConsumerOptions;
import io.confluent.parallelconsumer.ParallelConsumerOptions.ProcessingOrder;
import io.confluent.parallelconsumer.vertx.VertxParallelStreamProcessor;
import io.vertx.core.buffer.Buffer;
import io.vertx.ext.web.client.predicate.ResponsePredicate;
import java.net.URI;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * Confluent Parallel Consumer with vert.x: order by key, every answer but 2xx is retried.
 *
 * <p>{@code Peer.java SERVERS TOPIC GROUP URL IN_FLIGHT}
 */
public class Peer {
    public static void main(String[] arguments) throws Exception {
        Map<String, Object> config = Map.of(
            "bootstrap.servers", arguments[0],
            "group.id", arguments[2],
            "auto.offset.reset", "earliest",
            "enable.auto.commit", false);
        var consumer = new KafkaConsumer<>(
            config, new ByteArrayDeserializer(), new ByteArrayDeserializer());
        var options = ParallelConsumerOptions.<byte[], byte[]>builder()
            .consumer(consumer)
            .ordering(ProcessingOrder.KEY)
            .maxConcurrency(Integer.parseInt(arguments[4]))
            .build();
        VertxParallelStreamProcessor<byte[], byte[]> processor =
            VertxParallelStreamProcessor.createEosStreamProcessor(options);
        URI target = URI.create(arguments[3]);
        processor.subscribe(List.of(arguments[1]));
        processor.vertxHttpWebClient(
            (client, context) -> client
                .post(target.getPort(), target.getHost(), target.getPath())
                .putHeader("Content-Type", "application/json")
                .expect(ResponsePredicate.SC_SUCCESS)
                .sendBuffer(Buffer.buffer(context.value())),
            sent -> {});
        Thread.currentThread().join();
    }
}
