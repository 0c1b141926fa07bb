package engine

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/state"
)

// The calls of a task that is parked when it moves to another instance are handed over
// like those of any other: the next owner does not wait longer, and would ask again
// what still runs here.
func TestParkedTaskHandsOver(t *testing.T) {
	for name, owned := range map[string]bool{"to another instance": false, "to another worker": true} {
		callTest(t, name, func(t *testing.T, r *callRig) {
			s := &session{
				w:     &worker{inst: &Instance{calls: r.Calls, owners: map[state.TaskID]chan struct{}{}}, cfg: &Config{}},
				tasks: map[state.TaskID]*task{}, opening: map[state.TaskID]*opening{}, opened: make(chan *opening),
				parked: map[state.TaskID]parked{callTask: {at: time.Now().Add(time.Hour), tries: 1}},
			}
			r.start(r.call("e", 0, time.Minute))
			r.after(time.Second)
			if owned {
				s.w.inst.owners[callTask] = make(chan struct{})
			}
			s.lost = map[state.TaskID]bool{callTask: true}
			if err := s.adopt(); err != nil {
				t.Fatal(err)
			}
			r.after(10 * time.Second)
			if owned {
				r.expect()
				return
			}
			r.expect("e released 0")
		})
	}
}

// A worker that comes back to its group under another member id reopens its tasks,
// even if it is given what it had (exactly-once.md §2.5): others may have had it
// meanwhile, and franz-go would go on at the old positions.
func TestNewMemberReopens(t *testing.T) {
	for _, planted := range []bug{noBug, bugOldPositions} {
		synctest.Test(t, func(t *testing.T) {
			cl, err := kgo.NewClient(kgo.ConsumerGroup("g"), kgo.ConsumeTopics("t"), kgo.Dialer(func(context.Context, string, string) (net.Conn, error) {
				return nil, errors.New("no network")
			}))
			if err != nil {
				t.Fatal(err)
			}
			defer cl.Close()
			s := &session{
				w: &worker{inst: &Instance{}, announced: true, cfg: &Config{planted: planted}}, cl: cl, log: slog.New(slog.DiscardHandler), ctx: t.Context(),
				owned: map[string]map[int32]bool{}, starts: map[string]map[int32]start{}, tasks: map[state.TaskID]*task{},
				opening: map[state.TaskID]*opening{}, opened: make(chan *opening), parked: map[state.TaskID]parked{},
				fence: kafka.Fence{MemberID: "a", Generation: 7},
			}
			if err := s.adopt(); err != nil {
				t.Fatal(err)
			}
			s.onAssigned(t.Context(), cl, map[string][]int32{"t": {0}}) // the client is not the member "a"
			if err := s.adopt(); errors.Is(err, errReopen) != (planted == noBug) {
				t.Errorf("planted %d: %v", planted, err)
			}
		})
	}
}
