package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/processors"
)

// letters starts a broker with n dead letters of the application desk and returns its
// address.
func letters(t *testing.T, n int) string {
	t.Helper()
	b, err := broker.StartEmbedded(broker.EmbeddedConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	err = broker.CreateTopics(t.Context(), b.Addr(), broker.Topic{Name: "tickets", Partitions: 1}, broker.Topic{Name: "desk.triage.dlq", Partitions: 1})
	if err != nil {
		t.Fatal(err)
	}
	var records []*kgo.Record
	for i := range n {
		src := &processors.Raw{Topic: "tickets", Offset: int64(i), Timestamp: int64(i), Headers: []processors.Header{{Key: "own", Value: []byte{0xff}}}}
		died := time.Date(2026, 1, 2, 3, 4, i%60, 0, time.UTC)
		r := &kgo.Record{Topic: "desk.triage.dlq", Key: fmt.Append(nil, "k", i), Value: fmt.Append(nil, "it \x1b[31mburns ", i), Timestamp: time.UnixMilli(int64(i))}
		headers := append(processors.DeadLetterHeaders(src, "triage", "violation", "the answer violates\nits contract", died),
			processors.Header{Key: processors.AttemptsHeader, Value: []byte("3")}, processors.Header{Key: processors.PromptHeader, Value: []byte("triage")},
			processors.Header{Key: processors.PromptVersionHeader, Value: []byte("v1")}, processors.Header{Key: processors.ModelHeader, Value: []byte("openai/m")},
			processors.Header{Key: processors.CostHeader, Value: []byte("1500")}, processors.Header{Key: processors.AnswerHeader, Value: []byte("I would \x1b[0mrather not.")},
			processors.Header{Key: processors.ViolationsHeader, Value: []byte(`[{"rule":"json.none","message":"no JSON"}]`)})
		for _, h := range headers {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
		}
		records = append(records, r)
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if err := cl.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	return b.Addr()
}

// committed returns the committed records of a topic of one partition.
func committed(t *testing.T, addr, topic string) []*kgo.Record {
	t.Helper()
	conf := &kafka.Config{Brokers: []string{addr}}
	cl, err := kgo.NewClient(conf.PlainOpts(nil)...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ends, err := kafka.ListOffsets(t.Context(), cl, kafka.LastStable, map[string][]int32{topic: {0}})
	if err != nil {
		t.Fatal(err)
	}
	var out []*kgo.Record
	err = conf.Read(t.Context(), []kafka.ReadRange{{Topic: topic, To: ends[topic][0]}}, func(_ string, _ int32, records []*kgo.Record, _ int64) error {
		out = append(out, records...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestDeadLetterCommands(t *testing.T) {
	t.Parallel()
	addr := letters(t, 3)
	dlq := func(want int, args ...string) (out, errs string) {
		t.Helper()
		args = append([]string{"dlq", args[0], "--brokers", addr, "--app", "desk"}, args[1:]...)
		code, out, errs := call(t.Context(), "", args...)
		if code != want {
			t.Fatalf("%v: exit code %d, want %d\n%s%s", args, code, want, out, errs)
		}
		if strings.Contains(out, "\x1b") {
			t.Errorf("%v: the terminal is told what to do: %q", args, out)
		}
		return out, errs
	}
	out, _ := dlq(exitOK, "list")
	if strings.Count(out, "\n") != 4 || !strings.Contains(out, "desk.triage.dlq/0/2") || !strings.Contains(out, "the answer violates its contract") {
		t.Errorf("list:\n%s", out)
	}
	if out, _ = dlq(exitOK, "list", "--since", "2026-01-02T03:04:01Z", "--until", "2026-01-02T03:04:02Z", "--class", "violation", "--step", "triage"); strings.Count(out, "\n") != 2 {
		t.Errorf("list with filters:\n%s", out)
	}
	out, _ = dlq(exitOK, "show", "--at", "desk.triage.dlq/0/1")
	for _, part := range []string{"tickets/0/1", "violation", "triage, version v1", "openai/m", "0.001500 US dollars", "k1", `"it \x1b[31mburns 1"`, `own: "\xff"`, "rather not", "json.none"} {
		if !strings.Contains(out, part) {
			t.Errorf("show does not say %q:\n%s", part, out)
		}
	}
	out, _ = dlq(exitOK, "show", "--json", "--at", "desk.triage.dlq/0/1")
	var l map[string]any
	if err := json.Unmarshal([]byte(out), &l); err != nil {
		t.Fatal(err)
	}
	if l["letter"] != "desk.triage.dlq/0/1" || l["value"] != "it \x1b[31mburns 1" || l["cost_micros"] != 1500.0 || l["answer"] != "I would \x1b[0mrather not." || l["attempts"] != 3.0 {
		t.Errorf("show --json: %s", out)
	}
	if _, errs := dlq(exitFailed, "show", "--at", "desk.triage.dlq/0/9"); !strings.Contains(errs, "there is no dead letter") {
		t.Error(errs)
	}
	if out, _ = dlq(exitOK, "replay", "--dry-run", "--all"); !strings.Contains(out, "3 letters would be replayed") || len(committed(t, addr, "tickets")) != 0 {
		t.Errorf("dry run:\n%s", out)
	}
	if out, _ = dlq(exitOK, "replay", "--at", "desk.triage.dlq/0/1", "--prompt-version", "v2"); !strings.Contains(out, "1 letters replayed") {
		t.Errorf("replay:\n%s", out)
	}
	out, _ = dlq(exitOK, "replay", "--all", "--json", "--rate", "1000")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 3 || lines[2] != `{"already":1,"dry_run":false,"refused":0,"replayed":2}` {
		t.Errorf("replay --json:\n%s", out)
	}
	if got := committed(t, addr, "tickets"); len(got) != 3 || string(got[0].Key) != "k1" || string(got[0].Headers[3].Value) != "triage@v2" {
		t.Errorf("replayed %v", got)
	}
	if out, _ = dlq(exitOK, "list", "--fresh"); strings.Count(out, "\n") != 1 {
		t.Errorf("fresh letters:\n%s", out)
	}
}

// However often a replay is killed, every letter is replayed once.
func TestReplayKilled(t *testing.T) {
	t.Parallel()
	const n = 300
	addr := letters(t, n)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	kills := 0
	for run := 0; ; run++ {
		cmd := exec.CommandContext(t.Context(), self, "dlq", "replay", "--brokers", addr, "--app", "desk", "--all", "--rate", "2000")
		var errs bytes.Buffer
		cmd.Stderr = &errs
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		s := bufio.NewScanner(stdout)
		for lines := 0; s.Scan(); lines++ {
			if run < 3 && lines == 10*run && !strings.Contains(s.Text(), "letters replayed") {
				_ = cmd.Process.Kill() // it fails only if the process has ended
				kills++
			}
		}
		if cmd.Wait() == nil {
			break
		}
		if run > 3 {
			t.Fatalf("run %d: %s", run, &errs)
		}
	}
	if kills < 2 {
		t.Errorf("%d kills, want at least 2", kills)
	}
	seen := map[string]int{}
	for _, r := range committed(t, addr, "tickets") {
		seen[string(r.Key)]++
	}
	for key, times := range seen {
		if times != 1 {
			t.Errorf("%s was replayed %d times", key, times)
		}
	}
	if len(seen) != n {
		t.Errorf("%d letters were replayed, want %d", len(seen), n)
	}
}
