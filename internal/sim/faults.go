package sim

import (
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace/millrace/internal/chaos"
)

// A Fault is a kind of fault.
type Fault string

// The kinds of faults.
const (
	BrokerError   Fault = "broker error"    // answers with an error
	AppliedError  Fault = "applied error"   // acts, then answers with an error
	AbortedCommit Fault = "aborted commit"  // a transaction is refused its offsets
	LostMessages  Fault = "lost messages"   // requests or answers get lost
	SlowMessages  Fault = "slow messages"   // requests or answers take seconds
	BrokenLinks   Fault = "broken links"    // all connections of an instance break
	Partition     Fault = "partition"       // an instance is cut off for up to a minute
	Eviction      Fault = "eviction"        // an instance's heartbeats stay away
	MovedLeaders  Fault = "moved leaders"   // of partitions and groups
	Kill          Fault = "kill"            // and a restart from what the disk kept
	Restart       Fault = "restart"         // an orderly one
	ComeAndGo     Fault = "come and go"     // an instance joins, or one leaves
	SlowThenEvict Fault = "slow then evict" // a zombie in the middle of a cycle
)

// A Mix weighs faults.
type Mix map[Fault]int

// Everything is the default mix.
var Everything = Mix{
	BrokerError: 6, AppliedError: 4, AbortedCommit: 2, LostMessages: 4, SlowMessages: 3, BrokenLinks: 2, Partition: 2, Eviction: 2,
	MovedLeaders: 3, Kill: 4, Restart: 2, ComeAndGo: 3, SlowThenEvict: 2,
}

var kinds = map[Fault]func(*run){
	BrokerError: (*run).brokerError, AppliedError: (*run).appliedError,
	AbortedCommit: (*run).abortedCommit, LostMessages: (*run).lostMessages, SlowMessages: (*run).slowMessages,
	BrokenLinks: (*run).brokenLinks, Partition: (*run).partition, Eviction: (*run).eviction,
	MovedLeaders: (*run).movedLeaders, Kill: (*run).kill, Restart: (*run).restart, ComeAndGo: (*run).comeAndGo,
	SlowThenEvict: (*run).slowThenEvict,
}

func (m Mix) pick(rng *rand.Rand) func(*run) {
	total := 0
	for _, w := range m {
		total += w
	}
	at := rng.IntN(total)
	for _, f := range slices.Sorted(maps.Keys(m)) {
		if at -= m[f]; at < 0 {
			return kinds[f]
		}
	}
	panic("unreachable: weights add up")
}

func oneOf[T any](rng *rand.Rand, of ...T) T { return of[rng.IntN(len(of))] }

// rejections are the errors that brokers answer instead of acting, by request.
var rejections = map[kmsg.Key][]*kerr.Error{
	kmsg.Produce:         {kerr.NotLeaderForPartition, kerr.NotEnoughReplicas, kerr.MessageTooLarge, kerr.UnknownServerError, kerr.CorruptMessage},
	kmsg.Fetch:           {kerr.NotLeaderForPartition, kerr.UnknownServerError, kerr.OffsetNotAvailable, kerr.KafkaStorageError},
	kmsg.ListOffsets:     {kerr.NotLeaderForPartition, kerr.UnknownServerError},
	kmsg.TxnOffsetCommit: {kerr.NotCoordinator, kerr.CoordinatorLoadInProgress, kerr.UnknownServerError, kerr.IllegalGeneration, kerr.UnknownMemberID, kerr.RebalanceInProgress},
	kmsg.OffsetCommit:    {kerr.NotCoordinator, kerr.CoordinatorLoadInProgress, kerr.UnknownServerError, kerr.IllegalGeneration, kerr.RebalanceInProgress},
	kmsg.OffsetFetch:     {kerr.NotCoordinator, kerr.CoordinatorLoadInProgress, kerr.UnstableOffsetCommit},
	kmsg.EndTxn:          {kerr.NotCoordinator, kerr.ConcurrentTransactions, kerr.CoordinatorNotAvailable, kerr.UnknownServerError, kerr.TransactionAbortable},
	kmsg.InitProducerID:  {kerr.NotCoordinator, kerr.ConcurrentTransactions, kerr.CoordinatorLoadInProgress},
	kmsg.FindCoordinator: {kerr.CoordinatorNotAvailable},
	kmsg.Heartbeat:       {kerr.RebalanceInProgress, kerr.UnknownMemberID, kerr.IllegalGeneration, kerr.NotCoordinator},
	kmsg.JoinGroup:       {kerr.NotCoordinator, kerr.UnknownMemberID, kerr.CoordinatorLoadInProgress},
	kmsg.SyncGroup:       {kerr.NotCoordinator, kerr.RebalanceInProgress, kerr.UnknownMemberID},
	kmsg.Metadata:        {kerr.LeaderNotAvailable},
}

// explicit are the rejections of the requests by which topics and offsets join a
// transaction before transaction.version 2.
var explicit = map[kmsg.Key][]*kerr.Error{
	kmsg.AddPartitionsToTxn: {kerr.NotCoordinator, kerr.ConcurrentTransactions, kerr.CoordinatorLoadInProgress, kerr.UnknownServerError},
	kmsg.AddOffsetsToTxn:    {kerr.NotCoordinator, kerr.ConcurrentTransactions, kerr.CoordinatorLoadInProgress, kerr.UnknownServerError},
}

// written are the topics that instances write to, the input not among them.
var written = []string{
	chaos.Echo, chaos.Counts, chaos.Windows, chaos.Answers, Batches, Shards, PerShard,
	"chaos.counts-table", "chaos.pending-table", "chaos.per-shard-table", "chaos.by-shard-repartition", loop,
}

const loop = "chaos.lookup-loop"

// brokerError has brokers answer some requests with an error.
func (r *run) brokerError() {
	of := rejections
	if r.TransactionVersion < 2 && r.rng.IntN(4) == 0 {
		of = explicit
	}
	key := oneOf(r.rng, slices.Sorted(maps.Keys(of))...)
	f := kfake.Fault{Keys: []kmsg.Key{key}, Err: oneOf(r.rng, of[key]...), Count: 1 + r.rng.IntN(4)}
	if key == kmsg.Produce {
		f.Topic = oneOf(r.rng, written...)
	}
	if f.Err == kerr.MessageTooLarge || f.Err == kerr.CorruptMessage {
		// One is nobody's fault: it is gone when its source is replayed alone. In a
		// loop it would be the end of an answer.
		if f.Count = 1; r.spoiled || f.Topic == loop {
			return
		}
		r.spoiled = true
	}
	r.trace.add("fault: %d of %s answered with %s %s", f.Count, key.Name(), f.Err.Message, f.Topic)
	r.installed = append(r.installed, r.cluster.Fault(f))
}

// appliedError has brokers act and then answer that they did not.
func (r *run) appliedError() {
	if r.rng.IntN(3) == 0 {
		if n := r.any(r.rng); n != nil {
			count := 1 + r.rng.IntN(2)
			r.trace.add("fault: %d EndTxn of %s applied, then answered with UNKNOWN_SERVER_ERROR", count, n.name)
			n.link.add(&rule{key: kmsg.EndTxn, what: lieReply, left: count})
		}
		return
	}
	key := oneOf(r.rng, kmsg.Produce, kmsg.TxnOffsetCommit, kmsg.OffsetCommit)
	f := kfake.Fault{Keys: []kmsg.Key{key}, Err: kerr.RequestTimedOut, Count: 1 + r.rng.IntN(6)}
	if key == kmsg.Produce {
		f.Topic, f.Err = oneOf(r.rng, written...), oneOf(r.rng, kerr.RequestTimedOut, kerr.NotEnoughReplicasAfterAppend)
	}
	r.trace.add("fault: %d of %s applied, then answered with %s %s", f.Count, key.Name(), f.Err.Message, f.Topic)
	r.installed = append(r.installed, r.cluster.Fault(f))
}

// abortedCommit has brokers refuse the offsets of every other transaction of a
// group: not of all, or nothing would come of what a commit sets off.
func (r *run) abortedCommit() {
	rng := rand.New(rand.NewPCG(r.rng.Uint64(), 3))
	f := kfake.Fault{
		Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Err: kerr.UnknownServerError, Group: oneOf(r.rng, groups...), Count: 1 + r.rng.IntN(8),
		When: func(kmsg.Request) bool { return rng.IntN(2) == 0 },
	}
	r.trace.add("fault: %d transactions of group %s are refused", f.Count, f.Group)
	r.installed = append(r.installed, r.cluster.Fault(f))
}

// tampered are the requests worth losing or delaying.
var tampered = []kmsg.Key{
	kmsg.Produce, kmsg.Fetch, kmsg.ListOffsets, kmsg.TxnOffsetCommit, kmsg.OffsetCommit, kmsg.OffsetFetch, kmsg.EndTxn,
	kmsg.InitProducerID, kmsg.FindCoordinator, kmsg.Heartbeat, kmsg.JoinGroup, kmsg.SyncGroup, kmsg.Metadata, -1,
}

// tamper picks a request to lose or delay.
func (r *run) tamper() kmsg.Key {
	if r.TransactionVersion < 2 && r.rng.IntN(5) == 0 {
		return oneOf(r.rng, slices.Sorted(maps.Keys(explicit))...)
	}
	return oneOf(r.rng, tampered...)
}

func (r *run) lostMessages() {
	if n := r.any(r.rng); n != nil {
		ru := &rule{key: r.tamper(), what: oneOf(r.rng, loseRequest, loseReply, loseReply), left: 1 + r.rng.IntN(3)}
		r.trace.add("fault: %d times %s of %s", ru.left, ru, n.name)
		n.link.add(ru)
	}
}

func (r *run) slowMessages() {
	if n := r.any(r.rng); n != nil {
		ru := &rule{
			key: r.tamper(), what: oneOf(r.rng, delaySend, delayReply), left: 1 + r.rng.IntN(3),
			delay: time.Duration(r.rng.IntN(20_000)) * time.Millisecond,
		}
		r.trace.add("fault: %d times %s of %s by %v", ru.left, ru, n.name, ru.delay)
		n.link.add(ru)
	}
}

func (ru *rule) String() string {
	if ru.key == -1 {
		return ru.what.String() + " of any kind"
	}
	return ru.what.String() + " " + ru.key.Name()
}

func (r *run) brokenLinks() {
	if n := r.any(r.rng); n != nil {
		r.trace.add("fault: the connections of %s break", n.name)
		n.link.breakAll()
	}
}

// partition cuts an instance off, for so short that nobody notices or until its
// session has ended.
func (r *run) partition() {
	if n := r.any(r.rng); n != nil {
		d := time.Duration(1+r.rng.IntN(60)) * time.Second
		r.trace.add("fault: %s is cut off for %v", n.name, d)
		l := n.link
		l.setCut(true)
		time.AfterFunc(d, func() {
			if l == n.link { // not if it was killed meanwhile
				l.setCut(false)
			}
		})
	}
}

// eviction keeps the heartbeats of an instance away until the group gives its
// partitions to others, while it goes on reading and writing.
func (r *run) eviction() {
	if n := r.any(r.rng); n != nil {
		d := 46*time.Second + time.Duration(r.rng.IntN(10_000))*time.Millisecond
		r.trace.add("fault: the heartbeats of %s are ignored for %v", n.name, d)
		n.mute(d)
	}
}

// slowThenEvict mutes an instance and lets its group find out while it is in the
// middle of a cycle that takes seconds.
func (r *run) slowThenEvict() {
	n := r.any(r.rng)
	if n == nil {
		return
	}
	d := 45500*time.Millisecond + time.Duration(r.rng.IntN(2000))*time.Millisecond
	r.trace.add("fault: the heartbeats of %s are ignored for %v, and then its writes take seconds", n.name, d)
	n.mute(d)
	l := n.link
	key := oneOf(r.rng, kmsg.Produce, kmsg.TxnOffsetCommit, kmsg.EndTxn)
	slow := &rule{key: key, what: oneOf(r.rng, delaySend, delayReply), left: 2, delay: time.Duration(2+r.rng.IntN(10)) * time.Second}
	time.AfterFunc(d-time.Duration(r.rng.IntN(2000))*time.Millisecond, func() { l.add(slow) })
}

func (r *run) movedLeaders() {
	if r.rng.IntN(2) == 0 {
		r.trace.add("fault: group and transaction coordinators move")
		r.cluster.RehashCoordinators()
		return
	}
	r.trace.add("fault: partition leaders move")
	r.cluster.ShufflePartitionLeaders()
}

func (r *run) kill() {
	n := r.any(r.rng)
	if n == nil {
		return
	}
	n.kill(oneOf(r.rng, 0, 50, 100))
	<-time.After(time.Duration(r.rng.IntN(3000)) * time.Millisecond)
	n.start()
}

func (r *run) restart() {
	if n := r.any(r.rng); n != nil {
		n.stop()
		<-time.After(time.Duration(r.rng.IntN(3000)) * time.Millisecond)
		n.start()
	}
}

// comeAndGo starts an instance that does not run, a new one perhaps, or stops one.
func (r *run) comeAndGo() {
	for _, n := range r.nodes {
		if !n.on {
			n.start()
			return
		}
	}
	if len(r.nodes) < 3 {
		n := r.newNode(len(r.nodes))
		r.nodes = append(r.nodes, n)
		n.start()
		return
	}
	r.any(r.rng).stop()
}
