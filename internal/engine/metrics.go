package engine

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
)

// metrics counts what the instance does. Labels have bounded values only: groups,
// sub-topologies, steps, topics.
type metrics struct {
	inst *Instance
	reg  prometheus.Registerer
	all  []prometheus.Collector

	recordsDone *prometheus.CounterVec
	failures    *prometheus.CounterVec
	drops       *prometheus.CounterVec
	commits     *prometheus.HistogramVec
	aborts      *prometheus.CounterVec
	lostRecords *prometheus.CounterVec
	restored    *prometheus.CounterVec
	calls       *prometheus.HistogramVec
	interrupted *prometheus.CounterVec

	steps *stepMetrics

	dirty atomic.Int64 // bytes written to the state since the last flush
}

func newMetrics(inst *Instance, reg prometheus.Registerer) *metrics {
	m := &metrics{inst: inst, reg: reg}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "millrace", Name: name, Help: help}, labels)
		m.all = append(m.all, c)
		return c
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "millrace", Name: name, Help: help, Buckets: buckets}, labels)
		m.all = append(m.all, h)
		return h
	}
	m.recordsDone = counter("records_total", "Source records whose offsets were committed.", "subtopology")
	m.failures = counter("record_errors_total", "Source records that failed, by class and what became of them.", "subtopology", "step", "class", "action")
	m.drops = counter("dropped_records_total", "Records that an operator dropped, by reason.", "subtopology", "step", "reason")
	m.commits = histogram("commit_seconds", "Duration of a commit: changelogs, flush, offsets, end of transaction.", prometheus.ExponentialBuckets(0.001, 2, 14), "group")
	m.aborts = counter("aborts_total", "Transactions that did not commit.", "group")
	m.lostRecords = counter("retention_lost_records_total", "Records that retention removed before the group read them, or of batches too large to unpack, each counted once by an instance.", "topic")
	m.restored = counter("restored_records_total", "Changelog records applied by restores.", "subtopology")
	m.calls = histogram("async_call_seconds", "Duration of the calls of asynchronous steps, retries included.", prometheus.ExponentialBuckets(0.005, 2, 16), "step", "outcome")
	m.interrupted = counter("async_interrupted_total", "Calls that were cancelled or found abandoned, and will be made again.", "step")
	m.steps = newStepMetrics(counter, histogram)
	m.all = append(m.all, taskCollector{inst}, stepCollector{inst})
	return m
}

// register makes the metrics known; unregister ends that.
func (m *metrics) register() error {
	if m.reg == nil {
		return nil
	}
	for i, c := range m.all {
		if err := m.reg.Register(c); err != nil {
			for _, c := range m.all[:i] {
				m.reg.Unregister(c)
			}
			return fmt.Errorf("metrics: %w: give each application of a process a registry of its own", err)
		}
	}
	return nil
}

func (m *metrics) unregister() {
	if m.reg == nil {
		return
	}
	for _, c := range m.all {
		m.reg.Unregister(c)
	}
}

func (m *metrics) failed(id state.TaskID, e *processors.Error, action processors.Action) {
	m.failures.WithLabelValues(id.SubTopology, e.Step, string(e.Class), action.String()).Inc()
}

func (m *metrics) dropped(id state.TaskID, step, reason string) {
	m.drops.WithLabelValues(id.SubTopology, step, reason).Inc()
}

func (m *metrics) lost(topic string, n int64) {
	m.lostRecords.WithLabelValues(topic).Add(float64(n))
}

func (m *metrics) committed(group string, took time.Duration) {
	m.commits.WithLabelValues(group).Observe(took.Seconds())
}

// CallEnded implements [CallObserver].
func (m *metrics) CallEnded(step, kind string, ran time.Duration) {
	m.calls.WithLabelValues(step, kind).Observe(ran.Seconds())
}

// CallInterrupted implements [CallObserver].
func (m *metrics) CallInterrupted(step string) { m.interrupted.WithLabelValues(step).Inc() }

func (m *metrics) globalError(store string) {
	m.failures.WithLabelValues(store, store, string(processors.ClassDecode), processors.Skip.String()).Inc()
}

// wrote notes that so many bytes of state are not flushed yet.
func (m *metrics) wrote(bytes int) { m.dirty.Add(int64(bytes)) }

func (m *metrics) unflushed() int64 { return m.dirty.Load() }

func (m *metrics) flushed() { m.dirty.Store(0) }

func (m *metrics) aborted(group string) { m.aborts.WithLabelValues(group).Inc() }

// processed counts the records of a committed cycle and refreshes the task's
// numbers.
func (m *metrics) processed(t *task, stateBytes int) {
	m.recordsDone.WithLabelValues(t.id.SubTopology).Add(float64(t.records))
	m.wrote(stateBytes)
	m.inst.report(t)
}

// taskCollector exports the status of the tasks.
type taskCollector struct{ inst *Instance }

var (
	descState   = prometheus.NewDesc("millrace_task_state", "State of a task: 0 rebalancing, 1 restoring, 2 running, 3 parked.", []string{"subtopology", "partition"}, nil)
	descLag     = prometheus.NewDesc("millrace_task_lag", "Offsets not yet committed plus in-flight entries.", []string{"subtopology", "partition"}, nil)
	descPending = prometheus.NewDesc("millrace_async_pending", "In-flight entries of an asynchronous step.", []string{"subtopology", "partition"}, nil)
	descOldest  = prometheus.NewDesc("millrace_async_oldest_seconds", "Age of the oldest in-flight entry.", []string{"subtopology", "partition"}, nil)
	descRows    = prometheus.NewDesc("millrace_expiring_store_rows", "Rows of a store of which rows expire: conversations, cached answers, spending.", []string{"store", "partition"}, nil)
	descBytes   = prometheus.NewDesc("millrace_expiring_store_bytes", "Bytes of their keys and values.", []string{"store", "partition"}, nil)
	descRestore = prometheus.NewDesc("millrace_restore_remaining", "Changelog offsets a restoring task has yet to read.", []string{"subtopology", "partition"}, nil)
)

func (c taskCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descState, descLag, descPending, descOldest, descRestore, descRows, descBytes} {
		ch <- d
	}
}

func (c taskCollector) Collect(ch chan<- prometheus.Metric) {
	for _, s := range c.inst.Tasks() {
		gauge := func(d *prometheus.Desc, v float64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, s.Task.SubTopology, itoa(s.Task.Partition))
		}
		gauge(descState, float64(s.State))
		gauge(descLag, float64(s.Lag))
		gauge(descPending, float64(s.Pending))
		gauge(descRestore, float64(s.RestoreTotal-s.RestoreDone))
		for _, store := range s.Stores {
			ch <- prometheus.MustNewConstMetric(descRows, prometheus.GaugeValue, float64(store.Rows), store.Store, itoa(s.Task.Partition))
			ch <- prometheus.MustNewConstMetric(descBytes, prometheus.GaugeValue, float64(store.Bytes), store.Store, itoa(s.Task.Partition))
		}
		if !s.Oldest.IsZero() {
			gauge(descOldest, time.Since(s.Oldest).Seconds())
		}
	}
}
