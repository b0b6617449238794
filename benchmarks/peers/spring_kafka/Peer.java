import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;
import java.util.Map;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.springframework.kafka.core.DefaultKafkaConsumerFactory;
import org.springframework.kafka.listener.ConcurrentMessageListenerContainer;
import org.springframework.kafka.listener.ContainerProperties;
import org.springframework.kafka.listener.MessageListener;

/**
 * Spring Kafka: a thread for each of three partitions, each of which waits for every answer.
 *
 * <p>{@code Peer.java SERVERS TOPIC GROUP URL IN_FLIGHT}; it has no use for the last.
 */
public class Peer {
    private static final int THREADS = 3;

    public static void main(String[] arguments) throws Exception {
        Map<String, Object> config = Map.of(
            "bootstrap.servers", arguments[0],
            "group.id", arguments[2],
            "auto.offset.reset", "earliest");
        var client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        var target = URI.create(arguments[3]);
        var properties = new ContainerProperties(arguments[1]);
        properties.setMessageListener(
            (MessageListener<byte[], byte[]>) record -> deliver(client, target, record.value()));
        var container = new ConcurrentMessageListenerContainer<>(
            new DefaultKafkaConsumerFactory<>(
                config, new ByteArrayDeserializer(), new ByteArrayDeserializer()),
            properties);
        container.setConcurrency(THREADS);
        container.start();
        Thread.currentThread().join();
    }

    private static void deliver(HttpClient client, URI target, byte[] value) {
        var request = HttpRequest.newBuilder(target)
            .timeout(Duration.ofSeconds(10))
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofByteArray(value))
            .build();
        try {
            int status = client.send(request, HttpResponse.BodyHandlers.discarding()).statusCode();
            if (status / 100 != 2) {
                throw new IllegalStateException("status " + status);
            }
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        } catch (InterruptedException error) {
            Thread.currentThread().interrupt();
            throw new IllegalStateException(error);
        }
    }
}
