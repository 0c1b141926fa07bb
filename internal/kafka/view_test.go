package kafka

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lovoo/goka"
	"github.com/lovoo/goka/codec"
	"github.com/lovoo/goka/storage"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A testView is a goka.View of topic "t" that runs.
type testView struct {
	*goka.View
	src    *ViewSource
	reader *Reader
	cancel context.CancelFunc
	done   chan error
}

func (b *fakeBroker) view(stores map[int32]storage.Storage) *testView {
	b.t.Helper()
	reader := NewReader(b.t.Context(), b.cl, ReaderConfig{})
	src, err := NewViewSource(b.t.Context(), b.cl, reader, "t", nil)
	if err != nil {
		b.t.Fatal(err)
	}
	for p := range src.target {
		if stores[p] == nil {
			stores[p] = storage.NewMemory()
		}
	}
	v, err := goka.NewView(nil, "t", new(codec.String), src.Options(func(_ string, p int32) (storage.Storage, error) { return stores[p], nil }, nil)...)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.t.Context())
	tv := &testView{View: v, src: src, reader: reader, cancel: cancel, done: make(chan error, 1)}
	go func() { tv.done <- v.Run(ctx) }()
	return tv
}

func (v *testView) stop(t *testing.T) {
	t.Helper()
	v.cancel()
	if err := <-v.done; err != nil {
		t.Error(err)
	}
	v.reader.Close()
}

func (v *testView) caughtUp(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := v.src.CaughtUp(ctx); err != nil {
		t.Fatal(err)
	}
}

func (v *testView) want(t *testing.T, key, value string) {
	t.Helper()
	got, err := v.Get(key)
	if s, _ := got.(string); err != nil || s != value {
		t.Fatalf("%s: %v, %v; want %q", key, got, err, value)
	}
}

// keyed writes key=value pairs in a transaction, where the key's hash says.
func (b *fakeBroker) keyed(id string, end kgo.TransactionEndTry, pairs ...string) {
	b.t.Helper()
	cl := b.client(append(b.conf.base(), kgo.TransactionalID(id))...)
	defer cl.Close()
	if err := cl.BeginTransaction(); err != nil {
		b.t.Fatal(err)
	}
	for _, kv := range pairs {
		k, v, set := strings.Cut(kv, "=")
		r := &kgo.Record{Topic: "t", Partition: -1, Key: []byte(k)}
		if set {
			r.Value = []byte(v)
		}
		if err := cl.ProduceSync(b.t.Context(), r).FirstErr(); err != nil {
			b.t.Fatal(err)
		}
	}
	if err := cl.EndTransaction(b.t.Context(), end); err != nil {
		b.t.Fatal(err)
	}
}

// goka's own recovery hangs behind each of these endings.
func TestViewRecoversBehindMarkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker(t, kfake.SeedTopics(3, "t"))
		defer b.stop()
		b.keyed("x", kgo.TryCommit, "a=1", "b=2", "c=3", "d=4", "gone=5")
		b.keyed("x", kgo.TryCommit, "gone", "a=one")
		b.keyed("x", kgo.TryAbort, "b=never", "e=never")
		stores := make(map[int32]storage.Storage)
		v := b.view(stores)
		v.caughtUp(t)
		<-v.WaitRunning()
		for k, want := range map[string]string{"a": "one", "b": "2", "c": "3", "d": "4", "e": "", "gone": ""} {
			v.want(t, k, want)
		}
		// It follows, markers included.
		b.keyed("x", kgo.TryCommit, "a=uno", "f=6")
		for start := time.Now(); ; <-time.After(10 * time.Millisecond) { // fake time
			if got, _ := v.Get("a"); got == "uno" {
				break
			}
			if time.Since(start) > time.Minute {
				t.Fatal("the view does not follow")
			}
		}
		synctest.Wait()
		if lag, known := v.src.Lag(); lag != 0 || !known {
			t.Fatalf("lag %d %v", lag, known)
		}
		v.stop(t)

		// The stored offset is behind the marker: nothing is read again.
		b.keyed("x", kgo.TryCommit, "b=two")
		again := b.view(stores)
		again.caughtUp(t)
		again.want(t, "b", "two")
		again.want(t, "a", "uno")
		again.stop(t)
	})
}

// Half a table is not a table: CaughtUp waits for an open transaction that began
// before the end it was given.
func TestViewCaughtUpIsHonest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker(t, kfake.SeedTopics(1, "t"))
		defer b.stop()
		b.keyed("x", kgo.TryCommit, "a=1")
		open := b.client(append(b.conf.base(), kgo.TransactionalID("y"))...)
		defer open.Close()
		if err := open.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := open.ProduceSync(t.Context(), &kgo.Record{Topic: "t", Key: []byte("b"), Value: []byte("2")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		v := b.view(make(map[int32]storage.Storage))
		if _, known := v.src.Lag(); known {
			t.Fatal("a lag before anything was read")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := v.src.CaughtUp(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 of 1 partitions") {
			t.Fatal(err)
		}
		if err := open.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
			t.Fatal(err)
		}
		v.caughtUp(t)
		v.want(t, "b", "2")
		v.stop(t)
	})
}

func TestViewOfEmptyAndMissingTopics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker(t, kfake.SeedTopics(2, "t"))
		defer b.stop()
		v := b.view(make(map[int32]storage.Storage))
		v.caughtUp(t)
		if err := b.DeleteTopic("t"); err != nil {
			t.Fatal(err)
		}
		for v.src.CaughtUp(t.Context()) == nil {
			<-time.After(time.Second) // fake time
		}
		if err := v.src.CaughtUp(t.Context()); !errors.Is(err, ErrTopicGone) {
			t.Fatal(err)
		}
		v.stop(t)
		if _, err := NewViewSource(t.Context(), b.cl, v.reader, "t", nil); err == nil {
			t.Fatal("a view of a missing topic")
		}
	})
}
