package engine_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace/millrace/internal/engine"
)

// Retention that overtakes the group parks the task, and what it removed is counted
// once, however often the task tries again.
func TestLostRecordsAreCountedOnce(t *testing.T) {
	bubble(t, func(r *rig) {
		fs := vfs.NewMem()
		a := r.start(counting(), fs)
		records := func(n int) {
			for range n {
				r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
			}
		}
		records(1)
		r.await("out", 1)
		a.stop()
		records(9)
		if err := r.DeleteRecords("in", 0, 4); err != nil {
			r.t.Fatal(err)
		}
		a = r.start(counting(), fs)
		defer a.stop()
		lost := func(want float64) {
			r.t.Helper()
			r.pass(5 * time.Minute)
			if tasks := a.Tasks(); len(tasks) != 1 || tasks[0].State != engine.Parked || !strings.Contains(tasks[0].Err.Error(), "retention overtook") {
				r.t.Errorf("the task is not parked: %+v", tasks)
			}
			if got := a.metric("millrace_retention_lost_records_total", map[string]string{"topic": "in"}); got != want {
				r.t.Errorf("%v records counted as lost, want %v", got, want)
			}
		}
		lost(3)
		if err := r.DeleteRecords("in", 0, 6); err != nil {
			r.t.Fatal(err)
		}
		lost(5)
	}, "in", "out")
}

// A broker that has lost the end of its log, as after an unclean election, is not read
// on as if nothing had happened: the task stops and says what to do, or goes on where
// the log was cut off. The worker keeps its client either way.
func TestTruncatedLog(t *testing.T) {
	t.Parallel()
	for _, skip := range []bool{false, true} {
		t.Run(fmt.Sprint("skip ", skip), func(t *testing.T) {
			bubble(t, func(r *rig) {
				fs := vfs.NewMem()
				a := r.start(counting(), fs)
				records := func(n int) {
					for range n {
						r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
					}
				}
				records(5)
				r.await("out", 5)
				a.stop()

				// The new leader has the records up to offset 3 only, and others behind.
				if err := r.MoveTopicPartition("in", 0, 0); err != nil {
					r.t.Fatal(err)
				}
				r.ControlKey(kmsg.OffsetForLeaderEpoch.Int16(), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
					r.KeepControl()
					req := kreq.(*kmsg.OffsetForLeaderEpochRequest)
					if len(req.Topics) != 1 || req.Topics[0].Topic != "in" || req.Topics[0].Partitions[0].LeaderEpoch != 0 {
						return nil, nil, false
					}
					resp := req.ResponseKind().(*kmsg.OffsetForLeaderEpochResponse)
					topic := kmsg.NewOffsetForLeaderEpochResponseTopic()
					topic.Topic = "in"
					p := kmsg.NewOffsetForLeaderEpochResponseTopicPartition()
					p.LeaderEpoch, p.EndOffset = 0, 3
					topic.Partitions = append(topic.Partitions, p)
					resp.Topics = append(resp.Topics, topic)
					return resp, nil, true
				})
				records(1)
				var clients atomic.Int32
				r.ControlKey(kmsg.InitProducerID.Int16(), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
					r.KeepControl()
					if kreq.(*kmsg.InitProducerIDRequest).TransactionalID != nil {
						clients.Add(1)
					}
					return nil, nil, false
				})
				a = r.start(counting(), fs, func(c *engine.Config) { c.SkipLost = skip })
				r.pass(10 * time.Minute)
				tasks := a.Tasks()
				if skip {
					r.await("out", 8)
					if tasks[0].State != engine.Running {
						r.t.Errorf("the task does not run: %+v", tasks)
					}
				} else {
					r.await("out", 5)
					if tasks[0].State != engine.Parked || !strings.Contains(tasks[0].Err.Error(), "records 3 to 4") {
						r.t.Errorf("the task is not parked: %+v", tasks)
					}
				}
				if n := clients.Load(); n != 1 {
					r.t.Errorf("the worker opened %d clients", n)
				}
				a.stop()
				if skip { // what comes next is found where it was left
					records(1)
					a = r.start(counting(), fs)
					r.await("out", 9)
					a.stop()
				}
			}, "in", "out")
		})
	}
}
