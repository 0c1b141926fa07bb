package replica

import (
	"slices"
	"sync"
	"time"

	"github.com/lovoo/goka/storage"

	"github.com/millrace/millrace/state"
)

// batchOps is how many changes a storage collects before the view has caught up.
const batchOps = 1000

// A rows is the goka storage of one partition: it writes rows and the offset behind
// them in one batch. Reads go through state.View, not through goka.
type rows struct {
	storage.Storage // of goka's own, for what a view never calls
	db              state.Backend
	id              state.TaskID
	store           string
	prefix          []byte
	topic           state.TopicID

	mu        sync.Mutex
	batch     state.Batch
	next      int64 // offset behind what was applied, -1 if unknown
	age       int64 // of the rows until recovered, in ms since the epoch
	recovered bool  // they have been at the end of the changelog
}

var _ storage.Storage = (*rows)(nil)

func newStorage(db state.Backend, id state.TaskID, spec state.Spec, topic [16]byte) *rows {
	return &rows{Storage: storage.NewNull(), db: db, id: id, store: spec.Name, prefix: state.StorePrefix(id, spec.Name), topic: topic, next: -1, age: time.Now().UnixMilli()}
}

func (s *rows) Open() error {
	check, err := state.LoadCheckpoint(s.db, s.id)
	if err != nil || check == nil {
		return err
	}
	s.next, s.age = check.Logs[s.store].Next, check.Time
	return nil
}

func (s *rows) Set(key string, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.batch.Set(append(slices.Clip(s.prefix), key...), value)
	return nil
}

func (s *rows) Delete(key string) error { return s.Set(key, nil) }

func (s *rows) GetOffset(def int64) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next < 0 {
		return def, nil
	}
	return s.next - 1, nil
}

func (s *rows) SetOffset(offset int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next = offset + 1
	if !s.recovered && len(s.batch.Ops) < batchOps {
		return nil
	}
	return s.write()
}

// MarkRecovered makes everything applied so far readable.
func (s *rows) MarkRecovered() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recovered = true
	return s.write()
}

// write writes what was collected and the offset behind it.
func (s *rows) write() error {
	check := state.Checkpoint{
		Logs: map[string]state.LogPosition{s.store: {Topic: s.topic, Next: max(s.next, 0)}},
		Time: s.age,
	}
	if s.recovered {
		check.Time = time.Now().UnixMilli()
	}
	if err := check.AppendTo(&s.batch, s.id); err != nil {
		return err
	}
	err := s.db.Write(&s.batch)
	s.batch = state.Batch{}
	return err
}

// Close writes what is left, and makes the checkpoint young: what has recovered has
// followed the changelog until now.
func (s *rows) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.batch.Ops) == 0 && !s.recovered {
		return nil
	}
	return s.write()
}
