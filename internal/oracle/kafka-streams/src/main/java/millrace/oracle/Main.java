package millrace.oracle;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.util.HashMap;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.TestInputTopic;
import org.apache.kafka.streams.TestOutputTopic;
import org.apache.kafka.streams.TopologyTestDriver;
import org.apache.kafka.streams.kstream.internals.Alignment;
import org.apache.kafka.streams.test.TestRecord;

/**
 * Reads cases from standard input, one per line, and prints for each a line with what the
 * TopologyTestDriver of Kafka Streams emits: {"output": [{topic, key, value, timestamp, after}],
 * "error": what was thrown}. The first argument is the directory for state; with a second one,
 * "rocksdb", all stores are on disk; see MostlyInMemory.
 */
public final class Main {
  private Main() {}

  public static void main(String[] args) throws IOException {
    Properties config = new Properties();
    config.put(StreamsConfig.APPLICATION_ID_CONFIG, "oracle");
    config.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, "nowhere:1");
    config.put(StreamsConfig.STATE_DIR_CONFIG, args[0]);
    config.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 0);
    config.put(StreamsConfig.DEFAULT_KEY_SERDE_CLASS_CONFIG, Json.KafkaSerde.class);
    config.put(StreamsConfig.DEFAULT_VALUE_SERDE_CLASS_CONFIG, Json.KafkaSerde.class);
    // Results of closed windows come with the record that closes them, not once per second.
    config.put("__emit.interval.ms.kstreams.outer.join.spurious.results.fix__", 0L);
    config.put("__emit.interval.ms.kstreams.windowed.aggregation__", 0L);
    if (args.length < 2 || !args[1].equals("rocksdb")) {
      config.put(StreamsConfig.DSL_STORE_SUPPLIERS_CLASS_CONFIG, MostlyInMemory.class);
    }
    PrintStream out = new PrintStream(System.out, false, StandardCharsets.UTF_8);
    BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line = in.readLine(); line != null; line = in.readLine()) {
      ObjectNode answer = Json.MAPPER.createObjectNode();
      ArrayNode output = answer.putArray("output");
      try {
        run(Json.MAPPER.readTree(line), config, output);
      } catch (Exception e) {
        Throwable cause = e;
        while (cause.getCause() != null) {
          cause = cause.getCause();
        }
        answer.put("error", cause.toString());
      }
      out.println(Json.MAPPER.writeValueAsString(answer));
      out.flush();
    }
  }

  private static void run(JsonNode test, Properties config, ArrayNode output) throws Exception {
    Topologies topologies = new Topologies(!test.path("setup").path("as_is").asBoolean());
    topologies.add(test.get("setup").get("topology"));
    try (TopologyTestDriver driver =
        new TopologyTestDriver(topologies.build(), config, Instant.EPOCH)) {
      Alignment alignment = topologies.aligned() ? new Alignment(driver) : null;
      Map<String, TestInputTopic<byte[], byte[]>> inputs = new HashMap<>();
      Map<String, TestOutputTopic<byte[], byte[]>> outputs = new HashMap<>();
      for (String topic : topologies.sinks()) {
        outputs.put(
            topic,
            driver.createOutputTopic(topic, new ByteArrayDeserializer(), new ByteArrayDeserializer()));
      }
      int after = 0;
      for (JsonNode record : test.get("input")) {
        if (alignment != null) {
          alignment.unify();
        }
        inputs
            .computeIfAbsent(
                record.get("topic").asText(),
                t -> driver.createInputTopic(t, new ByteArraySerializer(), new ByteArraySerializer()))
            .pipeInput(
                Json.bytes(Json.read(record.get("key"))),
                Json.bytes(Json.read(record.get("value"))),
                record.get("timestamp").asLong());
        for (String topic : topologies.sinks()) {
          for (TestRecord<byte[], byte[]> r : outputs.get(topic).readRecordsToList()) {
            ObjectNode row = output.addObject().put("topic", topic);
            row.set("key", Json.MAPPER.valueToTree(Json.read(r.key())));
            row.set("value", Json.MAPPER.valueToTree(Json.read(r.value())));
            row.put("timestamp", r.timestamp()).put("after", after);
          }
        }
        after++;
      }
    }
  }
}
