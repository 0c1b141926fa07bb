package org.apache.kafka.streams.kstream.internals;

import java.lang.reflect.Field;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.streams.TopologyTestDriver;
import org.apache.kafka.streams.kstream.internals.KStreamImplJoin.TimeTracker;
import org.apache.kafka.streams.processor.internals.ProcessorNode;
import org.apache.kafka.streams.processor.internals.ProcessorTopology;

/**
 * Takes two accidents out of a running topology; see "join-bound" and "cogroup-clock" in the list.
 * It is in this package because the class of a bound is private to it.
 */
public final class Alignment {
  // The stream times of aggregations by the name of their store.
  private final Map<Object, List<Clock>> clocks = new HashMap<>();

  private record Clock(Object processor, Field field) {}

  /**
   * Makes left and outer joins of streams look for closed windows at every record. They skip that
   * where a lower bound of the unmatched records' times says that there is nothing to find.
   */
  private static final class Unbounded extends TimeTracker {
    @Override
    public void advanceStreamTime(long timestamp) {
      super.advanceStreamTime(timestamp);
      minTime = -1_000_000_000_000L;
    }
  }

  public Alignment(TopologyTestDriver driver) throws ReflectiveOperationException {
    Object task = field(TopologyTestDriver.class, "task").get(driver);
    if (task == null) {
      return;
    }
    ProcessorTopology topology =
        (ProcessorTopology) field(task.getClass().getSuperclass(), "topology").get(task);
    Map<Object, TimeTracker> unbounded = new HashMap<>(); // both sides of a join share one
    for (ProcessorNode<?, ?, ?, ?> node : topology.processors()) {
      Object processor = field(ProcessorNode.class, "processor").get(node);
      if (processor instanceof KStreamKStreamJoin<?, ?, ?, ?, ?, ?>.KStreamKStreamJoinProcessor) {
        Field tracker =
            field(KStreamKStreamJoin.KStreamKStreamJoinProcessor.class, "sharedTimeTracker");
        TimeTracker made = unbounded.computeIfAbsent(tracker.get(processor), t -> new Unbounded());
        made.setEmitInterval(0);
        tracker.set(processor, made);
      } else if (processor instanceof AbstractKStreamTimeWindowAggregateProcessor<?, ?, ?>) {
        Class<?> c = AbstractKStreamTimeWindowAggregateProcessor.class;
        add(field(c, "storeName").get(processor), processor, field(c, "observedStreamTime"));
      } else if (processor != null
          && processor.getClass().getEnclosingClass() == KStreamSessionWindowAggregate.class) {
        Object step = field(processor.getClass(), "this$0").get(processor);
        Object store = field(KStreamSessionWindowAggregate.class, "storeName").get(step);
        add(store, processor, field(processor.getClass(), "observedStreamTime"));
      }
    }
  }

  private void add(Object store, Object processor, Field field) {
    clocks.computeIfAbsent(store, s -> new ArrayList<>()).add(new Clock(processor, field));
  }

  /** Gives the inputs of a cogroup one stream time; called between records. */
  public void unify() throws ReflectiveOperationException {
    for (List<Clock> shared : clocks.values()) {
      long time = -1;
      for (Clock c : shared) {
        time = Math.max(time, c.field.getLong(c.processor));
      }
      for (Clock c : shared) {
        c.field.setLong(c.processor, time);
      }
    }
  }

  private static Field field(Class<?> in, String name) throws NoSuchFieldException {
    Field f = in.getDeclaredField(name);
    f.setAccessible(true);
    return f;
  }
}
