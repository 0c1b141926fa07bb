package topology

import (
	"fmt"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// keyValueSpec declares a key-value store of the step op; it reports missing
// serdes and then returns nil.
func (b *Builder) keyValueSpec(op, store string, key, value serdeName) []state.Spec {
	return b.storeSpec(op, state.Spec{Name: store, Kind: state.KeyValue}, key, value)
}

// windowSpec declares the store of the windowed step op.
func (b *Builder) windowSpec(op, store string, w Windows, key, value serdeName) []state.Spec {
	if errs := w.check(); len(errs) > 0 {
		for _, err := range errs {
			b.fail("%s %q: %v", op, store, err)
		}
		return nil
	}
	specs := b.keyValueSpec(op, store, key, value)
	if specs == nil {
		return nil
	}
	switch spec := &specs[0]; w.Kind {
	case processors.TimeWindows:
		spec.Kind, spec.WindowSize, spec.Retention = state.Window, w.Size, w.Retention
	case processors.SlidingWindows:
		// A record that is as late as may be begins a window behind the record before
		// it, whose own window begins up to 3 differences + grace before stream time.
		// 1 ms: what closes now is still read.
		spec.Kind, spec.WindowSize, spec.Retention = state.Window, w.Size, max(w.Retention, 3*w.Size+w.Grace)+time.Millisecond
	case processors.SessionWindows:
		specs[0] = state.SessionSpec(store, spec.KeySerde, spec.ValueSerde, w.Size, w.Retention+time.Millisecond)
	}
	return specs
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

// openWindowed opens the store that the windowed aggregation of the same name
// declared, as a step without merge and next.
func openWindowed[K, V any](t processors.Task, name string, w Windows, key serde.Serde[K], value serde.Serde[V]) (*processors.WindowStep[K, V], error) {
	s := t.Store(name)
	if s == nil {
		return nil, fmt.Errorf("store %q: not in this task", name)
	}
	step := &processors.WindowStep[K, V]{Task: t, Step: name, Windows: w.Windows}
	switch expiry := processors.WindowTime(t, name, w.Windows); w.Kind {
	case processors.SessionWindows:
		step.Sessions = state.NewSessionStore(s, key, value, processors.WindowStreamTime(t, name), expiry)
	case processors.UnlimitedWindow:
		step.Forever = state.NewKeyValueStore(s, key, value)
	default:
		step.Rows = state.NewWindowStore(s, key, value, expiry)
	}
	return step, nil
}
