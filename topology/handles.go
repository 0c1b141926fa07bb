package topology

import (
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// StoreSpec describes the table's store, and with [KTable.StoreSerdes] makes it
// readable by [state.View]. A table without a store of its own (Filter,
// TableMapValues) has none: view the table it was made of.
func (t *KTable[K, V]) StoreSpec() state.Spec { return t.b.specOf(t.store) }

// StoreSerdes returns the serdes of the table's keys and values.
func (t *KTable[K, V]) StoreSerdes() (serde.Serde[K], serde.Serde[V]) { return t.key, t.value }

// StoreSpec describes the table's store; see [KTable.StoreSpec].
func (g *GlobalKTable[K, V]) StoreSpec() state.Spec { return g.b.specOf(g.store) }

// StoreSerdes returns the serdes of the table's keys and values.
func (g *GlobalKTable[K, V]) StoreSerdes() (serde.Serde[K], serde.Serde[V]) { return g.key, g.value }

// WindowStore returns the store of a windowed table for [state.View], whose Fetch
// takes keys without their window.
func WindowStore[K, V any](t *KTable[Windowed[K], V]) *Store[K, V] {
	return &Store[K, V]{spec: t.StoreSpec(), key: processors.InnerSerde(t.key), value: t.value}
}

func (b *Builder) specOf(store string) state.Spec {
	if d := b.stores[store]; d != nil {
		return d.spec
	}
	for _, g := range b.global {
		if g.Store.Name == store {
			return g.Store
		}
	}
	return state.Spec{}
}

var (
	_ state.Handle[string, int64] = (*KTable[string, int64])(nil)
	_ state.Handle[string, int64] = (*GlobalKTable[string, int64])(nil)
)
