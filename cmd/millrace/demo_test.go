package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/millrace/millrace/examples/reviews"
	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/internal/modelserver"
)

// head returns the first lines of the example's data.
func head(t *testing.T, n int) string {
	t.Helper()
	data, err := io.ReadAll(reviews.Sentences())
	if err != nil {
		t.Fatal(err)
	}
	return string(bytes.Join(bytes.SplitAfterN(data, []byte("\n"), n+1)[:n], nil))
}

type result struct {
	Events       int      `json:"events"`
	Enriched     int      `json:"enriched"`
	DeadLettered int      `json:"dead_lettered"`
	Fallbacks    int      `json:"fallbacks"`
	Duplicates   int      `json:"duplicates"`
	Lost         int      `json:"lost"`
	ModelCalls   int      `json:"model_calls"`
	PaidTwice    int      `json:"paid_twice"`
	Interrupted  int      `json:"interrupted"`
	Correlation  *float64 `json:"correlation"`
	Seconds      float64  `json:"seconds"`
}

var keys = []string{
	"correlation", "dead_lettered", "duplicates", "enriched", "events", "fallbacks", "interrupted", "lost", "model_calls", "paid_twice", "seconds",
}

// demoJSON runs the demo on an input and checks what holds for every good run.
func demoJSON(t *testing.T, input string, args ...string) (result, string) {
	t.Helper()
	code, out, errs := call(t.Context(), input, append([]string{"demo", "--json", "--input", "-", "--seed", "7", "--rate", "0"}, args...)...)
	if code != exitOK {
		t.Fatalf("exit code %d\n%s", code, errs)
	}
	if strings.Count(out, "\n") != 1 {
		t.Errorf("standard output holds more than one line: %s", out)
	}
	var members map[string]any
	var r result
	if err := json.Unmarshal([]byte(out), &members); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := slices.Sorted(maps.Keys(members)); !slices.Equal(got, keys) {
		t.Errorf("members %v", got)
	}
	if r.Lost != 0 || r.Duplicates != 0 || r.PaidTwice != 0 || r.Enriched+r.DeadLettered+r.Fallbacks != r.Events || r.ModelCalls < r.Enriched || r.Seconds <= 0 {
		t.Errorf("%+v\n%s", r, errs)
	}
	return r, errs
}

func TestDemo(t *testing.T) {
	t.Parallel()
	r, errs := demoJSON(t, head(t, 150))
	if r.Events != 150 || r.Enriched != 150 || r.ModelCalls != 150 || r.Interrupted != 0 || r.Correlation == nil || *r.Correlation < 0.4 {
		t.Errorf("%+v\n%s", r, errs)
	}
	for _, part := range []string{"VADER", "classical sentiment model", "not a language model", "p99", "apex-ad2600", "all add up"} {
		if !strings.Contains(errs, part) {
			t.Errorf("the summary does not say %q:\n%s", part, errs)
		}
	}
}

// Lines that are no events end as dead letters, and nothing stops.
func TestDemoBadLines(t *testing.T) {
	t.Parallel()
	r, _ := demoJSON(t, "1_1\t2.5\ti love it!\nthis is no event\n{\"text\":\"it broke\"}\n{\"id\":\"x\",\"text\":\"\"}\n{\"id\":7}\n\n2_1\tbad\tpicture\n[1]\n")
	if r.Events != 7 || r.Enriched != 2 || r.DeadLettered != 5 || r.ModelCalls != 2 || r.Correlation != nil {
		t.Errorf("%+v", r)
	}
}

func TestDemoWithFaults(t *testing.T) {
	t.Parallel()
	r, errs := demoJSON(t, head(t, 150), "--fault-rate", "0.3", "--latency", "1ms")
	if r.Events != 150 || r.ModelCalls <= 150 || r.Interrupted != 0 {
		t.Errorf("%+v\n%s", r, errs)
	}
	// A model that never answers well: no event is enriched, and none is lost.
	r, errs = demoJSON(t, head(t, 3), "--fault-rate", "1", "--latency", "0")
	if r.DeadLettered+r.Fallbacks != 3 || r.ModelCalls < 9 {
		t.Errorf("%+v\n%s", r, errs)
	}
}

func TestDemoWithKills(t *testing.T) {
	t.Parallel()
	r, errs := demoJSON(t, head(t, 200), "--kill", "2", "--latency", "50ms")
	if r.Events != 200 || r.Enriched != 200 || !strings.Contains(errs, "2 times SIGKILL") {
		t.Errorf("%+v\n%s", r, errs)
	}
	if r.ModelCalls != 200+r.Interrupted {
		t.Errorf("%d calls, %d of them interrupted, for 200 events", r.ModelCalls, r.Interrupted)
	}
}

// lineWriter calls seen with every line written to it.
type lineWriter struct {
	bytes.Buffer
	seen func(string)
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.seen(string(p))
	return w.Buffer.Write(p)
}

// A run that was stopped goes on in its directory, and a finished one stays as it
// is: nothing is asked, or written, again.
func TestDemoContinues(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "demo")
	input := head(t, 300)
	ctx, stop := context.WithCancel(t.Context())
	var out bytes.Buffer
	errs := &lineWriter{seen: func(s string) {
		if strings.Contains(s, "enriched") && !strings.Contains(s, "enriched 0 ") {
			stop()
		}
	}}
	args := []string{"demo", "--json", "--input", "-", "--dir", dir, "--rate", "100", "--seed", "3"}
	code := dispatch(ctx, args, stdio{strings.NewReader(input), &out, errs})
	var first result
	if err := json.Unmarshal(out.Bytes(), &first); err != nil || code != exitInterrupted || first.Enriched == 0 || first.Enriched == 300 || first.Duplicates != 0 {
		t.Fatalf("code %d, %+v, %v\n%s", code, first, err, errs)
	}
	second, text := demoJSON(t, input, "--dir", dir)
	if second.Events != 300 || second.Enriched != 300 || second.ModelCalls != 300+second.Interrupted {
		t.Errorf("%+v\n%s", second, text)
	}
	if !strings.Contains(text, "the broker had lost 0 events it had acknowledged (sent again) and 0 outcomes") {
		t.Errorf("the summary does not say what was lost:\n%s", text)
	}
	third, _ := demoJSON(t, input, "--dir", dir)
	third.Seconds = second.Seconds
	if a, b := fmt.Sprint(*third.Correlation), fmt.Sprint(*second.Correlation); a != b {
		t.Errorf("correlation %s, then %s", b, a)
	}
	third.Correlation = second.Correlation
	if third != second {
		t.Errorf("a finished run went on: %+v, then %+v", second, third)
	}
	for _, tt := range []struct{ input, brokers, want string }{
		{head(t, 10), "", "another input"},
		{input, "127.0.0.1:1", "it belongs to a run with the embedded broker"},
	} {
		args := []string{"demo", "--input", "-", "--dir", dir}
		if tt.brokers != "" {
			args = append(args, "--brokers", tt.brokers)
		}
		if code, _, errs := call(t.Context(), tt.input, args...); code != exitUsage || !strings.Contains(errs, tt.want) {
			t.Errorf("code %d, %s, want %q", code, errs, tt.want)
		}
	}
}

// Two runs share a cluster and a model server that are not the demo's.
func TestDemoOnForeignBrokerAndModel(t *testing.T) {
	t.Parallel()
	b, err := broker.StartEmbedded(broker.EmbeddedConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	model, err := modelserver.New(modelserver.Config{Faults: modelserver.Faults{Malformed: 0.3}})
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewServer(model)
	defer ts.Close()
	for range 2 {
		r, errs := demoJSON(t, head(t, 60), "--brokers", b.Addr(), "--model-url", ts.URL+"/v1")
		if r.Events != 60 || r.ModelCalls <= 60 || !strings.Contains(errs, "Kafka at "+b.Addr()) {
			t.Errorf("%+v\n%s", r, errs)
		}
	}
	if s := model.Ledger().Stats(); s.Answered < 100 || s.Unlabeled != s.Calls {
		t.Errorf("the foreign model saw %+v", s)
	}
}

func TestModelServerCommand(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	r, w := io.Pipe()
	done := make(chan int, 1)
	go func() {
		done <- dispatch(ctx, []string{"model-server", "--addr", "127.0.0.1:0", "--latency", "1ms"}, stdio{nil, w, os.Stderr})
		_ = w.Close() // it never fails
	}()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil || !strings.Contains(line, "classical sentiment model") {
		t.Fatal(line, err)
	}
	_, rest, _ := strings.Cut(line, "http://")
	addr, _, _ := strings.Cut(rest, "/")
	if _, _, err := net.SplitHostPort(addr); err != nil {
		t.Fatal(line, err)
	}
	if err := checkModel(ctx, "http://"+addr, "vader"); err != nil {
		t.Error(err)
	}
	stop()
	if code := <-done; code != exitOK {
		t.Errorf("exit code %d", code)
	}
}
