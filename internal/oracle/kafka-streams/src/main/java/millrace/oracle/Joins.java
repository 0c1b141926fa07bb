package millrace.oracle;

import com.fasterxml.jackson.databind.JsonNode;
import java.time.Duration;
import java.util.function.Function;
import org.apache.kafka.streams.kstream.GlobalKTable;
import org.apache.kafka.streams.kstream.JoinWindows;
import org.apache.kafka.streams.kstream.Joined;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.KTable;
import org.apache.kafka.streams.kstream.StreamJoined;
import org.apache.kafka.streams.kstream.ValueJoiner;

/** Builds the joins of a case. */
final class Joins {
  private final Topologies made;

  Joins(Topologies made) {
    this.made = made;
  }

  /** Fills the joiner's template. */
  private static ValueJoiner<Object, Object, Object> joiner(JsonNode s) {
    String template = Topologies.text(s, "joiner");
    return (left, right) ->
        template.replace("{left}", Json.text(left)).replace("{right}", Json.text(right));
  }

  private static RuntimeException unknown(JsonNode s) {
    return new IllegalArgumentException(s.toString());
  }

  Object streamTable(JsonNode s) {
    KStream<Object, Object> stream = made.stream(s, "stream");
    KTable<Object, Object> table = made.table(s, "table");
    Joined<Object, Object, Object> joined =
        Joined.with(Topologies.SERDE, Topologies.SERDE, Topologies.SERDE);
    joined = joined.withName(Topologies.text(s, "id"));
    if (s.hasNonNull("grace_ms")) {
      joined = joined.withGracePeriod(Topologies.ms(s, "grace_ms"));
    }
    return Topologies.text(s, "kind").equals("left")
        ? stream.leftJoin(table, joiner(s), joined)
        : stream.join(table, joiner(s), joined);
  }

  Object global(JsonNode s) {
    KStream<Object, Object> stream = made.stream(s, "stream");
    GlobalKTable<Object, Object> table = made.globalTable(s, "table");
    Expression key = Expression.parse(Topologies.text(s, "key"));
    return Topologies.text(s, "kind").equals("left")
        ? stream.leftJoin(table, (k, v) -> key.apply(k, v, null), joiner(s))
        : stream.join(table, (k, v) -> key.apply(k, v, null), joiner(s));
  }

  Object streamStream(JsonNode s) {
    KStream<Object, Object> left = made.stream(s, "left");
    KStream<Object, Object> right = made.stream(s, "right");
    Duration before = Topologies.ms(s, "before_ms");
    Duration after = Topologies.ms(s, "after_ms");
    Duration widest = before.compareTo(after) > 0 ? before : after;
    JoinWindows windows =
        JoinWindows.ofTimeDifferenceAndGrace(widest, Topologies.ms(s, "grace_ms"))
            .before(before)
            .after(after);
    StreamJoined<Object, Object, Object> joined =
        StreamJoined.with(Topologies.SERDE, Topologies.SERDE, Topologies.SERDE);
    joined = joined.withName(Topologies.text(s, "id")).withStoreName(Topologies.text(s, "id"));
    return switch (Topologies.text(s, "kind")) {
      case "inner" -> left.join(right, joiner(s), windows, joined);
      case "left" -> left.leftJoin(right, joiner(s), windows, joined);
      case "outer" -> left.outerJoin(right, joiner(s), windows, joined);
      default -> throw unknown(s);
    };
  }

  Object tables(JsonNode s) {
    KTable<Object, Object> left = made.table(s, "left");
    KTable<Object, Object> right = made.table(s, "right");
    return switch (Topologies.text(s, "kind")) {
      case "inner" -> left.join(right, joiner(s), Topologies.store(s));
      case "left" -> left.leftJoin(right, joiner(s), Topologies.store(s));
      case "outer" -> left.outerJoin(right, joiner(s), Topologies.store(s));
      default -> throw unknown(s);
    };
  }

  Object foreignKey(JsonNode s) {
    KTable<Object, Object> left = made.table(s, "left");
    KTable<Object, Object> right = made.table(s, "right");
    Function<Object, Object> key = foreignKey(Topologies.text(s, "foreign_key"));
    return switch (Topologies.text(s, "kind")) {
      case "inner" -> left.join(right, key, joiner(s), Topologies.store(s));
      case "left" -> left.leftJoin(right, key, joiner(s), Topologies.store(s));
      default -> throw unknown(s);
    };
  }

  private static Function<Object, Object> foreignKey(String text) {
    if (text.equals("always null")) {
      return v -> null;
    }
    if (!text.startsWith("text after the first '|'")) {
      Expression key = Expression.parse(text);
      return v -> key.apply(null, v, null);
    }
    boolean nullable = text.endsWith("returnNull");
    return v -> {
      String value = Json.text(v);
      int bar = value.indexOf('|');
      String key = bar < 0 ? null : value.substring(bar + 1);
      return nullable && "returnNull".equals(key) ? null : key;
    };
  }
}
