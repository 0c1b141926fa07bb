package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/internal/broker"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

func TestConversationsExport(t *testing.T) {
	t.Parallel()
	b, err := broker.StartEmbedded(broker.EmbeddedConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	const topic = "desk.triage-conversations-table"
	if err := broker.CreateTopics(t.Context(), b.Addr(), broker.Topic{Name: topic, Partitions: 2}); err != nil {
		t.Fatal(err)
	}
	row := func(partition int32, key, text string) *kgo.Record {
		r := &kgo.Record{Topic: topic, Partition: partition, Key: []byte(key)}
		if text == "" {
			return r // it expired
		}
		if r.Value, err = proto.Marshal(&millracev1.Conversation{Turns: []*millracev1.Turn{{Role: millracev1.Role_ROLE_USER, Text: text}}}); err != nil {
			t.Fatal(err)
		}
		return r
	}
	write := func(commit kgo.TransactionEndTry, records ...*kgo.Record) {
		cl, err := kgo.NewClient(kgo.SeedBrokers(b.Addr()), kgo.TransactionalID("t"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := cl.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := cl.EndTransaction(t.Context(), commit); err != nil {
			t.Fatal(err)
		}
	}
	write(kgo.TryCommit, row(0, "ann", "old"), row(0, "ben", "gone"), row(1, "\xff", "bytes"), row(0, "ann", "new"), row(0, "ben", ""))
	write(kgo.TryAbort, row(0, "ann", "never"), row(1, "eve", "never"))

	run := func(args ...string) string {
		var out bytes.Buffer
		if err := conversationsCommand(t.Context(), append([]string{"export", "-brokers", b.Addr(), "-app", "desk", "-step", "triage"}, args...), stdio{out: &out}); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	want := `{"key":"ann","partition":0,"conversation":{"turns":[{"role":"ROLE_USER","text":"new"}]}}
{"key":null,"key_bytes":"/w==","partition":1,"conversation":{"turns":[{"role":"ROLE_USER","text":"bytes"}]}}
`
	if got := run(); got != want {
		t.Errorf("exported\n%swant\n%s", got, want)
	}
	if got := run("-key", "eve"); got != "" {
		t.Errorf("exported what was not committed: %s", got)
	}
	err = conversationsCommand(t.Context(), []string{"export", "-brokers", b.Addr(), "-app", "desk", "-step", "other"}, stdio{out: &bytes.Buffer{}})
	if err == nil || !strings.Contains(err.Error(), "desk.other-conversations-table") {
		t.Errorf("of a step that is not there: %v", err)
	}
}
