package sim

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
)

var (
	schedules = flag.Int("schedules", env("MILLRACE_SCHEDULES", defaultSchedules), "number of schedules")
	verbose   = flag.Bool("clients", false, "trace the Kafka clients too")
	firstSeed = flag.Uint64("seed", uint64(env("MILLRACE_SEED", 1)), "seed of the first schedule")
)

func env(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// TestSchedules runs random schedules, each in a bubble of its own.
func TestSchedules(t *testing.T) {
	t.Parallel()
	for seed := *firstSeed; seed < *firstSeed+uint64(*schedules); seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				if err := Run(t.Context(), Config{Seed: seed, Verbose: *verbose}); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// TestFound repeats the faults of schedules that have found something, whatever
// -schedules says.
func TestFound(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]Config{
		// A commit was refused with REBALANCE_IN_PROGRESS and no rebalance followed:
		// the worker waited for ever.
		"rebalance that never comes": {Seed: 1002, TransactionVersion: 2, Mix: Mix{BrokerError: 2, AppliedError: 1}, Instances: 2, Faults: 12},
		// An instance that was cut off with an answer on its way never ended.
		"append without a broker": {Seed: 2080, TransactionVersion: 2},
		// The disk forgot the entry of the state directory.
		"new directory lost": {Seed: 59, TransactionVersion: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				if err := Run(t.Context(), cfg); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}
