package engine_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	reviewsv1 "github.com/millrace/millrace/examples/reviews/proto/reviews/v1"
	"github.com/millrace/millrace/internal/checker"
	"github.com/millrace/millrace/internal/engine"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
)

// The values that picky does something about.
const (
	tooLarge int64 = iota + 1_000_000
	fails
	panics
)

// picky echoes numbers as text and fails on some.
func picky() *topology.Builder {
	b := topology.New("app")
	in := topology.Stream(b, "in", serde.String(), serde.Int64())
	topology.TryMapValues(in, func(r processors.Record[string, int64]) (string, error) {
		switch r.Value {
		case tooLarge:
			return strings.Repeat("x", 2<<20), nil
		case fails:
			return "", errors.New("no such customer")
		case panics:
			panic("index out of range")
		}
		return fmt.Sprint(r.Value), nil
	}, topology.Named("pick")).WithValueSerde(serde.String()).To("out")
	return b
}

// validating writes a message that breaks its protovalidate rules for an empty
// value.
func validating() *topology.Builder {
	b := topology.New("app")
	in := topology.Stream(b, "in", serde.String(), serde.String())
	topology.MapValues(in, func(text string) *reviewsv1.Sentence {
		return &reviewsv1.Sentence{Id: "1", Review: "1", Text: text}
	}).WithValueSerde(serde.Proto[*reviewsv1.Sentence]()).To("out")
	return b
}

// Whatever a record does wrong, it becomes a dead letter with its raw key, value
// and headers, in the transaction of its offset, and the records around it pass.
func TestBadInput(t *testing.T) {
	t.Parallel()
	day := 24 * time.Hour
	for name, tc := range map[string]struct {
		topology func() *topology.Builder
		bad      kgo.Record
		n        int // how many of them in a row; 0 is 1
		class    processors.Class
		message  string
	}{
		"undecodable, 10,000 in a row": {picky, kgo.Record{Key: []byte("k"), Value: []byte("text")}, 10_000, processors.ClassDecode, "8"},
		"no value where one is needed": {picky, kgo.Record{Key: []byte("k"), Value: []byte{}}, 3, processors.ClassDecode, "8"},
		"output too large":             {picky, kgo.Record{Key: []byte("k"), Value: int64Value(tooLarge)}, 3, processors.ClassProduce, "max.message.bytes"},
		"user function fails":          {picky, kgo.Record{Key: []byte("k"), Value: int64Value(fails)}, 3, processors.ClassProcess, "no such customer"},
		"user function panics":         {picky, kgo.Record{Key: []byte("k"), Value: int64Value(panics)}, 3, processors.ClassProcess, "index out of range"},
		"negative timestamp":           {picky, kgo.Record{Key: []byte("k"), Value: int64Value(1), Timestamp: time.UnixMilli(-5)}, 3, processors.ClassDecode, "is negative"},
		"timestamp in the far future":  {picky, kgo.Record{Key: []byte("k"), Value: int64Value(1), Timestamp: time.Now().Add(100 * 365 * day)}, 3, processors.ClassProduce, "ahead of the wall clock"},
		"Protobuf rules violated":      {validating, kgo.Record{Key: []byte("k"), Value: []byte{}}, 3, processors.ClassProduce, "at least 1 characters"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, "in", "out")
				defer r.close()
				good := int64Value(7)
				var records []*kgo.Record
				records = append(records, &kgo.Record{Key: []byte("k"), Value: good})
				for range max(tc.n, 1) {
					bad := tc.bad
					bad.Headers = []kgo.RecordHeader{{Key: "trace", Value: []byte{0, 255}}, {Key: "none"}}
					records = append(records, &bad)
				}
				records = append(records, &kgo.Record{Key: []byte("k"), Value: good})
				r.produce("in", records...)
				a := r.start(tc.topology(), vfs.NewMem())
				defer a.stop()
				r.await("out", 2)
				dead := r.await("app.dlq", max(tc.n, 1))
				for i, d := range dead {
					checkDeadLetter(t, d, &tc.bad, int64(i)+1, tc.class, tc.message)
				}
				counted := a.metric("millrace_record_errors_total", map[string]string{"class": string(tc.class), "action": "dead-letter"})
				if err := mismatch("the number of errors", counted, float64(len(dead))); err != nil {
					t.Error(err)
				}
				if at := r.GroupInfo("app").Commits["in"][0].Offset; at != int64(len(records)) {
					t.Errorf("committed offset %d of %d", at, len(records))
				}
			})
		})
	}
}

func checkDeadLetter(t *testing.T, d checker.Record, bad *kgo.Record, offset int64, class processors.Class, message string) {
	t.Helper()
	h := d.Headers
	if d.Key != string(bad.Key) || !bytes.Equal(d.Value, bad.Value) || h["trace"] != "\x00\xff" {
		t.Errorf("dead letter is not the raw record: %+v", d)
	}
	if h["millrace.topic"] != "in" || h["millrace.partition"] != "0" || h["millrace.offset"] != fmt.Sprint(offset) ||
		h["millrace.class"] != string(class) || h["millrace.step"] == "" || !strings.Contains(h["millrace.message"], message) {
		t.Errorf("headers of dead letter %d: %v", offset, h)
	}
	if !bad.Timestamp.IsZero() && h["millrace.timestamp"] != fmt.Sprint(bad.Timestamp.UnixMilli()) {
		t.Errorf("timestamp header of dead letter %d: %v", offset, h["millrace.timestamp"])
	}
}

// Null keys and values pass through steps that do not need them, and are dropped
// and counted by those that do.
func TestNulls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "in", "out", "counts")
		defer r.close()
		b := topology.New("app")
		in := topology.Stream(b, "in", serde.String(), serde.String())
		in.To("out")
		in.GroupByKey().Count("n").ToStream().To("counts")
		r.produce("in",
			&kgo.Record{Value: []byte("no key")}, &kgo.Record{Key: []byte("no value")}, &kgo.Record{},
			&kgo.Record{Key: []byte(""), Value: []byte("")}, &kgo.Record{Key: []byte("k"), Value: []byte("v")})
		a := r.start(b, vfs.NewMem())
		defer a.stop()
		got := r.await("out", 5)
		var nulls []bool
		for _, rec := range got {
			nulls = append(nulls, rec.Null)
		}
		if want := []bool{false, true, true, false, false}; !slices.Equal(nulls, want) {
			t.Errorf("null values: %v, want %v", nulls, want)
		}
		if n := len(r.read("app.dlq")); n != 0 {
			t.Errorf("%d dead letters", n)
		}
		r.await("counts", 2)
		dropped := a.metric("millrace_dropped_records_total", map[string]string{"reason": "null-key"}) +
			a.metric("millrace_dropped_records_total", map[string]string{"reason": "null-value"})
		if dropped != 3 {
			t.Errorf("%v records were counted as dropped, want 3", dropped)
		}
	})
}

// The policy decides what becomes of a record, and is heard.
func TestPolicies(t *testing.T) {
	t.Parallel()
	start := func(t *testing.T, action processors.Action, values ...int64) (*rig, *app) {
		r := newRig(t, "in", "out")
		for _, v := range values {
			r.produce("in", &kgo.Record{Key: []byte("k"), Value: int64Value(v)})
		}
		return r, r.start(picky(), vfs.NewMem(), func(c *engine.Config) {
			c.Policy = func(*processors.Error) processors.Action { return action }
		})
	}
	t.Run("skip", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, a := start(t, processors.Skip, 1, fails, panics, 2)
			defer r.close()
			defer a.stop()
			r.await("out", 2)
			r.await("app.dlq", 0)
			if n := a.metric("millrace_record_errors_total", map[string]string{"action": "skip"}); n != 2 {
				t.Errorf("%v skipped records were counted, want 2", n)
			}
		})
	})
	t.Run("stop", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, a := start(t, processors.Stop, 1, fails, 2)
			defer r.close()
			defer a.stop()
			r.await("out", 1)
			r.await("app.dlq", 0)
			tasks := a.Tasks()
			if len(tasks) != 1 || tasks[0].State != engine.Parked || tasks[0].Err == nil || !strings.Contains(tasks[0].Err.Error(), "in/0 offset 1") {
				t.Errorf("the task does not say where it stopped: %+v", tasks)
			}
			if at := r.GroupInfo("app").Commits["in"][0].Offset; at != 1 {
				t.Errorf("committed offset %d, must stay before the record", at)
			}
		})
	})
	t.Run("retry", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, a := start(t, processors.Retry, 1, fails, 2)
			defer r.close()
			defer a.stop()
			r.await("out", 1)
			if n := a.metric("millrace_record_errors_total", map[string]string{"action": "retry"}); n < 3 {
				t.Errorf("%v retries", n)
			}
		})
	})
}

// A dead letter is written in the transaction of its record's offset: when that is
// aborted there is one all the same, of the replay.
func TestDeadLetterOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "in", "out")
		defer r.close()
		fault := r.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Err: kerr.UnknownServerError, Count: 3})
		for range 5 {
			r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("bad")})
		}
		a := r.start(picky(), vfs.NewMem())
		defer a.stop()
		r.await("app.dlq", 5)
		if fault.Hits() != 3 {
			t.Errorf("%d aborts", fault.Hits())
		}
	})
}

// A record that the broker alone refuses is found by replaying one at a time, and
// it alone becomes a dead letter.
func TestBrokerRefusesOneRecord(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "in", "out")
		defer r.close()
		poison := int64Value(5)
		r.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "out", Err: kerr.InvalidRecord, Count: -1, When: func(req kmsg.Request) bool {
			for _, topic := range req.(*kmsg.ProduceRequest).Topics {
				for _, p := range topic.Partitions {
					if bytes.Contains(p.Records, []byte("poison")) {
						return true
					}
				}
			}
			return false
		}})
		b := topology.New("app")
		in := topology.Stream(b, "in", serde.String(), serde.Int64())
		topology.MapValues(in, func(n int64) string {
			if n == 5 {
				return "poison"
			}
			return "fine"
		}).WithValueSerde(serde.String()).To("out")
		for n := range int64(10) {
			r.produce("in", &kgo.Record{Key: []byte("k"), Value: int64Value(n)})
		}
		a := r.start(b, vfs.NewMem())
		defer a.stop()
		r.await("out", 9)
		dead := r.await("app.dlq", 1)
		if !bytes.Equal(dead[0].Value, poison) || dead[0].Headers["millrace.class"] != string(processors.ClassProduce) {
			t.Errorf("the wrong record was dead-lettered: %+v", dead[0])
		}
	})
}

// Trouble that is nobody's record never becomes a dead letter: the pipeline waits.
func TestNobodysError(t *testing.T) {
	t.Parallel()
	for _, refusal := range []*kerr.Error{kerr.TopicAuthorizationFailed, kerr.CorruptMessage} {
		t.Run(refusal.Message, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, "in", "out")
				defer r.close()
				fault := r.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "out", Err: refusal, Count: -1})
				r.produce("in", &kgo.Record{Key: []byte("k"), Value: int64Value(1)})
				a := r.start(picky(), vfs.NewMem())
				defer a.stop()
				r.pass(time.Minute)
				if fault.Hits() == 0 || len(r.read("app.dlq"))+len(r.read("out")) != 0 {
					t.Errorf("%d refused writes, %d dead letters, %d outputs", fault.Hits(), len(r.read("app.dlq")), len(r.read("out")))
				}
				fault.Remove()
				r.await("out", 1)
			})
		})
	}
}
