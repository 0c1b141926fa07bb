package millrace.oracle;

import com.fasterxml.jackson.databind.JsonNode;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.kstream.Branched;
import org.apache.kafka.streams.kstream.BranchedKStream;
import org.apache.kafka.streams.kstream.GlobalKTable;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.KGroupedStream;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.KTable;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Named;
import org.apache.kafka.streams.kstream.Repartitioned;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.Stores;

/** Builds the topology of a case: sources, stateless steps and groups. */
final class Topologies {
  static final Json.KafkaSerde SERDE = new Json.KafkaSerde();

  private final StreamsBuilder builder = new StreamsBuilder();
  private final Map<String, Object> made = new HashMap<>();
  private final Set<String> windowed = new HashSet<>(); // tables with windowed keys
  private final List<String> sinks = new ArrayList<>();
  private final Aggregations aggregations;
  private final Joins joins;
  private final boolean aligned;

  /**
   * With aligned, Kafka Streams is built so that it does not do what the file of accidents lists as
   * one that can be avoided.
   */
  Topologies(boolean aligned) {
    this.aligned = aligned;
    aggregations = new Aggregations(this);
    joins = new Joins(this);
  }

  boolean aligned() {
    return aligned;
  }

  List<String> sinks() {
    return sinks;
  }

  Topology build() {
    return builder.build();
  }

  void add(JsonNode steps) {
    aggregations.steps = steps;
    for (JsonNode step : steps) {
      String op = step.get("op").asText();
      Object result = add(step, op);
      boolean same = List.of("suppress", "mapValues", "filter", "filterNot").contains(op);
      if (step.hasNonNull("window") || same && windowed.contains(text(step, "from"))) {
        windowed.add(text(step, "id"));
      }
      if (result != null) {
        made.put(step.get("id").asText(), result);
      }
    }
  }

  private Object add(JsonNode s, String op) {
    return switch (op) {
      case "stream" -> builder.stream(text(s, "topic"));
      case "table" -> builder.table(text(s, "topic"), tableStore(s));
      case "globalTable" -> builder.globalTable(text(s, "topic"), tableStore(s));
      case "map", "selectKey", "mapValues", "flatMap", "flatMapValues" -> map(s, op);
      case "filter", "filterNot" -> filter(s, op.equals("filterNot"));
      case "peek" -> stream(s, "from").peek((k, v) -> {});
      case "merge" -> {
        KStream<Object, Object> all = stream(s, "from");
        for (JsonNode other : s.get("with")) {
          all = all.merge(this.<KStream<Object, Object>>get(other.asText()));
        }
        yield all;
      }
      case "split" -> split(s);
      case "repartition" -> stream(s, "from").repartition(Repartitioned.as(text(s, "id")));
      case "toTable" -> stream(s, "from").toTable(tableStore(s));
      case "groupByKey" -> stream(s, "from").groupByKey(Grouped.with(SERDE, SERDE));
      case "groupBy" -> groupBy(s);
      case "count", "reduce", "aggregate" -> aggregations.aggregate(s);
      case "cogroup" -> aggregations.cogroup(s);
      case "suppress" -> aggregations.suppress(s);
      case "streamTableJoin" -> joins.streamTable(s);
      case "globalTableJoin" -> joins.global(s);
      case "streamStreamJoin" -> joins.streamStream(s);
      case "tableTableJoin" -> joins.tables(s);
      case "foreignKeyJoin" -> joins.foreignKey(s);
      case "toStream" -> {
        KStream<Object, Object> changes = table(s, "from").toStream();
        yield windowed.contains(text(s, "from"))
            ? changes.map((k, v) -> KeyValue.pair(Json.plain(k), v))
            : changes;
      }
      case "to" -> {
        stream(s, "from").to(text(s, "topic"));
        sinks.add(text(s, "topic"));
        yield null;
      }
      default -> throw new IllegalArgumentException("operator " + op);
    };
  }

  private Object map(JsonNode s, String op) {
    if (op.equals("map") && text(s, "fn").startsWith("identity")) {
      return stream(s, "from").map(KeyValue::pair);
    }
    if (op.startsWith("flatMap")) {
      return flatMap(s, op.equals("flatMap"));
    }
    Expression key = Expression.parse(s.path("key").asText("key"));
    Expression value = Expression.parse(s.path("value").asText("value"));
    return switch (op) {
      case "map" ->
          stream(s, "from")
              .map((k, v) -> KeyValue.pair(key.apply(k, v, null), value.apply(k, v, null)));
      case "selectKey" -> stream(s, "from").selectKey((k, v) -> key.apply(k, v, null));
      default ->
          get(text(s, "from")) instanceof KStream<?, ?>
              ? stream(s, "from").mapValues(v -> value.apply(null, v, null))
              : table(s, "from").mapValues(v -> value.apply(null, v, null));
    };
  }

  private record Each(Expression key, Expression value, Expression.Condition where) {}

  private Object flatMap(JsonNode s, boolean keys) {
    List<Each> each = new ArrayList<>();
    for (JsonNode e : s.get("each")) {
      each.add(
          new Each(
              Expression.parse(e.path("key").asText("key")),
              Expression.parse(e.path("value").asText("value")),
              Expression.Condition.parse(e.path("where").asText("'' == ''"))));
    }
    if (!keys) {
      return stream(s, "from")
          .flatMapValues(
              v -> {
                List<Object> out = new ArrayList<>();
                for (Each e : each) {
                  if (e.where.test(null, v, null)) {
                    out.add(e.value.apply(null, v, null));
                  }
                }
                return out;
              });
    }
    return stream(s, "from")
        .flatMap(
            (k, v) -> {
              List<KeyValue<Object, Object>> out = new ArrayList<>();
              for (Each e : each) {
                if (e.where.test(k, v, null)) {
                  out.add(KeyValue.pair(e.key.apply(k, v, null), e.value.apply(k, v, null)));
                }
              }
              return out;
            });
  }

  private Object filter(JsonNode s, boolean not) {
    Expression.Condition where = Expression.Condition.parse(text(s, "where"));
    if (get(text(s, "from")) instanceof KStream<?, ?>) {
      KStream<Object, Object> in = stream(s, "from");
      return not
          ? in.filterNot((k, v) -> where.test(k, v, null))
          : in.filter((k, v) -> where.test(k, v, null));
    }
    KTable<Object, Object> in = table(s, "from");
    return not
        ? in.filterNot((k, v) -> where.test(Json.plain(k), v, null))
        : in.filter((k, v) -> where.test(Json.plain(k), v, null));
  }

  /** Makes the branches ID.0, ID.1, ... and ID.default. */
  private Object split(JsonNode s) {
    String id = text(s, "id");
    BranchedKStream<Object, Object> split = stream(s, "from").split(Named.as(id + "."));
    int i = 0;
    for (JsonNode branch : s.path("branches")) {
      Expression.Condition where = Expression.Condition.parse(branch.asText());
      split = split.branch((k, v) -> where.test(k, v, null), Branched.as(String.valueOf(i++)));
    }
    made.putAll(split.defaultBranch(Branched.as("default")));
    return null;
  }

  private Object groupBy(JsonNode s) {
    Expression[] choose = selector(s);
    if (get(text(s, "from")) instanceof KStream<?, ?>) {
      return stream(s, "from")
          .map((k, v) -> KeyValue.pair(choose[0].apply(k, v, null), choose[1].apply(k, v, null)))
          .groupByKey(Grouped.with(text(s, "id"), SERDE, SERDE));
    }
    return table(s, "from")
        .groupBy(
            (k, v) ->
                KeyValue.pair(
                    choose[0].apply(Json.plain(k), v, null),
                    choose[1].apply(Json.plain(k), v, null)),
            Grouped.with(text(s, "id"), SERDE, SERDE));
  }

  private static Expression[] selector(JsonNode s) {
    String select = s.path("select").asText("");
    if (select.startsWith("key<-first char of row key")) {
      return new Expression[] {
        (k, v, a) -> Json.text(k).substring(0, 1), (k, v, a) -> Json.text(k).substring(1, 2)
      };
    }
    if (select.contains("row key 'null'")) {
      return new Expression[] {
        (k, v, a) -> "null".equals(k) || "NULL".equals(k) ? null : v, (k, v, a) -> v
      };
    }
    String[] texts =
        switch (select) {
          case "" -> new String[] {s.path("key").asText("key"), s.path("value").asText("value")};
          case "key<-key (unchanged), value<-value" -> new String[] {"key", "value"};
          case "key<-value, value<-value" -> new String[] {"value", "value"};
          case "key<-value, value<-key" -> new String[] {"value", "key"};
          default -> throw new IllegalArgumentException("groupBy with " + select);
        };
    return new Expression[] {Expression.parse(texts[0]), Expression.parse(texts[1])};
  }

  private static Materialized<Object, Object, KeyValueStore<Bytes, byte[]>> tableStore(JsonNode s) {
    if (s.hasNonNull("versioned_history_ms")) {
      return Materialized.<Object, Object>as(
              Stores.persistentVersionedKeyValueStore(text(s, "id"), ms(s, "versioned_history_ms")))
          .withKeySerde(SERDE)
          .withValueSerde(SERDE);
    }
    return store(s);
  }

  static Materialized<Object, Object, KeyValueStore<Bytes, byte[]>> store(JsonNode s) {
    return Materialized.<Object, Object, KeyValueStore<Bytes, byte[]>>as(text(s, "id"))
        .withKeySerde(SERDE)
        .withValueSerde(SERDE);
  }

  static String text(JsonNode step, String field) {
    return step.path(field).asText();
  }

  static Duration ms(JsonNode step, String field) {
    return Duration.ofMillis(step.path(field).asLong());
  }

  @SuppressWarnings("unchecked")
  <T> T get(String id) {
    Object it = made.get(id);
    if (it == null) {
      throw new IllegalArgumentException("no step " + id);
    }
    return (T) it;
  }

  KStream<Object, Object> stream(JsonNode step, String field) {
    return get(text(step, field));
  }

  KTable<Object, Object> table(JsonNode step, String field) {
    return get(text(step, field));
  }

  GlobalKTable<Object, Object> globalTable(JsonNode step, String field) {
    return get(text(step, field));
  }

  KGroupedStream<Object, Object> group(JsonNode step, String field) {
    return get(text(step, field));
  }
}
