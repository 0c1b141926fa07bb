//go:build integration

package enrich_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/internal/broker/brokertest"
	"github.com/millrace/millrace/internal/chaos/enrich"
)

// The test binary is its own worker.
func TestMain(m *testing.M) {
	if config := os.Getenv(enrich.Env); config != "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := enrich.Worker(ctx, config, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "worker:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestKills kills workers at random moments while a third of their model calls fail.
// Everything that was written is recomputed.
func TestKills(t *testing.T) {
	runKills(t, enrich.Config{Events: 3000, Keys: 200, Kills: 6})
}

// TestKillsStrict does so in strict order.
func TestKillsStrict(t *testing.T) {
	runKills(t, enrich.Config{Events: 1000, Keys: 200, Kills: 3, Strict: true})
}

func runKills(t *testing.T, cfg enrich.Config) {
	kafka := brokertest.Kafka(t, broker.KafkaConfig{})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Brokers = []string{kafka.Addr()}
	cfg.FaultRate, cfg.Pause, cfg.Seed = 0.3, 2*time.Second, uint64(time.Now().UnixNano())
	cfg.Dir, cfg.Log = t.TempDir(), t.Output()
	cfg.Command = func() *exec.Cmd { return exec.Command(self) }
	sum, err := enrich.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if !sum.OK {
		t.Fatal(sum)
	}
	t.Log(sum)
}
