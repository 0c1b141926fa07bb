package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	_ "embed"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TransactionVersionEnv names the environment variable that gives the
// transaction version where [KafkaConfig] leaves it open; `make integration` runs
// all tests once with 1 and once with 2.
const TransactionVersionEnv = "MILLRACE_TRANSACTION_VERSION"

// KafkaConfig configures a real broker. The zero value is usable.
type KafkaConfig struct {
	// TransactionVersion is 1 or 2 (KIP-890 part 2); 0 means the one in
	// [TransactionVersionEnv], or 2.
	TransactionVersion int
	// Properties are added to server.properties, replacing ours of the same name:
	// for example "group.min.session.timeout.ms".
	Properties map[string]string
	// HeapMB bounds the JVM's heap; 0 means 512, at most 1024.
	HeapMB int
}

// A Kafka is a single-node Apache Kafka (KRaft, broker and controller in one Java
// process) on free ports of 127.0.0.1, with its data in a temporary directory. On
// Linux the Java process ends with this process. Its methods are safe for
// concurrent use.
type Kafka struct {
	cfg        KafkaConfig
	libs       string
	dir        string
	lock       io.Closer
	port       int // of the broker
	controller int // port of the controller

	mu   sync.Mutex
	proc *process // nil while stopped
	// killed says that the controller has not learnt of the broker's end.
	killed bool
}

// StartKafka starts a broker and returns when clients can use it: about 10 s on
// 2 cores, and the time to fetch the jars when they are not cached. Close must be
// called. The error says what to install if Java or Maven is missing.
func StartKafka(ctx context.Context, cfg KafkaConfig) (*Kafka, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if err := Available(); err != nil {
		return nil, err
	}
	libs, err := FetchJars(ctx)
	if err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		k, err := startFresh(ctx, cfg, libs)
		if err == nil || attempt == 3 || !strings.Contains(err.Error(), "Address already in use") {
			return k, err
		}
	}
}

func (cfg *KafkaConfig) check() error {
	var errs []error
	version := strconv.Itoa(cfg.TransactionVersion)
	if cfg.TransactionVersion == 0 {
		version = cmp.Or(os.Getenv(TransactionVersionEnv), "2")
	}
	switch version {
	case "1", "2":
		cfg.TransactionVersion = int(version[0] - '0')
	default:
		errs = append(errs, fmt.Errorf("transaction version %s (or %s): use 1 or 2", version, TransactionVersionEnv))
	}
	if cfg.HeapMB == 0 {
		cfg.HeapMB = 512
	}
	if cfg.HeapMB < 128 || cfg.HeapMB > 1024 {
		errs = append(errs, fmt.Errorf("heap of %d MB: use 128 to 1024", cfg.HeapMB))
	}
	if len(errs) > 0 {
		return fmt.Errorf("kafka broker: %w", errors.Join(errs...))
	}
	return nil
}

func startFresh(ctx context.Context, cfg KafkaConfig, libs string) (_ *Kafka, err error) {
	k := &Kafka{cfg: cfg, libs: libs}
	if k.dir, k.lock, err = tempDir(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.removeDir())
		}
	}()
	if k.port, k.controller, err = freePorts(); err != nil {
		return nil, err
	}
	if err = k.format(ctx); err != nil {
		return nil, err
	}
	if err = k.Restart(ctx); err != nil {
		return nil, err
	}
	return k, nil
}

// Addr returns the address of the broker, 127.0.0.1:port. It stays the same over
// restarts.
func (k *Kafka) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(k.port)) }

// LogFile returns the path of the broker's log, which is removed by Close.
func (k *Kafka) LogFile() string { return filepath.Join(k.dir, "server.log") }

// PID returns the process id of the broker, 0 while it is stopped.
func (k *Kafka) PID() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.proc == nil {
		return 0
	}
	return k.proc.cmd.Process.Pid
}

// Stop ends the broker in an orderly way and waits for it; the data stay for
// [Kafka.Restart]. A broker that does not end within 30 s is killed, and Stop
// returns an error. It does nothing while the broker is stopped.
func (k *Kafka) Stop() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.stop()
}

func (k *Kafka) stop() error {
	if k.proc == nil {
		return nil
	}
	p := k.proc
	k.proc = nil
	return p.stop(30 * time.Second)
}

// Kill ends the broker with SIGKILL and waits for its end; the data stay for
// [Kafka.Restart]. It does nothing while the broker is stopped.
func (k *Kafka) Kill() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.proc == nil {
		return nil
	}
	p := k.proc
	k.proc, k.killed = nil, true
	return p.kill()
}

// Restart stops the broker if it runs, starts it again with the same data on the
// same port, and returns when clients can use it or ctx ends. After a kill it first
// has the controller notice that the broker is gone.
func (k *Kafka) Restart(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.stop(); err != nil {
		return err
	}
	if k.killed {
		if err := k.fence(ctx); err != nil {
			return fmt.Errorf("kafka broker at %s: fence what was killed: %w", k.Addr(), err)
		}
		k.killed = false
	}
	p, err := k.java("server.properties", k.properties(nil))
	if err != nil {
		return err
	}
	if err := k.waitReady(ctx, p); err != nil {
		text, _ := os.ReadFile(k.LogFile())
		return fmt.Errorf("kafka broker at %s did not start: %w\nend of its log:\n%s", k.Addr(), errors.Join(err, p.kill()), tail(text, 4000))
	}
	k.proc = p
	return k.checkMarkers()
}

// Close kills the broker and removes its data. It may be called more than once.
func (k *Kafka) Close() error {
	return errors.Join(k.Kill(), k.removeDir())
}

// waitReady returns when the broker is registered with its controller: only then
// does its metadata name a broker, and can topics be created.
func (k *Kafka) waitReady(ctx context.Context, p *process) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 90*time.Second, errors.New("not ready after 90 s"))
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()), kgo.RequestRetries(0))
	if err != nil {
		return err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	return poll(ctx, 50*time.Millisecond, func() error {
		select {
		case <-p.done:
			return permanent{fmt.Errorf("java ended: %v", p.cmd.ProcessState)}
		default:
		}
		brokers, err := admin.ListBrokers(ctx)
		if err == nil && len(brokers) == 0 {
			err = errors.New("the broker is not registered yet")
		}
		return err
	})
}

// args returns Java's arguments for a main class of Kafka.
func (k *Kafka) args(rest ...string) []string {
	return append([]string{"-Djava.awt.headless=true", "-Dlog4j2.configurationFile=log4j2.xml", "-cp", filepath.Join(k.libs, "*")}, rest...)
}

// freePorts returns two free ports below the range from which the system takes
// the local ports of outgoing connections. In that range a client that dials a
// stopped broker can be given the broker's own port, connect to itself, and keep
// the broker from coming back.
func freePorts() (broker, controller int, err error) {
	for range 200 {
		broker = 20000 + 2*rand.IntN(5000)
		controller = broker + 1
		if portFree(broker) && portFree(controller) {
			return broker, controller, nil
		}
	}
	return 0, 0, errors.New("kafka broker: found no two free ports between 20000 and 30000 on 127.0.0.1")
}

func portFree(port int) bool {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	return l.Close() == nil
}

//go:embed log4j2.xml
var log4j []byte

// format writes the configuration and formats the data directory.
func (k *Kafka) format(ctx context.Context) error {
	if err := errors.Join(k.write("log4j2.xml", log4j), k.write("server.properties", k.properties(nil))); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "java", k.args("-Xmx128m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "kafka.tools.StorageTool", "format",
		"--standalone", "--cluster-id", clusterID(), "--config", "server.properties",
		"--feature", "transaction.version="+strconv.Itoa(k.cfg.TransactionVersion))...)
	cmd.Dir = k.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kafka broker: format storage: %w\n%s", err, tail(out, 2000))
	}
	return nil
}

// clusterID is Kafka's form of a UUID; one that began with "-" would be taken
// for a flag.
func clusterID() string { return "M" + randomText(21) }

func randomText(n int) string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	b := make([]byte, n)
	for i := range b {
		b[i] = letters[rand.IntN(len(letters))]
	}
	return string(b)
}

func (k *Kafka) write(name string, data []byte) error {
	if err := os.WriteFile(filepath.Join(k.dir, name), data, 0o600); err != nil {
		return fmt.Errorf("kafka broker: %w", err)
	}
	return nil
}

func (k *Kafka) controllerAddr() string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(k.controller))
}

// properties returns the broker's configuration, with changes.
func (k *Kafka) properties(changes map[string]string) []byte {
	controller := k.controllerAddr()
	listeners := "PLAINTEXT://" + k.Addr() + ",CONTROLLER://" + controller
	p := map[string]string{
		"process.roles":                                    "broker,controller",
		"node.id":                                          "1",
		"controller.quorum.bootstrap.servers":              controller,
		"listeners":                                        listeners,
		"advertised.listeners":                             listeners,
		"inter.broker.listener.name":                       "PLAINTEXT",
		"controller.listener.names":                        "CONTROLLER",
		"listener.security.protocol.map":                   "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
		"log.dirs":                                         "data",
		"num.partitions":                                   "4",
		"auto.create.topics.enable":                        "false",
		"default.replication.factor":                       "1",
		"min.insync.replicas":                              "1",
		"offsets.topic.replication.factor":                 "1",
		"offsets.topic.num.partitions":                     "8",
		"transaction.state.log.replication.factor":         "1",
		"transaction.state.log.min.isr":                    "1",
		"transaction.state.log.num.partitions":             "8",
		"share.coordinator.state.topic.replication.factor": "1",
		"share.coordinator.state.topic.min.isr":            "1",
		"group.initial.rebalance.delay.ms":                 "0",
		"log.cleaner.dedupe.buffer.size":                   "16777216", // its default takes a quarter of the heap
	}
	maps.Copy(p, k.cfg.Properties)
	maps.Copy(p, changes)
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(p)) {
		fmt.Fprintf(&b, "%s=%s\n", name, p[name])
	}
	return []byte(b.String())
}
