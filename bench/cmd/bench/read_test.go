package main

import (
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestCheckReadsCommittedOutput writes output in transactions, aborted ones among
// them, and checks it with and without a planted duplicate.
func TestCheckReadsCommittedOutput(t *testing.T) {
	t.Parallel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(4, "exact", "twice", "short"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	brokers := cluster.ListenAddrs()[0]
	data := newDataset(400, 50, 4)

	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers), kgo.TransactionalID("writer"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	// write produces records [from, to) in one transaction.
	write := func(topic string, from, to int, end kgo.TransactionEndTry) {
		t.Helper()
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := data.load(t.Context(), cl, topic, from, to); err != nil {
			t.Fatal(err)
		}
		if err := cl.EndTransaction(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	for _, topic := range []string{"exact", "twice", "short"} {
		write(topic, 0, 150, kgo.TryCommit)
		write(topic, 150, 399, kgo.TryAbort)
		write(topic, 150, 399, kgo.TryCommit)
	}
	write("exact", 399, 400, kgo.TryCommit)
	write("exact", 0, 400, kgo.TryAbort) // an aborted end
	write("twice", 399, 400, kgo.TryCommit)
	write("twice", 399, 400, kgo.TryCommit)

	for topic, want := range map[string]string{"exact": "", "twice": "after the last expected", "short": "399 records for 400 inputs"} {
		err := newChecker("pass", data, 400).check(t.Context(), brokers, topic)
		if want == "" && err != nil {
			t.Errorf("%s: %v", topic, err)
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: error %v does not say %q", topic, err, want)
		}
	}
}

func TestLagDecidesTheEndOfARun(t *testing.T) {
	t.Parallel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(4, "in"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	h, err := newHarness(config{}, cluster.ListenAddrs()[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.client.Close)
	data := newDataset(400, 50, 4)
	if err := data.load(t.Context(), h.client, "in", 0, 400); err != nil {
		t.Fatal(err)
	}
	j := job{in: "in", app: "group"}
	commit := func(behind int64) {
		t.Helper()
		var offsets kadm.Offsets
		for p, order := range data.order {
			offsets.AddOffset("in", int32(p), int64(len(order))-behind, -1)
		}
		if err := h.admin.CommitAllOffsets(t.Context(), "group", offsets); err != nil {
			t.Fatal(err)
		}
	}
	commit(1)
	if lag, err := h.lag(t.Context(), j); err != nil || lag != 4 {
		t.Errorf("one record of each partition left: lag %d, error %v", lag, err)
	}
	commit(0)
	if lag, err := h.lag(t.Context(), j); err != nil || lag != 0 {
		t.Errorf("nothing left: lag %d, error %v", lag, err)
	}
}
