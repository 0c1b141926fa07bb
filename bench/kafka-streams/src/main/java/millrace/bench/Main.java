package millrace.bench;

import java.time.Duration;
import java.util.HashMap;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.processor.StateRestoreListener;
import org.apache.kafka.streams.state.KeyValueStore;

/**
 * The Kafka Streams peer: one job (pass or count) until SIGTERM. It takes the arguments of every
 * peer, {@code -name value} pairs, and prints their lines: "ready", and for a restore
 * "restore-start MS" and "restored RECORDS MS" (MS since the epoch).
 */
public final class Main {
  public static void main(String[] argv) throws Exception {
    Map<String, String> args = new HashMap<>();
    for (int i = 0; i + 1 < argv.length; i += 2) {
      args.put(argv[i].substring(1), argv[i + 1]);
    }
    KafkaStreams streams =
        new KafkaStreams(topology(args).build(), config(args));
    CountDownLatch done = new CountDownLatch(1);
    streams.setGlobalStateRestoreListener(new Restores());
    streams.setUncaughtExceptionHandler(
        e -> {
          e.printStackTrace();
          done.countDown();
          return org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler
              .StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
    streams.setStateListener(
        (now, before) -> {
          if (now == KafkaStreams.State.RUNNING) {
            print("ready");
          }
        });
    Runtime.getRuntime()
        .addShutdownHook(
            new Thread(
                () -> {
                  streams.close(Duration.ofSeconds(30));
                  done.countDown();
                }));
    streams.start();
    done.await();
  }

  private static StreamsBuilder topology(Map<String, String> args) {
    StreamsBuilder b = new StreamsBuilder();
    String in = args.get("in");
    String out = args.get("out");
    switch (args.get("job")) {
      case "pass":
        b.stream(in, Consumed.with(Serdes.ByteArray(), Serdes.ByteArray()))
            .to(out, Produced.with(Serdes.ByteArray(), Serdes.ByteArray()));
        break;
      case "count":
        // No cache: every update is an output, as the other peers write it.
        b.stream(in, Consumed.with(Serdes.String(), Serdes.ByteArray()))
            .groupByKey(Grouped.with(Serdes.String(), Serdes.ByteArray()))
            .count(
                Materialized.<String, Long, KeyValueStore<Bytes, byte[]>>as("counts")
                    .withCachingDisabled())
            .toStream()
            .to(out, Produced.with(Serdes.String(), Serdes.Long()));
        break;
      default:
        throw new IllegalArgumentException("unknown -job " + args.get("job"));
    }
    return b;
  }

  private static Properties config(Map<String, String> args) {
    Properties p = new Properties();
    p.put(StreamsConfig.APPLICATION_ID_CONFIG, args.get("app"));
    p.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args.get("brokers"));
    p.put(StreamsConfig.STATE_DIR_CONFIG, args.get("dir"));
    p.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, args.get("threads"));
    p.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
    p.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 100);
    p.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 0);
    p.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
    p.put(
        StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
    // Static membership: a restart after kill -9 need not wait for the session to end.
    p.put(
        StreamsConfig.mainConsumerPrefix(ConsumerConfig.GROUP_INSTANCE_ID_CONFIG),
        args.get("app") + "-1");
    return p;
  }

  private static synchronized void print(String line) {
    System.out.println(line);
    System.out.flush();
  }

  /** Reports the time from the first partition's start to the last one's end. */
  private static final class Restores implements StateRestoreListener {
    private int open;
    private long records;

    @Override
    public synchronized void onRestoreStart(
        TopicPartition tp, String store, long from, long to) {
      if (open++ == 0) {
        print("restore-start " + System.currentTimeMillis());
      }
    }

    @Override
    public void onBatchRestored(TopicPartition tp, String store, long end, long n) {}

    @Override
    public synchronized void onRestoreEnd(TopicPartition tp, String store, long total) {
      records += total;
      if (--open == 0) {
        print("restored " + records + " " + System.currentTimeMillis());
      }
    }
  }
}
