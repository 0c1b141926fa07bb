package broker

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kfake"
)

// EmbeddedConfig configures an embedded broker. The zero value is a broker in
// memory on a free port.
type EmbeddedConfig struct {
	// Dir, if not empty, keeps topics, groups and transactions on disk, and a
	// later start with the same directory goes on with them. It is created if
	// needed and locked: a second broker on it is refused.
	Dir string
	// Port is the TCP port on 127.0.0.1, 0 for a free one.
	Port int
	// Properties are broker settings, such as "message.max.bytes".
	Properties map[string]string
	// Options are further options of kfake, such as [kfake.TLS].
	Options []kfake.Opt
}

// An Embedded is a Kafka broker inside this process, for development and demos
// only. It is not crash-atomic: it has no transaction log and writes the marker
// of every partition, and the offsets, one after the other. When the process is
// killed in between, a transaction is committed on one partition and aborted on
// another, and what was written since the last segment roll may be lost. An orderly
// [Embedded.Close] keeps everything. Use Apache Kafka for data that matters.
//
// Its methods are safe for concurrent use.
type Embedded struct {
	cluster *kfake.Cluster
	addr    string
	lock    io.Closer
	once    sync.Once
	err     error
}

// StartEmbedded starts an embedded broker on 127.0.0.1. Topics are not created
// automatically; see [CreateTopics].
func StartEmbedded(cfg EmbeddedConfig) (*Embedded, error) {
	opts := []kfake.Opt{kfake.BrokerConfigs(cfg.Properties)}
	if cfg.Port != 0 {
		opts = append(opts, kfake.Ports(cfg.Port))
	} else {
		opts = append(opts, kfake.NumBrokers(1))
	}
	e := &Embedded{}
	if cfg.Dir != "" {
		if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
			return nil, fmt.Errorf("embedded broker: data directory: %w", err)
		}
		lock, err := vfs.Default.Lock(filepath.Join(cfg.Dir, "LOCK"))
		if err != nil {
			return nil, fmt.Errorf("embedded broker: data directory %s is in use by another broker, stop that one or take another directory: %w", cfg.Dir, err)
		}
		e.lock = lock
		opts = append(opts, kfake.DataDir(cfg.Dir))
	}
	cluster, err := kfake.NewCluster(append(opts, cfg.Options...)...)
	if err != nil {
		err = fmt.Errorf("embedded broker on port %s: %w", portName(cfg.Port), err)
		return nil, errors.Join(err, e.unlock())
	}
	e.cluster, e.addr = cluster, cluster.ListenAddrs()[0]
	return e, nil
}

func portName(port int) string {
	if port == 0 {
		return "(any)"
	}
	return strconv.Itoa(port)
}

// Addr returns the address of the broker, host:port.
func (e *Embedded) Addr() string { return e.addr }

// Cluster returns the kfake cluster, by which tests inject faults.
func (e *Embedded) Cluster() *kfake.Cluster { return e.cluster }

// Close stops the broker, keeps its data if it has a directory, and returns when
// all is written. It may be called more than once.
func (e *Embedded) Close() error {
	e.once.Do(func() {
		e.cluster.Close()
		e.err = e.unlock()
	})
	return e.err
}

func (e *Embedded) unlock() error {
	if e.lock == nil {
		return nil
	}
	return e.lock.Close()
}
