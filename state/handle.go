package state

import (
	"time"

	"github.com/millrace/millrace/serde"
)

// KeyValueHandle names a key-value store with its types, in a program that does
// not have the topology it belongs to.
func KeyValueHandle[K, V any](store string, key serde.Serde[K], value serde.Serde[V]) Handle[K, V] {
	return handle[K, V]{Spec{Name: store, Kind: KeyValue, KeySerde: key.Name(), ValueSerde: value.Name()}, key, value}
}

// WindowHandle names a window store with its types and the window size and
// retention it has in its topology; K is the key without the window.
func WindowHandle[K, V any](store string, key serde.Serde[K], value serde.Serde[V], size, retention time.Duration) Handle[K, V] {
	return handle[K, V]{Spec{Name: store, Kind: Window, KeySerde: key.Name(), ValueSerde: value.Name(), WindowSize: size, Retention: retention}, key, value}
}

type handle[K, V any] struct {
	spec  Spec
	key   serde.Serde[K]
	value serde.Serde[V]
}

func (h handle[K, V]) StoreSpec() Spec                               { return h.spec }
func (h handle[K, V]) StoreSerdes() (serde.Serde[K], serde.Serde[V]) { return h.key, h.value }
