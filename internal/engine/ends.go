package engine

import (
	"context"
	"time"

	"github.com/millrace/millrace/internal/kafka"
)

const (
	// endsEvery is how often a worker asks for the ends of its tasks' inputs.
	endsEvery = 2 * time.Second
	// endsFresh is how old an answer may be that says that an input is at its end.
	endsFresh = 3 * endsEvery
)

// An endsLook is what a worker learned of the ends of its tasks' inputs. Polling
// tells them only of partitions that have records: those that are empty, paused or
// far behind have to be asked for.
type endsLook struct {
	asked time.Time
	ends  map[string]map[int32]int64
}

// lookAtEnds takes the answer to the last question and asks the next one, in the
// background.
func (s *session) lookAtEnds(ctx context.Context, now time.Time) {
	select {
	case look := <-s.ends:
		s.asking = false
		for _, t := range s.tasks {
			for _, in := range t.inputs {
				if end, ok := look.ends[in.topic][t.id.Partition]; ok {
					in.end, in.looked = max(in.end, end), look.asked
				}
			}
			s.w.inst.report(t)
		}
	default:
	}
	if s.asking || now.Sub(s.asked) < endsEvery || len(s.tasks) == 0 {
		return
	}
	s.asking, s.asked = true, now
	parts := map[string][]int32{}
	for _, t := range s.tasks {
		for _, in := range t.inputs {
			parts[in.topic] = append(parts[in.topic], t.id.Partition)
		}
	}
	go func() { // ends with the request; s.ends takes one answer
		ends, err := kafka.ListOffsets(ctx, s.w.inst.plain, kafka.LastStable, parts)
		if err != nil {
			s.log.Debug("asking for the ends of inputs", "error", err)
		}
		s.ends <- endsLook{now, ends}
	}()
}
