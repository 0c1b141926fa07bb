//go:build integration

package chaos_test

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/millrace/millrace"
	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/internal/broker/brokertest"
	"github.com/millrace/millrace/internal/chaos"
)

// The test binary is its own worker.
const (
	workerBrokers = "CHAOS_WORKER_BROKERS"
	workerState   = "CHAOS_WORKER_STATE"
)

func TestMain(m *testing.M) {
	if addr := os.Getenv(workerBrokers); addr != "" {
		os.Exit(worker(addr, os.Getenv(workerState)))
	}
	os.Exit(m.Run())
}

func worker(addr, dir string) int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	app, err := millrace.New(chaos.Topology(), millrace.Brokers(addr), millrace.StateDir(dir), millrace.Logger(log))
	if err == nil {
		err = app.Run(ctx)
	}
	if err != nil {
		log.Error("worker", "error", err)
		return 1
	}
	return 0
}

// TestFaults kills workers at random moments, restarts the broker the hard way,
// and, with the newer transaction protocol, freezes a worker until it is a zombie;
// every record is recomputed. Together with both transaction versions a run of the
// integration tests has 25 kills.
func TestFaults(t *testing.T) {
	cfg := chaos.Config{
		Partitions: 4, Workers: 2, Records: 30_000, Keys: 500,
		Kills: 17, Restarts: 2, Freezes: 1, FreezeFor: 50 * time.Second,
		Pause: 1200 * time.Millisecond, Seed: uint64(time.Now().UnixNano()), Dir: t.TempDir(), Log: t.Output(),
	}
	if cmp.Or(os.Getenv(broker.TransactionVersionEnv), "2") == "1" {
		cfg.Kills, cfg.Restarts, cfg.Freezes = 8, 1, 0
	}
	kafka := brokertest.Kafka(t, broker.KafkaConfig{})
	cfg.Brokers = []string{kafka.Addr()}
	cfg.Restart = func(ctx context.Context) error {
		if err := kafka.Kill(); err != nil {
			return err
		}
		return kafka.Restart(ctx)
	}
	cfg.Command = func(_ int, dir string) *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), workerBrokers+"="+kafka.Addr(), workerState+"="+dir)
		return cmd
	}
	report, err := chaos.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if !report.OK() {
		t.Fatal(report)
	}
	t.Log(report)
}
