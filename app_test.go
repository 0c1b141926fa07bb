package millrace_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace"
	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// Mistakes of the topology and of the options are reported together, each with what
// to do.
func TestNewReportsEverything(t *testing.T) {
	t.Parallel()
	b := topology.New("app")
	in := topology.Stream(b, "in", serde.String(), serde.String())
	in.GroupByKey().Count("same")
	in.GroupByKey().Count("same")
	_, err := millrace.New(b, millrace.HTTP("0.0.0.0:8080"), millrace.Workers(-1), millrace.CommitInterval(time.Hour),
		millrace.MaxRowBytes(-5), millrace.Compress("brotli"), millrace.SASL("PLAIN", nil))
	for _, want := range []string{
		`application "app"`, `the name is taken by count "same"`, "no broker", "no state directory", "loopback", "workers", "commit interval", "MaxRowBytes", "brotli", "PLAIN",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
	if _, err := millrace.New(nil); err == nil || !strings.Contains(err.Error(), "topology.New") {
		t.Errorf("without a topology: %v", err)
	}
}

// newVisits returns the application of the tests on a broker.
func newVisits(t *testing.T, addr, dir string, opts ...millrace.Option) *millrace.App {
	t.Helper()
	b, _, _ := visits()
	app, err := millrace.New(b, append(opts, millrace.Brokers(addr), millrace.StateDir(dir))...)
	if err != nil {
		t.Fatal(err)
	}
	return app
}

// An instance runs once, has its state directory for itself, and its registry.
func TestOneRunOneDirectoryOneRegistry(t *testing.T) {
	t.Parallel()
	addr := embedded(t, broker.Topic{Name: "pages", Partitions: 1})
	dir := t.TempDir()
	registry := prometheus.NewRegistry()
	app := newVisits(t, addr, dir, millrace.Metrics(registry), millrace.Metrics(nil))
	stop := run(t, app)
	eventually(t, true, func() (bool, error) { return app.Ready(), nil })
	for want, other := range map[string]*millrace.App{
		"Run was called before":         app,
		"the state directory is in use": newVisits(t, addr, dir),
		"a registry of its own":         newVisits(t, addr, t.TempDir(), millrace.Metrics(registry)),
	} {
		if err := other.Run(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	pages(t, addr, 0, "ann") // the first is none the worse
	_, total, _ := visits()
	eventually(t, 1, func() (int64, error) { n, _, err := state.View(app, total).Get(t.Context(), "ann"); return n, err })
	stop()
	again := newVisits(t, addr, dir, millrace.Metrics(registry)) // all is free again
	defer run(t, again)()
	eventually(t, 1, func() (int64, error) { n, _, err := state.View(again, total).Get(t.Context(), "ann"); return n, err })
}

// A state directory that is deleted under a running instance is no reason for wrong
// counts: the instance ends with an error or goes on, and the next starts from the
// changelogs.
func TestDeletedStateDirectory(t *testing.T) {
	t.Parallel()
	addr := embedded(t, broker.Topic{Name: "pages", Partitions: 1})
	dir := filepath.Join(t.TempDir(), "state")
	_, total, _ := visits()
	count := func(app *millrace.App) func() (int64, error) {
		return func() (int64, error) { n, _, err := state.View(app, total).Get(t.Context(), "ann"); return n, err }
	}
	app := newVisits(t, addr, dir)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- app.Run(ctx) }()
	pages(t, addr, 0, "ann", "ann")
	eventually(t, 2, count(app))
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	pages(t, addr, 1, "ann")
	cancel()
	t.Logf("the instance ended with: %v", <-done)
	next := newVisits(t, addr, dir)
	defer run(t, next)()
	pages(t, addr, 2, "ann")
	eventually(t, 4, count(next))
}

// The health server answers on loopback; it is ready when the tasks run.
func TestHealth(t *testing.T) {
	t.Parallel()
	addr := embedded(t, broker.Topic{Name: "pages", Partitions: 2})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	app := newVisits(t, addr, t.TempDir(), millrace.HTTP(at), millrace.Metrics(prometheus.NewRegistry()))
	defer run(t, app)()
	get := func(path string) (int, string) {
		resp, err := http.Get("http://" + at + path)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	eventually(t, http.StatusOK, func() (int, error) { code, _ := get("/readyz"); return code, nil })
	if code, body := get("/livez"); code != http.StatusOK {
		t.Errorf("/livez: %d %s", code, body)
	}
	pages(t, addr, 0, "ann", "bob")
	eventually(t, true, func() (bool, error) {
		_, body := get("/metrics")
		return strings.Contains(body, `millrace_task_state{partition="1"`) && strings.Contains(body, "millrace_records_total{"), nil
	})
	_, body := get("/tasks")
	var tasks []struct {
		SubTopology string `json:"subtopology"`
		Group       string `json:"group"`
		State       string `json:"state"`
	}
	if err := json.Unmarshal([]byte(body), &tasks); err != nil || len(tasks) != 2 || tasks[0].State != "RUNNING" || tasks[0].Group != "visits" {
		t.Errorf("/tasks: %v, %s", err, body)
	}
	resp, err := http.Post("http://"+at+"/tasks", "text/plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST /tasks: %s", resp.Status)
	}
}
