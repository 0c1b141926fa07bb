package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

func itoa(p int32) string { return strconv.Itoa(int(p)) }

// serveHTTP serves /livez, /readyz, /tasks and /metrics until ctx ends. It has no
// authentication and therefore listens on loopback addresses only.
func (inst *Instance) serveHTTP(ctx context.Context) error {
	ln, err := net.Listen("tcp", inst.cfg.HTTP)
	if err != nil {
		return fmt.Errorf("health server: %w", err)
	}
	if addr := ln.Addr().(*net.TCPAddr); !addr.IP.IsLoopback() {
		return errors.Join(fmt.Errorf("health server: %s is not a loopback address and the server has no authentication: use 127.0.0.1 and a proxy", addr), ln.Close())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", inst.livez)
	mux.HandleFunc("GET /readyz", inst.readyz)
	mux.HandleFunc("GET /tasks", inst.tasksPage)
	if g, ok := inst.cfg.Registry.(prometheus.Gatherer); ok {
		mux.Handle("GET /metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{}))
	}
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
	inst.log.Info("health server listens", "address", ln.Addr().String())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }() // ends with Shutdown
	select {
	case err := <-done:
		return fmt.Errorf("health server: %w", err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err = srv.Shutdown(stop)
	if served := <-done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// livez fails when a worker waits for a callback that does not return.
func (inst *Instance) livez(w http.ResponseWriter, _ *http.Request) {
	for _, s := range inst.Tasks() {
		if s.State == Parked && errors.Is(s.Err, errStuck) {
			http.Error(w, "task "+s.Task.String()+": "+s.Err.Error(), http.StatusServiceUnavailable)
			return
		}
	}
	fmt.Fprintln(w, "ok")
}

func (inst *Instance) readyz(w http.ResponseWriter, _ *http.Request) {
	if !inst.Ready() {
		http.Error(w, "starting or restoring", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// tasksPage lists the tasks as JSON.
func (inst *Instance) tasksPage(w http.ResponseWriter, _ *http.Request) {
	type row struct {
		SubTopology    string    `json:"subtopology"`
		Partition      int32     `json:"partition"`
		Group          string    `json:"group"`
		State          string    `json:"state"`
		Since          time.Time `json:"since"`
		Error          string    `json:"error,omitempty"`
		Lag            int64     `json:"lag"`
		Pending        int       `json:"pending"`
		RestoreDone    int64     `json:"restore_done"`
		RestoreTotal   int64     `json:"restore_total"`
		OldestInFlight string    `json:"oldest_in_flight,omitempty"`
	}
	rows := []row{}
	for _, s := range inst.Tasks() {
		r := row{s.Task.SubTopology, s.Task.Partition, s.Group, s.State.String(), s.Since, "", s.Lag, s.Pending, s.RestoreDone, s.RestoreTotal, ""}
		if s.Err != nil {
			r.Error = s.Err.Error()
		}
		if !s.Oldest.IsZero() {
			r.OldestInFlight = s.Oldest.UTC().Format(time.RFC3339Nano)
		}
		rows = append(rows, r)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if err := json.NewEncoder(w).Encode(rows); err != nil {
		inst.log.Debug("writing the task list", "error", err)
	}
}
