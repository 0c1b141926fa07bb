package millrace.oracle;

import com.fasterxml.jackson.databind.JsonNode;
import java.time.Duration;
import java.time.Instant;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.kstream.Aggregator;
import org.apache.kafka.streams.kstream.CogroupedKStream;
import org.apache.kafka.streams.kstream.EmitStrategy;
import org.apache.kafka.streams.kstream.Initializer;
import org.apache.kafka.streams.kstream.KGroupedStream;
import org.apache.kafka.streams.kstream.KGroupedTable;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Merger;
import org.apache.kafka.streams.kstream.Reducer;
import org.apache.kafka.streams.kstream.SessionWindowedKStream;
import org.apache.kafka.streams.kstream.SessionWindows;
import org.apache.kafka.streams.kstream.SlidingWindows;
import org.apache.kafka.streams.kstream.Suppressed;
import org.apache.kafka.streams.kstream.Suppressed.BufferConfig;
import org.apache.kafka.streams.kstream.TimeWindowedCogroupedKStream;
import org.apache.kafka.streams.kstream.TimeWindowedKStream;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.kstream.UnlimitedWindows;
import org.apache.kafka.streams.state.SessionStore;
import org.apache.kafka.streams.state.WindowStore;

/** Builds the aggregations of a case. */
final class Aggregations {
  private final Topologies made;
  JsonNode steps;

  Aggregations(Topologies made) {
    this.made = made;
  }

  /** The functions of an aggregation. */
  private record Functions(Initializer<Object> init, Aggregator<Object, Object, Object> add) {}

  private Functions functions(JsonNode s, boolean session) {
    Initializer<Object> init = () -> s.path("init").asText("");
    Aggregator<Object, Object, Object> add;
    if (Topologies.text(s, "op").equals("count")) {
      init = () -> 0L;
      add = (k, v, a) -> (Long) a + 1;
    } else {
      Expression fn =
          Expression.parse(Topologies.text(s, "fn") + Topologies.text(s, "adder"));
      add = (k, v, a) -> fn.apply(k, v, a);
    }
    return session ? new Functions(init, add) : withoutFirst(s, init, add);
  }

  /** Leaves out the old value of a first update; see the accident "first-old-value". */
  private Functions withoutFirst(
      JsonNode s, Initializer<Object> init, Aggregator<Object, Object, Object> add) {
    if (!made.aligned() || !needsOldValues(Topologies.text(s, "id"))) {
      return new Functions(init, add);
    }
    return new Functions(() -> null, (k, v, a) -> add.apply(k, v, a == null ? init.apply() : a));
  }

  /** Whether a step behind the table sees the old values of its updates. */
  private boolean needsOldValues(String table) {
    for (JsonNode s : steps) {
      boolean next = false;
      for (String field : new String[] {"from", "left", "right", "table"}) {
        next = next || table.equals(Topologies.text(s, field));
      }
      if (next) {
        switch (Topologies.text(s, "op")) {
          case "toStream":
            break;
          case "suppress", "mapValues":
            if (needsOldValues(Topologies.text(s, "id"))) {
              return true;
            }
            break;
          default:
            return true;
        }
      }
    }
    return false;
  }

  Object aggregate(JsonNode s) {
    String op = Topologies.text(s, "op");
    Object from = made.get(Topologies.text(s, "from"));
    if (from instanceof KGroupedTable<?, ?>) {
      return aggregateTable(s, op);
    }
    KGroupedStream<Object, Object> group = made.group(s, "from");
    if (!s.hasNonNull("window")) {
      if (op.equals("reduce")) {
        return group.reduce(reducer(Topologies.text(s, "fn")), Topologies.store(s));
      }
      if (op.equals("count") && !needsOldValues(Topologies.text(s, "id"))) {
        return group.count(countStore(s));
      }
      Functions f = functions(s, false);
      return group.aggregate(f.init, f.add, Topologies.store(s));
    }
    if (Topologies.text(s.get("window"), "type").equals("session")) {
      return sessions(s, op, group.windowedBy(session(s)));
    }
    TimeWindowedKStream<Object, Object> windowed = windowed(s, group);
    if (Topologies.text(s, "emit").equals("on_window_close")) {
      windowed = windowed.emitStrategy(EmitStrategy.onWindowClose());
    }
    if (op.equals("reduce")) {
      return windowed.reduce(reducer(Topologies.text(s, "fn")), windowStore(s));
    }
    Functions f = functions(s, false);
    return windowed.aggregate(f.init, f.add, windowStore(s));
  }

  @SuppressWarnings("unchecked")
  private static Materialized<Object, Long, org.apache.kafka.streams.state.KeyValueStore<Bytes, byte[]>> countStore(JsonNode s) {
    return (Materialized<Object, Long, org.apache.kafka.streams.state.KeyValueStore<Bytes, byte[]>>)
        (Materialized<?, ?, ?>) Topologies.store(s);
  }

  private Object aggregateTable(JsonNode s, String op) {
    KGroupedTable<Object, Object> group = made.get(Topologies.text(s, "from"));
    if (op.equals("count")) {
      return group.count(countStore(s));
    }
    if (op.equals("reduce")) {
      return group.reduce(
          reducer(Topologies.text(s, "fn") + Topologies.text(s, "adder")),
          reducer(Topologies.text(s, "subtractor")),
          Topologies.store(s));
    }
    Expression add = Expression.parse(Topologies.text(s, "fn") + Topologies.text(s, "adder"));
    Expression subtract = Expression.parse(Topologies.text(s, "subtractor"));
    return group.aggregate(
        () -> s.path("init").asText(""),
        (k, v, a) -> add.apply(k, v, a),
        (k, v, a) -> subtract.apply(k, v, a),
        Topologies.store(s));
  }

  private Object sessions(JsonNode s, String op, SessionWindowedKStream<Object, Object> windowed) {
    if (Topologies.text(s, "emit").equals("on_window_close")) {
      windowed = windowed.emitStrategy(EmitStrategy.onWindowClose());
    }
    if (op.equals("reduce")) {
      return windowed.reduce(reducer(Topologies.text(s, "fn")), sessionStore(s));
    }
    Functions f = functions(s, true);
    return windowed.aggregate(f.init, f.add, merger(s, op), sessionStore(s));
  }

  Object cogroup(JsonNode s) {
    boolean session =
        s.hasNonNull("window") && Topologies.text(s.get("window"), "type").equals("session");
    Initializer<Object> init = () -> s.path("init").asText("");
    CogroupedKStream<Object, Object> all = null;
    for (JsonNode input : s.get("inputs")) {
      Expression fn = Expression.parse(Topologies.text(input, "fn"));
      Aggregator<Object, Object, Object> add = (k, v, a) -> fn.apply(k, v, a);
      if (!session) {
        Functions f = withoutFirst(s, init, add);
        add = f.add;
      }
      KGroupedStream<Object, Object> group = made.group(input, "from");
      all = all == null ? group.cogroup(add) : all.cogroup(group, add);
    }
    if (session) {
      return all.windowedBy(session(s)).aggregate(init, merger(s, "cogroup"), sessionStore(s));
    }
    Initializer<Object> start = withoutFirst(s, init, (k, v, a) -> a).init;
    if (!s.hasNonNull("window")) {
      return all.aggregate(start, Topologies.store(s));
    }
    JsonNode w = s.get("window");
    Duration grace = Topologies.ms(w, "grace_ms");
    TimeWindowedCogroupedKStream<Object, Object> windowed =
        switch (Topologies.text(w, "type")) {
          case "sliding" -> all.windowedBy(sliding(w));
          case "unlimited" -> all.windowedBy(unlimited(w));
          default -> all.windowedBy(time(w));
        };
    return windowed.aggregate(start, windowStore(s));
  }

  private static TimeWindowedKStream<Object, Object> windowed(
      JsonNode s, KGroupedStream<Object, Object> group) {
    JsonNode w = s.get("window");
    return switch (Topologies.text(w, "type")) {
      case "sliding" -> group.windowedBy(sliding(w));
      case "unlimited" -> group.windowedBy(unlimited(w));
      default -> group.windowedBy(time(w));
    };
  }

  private static SlidingWindows sliding(JsonNode w) {
    return SlidingWindows.ofTimeDifferenceAndGrace(
        Topologies.ms(w, "difference_ms"), Topologies.ms(w, "grace_ms"));
  }

  private static UnlimitedWindows unlimited(JsonNode w) {
    return UnlimitedWindows.of().startOn(Instant.ofEpochMilli(w.path("start_ms").asLong()));
  }

  private static TimeWindows time(JsonNode w) {
    TimeWindows windows =
        TimeWindows.ofSizeAndGrace(Topologies.ms(w, "size_ms"), Topologies.ms(w, "grace_ms"));
    return switch (Topologies.text(w, "type")) {
      case "tumbling" -> windows;
      case "hopping" -> windows.advanceBy(Topologies.ms(w, "advance_ms"));
      default -> throw new IllegalArgumentException("window " + w);
    };
  }

  private static SessionWindows session(JsonNode s) {
    JsonNode w = s.get("window");
    return SessionWindows.ofInactivityGapAndGrace(
        Topologies.ms(w, "gap_ms"), Topologies.ms(w, "grace_ms"));
  }

  /** One ms more than the default retention; see the accident "session-tie". */
  private Materialized<Object, Object, SessionStore<Bytes, byte[]>> sessionStore(JsonNode s) {
    JsonNode w = s.get("window");
    Materialized<Object, Object, SessionStore<Bytes, byte[]>> store =
        Materialized.<Object, Object, SessionStore<Bytes, byte[]>>as(Topologies.text(s, "id"))
            .withKeySerde(Topologies.SERDE)
            .withValueSerde(Topologies.SERDE);
    return made.aligned()
        ? store.withRetention(
            Topologies.ms(w, "gap_ms").plus(Topologies.ms(w, "grace_ms")).plusMillis(1))
        : store;
  }

  /** Kept for long; see the accidents "final-after-idle" and "sliding-retention". */
  private Materialized<Object, Object, WindowStore<Bytes, byte[]>> windowStore(JsonNode s) {
    Materialized<Object, Object, WindowStore<Bytes, byte[]>> store =
        Materialized.<Object, Object, WindowStore<Bytes, byte[]>>as(Topologies.text(s, "id"))
            .withKeySerde(Topologies.SERDE)
            .withValueSerde(Topologies.SERDE);
    boolean loses =
        Topologies.text(s, "emit").equals("on_window_close")
            || Topologies.text(s.get("window"), "type").equals("sliding");
    return made.aligned() && loses
        ? store.withRetention(Duration.ofDays(1))
        : store;
  }

  private static Reducer<Object> reducer(String text) {
    Expression fn = Expression.parse(text);
    return (a, v) -> fn.apply(null, v, a);
  }

  private static Merger<Object, Object> merger(JsonNode s, String op) {
    if (op.equals("count")) {
      return (k, a, b) -> (Long) a + (Long) b;
    }
    String text = " " + Topologies.text(s, "merger") + " ";
    Expression fn =
        Expression.parse(text.replace(" a ", " aggregate ").replace(" b ", " value ").trim());
    return (k, a, b) -> fn.apply(null, b, a);
  }

  Object suppress(JsonNode s) {
    long maxRecords = s.path("max_records").asLong();
    long maxBytes = s.path("max_bytes").asLong();
    if (Topologies.text(s, "until").equals("window_closes")) {
      Suppressed.StrictBufferConfig strict = BufferConfig.unbounded();
      if (maxRecords > 0 || maxBytes > 0) {
        strict = bounded(maxRecords, maxBytes).shutDownWhenFull();
      }
      return ((org.apache.kafka.streams.kstream.KTable) made.table(s, "from"))
          .suppress(Suppressed.untilWindowCloses(strict));
    }
    BufferConfig<?> buffer = BufferConfig.unbounded();
    if (maxRecords > 0 || maxBytes > 0) {
      buffer = bounded(maxRecords, maxBytes).emitEarlyWhenFull();
      if (Topologies.text(s, "when_full").equals("shut_down")) {
        buffer = bounded(maxRecords, maxBytes).shutDownWhenFull();
      }
    }
    return made.table(s, "from")
        .suppress(Suppressed.untilTimeLimit(Topologies.ms(s, "ms"), buffer));
  }

  private static Suppressed.EagerBufferConfig bounded(long records, long bytes) {
    if (records == 0) {
      return BufferConfig.maxBytes(bytes);
    }
    Suppressed.EagerBufferConfig config = BufferConfig.maxRecords(records);
    return bytes > 0 ? config.withMaxBytes(bytes) : config;
  }
}
