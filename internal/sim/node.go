package sim

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/internal/engine"
	"github.com/millrace/millrace/internal/kafka"
)

// stateDir is the state directory on every instance's file system.
const stateDir = "/state"

// A node is an instance of the application with its disk and its network.
type node struct {
	r      *run
	n      int
	name   string
	fs     *vfs.MemFS
	link   *link
	inst   *engine.Instance
	cancel context.CancelFunc
	done   chan struct{} // closed when the instance has ended
	err    error         // why, set before done is closed
	on     bool          // it is meant to run
	lives  int
}

func (r *run) newNode(n int) *node {
	nd := &node{r: r, n: n, fs: vfs.NewCrashableMem()}
	nd.link = r.newLink()
	return nd
}

func (r *run) newLink() *link {
	return &link{dial: r.net.DialContext, conns: map[*linkConn]bool{}}
}

// start begins a life of the instance.
func (n *node) start() {
	n.lives++
	n.name = fmt.Sprintf("i%d.%d", n.n, n.lives)
	n.r.trace.add("%s starts", n.name)
	n.on = true
	built, err := Topology().Build()
	if err != nil {
		panic(err) // the topology is ours
	}
	cfg := engine.Config{
		Topology: built, StateDir: stateDir, FS: n.fs, Workers: 1,
		Kafka:  kafka.Config{Brokers: n.r.cluster.ListenAddrs(), Dialer: n.link.DialContext},
		Logger: n.r.trace.logger(n.name, slog.LevelInfo),
	}
	if n.r.Verbose {
		cfg.Kafka.Logger = n.r.trace.logger(n.name+" kgo", slog.LevelDebug)
	}
	if n.r.Tweak != nil {
		n.r.Tweak(&cfg)
	}
	if n.inst, err = engine.New(cfg); err != nil {
		panic(err)
	}
	var ctx context.Context
	ctx, n.cancel = context.WithCancel(context.Background())
	n.done = make(chan struct{})
	inst, done := n.inst, n.done
	go func() { // ends with ctx, or when the instance gives up
		n.err = inst.Run(ctx)
		close(done)
	}()
}

// stop ends the instance in an orderly way.
func (n *node) stop() {
	if !n.on {
		return
	}
	n.on = false
	n.r.trace.add("%s stops", n.name)
	n.cancel()
	<-n.done
	n.r.trace.add("%s has stopped: %v", n.name, n.err)
}

// kill ends the instance as SIGKILL or a power cut does: nothing it does from now
// on reaches the brokers or the disk that its next life finds. unsynced is the
// percentage of what was not synced that the disk keeps.
func (n *node) kill(unsynced int) {
	if !n.on {
		return
	}
	old := *n
	n.r.trace.add("%s is killed, %d %% of what was not synced survives", n.name, unsynced)
	old.link.setCut(true)
	n.fs = old.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: unsynced, RNG: rand.New(rand.NewPCG(n.r.rng.Uint64(), 1))})
	n.link = n.r.newLink()
	n.on = false
	old.cancel() // the process is gone; what is left of it here winds down
	n.r.dead = append(n.r.dead, &old)
}

func (n *node) heal() { n.link.heal() }

// revive restarts instances that gave up, as a supervisor would.
func (r *run) revive() {
	for _, n := range r.nodes {
		if !n.on {
			continue
		}
		select {
		case <-n.done:
			r.trace.add("%s has given up: %v", n.name, n.err)
			n.start()
		default:
		}
	}
}

// any returns one of the instances that run, or nil.
func (r *run) any(rng *rand.Rand) *node {
	var on []*node
	for _, n := range r.nodes {
		if n.on {
			on = append(on, n)
		}
	}
	if len(on) == 0 {
		return nil
	}
	return on[rng.IntN(len(on))]
}
