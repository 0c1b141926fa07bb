package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A member is a worker's client with its ledger, as the engine builds it.
type member struct {
	b      *fakeBroker
	cl     *kgo.Client
	ledger *Ledger
	fence  Fence
	joined chan Fence // one per assignment
}

func (b *fakeBroker) join(info BrokerInfo, instance string, extra ...kgo.Opt) *member {
	b.t.Helper()
	m := &member{b: b, joined: make(chan Fence, 100)}
	opts := b.conf.WorkerOpts(Worker{
		Group: "app", TransactionalID: "app-" + instance, InstanceID: instance, Broker: info, Topics: []string{"in"},
		OnAssigned: func(_ context.Context, cl *kgo.Client, _ map[string][]int32) {
			m.joined <- FenceOf(cl)
		},
	})
	m.cl = b.client(append(opts, extra...)...)
	var err error
	if m.ledger, err = NewLedger(b.t.Context(), m.cl, info); err != nil {
		b.t.Fatal(err)
	}
	m.fence = <-m.joined
	return m
}

func (m *member) produce(values ...string) {
	for _, v := range values {
		m.ledger.Produce(m.b.t.Context(), &kgo.Record{Topic: "out", Key: []byte(v), Value: []byte(v)})
	}
}

func at(n int64) map[string]map[int32]Offset {
	return map[string]map[int32]Offset{"in": {0: {At: n, Epoch: -1}}}
}

// commit is ends without the error.
func (m *member) commit(want Outcome, offsets map[string]map[int32]Offset) {
	m.b.t.Helper()
	if err := m.ends(want, offsets); (err == nil) != (want == Committed) {
		m.b.t.Fatal(err)
	}
}

// ends commits and expects an outcome.
func (m *member) ends(want Outcome, offsets map[string]map[int32]Offset) error {
	m.b.t.Helper()
	out, err := m.ledger.Commit(m.b.t.Context(), m.fence, offsets)
	if out != want || (err == nil) != (want == Committed) {
		m.b.t.Fatalf("commit: %v, %v; want %v", out, err, want)
	}
	return err
}

func (m *member) close() { m.cl.CloseAllowingRebalance() }

// eachTxnVersion runs a test against a cluster whose transactions begin
// implicitly and against one where they do not.
func eachTxnVersion(t *testing.T, test func(t *testing.T, b *fakeBroker, info BrokerInfo)) {
	for name, level := range map[string]int16{"transaction.version 2": 2, "transaction.version 1": 1} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBroker(t, kfake.SeedTopics(1, "in", "out"))
				defer b.stop()
				if level < 2 {
					if _, err := kadm.NewClient(b.cl).UpdateFeatures(t.Context(), false, kadm.FeatureUpdate{Feature: "transaction.version", MaxVersionLevel: level, UpgradeType: 2}); err != nil {
						t.Fatal(err)
					}
				}
				info := b.info()
				mustEqual(t, "transaction.version", info.TransactionVersion, level)
				test(t, b, info)
			})
		})
	}
}

func TestLedgerCommitsOutputWithOffsets(t *testing.T) {
	eachTxnVersion(t, func(t *testing.T, b *fakeBroker, info BrokerInfo) {
		var versions []int16
		adds := 0
		b.Control(func(req kmsg.Request) (kmsg.Response, error, bool) {
			b.KeepControl()
			switch req := req.(type) {
			case *kmsg.TxnOffsetCommitRequest:
				versions = append(versions, req.Version)
			case *kmsg.AddOffsetsToTxnRequest:
				adds++
			}
			return nil, nil, false
		})
		m := b.join(info, "i1")
		defer m.close()
		for i := range int64(3) {
			m.produce("a", "b")
			m.commit(Committed, at(10*(i+1)))
		}
		mustEqual(t, "visible records", len(b.committed("out", 0)), 6)
		off, _ := b.groupOffset("app", "in", 0)
		mustEqual(t, "offset", off, 30)

		wantAdds, wantVersion := 0, int16(6)
		if info.TransactionVersion < 2 {
			wantAdds, wantVersion = 3, 4 // added explicitly, and the request capped
		}
		mustEqual(t, "AddOffsetsToTxn requests", adds, wantAdds)
		for _, v := range versions {
			mustEqual(t, "TxnOffsetCommit version", v, wantVersion)
		}
	})
}

func TestLedgerAbort(t *testing.T) {
	eachTxnVersion(t, func(t *testing.T, b *fakeBroker, info BrokerInfo) {
		m := b.join(info, "i1")
		defer m.close()
		m.produce("dropped")
		if out, err := m.ledger.Abort(); out != Aborted || err != nil {
			t.Fatal(out, err)
		}
		if out, err := m.ledger.Abort(); out != Aborted || err != nil {
			t.Fatal("without a transaction:", out, err)
		}
		m.produce("kept")
		m.commit(Committed, at(1))
		mustEqualSlices(t, "visible", b.committed("out", 0), []string{"kept"})
	})
}

// Nothing produced: franz-go would send no EndTxn, so the offsets would be lost.
func TestLedgerPlainCommitUnderTheSameFence(t *testing.T) {
	eachTxnVersion(t, func(t *testing.T, b *fakeBroker, info BrokerInfo) {
		m := b.join(info, "i1")
		defer m.close()
		m.commit(Committed, nil)
		m.commit(Committed, at(7))
		off, _ := b.groupOffset("app", "in", 0)
		mustEqual(t, "offset", off, 7)

		stale := m.fence
		stale.Generation--
		if out, err := m.ledger.Commit(t.Context(), stale, at(8)); out != Fenced || !errors.Is(err, kerr.IllegalGeneration) {
			t.Fatal(out, err)
		}
		if out, err := m.ledger.Commit(t.Context(), Fence{}, at(8)); out != Aborted || !errors.Is(err, ErrNoFence) {
			t.Fatal(out, err)
		}
		off, _ = b.groupOffset("app", "in", 0)
		mustEqual(t, "offset after refused commits", off, 7)
	})
}

// The trap of reliability.md §2: a member is evicted, rejoins silently, and reads
// a fence at commit that is valid again. Ours is the one of the last assignment.
func TestLedgerLateGenerationIsFenced(t *testing.T) {
	eachTxnVersion(t, func(t *testing.T, b *fakeBroker, info BrokerInfo) {
		m := b.join(info, "i1")
		defer m.close()
		before := m.fence
		m.produce("zombie")
		m.cl.ForceRebalance() // a new member makes the generation move on
		other := b.client(append(b.conf.base(), kgo.ConsumerGroup("app"), kgo.ConsumeTopics("in"), kgo.InstanceID("i2"), kgo.DisableAutoCommit())...)
		defer other.CloseAllowingRebalance()
		late := before
		for late.Generation == before.Generation {
			late = <-m.joined
		}
		if err := m.ends(Fenced, at(5)); !errors.Is(err, kerr.IllegalGeneration) {
			t.Fatal(err)
		}
		mustEqual(t, "visible", len(b.committed("out", 0)), 0)
		if _, ok := b.groupOffset("app", "in", 0); ok {
			t.Fatal("an offset was committed")
		}
		// The client goes on with the new assignment.
		m.fence = late
		m.produce("good")
		m.commit(Committed, at(5))
		mustEqualSlices(t, "visible", b.committed("out", 0), []string{"good"})
	})
}

// A zombie whose cycle moved no offset (loop records or ticks only) is fenced by
// the unchanged offsets; without any the ledger refuses.
func TestLedgerUnchangedOffsetsFence(t *testing.T) {
	eachTxnVersion(t, func(t *testing.T, b *fakeBroker, info BrokerInfo) {
		m := b.join(info, "i1")
		defer m.close()
		m.produce("first")
		m.commit(Committed, at(5))

		m.produce("zombie")
		stale := m.fence
		stale.MemberID = "gone"
		if out, err := m.ledger.Commit(t.Context(), stale, at(5)); out != Fenced || !IsFencedByOther(err) && !errors.Is(err, kerr.UnknownMemberID) {
			t.Fatal(out, err)
		}
		m.produce("unfenced")
		if err := m.ends(Aborted, nil); !errors.Is(err, ErrNoOffsets) {
			t.Fatal(err)
		}
		mustEqualSlices(t, "visible", b.committed("out", 0), []string{"first"})
	})
}

// A broker that applies the commit and then answers an error, or whose answer is
// lost, must not be taken for an abort: the records are visible.
func TestLedgerAppliedThenErrorIsUnknown(t *testing.T) {
	// The answer: correlation id, tags, throttle time, error code.
	answer := func(code *kerr.Error) func(int16, []byte) bool {
		return func(_ int16, body []byte) bool {
			binary.BigEndian.PutUint16(body[9:], uint16(code.Code))
			return false
		}
	}
	for name, reply := range map[string]func(int16, []byte) bool{
		"unknown server error": answer(kerr.UnknownServerError),
		"timed out":            answer(kerr.RequestTimedOut),
		"fenced":               answer(kerr.ProducerFenced),
		"lost":                 func(int16, []byte) bool { return true },
	} {
		t.Run(name, func(t *testing.T) {
			eachTxnVersion(t, func(t *testing.T, b *fakeBroker, info BrokerInfo) {
				tm := &tamper{key: kmsg.EndTxn, reply: reply}
				m := b.join(info, "i1", tm.dialer(b), kgo.RequestRetries(0))
				defer m.close()
				m.produce("applied")
				m.commit(Unknown, at(1))
				mustEqual(t, "answers falsified", tm.hits.Load(), 1)
				// Nothing is possible with this client any more.
				m.produce("late")
				if err := m.ends(Unknown, at(2)); !errors.Is(err, ErrLedgerDead) {
					t.Fatal(err)
				}
				if out, err := m.ledger.Abort(); out != Unknown || !errors.Is(err, ErrLedgerDead) {
					t.Fatal(out, err)
				}
				mustEqualSlices(t, "visible", b.committed("out", 0), []string{"applied"})

				// The same ids in a new client read the truth from the broker.
				next := b.join(info, "i1")
				defer next.close()
				offs, err := FetchOffsets(t.Context(), next.cl, "app", map[string][]int32{"in": {0}})
				if err != nil || offs["in"][0].At != 1 {
					t.Fatal(offs, err)
				}
			})
		})
	}
}

// Only what the broker has against a record itself condemns it. Everything that
// passes by itself, or that somebody has to mend, does not.
func TestRecordErrors(t *testing.T) {
	guilty := map[*kerr.Error]bool{kerr.MessageTooLarge: true, kerr.RecordListTooLarge: true, kerr.InvalidRecord: true, kerr.InvalidTimestamp: true}
	for code := int16(-1); code < 140; code++ {
		err := kerr.TypedErrorForCode(code)
		if err == nil {
			continue
		}
		if got := IsRecordError(fmt.Errorf("produce: %w", err)); got != guilty[err] {
			t.Errorf("%s condemns a record: %v", err.Message, got)
		}
		if guilty[err] && err.Retriable {
			t.Errorf("%s is retriable", err.Message)
		}
	}
}

// A record the broker refuses turns the whole commit into an abort, although
// franz-go would commit the rest (measured; Java refuses).
func TestLedgerNeverCommitsAfterFailedProduce(t *testing.T) {
	eachTxnVersion(t, func(t *testing.T, b *fakeBroker, info BrokerInfo) {
		m := b.join(info, "i1")
		defer m.close()
		fault := b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "out", Err: kerr.MessageTooLarge})
		m.produce("bad")
		if err := m.cl.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		mustEqual(t, "faults", fault.Hits(), 1)
		m.produce("good")
		err := m.ends(Aborted, at(1))
		var pe *ProduceError
		if !errors.As(err, &pe) || len(pe.Failures) != 1 || string(pe.Failures[0].Record.Value) != "bad" || !IsRecordError(err) {
			t.Fatalf("%v", err)
		}
		mustEqual(t, "visible", len(b.committed("out", 0)), 0)
		if _, ok := b.groupOffset("app", "in", 0); ok {
			t.Fatal("the offset moved")
		}
		// All records failed: franz-go's EndTransaction(commit) would abort and
		// answer nil.
		b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "out", Err: kerr.MessageTooLarge})
		m.produce("bad")
		m.commit(Aborted, at(1))
		m.produce("replayed")
		m.commit(Committed, at(1))
		mustEqualSlices(t, "visible", b.committed("out", 0), []string{"replayed"})
	})
}

func TestLedgerRetriesAMovingCoordinator(t *testing.T) {
	for name, code := range map[string]*kerr.Error{
		"loading": kerr.CoordinatorLoadInProgress, "moved": kerr.NotCoordinator, "concurrent": kerr.ConcurrentTransactions, "timed out": kerr.RequestTimedOut,
	} {
		t.Run(name, func(t *testing.T) {
			eachTxnVersion(t, func(t *testing.T, b *fakeBroker, info BrokerInfo) {
				m := b.join(info, "i1")
				defer m.close()
				f := b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Group: "app", Err: code, Count: 3})
				m.produce("a")
				m.commit(Committed, at(1))
				if f.Hits() < 3 {
					t.Fatalf("%d faults", f.Hits())
				}
				mustEqualSlices(t, "visible", b.committed("out", 0), []string{"a"})

				// For ever is too long: known not committed, and the member goes on.
				f = b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Group: "app", Err: code, Count: -1})
				start := time.Now()
				m.produce("b")
				if err := m.ends(Aborted, at(2)); !errors.Is(err, code) {
					t.Fatal(err)
				}
				if d := time.Since(start); d > TransactionTimeout {
					t.Fatalf("gave up after %v, longer than the transaction", d)
				}
				f.Remove()
				m.produce("c")
				m.commit(Committed, at(2))
				mustEqualSlices(t, "visible", b.committed("out", 0), []string{"a", "c"})
			})
		})
	}
}

// Everything else the broker may say to the offset commit ends in a known abort.
func TestLedgerOffsetCommitErrors(t *testing.T) {
	for _, tc := range []struct {
		code *kerr.Error
		want Outcome
	}{
		{kerr.UnknownMemberID, Fenced},
		{kerr.IllegalGeneration, Fenced},
		{kerr.FencedInstanceID, Fenced},
		{kerr.RebalanceInProgress, Fenced},
		{kerr.GroupAuthorizationFailed, Aborted},
		{kerr.TransactionAbortable, Aborted},
		{kerr.UnknownServerError, Aborted},
	} {
		t.Run(tc.code.Message, func(t *testing.T) {
			eachTxnVersion(t, func(t *testing.T, b *fakeBroker, info BrokerInfo) {
				m := b.join(info, "i1")
				defer m.close()
				b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Group: "app", Err: tc.code})
				m.produce("a")
				if err := m.ends(tc.want, at(1)); !errors.Is(err, tc.code) {
					t.Fatal(err)
				}
				m.produce("b")
				m.commit(Committed, at(1))
				mustEqualSlices(t, "visible", b.committed("out", 0), []string{"b"})
			})
		})
	}
}

// Two clients with one transactional id: the older is told, and cannot commit.
func TestLedgerFencedProducer(t *testing.T) {
	eachTxnVersion(t, func(t *testing.T, b *fakeBroker, info BrokerInfo) {
		m := b.join(info, "i1")
		defer m.close()
		m.produce("old")
		if err := m.cl.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		copied := b.client(append(b.conf.base(), kgo.TransactionalID("app-i1"))...)
		defer copied.Close()
		if _, _, err := copied.ProducerID(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := m.ends(Unknown, at(1)); !IsFencedByOther(err) {
			t.Fatal(err)
		}
		mustEqual(t, "visible", len(b.committed("out", 0)), 0)
	})
}

// A new client with the same id ends its predecessor's dangling transaction, so
// that offsets can be read at once instead of after the timeout.
func TestNewLedgerEndsDanglingTransaction(t *testing.T) {
	eachTxnVersion(t, func(t *testing.T, b *fakeBroker, info BrokerInfo) {
		dead := b.join(info, "i1")
		defer dead.close()
		dead.produce("dangling")
		if err := dead.cl.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := dead.ledger.commitInTxn(t.Context(), dead.fence, at(3)); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		next := b.join(info, "i1")
		defer next.close()
		offs, err := FetchOffsets(t.Context(), next.cl, "app", map[string][]int32{"in": {0}})
		if err != nil || len(offs) != 0 {
			t.Fatal(offs, err)
		}
		if d := time.Since(start); d > 10*time.Second {
			t.Fatalf("took %v", d)
		}
	})
}

// A broker that is busy with the transaction before refuses the first batch for a
// partition for a moment. The transaction waits about as long, not for seconds.
func TestLedgerTriesAgainSoon(t *testing.T) {
	eachTxnVersion(t, func(t *testing.T, b *fakeBroker, info BrokerInfo) {
		m := b.join(info, "i1")
		defer m.close()
		m.produce("a")
		m.commit(Committed, at(1))
		refused := 0
		b.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
			refused++
			preq := req.(*kmsg.ProduceRequest)
			resp := preq.ResponseKind().(*kmsg.ProduceResponse)
			for _, topic := range preq.Topics {
				one := kmsg.NewProduceResponseTopic()
				one.Topic, one.TopicID = topic.Topic, topic.TopicID
				for _, p := range topic.Partitions {
					part := kmsg.NewProduceResponseTopicPartition()
					part.Partition, part.ErrorCode, part.BaseOffset = p.Partition, kerr.NotEnoughReplicas.Code, -1
					one.Partitions = append(one.Partitions, part)
				}
				resp.Topics = append(resp.Topics, one)
			}
			return resp, nil, true
		})
		start := time.Now()
		m.produce("b")
		m.commit(Committed, at(2))
		mustEqual(t, "refused requests", refused, 1)
		if d := time.Since(start); d > time.Second {
			t.Errorf("the transaction took %v", d)
		}
	})
}

// From version 6 on the broker identifies topics by id only.
func TestLedgerSetsTopicIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker(t, kfake.SeedTopics(1, "in", "out"))
		defer b.stop()
		var versions []int16
		b.ControlKey(int16(kmsg.TxnOffsetCommit), func(req kmsg.Request) (kmsg.Response, error, bool) {
			b.KeepControl()
			versions = append(versions, req.GetVersion())
			return nil, nil, false
		})
		m := b.join(b.info(), "i1")
		defer m.close()
		m.produce("a")
		m.commit(Committed, at(4))
		if !slices.Equal(versions, []int16{6}) {
			t.Fatalf("versions %v", versions)
		}
		off, _ := b.groupOffset("app", "in", 0)
		mustEqual(t, "offset", off, 4)

		// A topic that was deleted and created again is refused by its old id.
		if err := b.DeleteTopic("in"); err != nil {
			t.Fatal(err)
		}
		if err := b.CreateTopic("in", 1, nil); err != nil {
			t.Fatal(err)
		}
		m.produce("b")
		err := m.ends(Aborted, at(5))
		if !errors.Is(err, kerr.UnknownTopicID) || !strings.Contains(err.Error(), "in/0") {
			t.Fatal(err)
		}
	})
}

func TestLedgerNeedsWorkerOpts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker(t, kfake.SeedTopics(1, "in", "out"))
		defer b.stop()
		if _, err := NewLedger(t.Context(), b.cl, b.info()); err == nil {
			t.Fatal("a plain client was accepted")
		}
		cl := b.client(b.conf.WorkerOpts(Worker{Group: "g", TransactionalID: "t", Topics: []string{"in"}, Broker: b.info()})...)
		defer cl.CloseAllowingRebalance()
		if _, err := NewLedger(t.Context(), cl, BrokerInfo{TransactionVersion: 1}); err == nil {
			t.Fatal("a client that sends TxnOffsetCommit v5 was accepted for transaction.version 1")
		}
	})
}

func TestLedgerCanceledContextAborts(t *testing.T) {
	eachTxnVersion(t, func(t *testing.T, b *fakeBroker, info BrokerInfo) {
		m := b.join(info, "i1")
		defer m.close()
		m.produce("a")
		if err := m.cl.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if out, err := m.ledger.Commit(ctx, m.fence, at(1)); out != Aborted || !errors.Is(err, context.Canceled) {
			t.Fatal(out, err)
		}
		m.produce("b")
		m.commit(Committed, at(1))
		mustEqualSlices(t, "visible", b.committed("out", 0), []string{"b"})
	})
}
