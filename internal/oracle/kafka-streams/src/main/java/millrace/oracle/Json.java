package millrace.oracle;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.SerializationFeature;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.util.TreeMap;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serializer;
import org.apache.kafka.streams.kstream.Windowed;

/**
 * Keys and values are what JSON holds: null, String, Long or a map. They are encoded as in Go: maps
 * sorted, without blanks.
 */
final class Json {
  static final ObjectMapper MAPPER =
      new ObjectMapper()
          .enable(DeserializationFeature.USE_LONG_FOR_INTS)
          .enable(SerializationFeature.ORDER_MAP_ENTRIES_BY_KEYS);

  private Json() {}

  static Object read(JsonNode node) throws JsonProcessingException {
    return MAPPER.treeToValue(node, Object.class);
  }

  static Object read(byte[] data) {
    try {
      return data == null ? null : MAPPER.readValue(data, Object.class);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  static byte[] bytes(Object value) {
    try {
      return value == null ? null : MAPPER.writeValueAsBytes(value);
    } catch (JsonProcessingException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** What an expression sees of a value. */
  static String text(Object value) {
    try {
      return value == null || value instanceof String || value instanceof Long
          ? String.valueOf(value)
          : MAPPER.writeValueAsString(value);
    } catch (JsonProcessingException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** A windowed key as it is printed. */
  static Object plain(Object key) {
    if (!(key instanceof Windowed<?> w)) {
      return key;
    }
    TreeMap<String, Object> m = new TreeMap<>();
    m.put("key", plain(w.key()));
    m.put("start", w.window().start());
    m.put("end", w.window().end());
    return m;
  }

  public static final class KafkaSerde implements Serde<Object> {
    @Override
    public Serializer<Object> serializer() {
      return (topic, value) -> bytes(value);
    }

    @Override
    public Deserializer<Object> deserializer() {
      return (topic, data) -> read(data);
    }
  }
}
