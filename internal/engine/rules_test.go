package engine_test

// Which test fails without which rule of exactly-once.md. "sim" is
// internal/sim.TestSchedules, "planted" is TestPlantedBugs: the simulation shown to
// find the rule's absence.
//
//	§1.1  read_committed, one client each      kafka.TestLedger*, kafka reader tests, sim
//	§1.2  identity, copied directory            TestCopiedDirectory, state dir tests
//	§1.3  ProducerID first                      kafka.TestNewLedgerEndsDanglingTransaction, sim (kill)
//	§1.4  timeouts, leave, KeepMembership       TestTimeouts, TestLeave, TestEndIsBounded, TestGiverDies
//	§1.5  broker versions                       kafka.TestLedger* on transaction.version 1 and 2
//	§2.1  fence of the last assignment          TestPlantedByHand, kafka.TestLedgerLateGenerationIsFenced
//	§2.2  all offsets, unchanged too            TestPlantedByHand, planted, kafka.TestLedgerUnchangedOffsetsFence
//	§2.3  TopicID, failed produce, plain commit TestPlantedByHand, kafka.TestLedgerSetsTopicIDs, ...PlainCommit...
//	§2.4  unknown outcomes                      kafka.TestLedgerAppliedThenErrorIsUnknown, sim (applied errors)
//	§2.5  new member id, older claims           TestNewMemberReopens, kafka balancer tests
//	§2.6  rewind all, stuck callbacks           planted, TestStuckCallback, TestPolicies
//	§2.7  sizes and times before Produce        TestBadInput, TestBrokerRefusesOneRecord, TestNobodysError
//	§2.8  dead letters                          TestDeadLetterOnce, TestPunctuationDeadLetter, TestDeadLetterTooLarge
//	§2.9  one sub-topology per topic            topology tests
//	§2.10 purge up to the lowest commit         TestPurge, sim
//	§3.1  overlay, cache, abort                 planted, state.TestPartition*
//	§3.2  flush, crash clones                   sim.TestCrashClones, sim (kill), TestFullDisk
//	§3.3  checkpoint row                        state checkpoint tests, TestUnusableCheckpoint, sim
//	§3.4  no start over                         TestRefuseStartOver
//	§3.5  restore to the high watermark         TestPlantedByHand, planted
//	§3.6  failed batch after the commit         TestFullDisk
//	§3.7  stream time, timers, entries are rows sim (windows after kill)
//	§3.8  changelog configs                     kafka topic tests
//	§3.9  read_committed views                  kafka view tests
//	§4.1  entry ids                             processors.TestAsyncOrdinals, TestAsyncStrict
//	§4.2  resolved once                         processors.TestAsyncResolve, TestAsyncRowTooLarge
//	§4.3  dispatch after the commit             planted, processors.TestAsyncDispatchesAfterCommit
//	§4.4  outcomes are loop records             processors.TestAsyncDropsStaleOutcomes, TestCallAppends
//	§4.5  the loop is never paused              planted (not rewound), processors.TestAsyncCapacity
//	§4.6  the running set                       TestCalls, processors.TestAsyncAdoptsRunningCalls
//	§4.7  hand-over                             TestCallHandOver, processors.TestAsyncReleased, TestAsyncInheritedEntriesWait
//	§4.8  paid twice, interrupted               TestCalls, TestCallsCountAbandoned
//	§4.9  attempt timeout, deadline             processors.TestAttempts, TestDeadline

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace/millrace/internal/engine"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
)

// bubble runs a test in a synctest bubble with a broker.
func bubble(t *testing.T, test func(r *rig), topics ...string) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, topics...)
		defer r.close()
		test(r)
	})
}

// §1.2: two processes with one state directory fence each other; one of them stops
// and says why.
func TestCopiedDirectory(t *testing.T) {
	bubble(t, func(r *rig) {
		fs := vfs.NewCrashableMem()
		a := r.start(counting(), fs)
		r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
		r.await("out", 1)
		a.stop()
		copied := fs.CrashClone(vfs.CrashCloneCfg{})
		a, b := r.start(counting(), fs), r.start(counting(), copied)
		defer func() { a.cancel(); b.cancel() }()
		var err error
		for n := 0; err == nil && n < 300; n++ {
			r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
			select {
			case err = <-a.done:
				b.cancel()
				err = errors.Join(err, <-b.done)
			case err = <-b.done:
				a.cancel()
				err = errors.Join(err, <-a.done)
			case <-time.After(time.Second):
			}
		}
		if err == nil || !strings.Contains(err.Error(), "another process uses a copy of this state directory") {
			r.t.Errorf("it ended with: %v", err)
		}
		// And nothing was counted twice or left out.
		for i, rec := range r.read("out") {
			if err := mismatch("count", rec.Value, int64Value(int64(i)+1)); err != nil {
				r.t.Fatal(err)
			}
		}
	}, "in", "out")
}

// §1.4: a member that is slow to revoke is gone before its transaction is, and a
// transaction before the member.
func TestTimeouts(t *testing.T) {
	t.Parallel()
	if kafka.RebalanceTimeout >= kafka.TransactionTimeout || kafka.TransactionTimeout >= kafka.SessionTimeout {
		t.Errorf("rebalance %v, transaction %v, session %v: each must be below the next", kafka.RebalanceTimeout, kafka.TransactionTimeout, kafka.SessionTimeout)
	}
}

// §1.4: an instance that stops leaves its groups, which a static member's client
// does not by itself; with KeepMembership it stays.
func TestLeave(t *testing.T) {
	for name, keep := range map[string]bool{"leave": false, "KeepMembership": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(r *rig) {
				a := r.start(echo(), vfs.NewMem(), func(c *engine.Config) { c.KeepMembership = keep })
				a.running(1)
				a.stop()
				if members := len(r.GroupInfo("app").Members); (members == 1) != keep {
					r.t.Errorf("%d members after the end", members)
				}
			}, "in", "out")
		})
	}
}

// §2.6: a callback that does not return is reported by name; the other groups go
// on, and so does the task when it has returned.
func TestStuckCallback(t *testing.T) {
	bubble(t, func(r *rig) {
		release := make(chan struct{})
		b := topology.New("app")
		in := topology.Stream(b, "in", serde.String(), serde.String())
		topology.MapValues(in, func(v string) string { <-release; return v }).WithValueSerde(serde.String()).To("out")
		r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
		a := r.start(b, vfs.NewMem())
		defer a.stop()
		r.pass(15 * time.Second)
		tasks := a.Tasks()
		if len(tasks) != 1 || tasks[0].State != engine.Parked || tasks[0].Err == nil || !strings.Contains(tasks[0].Err.Error(), "has not returned") {
			r.t.Errorf("the task is not reported: %+v", tasks)
		}
		close(release)
		r.await("out", 1)
	}, "in", "out")
}

// shouter forwards a value that no topic takes, at a punctuation.
type shouter struct {
	times *atomic.Int32
}

func (p *shouter) Init(ctx *processors.Context[string, string]) error {
	ctx.Schedule(processors.WallClock, time.Second, func(at int64) error {
		if p.times.Add(1) > 1 {
			return nil
		}
		return ctx.Forward(processors.Record[string, string]{Key: "k", Value: strings.Repeat("x", 1_100_000), Timestamp: at})
	})
	return nil
}
func (p *shouter) Process(processors.Record[string, string]) error { return nil }
func (p *shouter) Close() error                                    { return nil }

// §2.8: an output without a source record is itself dead-lettered.
func TestPunctuationDeadLetter(t *testing.T) {
	bubble(t, func(r *rig) {
		times := new(atomic.Int32)
		b := topology.New("app")
		topology.Process(topology.Stream(b, "in", serde.String(), serde.String()), "shout", func() processors.Processor[string, string, string, string] {
			return &shouter{times: times}
		}).To("out")
		a := r.start(b, vfs.NewMem())
		defer a.stop()
		dead := r.await("app.dlq", 1)
		if h := dead[0].Headers; len(dead[0].Value) != 1_100_000 || h["millrace.topic"] != "out" || h["millrace.class"] != "produce" {
			r.t.Errorf("dead letter of %d bytes with headers %v", len(dead[0].Value), h)
		}
		if len(r.read("out")) != 0 {
			r.t.Error("the output was written too")
		}
	}, "in", "out")
}

// §2.8: a dead letter fits whatever its source takes; where it cannot be written
// the task stops and its offset stays.
func TestDeadLetterTooLarge(t *testing.T) {
	for name, late := range map[string]bool{"fits": false, "source raised later": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(r *rig) {
				raise := func() {
					if err := r.CreateTopic("big", 1, map[string]string{"max.message.bytes": "4000000"}); err != nil {
						r.t.Fatal(err)
					}
				}
				if !late {
					raise()
				} else if err := r.CreateTopic("big", 1, nil); err != nil {
					r.t.Fatal(err)
				}
				b := topology.New("app")
				topology.Stream(b, "big", serde.String(), serde.Int64()).To("out")
				a := r.start(b, vfs.NewMem())
				defer a.stop()
				a.running(1)
				if late {
					raised := "4000000"
					req := kmsg.NewPtrIncrementalAlterConfigsRequest()
					res := kmsg.NewIncrementalAlterConfigsRequestResource()
					res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, "big"
					res.Configs = append(res.Configs, kmsg.IncrementalAlterConfigsRequestResourceConfig{Name: "max.message.bytes", Value: &raised})
					req.Resources = append(req.Resources, res)
					if _, err := req.RequestWith(r.t.Context(), r.cl); err != nil {
						r.t.Fatal(err)
					}
				}
				r.produce("big", &kgo.Record{Key: []byte("k"), Value: make([]byte, 3_000_000)}, &kgo.Record{Key: []byte("k"), Value: int64Value(1)})
				if !late {
					r.await("app.dlq", 1)
					r.await("out", 1)
					return
				}
				r.pass(10 * time.Second)
				if len(r.read("app.dlq"))+len(r.read("out")) != 0 {
					r.t.Error("something was written")
				}
				if tasks := a.Tasks(); tasks[0].State != engine.Parked || !strings.Contains(tasks[0].Err.Error(), "max.message.bytes") {
					r.t.Errorf("the task does not say what to do: %+v", tasks)
				}
				if c, ok := r.GroupInfo("app").Commits["big"]; ok && c[0].Offset != 0 {
					r.t.Errorf("committed offset %d, must stay before the record", c[0].Offset)
				}
			}, "out")
		})
	}
}

// §2.10: a repartition topic is purged up to what its reader has committed, and no
// further.
func TestPurge(t *testing.T) {
	bubble(t, func(r *rig) {
		b := topology.New("app")
		topology.Stream(b, "in", serde.String(), serde.String()).Repartition("again").To("out")
		for range 20 {
			r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
		}
		a := r.start(b, vfs.NewMem())
		r.await("out", 20)
		r.pass(2 * time.Minute)
		committed := r.GroupInfo("app").Commits["app.again-repartition"][0].Offset
		if start := r.PartitionInfo("app.again-repartition", 0).LogStartOffset; start == 0 || start > committed {
			r.t.Errorf("purged up to %d, committed is %d", start, committed)
		}
		a.stop()
		a = r.start(b, vfs.NewMem()) // and a later life goes on behind it
		defer a.stop()
		r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
		r.await("out", 21)
	}, "in", "out")
}

// §3.4: state that has read a topic refuses to start over when the group has lost
// its offset.
func TestRefuseStartOver(t *testing.T) {
	for name, keep := range map[string]bool{"state on disk": true, "state in the changelog": false} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(r *rig) {
				fs := vfs.NewMem()
				a := r.start(counting(), fs)
				r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
				r.await("out", 1)
				a.stop()
				if _, err := r.adm.DeleteGroups(r.t.Context(), "app"); err != nil {
					r.t.Fatal(err)
				}
				if !keep {
					fs = vfs.NewMem()
				}
				a = r.start(counting(), fs)
				defer a.stop()
				r.pass(10 * time.Second)
				r.await("out", 1)
				if tasks := a.Tasks(); len(tasks) != 1 || tasks[0].State != engine.Parked || !strings.Contains(tasks[0].Err.Error(), "no offset") {
					r.t.Errorf("it does not say why: %+v", tasks)
				}
			}, "in", "out")
		})
	}
}

// §1.4: an orderly end does not wait for what may never come, wherever the cycle
// stands when the brokers do not answer any more.
func TestEndIsBounded(t *testing.T) {
	const bound = 20 * time.Second
	for _, silent := range []bool{false, true} {
		t.Run(map[bool]string{false: "cut off", true: "silence"}[silent], func(t *testing.T) {
			bubble(t, func(r *rig) {
				for ms := range 12 {
					net := &cuttable{dial: r.net.DialContext, silent: silent}
					a := r.start(counting(), vfs.NewMem(), func(c *engine.Config) {
						c.Kafka.Dialer = net.DialContext
						c.CommitInterval = 10 * time.Millisecond
					})
					a.running(1)
					r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
					r.pass(time.Duration(ms) * time.Millisecond)
					net.cut()
					began := time.Now()
					a.stop()
					if took := time.Since(began); took > bound {
						t.Errorf("cut %d ms after a record: the end took %v", ms, took)
					}
					r.pass(kafka.SessionTimeout) // until the group has noticed
				}
			}, "in", "out")
		})
	}
}
