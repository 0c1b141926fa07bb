package deadletter_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/internal/broker/brokertest"
	"github.com/millrace/millrace/internal/deadletter"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/processors"
)

// rig is a cluster with the topics of an application.
type rig struct {
	t     *testing.T
	conf  *kafka.Config
	store *deadletter.Store
}

const partitions = 3

func newRig(t *testing.T) *rig {
	t.Helper()
	return rigOn(t, brokertest.Embedded(t).Addr())
}

// rigOn creates the topics on a broker.
func rigOn(t *testing.T, addr string) *rig {
	t.Helper()
	r := &rig{t: t, conf: &kafka.Config{Brokers: []string{addr}}}
	r.store = deadletter.New("desk", r.conf)
	for _, topic := range []string{"tickets", "desk.dlq", "desk.triage.dlq", "desk.a.b.dlq", "desk-other.dlq"} {
		r.create(topic, nil)
	}
	return r
}

func (r *rig) create(topic string, configs map[string]string) {
	r.t.Helper()
	topicOf := broker.Topic{Name: topic, Partitions: partitions, Configs: configs}
	if err := broker.CreateTopics(r.t.Context(), r.conf.Brokers[0], topicOf); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) client(opts ...kgo.Opt) *kgo.Client {
	r.t.Helper()
	cl, err := kgo.NewClient(append(r.conf.PlainOpts(nil), opts...)...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(cl.Close)
	return cl
}

// died is when letter n was given up.
func died(n int) time.Time {
	return time.UnixMilli(1_700_000_000_000).Add(time.Duration(n) * time.Second)
}

// letter is the dead letter of event n, which was on a partition that its key does not
// say.
func letter(topic string, n int, class processors.Class, details ...processors.Header) *kgo.Record {
	src := &processors.Raw{
		Topic: "tickets", Partition: int32(n % partitions), Offset: int64(n), Timestamp: int64(1000 + n),
		Headers: []processors.Header{{Key: "own", Value: []byte("1")}, {Key: "own", Value: nil}, {Key: processors.PromptHeader, Value: []byte("earlier")}},
	}
	step, _ := strings.CutSuffix(strings.TrimPrefix(topic, "desk."), ".dlq")
	rec := &kgo.Record{Topic: topic, Partition: -1, Key: fmt.Append(nil, "k", n), Value: fmt.Append(nil, "v\x00", n), Timestamp: time.UnixMilli(src.Timestamp)}
	for _, h := range append(processors.DeadLetterHeaders(src, step, class, fmt.Sprint("message ", n), died(n)), details...) {
		rec.Headers = append(rec.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	return rec
}

func triaged(n int) *kgo.Record {
	h := func(k, v string) processors.Header { return processors.Header{Key: k, Value: []byte(v)} }
	return letter("desk.triage.dlq", n, "violation", h(processors.AttemptsHeader, "3"), h(processors.PromptHeader, "triage"),
		h(processors.PromptVersionHeader, "abc"), h(processors.ModelHeader, "openai/m"), h(processors.OutputTokensHeader, "7"), h(processors.CostHeader, "42"),
		h(processors.AnswerHeader, "nonsense"), h(processors.ViolationsHeader, `[{"path":"urgency","rule":"json.enum","message":"no such"}]`))
}

func (r *rig) write(records ...*kgo.Record) {
	r.t.Helper()
	if err := r.client().ProduceSync(r.t.Context(), records...).FirstErr(); err != nil {
		r.t.Fatal(err)
	}
}

// read returns the committed records of a topic.
func (r *rig) read(topic string) []*kgo.Record {
	r.t.Helper()
	cl := r.client()
	all := map[string][]int32{topic: nil}
	for p := range int32(partitions) {
		all[topic] = append(all[topic], p)
	}
	if strings.HasSuffix(topic, ".replays") {
		all[topic] = []int32{0}
	}
	ends, err := kafka.ListOffsets(r.t.Context(), cl, kafka.HighWatermark, all)
	if err != nil {
		r.t.Fatal(err)
	}
	var ranges []kafka.ReadRange
	for p, end := range ends[topic] {
		ranges = append(ranges, kafka.ReadRange{Topic: topic, Partition: p, To: end})
	}
	var out []*kgo.Record
	err = r.conf.Read(r.t.Context(), ranges, func(_ string, _ int32, records []*kgo.Record, _ int64) error {
		out = append(out, records...)
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func header(rec *kgo.Record, key string) string {
	for _, h := range slices.Backward(rec.Headers) {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

func TestList(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write(letter("desk.dlq", 1, "decode"), triaged(2), letter("desk.triage.dlq", 3, "refused"), letter("desk.a.b.dlq", 4, "x"), letter("desk-other.dlq", 5, "x"),
		&kgo.Record{Topic: "desk.dlq", Partition: 0, Value: []byte("foreign"), Timestamp: died(0)})
	for _, tt := range []struct {
		name   string
		filter deadletter.Filter
		want   string
	}{
		{"all", deadletter.Filter{}, "foreign v\x001 v\x002 v\x003"},
		{"step", deadletter.Filter{Step: "triage"}, "v\x002 v\x003"},
		{"class", deadletter.Filter{Class: "decode"}, "v\x001"},
		{"since", deadletter.Filter{Since: died(2)}, "v\x002 v\x003"},
		{"until", deadletter.Filter{Until: died(2)}, "foreign v\x001"},
		{"limit", deadletter.Filter{Limit: 2}, "v\x002 v\x003"},
	} {
		got, err := r.store.List(t.Context(), tt.filter)
		if err != nil {
			t.Fatal(err)
		}
		var values []string
		for _, l := range got {
			values = append(values, string(l.Value))
		}
		if s := strings.Join(values, " "); s != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, s, tt.want)
		}
	}
	all, _ := r.store.List(t.Context(), deadletter.Filter{Step: "triage", Limit: 2})
	at := all[0].Position
	l, err := r.store.Show(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	if l.Source != (deadletter.Position{Topic: "tickets", Partition: 2, Offset: 2}) || l.EventTime.UnixMilli() != 1002 || !l.FailedAt.Equal(died(2)) ||
		l.Class != "violation" || l.Attempts != 3 || l.Prompt != "triage" || l.PromptVersion != "abc" || l.Model != "openai/m" || l.OutputTokens != 7 ||
		!l.CostKnown || l.CostMicros != 42 || string(l.Answer) != "nonsense" || len(l.Violations) != 1 || l.Violations[0].Path != "urgency" {
		t.Errorf("letter %+v", l)
	}
	if len(l.Headers) != 3 || l.Headers[1].Value != nil || string(l.Headers[2].Value) != "earlier" {
		t.Errorf("headers of the event %v", l.Headers)
	}
	if _, err := r.store.Show(t.Context(), deadletter.Position{Topic: at.Topic, Partition: at.Partition, Offset: 999}); !errors.Is(err, deadletter.ErrNoLetter) {
		t.Errorf("error %v", err)
	}
	if _, err := deadletter.New("nobody", r.conf).List(t.Context(), deadletter.Filter{}); err == nil || !strings.Contains(err.Error(), "no topic of dead letters") {
		t.Errorf("error %v", err)
	}
}

// An event goes back as it was, to where it was, once.
func TestReplay(t *testing.T) {
	t.Parallel()
	testReplay(t, newRig(t))
}

func testReplay(t *testing.T, r *rig) {
	t.Helper()
	r.create("elsewhere", nil)
	r.write(letter("desk.dlq", 1, "decode"), triaged(2), letter("desk.triage.dlq", 3, "refused"))
	cfg := deadletter.ReplayConfig{Filter: deadletter.Filter{Step: "triage"}, Rate: 1e6, PromptVersion: "def", Prompt: "other"}
	for i, want := range []deadletter.ReplayResult{{Replayed: 2}, {Already: 2}} {
		got, err := r.store.Replay(t.Context(), cfg)
		if err != nil || got != want {
			t.Fatalf("run %d: %+v, %v", i, got, err)
		}
	}
	out := r.read("tickets")
	if len(out) != 2 {
		t.Fatalf("%d events, want 2", len(out))
	}
	slices.SortFunc(out, func(a, b *kgo.Record) int { return strings.Compare(string(a.Key), string(b.Key)) })
	for i, rec := range out {
		n := i + 2
		if string(rec.Key) != fmt.Sprint("k", n) || string(rec.Value) != fmt.Sprint("v\x00", n) || rec.Partition != int32(n%partitions) || rec.Timestamp.UnixMilli() != int64(1000+n) {
			t.Errorf("event %d: %+v", n, rec)
		}
		if len(rec.Headers) != 6 || rec.Headers[0].Key != "own" || rec.Headers[1].Value != nil || header(rec, processors.PromptHeader) != "earlier" {
			t.Errorf("event %d: headers %v", n, rec.Headers)
		}
		if !strings.HasPrefix(header(rec, processors.ReplayOfHeader), "desk.triage.dlq/") || header(rec, processors.ReplaySourceHeader) != fmt.Sprintf("tickets/%d/%d", n%partitions, n) {
			t.Errorf("event %d: headers %v", n, rec.Headers)
		}
	}
	if a, b := header(out[0], processors.ReplayPromptHeader), header(out[1], processors.ReplayPromptHeader); a != "triage@def" || b != "other@def" {
		t.Errorf("prompts %s and %s", a, b)
	}
	listed, err := r.store.List(t.Context(), deadletter.Filter{Fresh: true})
	if err != nil || len(listed) != 1 || listed[0].Step != "desk" && listed[0].Class != "decode" {
		t.Errorf("fresh letters %v, %v", listed, err)
	}
	// To another topic, where the key decides; a dry run writes nothing.
	cfg = deadletter.ReplayConfig{Rate: 1e6, To: "elsewhere", DryRun: true, StampNow: true}
	if got, err := r.store.Replay(t.Context(), cfg); err != nil || got.Replayed != 1 || got.Already != 2 || len(r.read("elsewhere")) != 0 {
		t.Errorf("dry run: %+v, %v", got, err)
	}
	cfg.DryRun = false
	if got, err := r.store.Replay(t.Context(), cfg); err != nil || got.Replayed != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	rec := r.read("elsewhere")
	if len(rec) != 1 || rec[0].Partition != kafka.PartitionOf([]byte("k1"), partitions) || time.Since(rec[0].Timestamp) > time.Hour {
		t.Errorf("elsewhere: %v", rec)
	}
}

// An event that fails again makes a letter of its own, which says what it first was.
func TestReplayAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	again := triaged(2)
	again.Headers = append([]kgo.RecordHeader{
		{Key: processors.ReplayOfHeader, Value: []byte("desk.triage.dlq/9/9")},
		{Key: processors.ReplaySourceHeader, Value: []byte("tickets/1/1")},
		{Key: processors.ReplayPromptHeader, Value: []byte("triage@old")},
	}, again.Headers...)
	r.write(again)
	if got, err := r.store.Replay(t.Context(), deadletter.ReplayConfig{Rate: 1e6}); err != nil || got.Replayed != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	rec := r.read("tickets")[0]
	if header(rec, processors.ReplaySourceHeader) != "tickets/1/1" || header(rec, processors.ReplayOfHeader) == "desk.triage.dlq/9/9" || header(rec, processors.ReplayPromptHeader) != "" {
		t.Errorf("headers %v", rec.Headers)
	}
}

// What cannot be replayed is said, and holds up nothing.
func TestReplayRefuses(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	loop, gone, big := letter("desk.dlq", 1, "decode"), letter("desk.dlq", 2, "decode"), letter("desk.dlq", 3, "decode")
	set := func(rec *kgo.Record, topic string) {
		for i, h := range rec.Headers {
			if h.Key == "millrace.topic" {
				rec.Headers[i].Value = []byte(topic)
			}
		}
	}
	set(loop, "desk.triage-loop")
	set(gone, "gone")
	r.create("small", map[string]string{"max.message.bytes": "2000"})
	set(big, "small")
	big.Value = make([]byte, 5000)
	fits := letter("desk.dlq", 4, "decode")
	set(fits, "small")
	r.write(loop, gone, big, fits, letter("desk.dlq", 6, "decode"), &kgo.Record{Topic: "desk.dlq", Partition: 0, Value: []byte("foreign")})
	var refused []string
	got, err := r.store.Replay(t.Context(), deadletter.ReplayConfig{Rate: 1e6, Each: func(_ *deadletter.Letter, _ string, err error) {
		if err != nil {
			refused = append(refused, err.Error())
		}
	}})
	if err != nil || got != (deadletter.ReplayResult{Replayed: 2, Refused: 4}) {
		t.Errorf("%+v, %v: %q", got, err, refused)
	}
	all := strings.Join(refused, "\n")
	for _, want := range []string{"nothing to replay", "topic gone does not exist", "no header millrace.topic", "topic small does not take it"} {
		if !strings.Contains(all, want) {
			t.Errorf("no word of %q in %s", want, all)
		}
	}
	if got, err := r.store.Replay(t.Context(), deadletter.ReplayConfig{Rate: 1e6, PromptVersion: "v"}); err != nil || got.Replayed != 0 || got.Already != 2 {
		t.Errorf("%+v, %v", got, err)
	}
}

// A replay that died in the middle of a transaction has replayed nothing of it.
func TestReplayAfterDeath(t *testing.T) {
	t.Parallel()
	testReplayAfterDeath(t, newRig(t))
}

func testReplayAfterDeath(t *testing.T, r *rig) {
	t.Helper()
	r.write(triaged(1), triaged(2))
	if got, err := r.store.Replay(t.Context(), deadletter.ReplayConfig{Filter: deadletter.Filter{Limit: 1}, Rate: 1e6}); err != nil || got.Replayed != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	marked := r.read("desk.replays")
	dead := r.client(kgo.TransactionalID("desk.replays"), kgo.TransactionTimeout(time.Minute))
	if err := dead.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	open := []*kgo.Record{
		{Topic: "tickets", Partition: 0, Value: []byte("half")},
		{Topic: "desk.replays", Partition: 0, Key: []byte("half"), Value: []byte(`{}`)},
	}
	if err := dead.ProduceSync(t.Context(), open...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if got, err := r.store.Replay(t.Context(), deadletter.ReplayConfig{Rate: 1e6}); err != nil || got != (deadletter.ReplayResult{Replayed: 1, Already: 1}) {
		t.Errorf("%+v, %v", got, err)
	}
	if n, m := len(r.read("tickets")), len(r.read("desk.replays")); n != 2 || m != len(marked)+1 {
		t.Errorf("%d events and %d marks", n, m)
	}
}

// Of two replays at once the later goes on, and nothing is replayed twice.
func TestReplayTakenOver(t *testing.T) {
	t.Parallel()
	testReplayTakenOver(t, newRig(t))
}

func testReplayTakenOver(t *testing.T, r *rig) {
	t.Helper()
	const n = 40
	for i := range n {
		r.write(triaged(i))
	}
	began := make(chan struct{}, n)
	first := make(chan error, 1)
	go func() {
		_, err := r.store.Replay(t.Context(), deadletter.ReplayConfig{Rate: 20, Each: func(*deadletter.Letter, string, error) { began <- struct{}{} }})
		first <- err
	}()
	<-began
	got, err := r.store.Replay(t.Context(), deadletter.ReplayConfig{Rate: 1e6})
	if err != nil || got.Already == 0 || got.Already+got.Replayed != n {
		t.Errorf("%+v, %v", got, err)
	}
	if err := <-first; !errors.Is(err, deadletter.ErrTakenOver) {
		t.Errorf("error %v", err)
	}
	seen := map[string]bool{}
	for _, rec := range r.read("tickets") {
		if seen[string(rec.Key)] {
			t.Errorf("%s was replayed twice", rec.Key)
		}
		seen[string(rec.Key)] = true
	}
	if len(seen) != n {
		t.Errorf("%d events, want %d", len(seen), n)
	}
}

func TestParsePosition(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"a.b/0/1", "t/2147483647/9223372036854775807"} {
		if p, err := deadletter.ParsePosition(s); err != nil || p.String() != s {
			t.Errorf("%s: %v, %v", s, p, err)
		}
	}
	for _, s := range []string{"", "t", "t/0", "/0/1", "t/x/1", "t/-1/1", "t/0/-1", "t/0/1/2", "t/2147483648/1"} {
		if _, err := deadletter.ParsePosition(s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}
