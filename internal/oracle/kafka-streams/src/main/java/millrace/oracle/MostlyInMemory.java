package millrace.oracle;

import org.apache.kafka.streams.kstream.EmitStrategy.StrategyType;
import org.apache.kafka.streams.state.BuiltInDslStoreSuppliers;
import org.apache.kafka.streams.state.DslSessionParams;
import org.apache.kafka.streams.state.DslWindowParams;
import org.apache.kafka.streams.state.SessionBytesStoreSupplier;
import org.apache.kafka.streams.state.WindowBytesStoreSupplier;

/**
 * Stores in memory, which open ten times as fast as those on disk; but on disk where it
 * matters: where results are emitted on window close, since in memory windows expire before that,
 * and where streams are joined, since in memory records without a value move the store's time.
 */
public final class MostlyInMemory extends BuiltInDslStoreSuppliers.InMemoryDslStoreSuppliers {
  @Override
  public WindowBytesStoreSupplier windowStore(DslWindowParams params) {
    return params.retainDuplicates() || params.emitStrategy().type() == StrategyType.ON_WINDOW_CLOSE
        ? BuiltInDslStoreSuppliers.ROCKS_DB.windowStore(params)
        : super.windowStore(params);
  }

  @Override
  public SessionBytesStoreSupplier sessionStore(DslSessionParams params) {
    return params.emitStrategy().type() == StrategyType.ON_WINDOW_CLOSE
        ? BuiltInDslStoreSuppliers.ROCKS_DB.sessionStore(params)
        : super.sessionStore(params);
  }
}
