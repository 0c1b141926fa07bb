package state

import "sync/atomic"

// DefaultCacheBytes is the default size of the cache of encoded rows: about 1.2
// million rows of 40 bytes.
const DefaultCacheBytes = 256 << 20

// entryOverhead is what an entry costs beside its key and value: its struct, its
// slot in the map and its place in the ring.
const entryOverhead = 176

// A CacheBudget is the memory that the partitions of an instance share for rows
// they have read or written: each open partition gets an equal part. It is safe
// for concurrent use.
type CacheBudget struct {
	bytes int64
	users atomic.Int64
}

// NewCacheBudget returns a budget of that many bytes. With 0 nothing is cached.
func NewCacheBudget(bytes int64) *CacheBudget { return &CacheBudget{bytes: bytes} }

func (b *CacheBudget) applyPartition(p *Partition) {
	b.users.Add(1)
	p.cache = cache{budget: b}
}

func (b *CacheBudget) share() int { return int(b.bytes / max(1, b.users.Load())) }

// A cache bounds the entries of a partition by the clock algorithm: a hand goes
// round the entries and evicts the clean ones that were not used since it
// passed. Entries of the overlay and those to be written back are in the ring and never
// evicted.
type cache struct {
	budget *CacheBudget
	ring   []*entry
	hand   int
	bytes  int
	closed bool
}

func (c *cache) off() bool { return c.budget.bytes <= 0 }

// add takes e in, making room as it goes: a bounded number of steps per new
// entry keeps up with growth and never walks a large overlay at once.
func (c *cache) add(e *entry) {
	c.bytes += len(e.key) + entryOverhead
	c.evict(8)
	c.ring = append(c.ring, e)
}

// trim brings the cache back into its budget after a commit made the overlay
// evictable.
func (c *cache) trim() { c.evict(2 * len(c.ring)) }

func (c *cache) evict(steps int) {
	if c.bytes <= c.budget.share() {
		return
	}
	limit := c.budget.share()
	for ; steps > 0 && c.bytes > limit && len(c.ring) > 0; steps-- {
		if c.hand >= len(c.ring) {
			c.hand = 0
		}
		e := c.ring[c.hand]
		if e.state == dirty || e.behind || e.used && limit > 0 {
			e.used = false
			c.hand++
			continue
		}
		c.bytes -= len(e.key) + len(e.value) + entryOverhead
		delete(e.store.rows, e.key)
		if e.store.last == e {
			e.store.last = nil
		}
		end := len(c.ring) - 1
		c.ring[c.hand], c.ring[end] = c.ring[end], nil
		c.ring = c.ring[:end]
	}
}

// keep takes an entry in again after drop.
func (c *cache) keep(e *entry) {
	c.bytes += len(e.key) + len(e.value) + entryOverhead
	c.ring = append(c.ring, e)
}

func (c *cache) drop() {
	clear(c.ring)
	c.ring, c.hand, c.bytes = c.ring[:0], 0, 0
}

func (c *cache) close() {
	if !c.closed {
		c.closed = true
		c.budget.users.Add(-1)
	}
}
