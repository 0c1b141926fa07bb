package kafka

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A fakeBroker is a kfake cluster on a network in memory, for synctest bubbles.
type fakeBroker struct {
	*kfake.Cluster
	t    testing.TB
	net  *kfake.VirtualNetwork
	conf Config
	cl   *kgo.Client // a plain client
}

func newBroker(t testing.TB, opts ...kfake.Opt) *fakeBroker {
	t.Helper()
	vn := new(kfake.VirtualNetwork)
	base := []kfake.Opt{kfake.NumBrokers(1), kfake.Ports(9092), kfake.ListenFn(vn.Listen)}
	c, err := kfake.NewCluster(append(base, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	b := &fakeBroker{Cluster: c, t: t, net: vn}
	b.conf = Config{
		Brokers: c.ListenAddrs(),
		Dialer:  vn.DialContext,
		Logger:  slog.New(slog.DiscardHandler),
	}
	if errs := b.conf.Validate(); errs != nil {
		t.Fatal(errs)
	}
	b.cl = b.client(b.conf.PlainOpts(nil)...)
	return b
}

// stop ends the broker and its plain client. Tests in a bubble defer it.
func (b *fakeBroker) stop() {
	b.cl.Close()
	b.Cluster.Close()
}

func (b *fakeBroker) client(opts ...kgo.Opt) *kgo.Client {
	b.t.Helper()
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		b.t.Fatal(err)
	}
	return cl
}

func (b *fakeBroker) info() BrokerInfo {
	b.t.Helper()
	info, err := CheckBroker(b.t.Context(), b.cl)
	if err != nil {
		b.t.Fatal(err)
	}
	return info
}

// produce writes records outside transactions.
func (b *fakeBroker) produce(topic string, partition int32, values ...string) {
	b.t.Helper()
	for _, v := range values {
		r := &kgo.Record{Topic: topic, Partition: partition, Key: []byte(v), Value: []byte(v)}
		if err := b.cl.ProduceSync(b.t.Context(), r).FirstErr(); err != nil {
			b.t.Fatal(err)
		}
	}
}

// transact writes records in a transaction of its own and ends it.
func (b *fakeBroker) transact(id string, end kgo.TransactionEndTry, topic string, partition int32, values ...string) {
	b.t.Helper()
	cl := b.client(append(b.conf.base(), kgo.TransactionalID(id))...)
	defer cl.Close()
	if err := cl.BeginTransaction(); err != nil {
		b.t.Fatal(err)
	}
	for _, v := range values {
		if err := cl.ProduceSync(b.t.Context(), &kgo.Record{Topic: topic, Partition: partition, Key: []byte(v), Value: []byte(v)}).FirstErr(); err != nil {
			b.t.Fatal(err)
		}
	}
	if err := cl.EndTransaction(b.t.Context(), end); err != nil {
		b.t.Fatal(err)
	}
}

// committed reads what a read_committed reader sees of a partition, up to the last
// stable offset, on a client of its own.
func (b *fakeBroker) committed(topic string, partition int32) []string {
	b.t.Helper()
	ends, err := ListOffsets(b.t.Context(), b.cl, LastStable, map[string][]int32{topic: {partition}})
	if err != nil {
		b.t.Fatal(err)
	}
	end := ends[topic][partition]
	var got []string
	if end == 0 {
		return nil
	}
	cl := b.client(append(b.conf.base(), kgo.KeepControlRecords(), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {partition: kgo.NewOffset().AtStart()}}))...)
	defer cl.Close()
	ctx, cancel := context.WithTimeout(b.t.Context(), 5*time.Second)
	defer cancel()
	// Aborted records leave no trace, so an idle second means the end.
	for pos := int64(0); pos < end && ctx.Err() == nil; {
		fs := cl.PollFetches(ctx)
		fs.EachRecord(func(r *kgo.Record) {
			pos = r.Offset + 1
			if !r.Attrs.IsControl() {
				got = append(got, string(r.Value))
			}
		})
	}
	return got
}

func (b *fakeBroker) groupOffset(group, topic string, partition int32) (int64, bool) {
	b.t.Helper()
	os, err := kadm.NewClient(b.cl).FetchOffsets(b.t.Context(), group)
	if err != nil {
		b.t.Fatal(err)
	}
	o, ok := os.Lookup(topic, partition)
	return o.At, ok
}

func mustEqual[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

func mustEqualSlices[T comparable](t testing.TB, what string, got, want []T) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

// describe renders an assignment in order.
func describe(m map[string][]int32) string {
	var s string
	for _, t := range slices.Sorted(maps.Keys(m)) {
		ps := slices.Clone(m[t])
		slices.Sort(ps)
		s += fmt.Sprint(t, ps, " ")
	}
	return s
}
