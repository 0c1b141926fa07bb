package engine

import (
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// recordSlab hands out records for producing, allocated in slabs: a record costs
// the engine a fraction of an allocation.
type recordSlab struct {
	mu   sync.Mutex
	free []kgo.Record
}

const slabRecords = 256

func (s *recordSlab) get() *kgo.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.free) == 0 {
		s.free = make([]kgo.Record, slabRecords)
	}
	r := &s.free[0]
	s.free = s.free[1:]
	return r
}
