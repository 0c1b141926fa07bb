package millrace

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/millrace/millrace/alert"
	"github.com/millrace/millrace/internal/engine"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/processors"
)

// An Option sets something of an [App].
type Option func(*engine.Config)

// toolConfig returns what the options say for a client beside an application: its
// prompts, its dead letters.
func toolConfig(what, app string, opts []Option) (*engine.Config, error) {
	cfg := &engine.Config{}
	for _, o := range opts {
		o(cfg)
	}
	errs := cfg.Kafka.Validate()
	if app == "" {
		errs = append(errs, errors.New("no application: name the one that topology.New names"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("%s of application %q: %w", what, app, err)
	}
	return cfg, nil
}

// Brokers names the bootstrap addresses of the Kafka cluster, host:port. Required.
func Brokers(addrs ...string) Option {
	return func(c *engine.Config) { c.Kafka.Brokers = addrs }
}

// StateDir names the directory of the instance's identity and state. Required; it
// must survive restarts, and belong to one process at a time.
func StateDir(dir string) Option {
	return func(c *engine.Config) { c.StateDir = dir }
}

// TLS encrypts the connections to the brokers. The minimum version is 1.2; client
// certificates in cfg make it mutual.
func TLS(cfg *tls.Config) Option {
	return func(c *engine.Config) { c.Kafka.TLS = cfg }
}

// A Secret is a password or token. However it is printed, logged or encoded, it
// reads ***.
type Secret = kafka.Secret

// NewSecret hides s.
func NewSecret(s string) Secret { return kafka.NewSecret(s) }

// Credentials are what a SASL mechanism sends: user and password, or a token
// alone for OAUTHBEARER.
type Credentials = kafka.Credentials

// The SASL mechanisms. Plain and OAuthBearer send the secret readable and are
// refused without [TLS].
const (
	Plain       = kafka.Plain
	ScramSHA256 = kafka.ScramSHA256
	ScramSHA512 = kafka.ScramSHA512
	OAuthBearer = kafka.OAuthBearer
)

// SASL authenticates the connections to the brokers. credentials is asked for
// every new connection, so that they can change while the program runs; it must be
// safe for concurrent use.
func SASL(mechanism string, credentials func(context.Context) (Credentials, error)) Option {
	return func(c *engine.Config) {
		c.Kafka.SASL = &kafka.SASL{Mechanism: mechanism, Credentials: credentials}
	}
}

// Dialer replaces the network dialer of the Kafka clients, for tests and proxies.
func Dialer(dial func(ctx context.Context, network, address string) (net.Conn, error)) Option {
	return func(c *engine.Config) { c.Kafka.Dialer = dial }
}

// ClientID is what the brokers call the instance in logs and quotas; default
// "millrace".
func ClientID(id string) Option {
	return func(c *engine.Config) { c.Kafka.ClientID = id }
}

// Compression is a codec for what the instance writes.
type Compression string

// The codecs.
const (
	NoCompression Compression = "none"
	Gzip          Compression = "gzip"
	Snappy        Compression = "snappy"
	LZ4           Compression = "lz4"
	Zstd          Compression = "zstd"
)

// Compress sets the compression of what the instance writes; default
// [NoCompression], as in Kafka's own producers (compression.type). A name that is
// none of the codecs is reported by [New].
func Compress(codec Compression) Option {
	return func(c *engine.Config) { c.Compression = string(codec) }
}

// Workers sets how many workers each Kafka group gets in this instance; default 2.
// A worker is one group member with one transactional producer (num.stream.threads).
func Workers(n int) Option {
	return func(c *engine.Config) { c.Workers = n }
}

// CommitInterval is the longest time between two commits while records flow;
// default 100 ms (commit.interval.ms). With little input a commit follows at once.
// While the tasks of a worker lag by more than 50,000 records, and none of them waits
// for answers, it is three times as long: they catch up sooner with fewer commits.
func CommitInterval(d time.Duration) Option {
	return func(c *engine.Config) { c.CommitInterval = d }
}

// MaxTaskIdle is how long a task with several inputs waits for an empty one before
// it goes on with the others, in order of timestamps; default 0: only for inputs
// known to hold data. A negative value never waits (max.task.idle.ms).
func MaxTaskIdle(d time.Duration) Option {
	return func(c *engine.Config) { c.MaxTaskIdle = d }
}

// StateMemory bounds the memory of the instance's caches of state, in bytes: half of
// it for rows, half for blocks of the database; default 512 MiB, taken as state grows.
// A row takes its key, its value and 176 bytes. State that does not fit is read from
// disk, at several times the CPU per record: bench/README.md has the figures. Beside
// it the database takes up to 256 MiB for what it has not written to disk yet.
func StateMemory(bytes int64) Option {
	return func(c *engine.Config) { c.StateMemory = bytes }
}

// MaxRowBytes bounds the rows of stores; default 1,000,000, which fits the broker's
// default max.message.bytes of the changelogs.
func MaxRowBytes(n int) Option {
	return func(c *engine.Config) { c.MaxRowBytes = n }
}

// OnError decides what becomes of a record that failed, unless the step decided
// itself with [processors.WithAction]. The default dead-letters the record, and
// stops the task on failures of the state store. A policy that panics stops the task.
func OnError(policy func(*processors.Error) processors.Action) Option {
	return func(c *engine.Config) { c.Policy = policy }
}

// SkipLost goes on behind records that retention removed before they were read, behind
// batches that unpack to more than 64 MiB, and where a broker has cut off its log: what
// it lost there was processed, and its outputs stay. The default parks the task and
// reports the range.
func SkipLost() Option {
	return func(c *engine.Config) { c.SkipLost = true }
}

// KeepMembership keeps the instance in its groups when it stops, so that a restart
// within 45 s moves no task.
func KeepMembership() Option {
	return func(c *engine.Config) { c.KeepMembership = true }
}

// Replication sets the replication factor of internal topics; default: the
// broker's.
func Replication(factor int16) Option {
	return func(c *engine.Config) { c.Replication = factor }
}

// HTTP serves /livez, /readyz, /tasks and, with [Metrics], /metrics on a loopback
// address, for example "127.0.0.1:8080". There is no authentication.
func HTTP(addr string) Option {
	return func(c *engine.Config) { c.HTTP = addr }
}

// Logger takes the instance's log; default: none.
func Logger(l *slog.Logger) Option {
	return func(c *engine.Config) { c.Logger, c.Kafka.Logger = l, l }
}

// Metrics registers the instance's Prometheus metrics while it runs; default: none.
// Two applications in one process need a registry each.
func Metrics(r *prometheus.Registry) Option {
	return func(c *engine.Config) {
		if r != nil { // a nil registry in an interface is none
			c.Registry = r
		}
	}
}

// Tracing sends the instance's spans to an OpenTelemetry provider; default: the global
// one. Enrichments have spans, which are part of the trace that the headers traceparent
// and tracestate of their events name.
func Tracing(p trace.TracerProvider) Option {
	return func(c *engine.Config) { c.TracerProvider = p }
}

// Meters sends the OpenTelemetry metrics of model calls to a provider; default: the
// global one. [Metrics] has them too, and all others.
func Meters(p metric.MeterProvider) Option {
	return func(c *engine.Config) { c.MeterProvider = p }
}

// OnAlert tells sink of what goes wrong, once when it begins and once when it is over:
// see package alert, and docs/operations.md for what to do. It may be given several
// times. Sinks are called outside of the pipeline, which never waits for them; what is
// wrong is looked at on each instance.
func OnAlert(sink alert.Sink) Option {
	return func(c *engine.Config) { c.Alerts = append(c.Alerts, sink) }
}

// AlertRules says when alerts are raised; see [alert.Rules] for the defaults.
func AlertRules(r alert.Rules) Option {
	return func(c *engine.Config) { c.AlertRules = r }
}

// OnTaskState calls fn at every change of a task's state. fn must not block; a panic
// of it is logged.
func OnTaskState(fn func(TaskStatus)) Option {
	return func(c *engine.Config) { c.Listener = fn }
}
