package broker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kgo"
)

// childEnv makes the test binary start a child of its own and wait; see
// TestChildEndsWithParent.
const childEnv = "MILLRACE_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("sleep", "1000")
	cmd.Stdout = os.Stdout
	p, err := startProcess(cmd)
	if err != nil {
		panic(err)
	}
	if _, err := os.Stdout.WriteString("started\n"); err != nil {
		panic(err)
	}
	<-p.done
}

func produce(t *testing.T, addr, topic, value string) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.DefaultProduceTopic(topic))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.ProduceSync(t.Context(), kgo.StringRecord(value)).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// consume returns the first n values of the topic.
func consume(t *testing.T, addr, topic string, n int) []string {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var values []string
	for len(values) < n {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("after %d of %d records: %v", len(values), n, err)
		}
		fetches.EachRecord(func(r *kgo.Record) { values = append(values, string(r.Value)) })
	}
	return values
}

func startEmbedded(t *testing.T, cfg EmbeddedConfig) *Embedded {
	t.Helper()
	e, err := StartEmbedded(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

func TestEmbeddedKeepsDataOnDisk(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new", "broker")
	first := startEmbedded(t, EmbeddedConfig{Dir: dir})
	topic := Topic{Name: "words", Partitions: 1, Configs: map[string]string{"retention.ms": "-1"}}
	if err := CreateTopics(t.Context(), first.Addr(), topic); err != nil {
		t.Fatal(err)
	}
	produce(t, first.Addr(), "words", "one")
	for range 2 { // Close is idempotent
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
	}
	second := startEmbedded(t, EmbeddedConfig{Dir: dir})
	produce(t, second.Addr(), "words", "two")
	if got := consume(t, second.Addr(), "words", 2); strings.Join(got, " ") != "one two" {
		t.Errorf("records after a restart: %q, want one and two", got)
	}
}

func TestEmbeddedRefusesDirectoryInUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := startEmbedded(t, EmbeddedConfig{Dir: dir})
	if _, err := StartEmbedded(EmbeddedConfig{Dir: dir}); err == nil || !strings.Contains(err.Error(), "in use by another broker") {
		t.Fatalf("second broker on the directory: %v, want a refusal", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	startEmbedded(t, EmbeddedConfig{Dir: dir})
}

func TestEmbeddedErrors(t *testing.T) {
	t.Parallel()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	port := busy.Addr().(*net.TCPAddr).Port
	dir := t.TempDir()
	if _, err := StartEmbedded(EmbeddedConfig{Port: port, Dir: dir}); err == nil || !strings.Contains(err.Error(), "on port "+strconv.Itoa(port)) {
		t.Errorf("busy port: %v, want an error naming it", err)
	}
	startEmbedded(t, EmbeddedConfig{Dir: dir}) // the failed start let go of the lock

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := StartEmbedded(EmbeddedConfig{Dir: file}); err == nil || !strings.Contains(err.Error(), "data directory") {
		t.Errorf("directory that is a file: %v", err)
	}
}

func TestCreateTopics(t *testing.T) {
	t.Parallel()
	e := startEmbedded(t, EmbeddedConfig{})
	three := Topic{Name: "three", Partitions: 3}
	for range 2 { // what exists is left as it is
		if err := CreateTopics(t.Context(), e.Addr(), three, Topic{Name: "a.b", Partitions: 1}); err != nil {
			t.Fatal(err)
		}
	}
	three.Partitions = 4
	if err := CreateTopics(t.Context(), e.Addr(), three); err == nil || !strings.Contains(err.Error(), `topic "three" exists with 3 partitions, want 4`) {
		t.Errorf("other partition count: %v", err)
	}
	if err := CreateTopics(t.Context(), e.Addr(), Topic{Name: "a_b", Partitions: 1}); err == nil || !strings.Contains(err.Error(), `create topic "a_b"`) {
		t.Errorf("name that collides with a.b: %v", err)
	}
	gone, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("changed my mind"))
	if err := CreateTopics(gone, e.Addr(), Topic{Name: "late", Partitions: 1}); err == nil {
		t.Error("an ended context gave no error")
	}
}

func TestKafkaConfig(t *testing.T) {
	t.Setenv(TransactionVersionEnv, "")
	cfg := KafkaConfig{TransactionVersion: 3, HeapMB: 4096}
	err := cfg.check()
	if err == nil || !strings.Contains(err.Error(), "transaction version 3 ") || !strings.Contains(err.Error(), "heap of 4096 MB") {
		t.Errorf("check = %v, want both mistakes", err)
	}
	cfg = KafkaConfig{Properties: map[string]string{"num.partitions": "9", "x.y": "z"}}
	if err := cfg.check(); err != nil || cfg.TransactionVersion != 2 || cfg.HeapMB != 512 {
		t.Errorf("defaults: %+v, %v", cfg, err)
	}
	t.Setenv(TransactionVersionEnv, "1")
	if other := (KafkaConfig{}); other.check() != nil || other.TransactionVersion != 1 {
		t.Errorf("transaction version %d, want 1 of the environment", other.TransactionVersion)
	}
	k := &Kafka{cfg: cfg, port: 20002, controller: 20003}
	for _, line := range []string{"num.partitions=9\n", "x.y=z\n", "listeners=PLAINTEXT://127.0.0.1:20002,CONTROLLER://127.0.0.1:20003\n"} {
		if !bytes.Contains(k.properties(nil), []byte(line)) {
			t.Errorf("server.properties lacks %q:\n%s", line, k.properties(nil))
		}
	}
}

func TestFreePortsAreNotEphemeral(t *testing.T) {
	t.Parallel()
	broker, controller, err := freePorts()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []int{broker, controller} {
		if p < 20000 || p >= 30000 || !portFree(p) {
			t.Errorf("port %d is not a free one between 20000 and 30000", p)
		}
	}
}

func TestAvailableSaysWhatIsMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv(CacheEnv, t.TempDir())
	err := Available()
	if err == nil || !strings.Contains(err.Error(), "install Java 17") || !strings.Contains(err.Error(), "install Maven") {
		t.Fatalf("Available = %v, want Java and Maven named", err)
	}
	if _, err := StartKafka(t.Context(), KafkaConfig{}); err == nil {
		t.Error("StartKafka without Java gave no error")
	}
}

func TestOldJavaIsRefused(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the stand-in for java is a shell script")
	}
	bin := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	for version, want := range map[string]string{"1.8.0_402": "version 1: install 17", "11.0.2": "version 11: install 17", "17.0.15": "", "25": ""} {
		script := "#!/bin/sh\necho 'openjdk version \"" + version + "\"' >&2\n"
		if err := os.WriteFile(filepath.Join(bin, "java"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := javaVersion(); (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("java %s: %v, want %q", version, err, want)
		}
	}
}

func TestSweepRemovesWhatKilledOwnersLeft(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	stale := filepath.Join(os.TempDir(), tempPattern+"stale")
	unlocked := filepath.Join(os.TempDir(), tempPattern+"starting")
	for _, dir := range []string{stale, unlocked} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(stale, lockName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mine, lock, err := tempDir()
	if err != nil {
		t.Fatal(err)
	}
	sweep()
	if isDir(stale) || !isDir(unlocked) || !isDir(mine) {
		t.Errorf("stale %v, starting %v, mine %v; want only the stale one gone", isDir(stale), isDir(unlocked), isDir(mine))
	}
	if _, err := vfs.Default.Lock(filepath.Join(mine, lockName)); err == nil {
		t.Error("the directory in use is not locked")
	}
	k := &Kafka{dir: mine, lock: lock}
	for range 2 {
		if err := k.Close(); err != nil || isDir(mine) {
			t.Errorf("Close = %v, directory there: %v", err, isDir(mine))
		}
	}
}

func TestProcess(t *testing.T) {
	t.Parallel()
	if _, err := startProcess(exec.Command(filepath.Join(t.TempDir(), "nothing"))); err == nil {
		t.Error("starting a missing program gave no error")
	}
	stubborn := exec.Command("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1000; done")
	out, err := stubborn.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := startProcess(stubborn)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	if err := p.stop(time.Millisecond); err == nil || !strings.Contains(err.Error(), "did not end within 1ms and was killed") {
		t.Errorf("stop of a process that ignores SIGTERM: %v", err)
	}
	for range 2 { // an ended process is no error
		if err := p.kill(); err != nil {
			t.Errorf("kill of an ended process: %v", err)
		}
	}
	willing, err := startProcess(exec.Command("sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	if err := willing.stop(time.Minute); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// The grandchild holds the write end of the pipe, so that the pipe ends only
// when it, too, is gone.
func TestChildEndsWithParent(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux can end a child with its parent")
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), childEnv+"=1")
	parent.Stdout = write
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	if err := write.Close(); err != nil { // ours; the children have their own
		t.Fatal(err)
	}
	if err := read.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(read, make([]byte, len("started\n"))); err != nil {
		t.Fatal(err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // it was killed
	if _, err := io.Copy(io.Discard, read); err != nil {
		t.Errorf("the child outlives its parent: %v", err)
	}
}
