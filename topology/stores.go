package topology

import (
	"fmt"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// keyValueSpec declares a key-value store of the step op; it reports missing
// serdes and then returns nil.
func (b *Builder) keyValueSpec(op, store string, key, value serdeName) []state.Spec {
	return b.storeSpec(op, state.Spec{Name: store, Kind: state.KeyValue}, key, value)
}

// windowSpec declares a window store of the step op.
func (b *Builder) windowSpec(op, store string, w Windows, key, value serdeName) []state.Spec {
	if errs := w.check(); len(errs) > 0 {
		for _, err := range errs {
			b.fail("%s %q: %v", op, store, err)
		}
		return nil
	}
	return b.storeSpec(op, state.Spec{Name: store, Kind: state.Window, WindowSize: w.Size, Retention: w.Retention}, key, value)
}

// serdeName is the part of every serde.Serde that does not depend on its type.
type serdeName interface{ Name() string }

func (b *Builder) storeSpec(op string, spec state.Spec, key, value serdeName) []state.Spec {
	ok := true
	if key == nil {
		b.fail("%s %q: no serde for the key; call WithKeySerde on the stream before it", op, spec.Name)
		ok = false
	}
	if value == nil {
		b.fail("%s %q: no serde for the value; pass one to the step, or call WithValueSerde before it", op, spec.Name)
		ok = false
	}
	if !ok {
		return nil
	}
	spec.KeySerde, spec.ValueSerde = key.Name(), value.Name()
	return []state.Spec{spec}
}

// openKeyValue opens a store that a step declared.
func openKeyValue[K, V any](t processors.Task, name string, key serde.Serde[K], value serde.Serde[V]) (state.KeyValueStore[K, V], error) {
	s := t.Store(name)
	if s == nil {
		return nil, fmt.Errorf("store %q: not in this task", name)
	}
	return state.NewKeyValueStore(s, key, value), nil
}

// openWindow opens the window store that the windowed aggregation of the same
// name declared.
func openWindow[K, V any](t processors.Task, name string, w Windows, key serde.Serde[K], value serde.Serde[V]) (state.WindowStore[K, V], error) {
	s := t.Store(name)
	if s == nil {
		return nil, fmt.Errorf("store %q: not in this task", name)
	}
	return state.NewWindowStore(s, key, value, processors.WindowTime(t, name, w.Windows)), nil
}
