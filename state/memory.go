package state

import (
	"bytes"
	"iter"
	"sync"

	"github.com/tidwall/btree"
)

// NewMemory returns a backend in memory, for tests and for stores that need no
// disk. Flush and Close do nothing.
func NewMemory() Backend { return &memory{tree: newTree()} }

type memory struct {
	mu   sync.RWMutex
	tree *btree.BTreeG[KV]
}

func newTree() *btree.BTreeG[KV] {
	return btree.NewBTreeGOptions(func(a, b KV) bool { return bytes.Compare(a.Key, b.Key) < 0 }, btree.Options{NoLocks: true})
}

func (m *memory) Get(key []byte) ([]byte, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	kv, ok := m.tree.Get(KV{Key: key})
	if !ok {
		return nil, nil
	}
	return bytes.Clone(kv.Value), nil
}

func (m *memory) Scan(lower, upper []byte, reverse bool) iter.Seq2[KV, error] {
	return func(yield func(KV, error) bool) {
		m.mu.Lock()
		tree := m.tree.Copy()
		m.mu.Unlock()
		if !reverse {
			tree.Ascend(KV{Key: lower}, func(kv KV) bool {
				return (upper == nil || bytes.Compare(kv.Key, upper) < 0) && yield(kv, nil)
			})
			return
		}
		step := func(kv KV) bool {
			if upper != nil && bytes.Compare(kv.Key, upper) >= 0 {
				return true
			}
			return bytes.Compare(kv.Key, lower) >= 0 && yield(kv, nil)
		}
		if upper == nil {
			tree.Reverse(step)
			return
		}
		tree.Descend(KV{Key: upper}, step)
	}
}

func (m *memory) Write(b *Batch) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, op := range b.Ops {
		switch {
		case op.End != nil:
			var doomed []KV
			m.tree.Ascend(KV{Key: op.Key}, func(kv KV) bool {
				if bytes.Compare(kv.Key, op.End) >= 0 {
					return false
				}
				doomed = append(doomed, kv)
				return true
			})
			for _, kv := range doomed {
				m.tree.Delete(kv)
			}
		case op.Value == nil:
			m.tree.Delete(KV{Key: op.Key})
		default:
			m.tree.Set(KV{Key: bytes.Clone(op.Key), Value: bytes.Clone(op.Value)})
		}
	}
	return nil
}

func (m *memory) Flush() error { return nil }
func (m *memory) Close() error { return nil }
