package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/millrace/millrace/alert"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// Config is what an [Instance] needs. The zero value of a field stands for the
// default it names.
type Config struct {
	Topology *topology.Topology
	Kafka    kafka.Config
	// StateDir holds the instance's identity and state. It is required.
	StateDir string
	// FS replaces the operating system's file system, for tests.
	FS vfs.FS
	// Workers per Kafka group; default 2.
	Workers int
	// CommitInterval is the longest a cycle lasts, but for one that lags; default
	// 100 ms.
	CommitInterval time.Duration
	// MaxTaskIdle is how long a task waits for an empty input before it goes on
	// with the others; default 0: only for inputs known to have data. Negative
	// never waits (max.task.idle.ms).
	MaxTaskIdle time.Duration
	// StateMemory is what the caches of the state may take, in bytes: half of it rows,
	// half blocks of the database. Default 512 MiB.
	StateMemory int64
	// MaxUncommittedBytes ends a cycle early; default 64 MiB.
	MaxUncommittedBytes int
	// MaxRowBytes bounds a row of a store; default 1,000,000, which fits the
	// broker's default max.message.bytes.
	MaxRowBytes int
	// Policy decides what becomes of a record that failed, if its step did not.
	Policy func(*processors.Error) processors.Action
	// SkipLost goes on behind records that retention removed unread, and where a broker
	// has cut off its log.
	SkipLost bool
	// KeepMembership keeps the instance in its groups when it stops, so that a
	// quick restart moves no task.
	KeepMembership bool
	// Compression of what is written: none (default), gzip, snappy, lz4 or zstd.
	Compression string
	// Replication is the replication factor of internal topics; default -1, the
	// broker's.
	Replication int16
	// HTTP is the address of the health and metrics server; empty for none.
	HTTP string
	// TopicCheck is how often topics are looked at for changes; default 30 s.
	TopicCheck time.Duration

	Logger   *slog.Logger
	Registry prometheus.Registerer
	// Listener hears every change of a task's state.
	Listener func(TaskStatus)
	// TracerProvider and MeterProvider are OpenTelemetry's; default: its global ones.
	TracerProvider trace.TracerProvider
	MeterProvider  metric.MeterProvider
	// Alerts are told of what goes wrong, as AlertRules say.
	Alerts     []alert.Sink
	AlertRules alert.Rules

	planted bug // for tests
}

// complete fills in the defaults and reports all mistakes.
func (c *Config) complete() error {
	var errs []error
	if c.Topology == nil {
		errs = append(errs, errors.New("no topology"))
	}
	if c.StateDir == "" {
		errs = append(errs, errors.New("no state directory: name one with millrace.StateDir; it holds the instance's identity and state and must survive restarts"))
	}
	if codec, err := kafka.Codec(c.Compression); err != nil {
		errs = append(errs, err)
	} else if codec != nil {
		c.Kafka.Compression = append(c.Kafka.Compression, *codec)
	}
	errs = append(errs, c.Kafka.Validate()...)
	def(&c.Workers, 2)
	def(&c.CommitInterval, 100*time.Millisecond)
	def(&c.StateMemory, 2*state.DefaultCacheBytes)
	def(&c.MaxUncommittedBytes, 64<<20)
	def(&c.MaxRowBytes, 1_000_000)
	def(&c.Replication, -1)
	def(&c.TopicCheck, 30*time.Second)
	if c.TracerProvider == nil {
		c.TracerProvider = otel.GetTracerProvider()
	}
	if c.MeterProvider == nil {
		c.MeterProvider = otel.GetMeterProvider()
	}
	errs = append(errs, c.AlertRules.Validate())
	c.AlertRules = c.AlertRules.WithDefaults()
	if c.Policy == nil {
		c.Policy = DefaultPolicy
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.HTTP != "" && !loopback(c.HTTP) {
		errs = append(errs, fmt.Errorf("HTTP address %q: it must be a loopback address with a port, such as 127.0.0.1:8080, since the server has no authentication", c.HTTP))
	}
	if c.MaxRowBytes < 0 {
		errs = append(errs, fmt.Errorf("MaxRowBytes %d: it must be positive", c.MaxRowBytes))
	}
	if c.Workers < 0 {
		errs = append(errs, fmt.Errorf("%d workers: at least 1", c.Workers))
	}
	if c.StateMemory < 0 {
		errs = append(errs, fmt.Errorf("state memory of %d bytes: it must not be negative", c.StateMemory))
	}
	if c.CommitInterval < 0 || c.CommitInterval > 10*time.Second {
		errs = append(errs, fmt.Errorf("commit interval %s: between 1ms and 10s, since it has to fit the rebalance timeout", c.CommitInterval))
	}
	return errors.Join(errs...)
}

// loopback reports whether addr is a port of this machine that no other can reach.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	return err == nil && (host == "localhost" || net.ParseIP(host).IsLoopback())
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// DefaultPolicy dead-letters what a record or its processing is to blame for, and
// stops on failures of the state store, which no record is to blame for.
func DefaultPolicy(e *processors.Error) processors.Action {
	if e.Class == processors.ClassState {
		return processors.Stop
	}
	return processors.DeadLetter
}
