package engine_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/millrace/millrace/internal/engine"
	"github.com/millrace/millrace/internal/sim"
)

// plantedSchedules is how many schedules may pass without a planted bug being
// found. Most take one to five; Seed names the first of those that take longer.
const plantedSchedules = 100

// plantedRuns are the schedules that show a planted bug soon. The others are found
// by tests of their own, see TestPlantedByHand.
var plantedRuns = map[string]sim.Config{
	"offsets are left out of the transaction":  {Mix: sim.Mix{sim.Kill: 1, sim.Restart: 1}},
	"outputs are written twice after an abort": {Mix: sim.Mix{sim.BrokerError: 2, sim.ComeAndGo: 1}},
	"rows and cache are kept on abort":         {Mix: sim.Mix{sim.BrokerError: 2, sim.ComeAndGo: 1}},
	"the restore skips the tail":               {Mix: sim.Mix{sim.Kill: 1, sim.ComeAndGo: 1}},
	"rows are written before the commit":       {Mix: sim.Mix{sim.BrokerError: 2, sim.ComeAndGo: 1}},
	"the loop is not rewound":                  {Mix: sim.Mix{sim.AbortedCommit: 1}},
	"calls are dispatched before the commit":   {Mix: sim.Mix{sim.AbortedCommit: 1}},
	"offsets move before the records are done": {Mix: sim.Mix{sim.Kill: 2, sim.BrokerError: 1, sim.AppliedError: 1}, Seed: 24},
}

// The simulation finds every planted bug: it is worth what it says of the engine
// without one.
func TestPlantedBugs(t *testing.T) {
	t.Parallel()
	for _, name := range slices.Sorted(maps.Keys(plantedRuns)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bug, ok := engine.Bugs[name]
			if !ok {
				t.Fatal("no such bug")
			}
			cfg := plantedRuns[name]
			first := max(cfg.Seed, 1)
			cfg.Instances, cfg.Faults = 2, 12
			cfg.Tweak = func(c *engine.Config) { engine.Plant(c, bug) }
			for seed := range uint64(plantedSchedules) {
				cfg.Seed = first + seed
				if err := schedule(t, cfg); err != nil {
					found, _, _ := strings.Cut(err.Error(), "\ntrace:")
					t.Logf("found by schedule %d: %s", seed+1, found)
					cfg.Tweak = nil
					if err := schedule(t, cfg); err != nil {
						t.Errorf("the schedule fails without the bug too: %v", err)
					}
					return
				}
			}
			t.Errorf("%d schedules have not found it", plantedSchedules)
		})
	}
}

// schedule runs a schedule in a bubble and returns what it found.
func schedule(t *testing.T, cfg sim.Config) (found error) {
	synctest.Test(t, func(t *testing.T) { found = sim.Run(t.Context(), cfg) })
	return found
}
