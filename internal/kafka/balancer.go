package kafka

import (
	"bytes"
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A TaskID names a task: one partition of a sub-topology.
type TaskID struct {
	Sub       string
	Partition int32
}

// String returns the name as sub/partition.
func (t TaskID) String() string { return fmt.Sprintf("%s/%d", t.Sub, t.Partition) }

// A SubTopology is what the assignor needs to know of one.
type SubTopology struct {
	Name string
	// Fingerprint identifies its shape. A task goes only to members whose
	// fingerprint, topics and partitions are the same.
	Fingerprint string
	// Topics are its inputs, the loop included. A topic belongs to one
	// sub-topology of a group only.
	Topics []string
	// CoPartitioned demands that all topics have the same number of partitions.
	// Otherwise there are as many tasks as the largest topic has partitions, and a
	// task covers those topics that have its partition.
	CoPartitioned bool
	// Partitions is the number of tasks the member was started for; partitions
	// added later get no task. 0 means whatever the topics have.
	Partitions int32
}

// HeldTask is a task whose state the instance has on disk.
type HeldTask struct {
	TaskID
	// Checkpoint is the changelog offset the state stands at, the sum over the
	// task's changelogs: of two copies the one with the larger is nearer to the end.
	Checkpoint int64
}

// Unassigned is a task nobody got, and why.
type Unassigned struct {
	TaskID
	Reason string
}

// BalancerConfig describes one member to the group's leader.
type BalancerConfig struct {
	Subs []SubTopology
	// Instance identifies the process: its workers share the state directory.
	Instance string
	// Worker is the index of the worker in the instance.
	Worker int
	// Held returns the tasks whose state the instance has; nil for none. It is
	// called on the client's goroutine before each join and must not block.
	Held func() []HeldTask
	// OnUnassigned gets what the last balance left unassigned, nothing if it was
	// all assigned. Only the group's leader balances. It must not block.
	OnUnassigned func([]Unassigned)
	// Logger gets members that cannot be understood; nil drops them.
	Logger *slog.Logger
}

// A Balancer assigns whole tasks: all input topics of a partition to the same
// member. A task stays with its owner, else goes to an instance that has its state,
// while the load of instances (per worker) and of the workers in each stays within
// one task. It is cooperative: what moves is revoked first and given in the next
// round. Members whose version of a sub-topology differs from that of its present
// owners get none of its tasks until those have left.
//
// It implements the classic protocol. A static member that restarts is given its
// old assignment without a balance: if its topology changed, call [Balancer.Bump]
// and then kgo's ForceRebalance.
//
// Members are asked for the second round of a move by the one that gives the task
// up. It may die before that, and come back as a static member to what it kept; then
// nobody asks. So every assignment says whether it was the last round:
// [Balancer.Unfinished].
type Balancer struct {
	cfg        BalancerConfig
	version    atomic.Uint32
	unfinished atomic.Bool
}

var _ kgo.GroupBalancer = (*Balancer)(nil)

// NewBalancer returns the balancer of one member.
func NewBalancer(cfg BalancerConfig) *Balancer {
	cfg.Subs = slices.Clone(cfg.Subs)
	slices.SortFunc(cfg.Subs, func(a, b SubTopology) int { return cmp.Compare(a.Name, b.Name) })
	for i := range cfg.Subs {
		cfg.Subs[i].Topics = slices.Sorted(slices.Values(cfg.Subs[i].Topics))
	}
	return &Balancer{cfg: cfg}
}

// ProtocolName returns "millrace": all members of a group must use this balancer.
func (*Balancer) ProtocolName() string { return "millrace" }

// IsCooperative returns true.
func (*Balancer) IsCooperative() bool { return true }

// Bump changes the member's metadata, so that its next join makes the group
// balance. Brokers answer a join with unchanged metadata with the old assignment.
func (b *Balancer) Bump() { b.version.Add(1) }

// JoinGroupMetadata encodes the member's interests, claims, topology and state.
func (b *Balancer) JoinGroupMetadata(interests []string, current map[string][]int32, generation int32) []byte {
	meta := kmsg.NewConsumerMemberMetadata()
	meta.Version = 3
	meta.Topics = interests
	meta.Generation = generation
	for _, topic := range slices.Sorted(maps.Keys(current)) {
		op := kmsg.NewConsumerMemberMetadataOwnedPartition()
		op.Topic, op.Partitions = topic, current[topic]
		meta.OwnedPartitions = append(meta.OwnedPartitions, op)
	}
	data := userData{Instance: b.cfg.Instance, Worker: uint32(b.cfg.Worker), Version: b.version.Load(), Subs: b.cfg.Subs}
	if b.cfg.Held != nil {
		data.Held = b.cfg.Held()
	}
	meta.UserData = data.encode()
	return meta.AppendTo(nil)
}

// ParseSyncAssignment decodes what the leader assigned to this member.
func (b *Balancer) ParseSyncAssignment(assignment []byte) (map[string][]int32, error) {
	var meta kmsg.ConsumerMemberAssignment
	if err := meta.ReadFrom(assignment); err != nil {
		return nil, fmt.Errorf("decode the assignment: %w", err)
	}
	b.unfinished.Store(bytes.Equal(meta.UserData, moreToCome))
	return kgo.ParseConsumerSyncAssignment(assignment)
}

// Unfinished reports whether tasks were left without an owner in the member's last
// assignment, until those who had them have let them go: a rebalance must follow.
func (b *Balancer) Unfinished() bool { return b.unfinished.Load() }

// moreToCome is the user data of assignments after which a rebalance must follow.
var moreToCome = []byte{1}

// An unfinishedPlan tells every member that a rebalance must follow.
type unfinishedPlan struct{ plan kgo.IntoSyncAssignment }

// IntoSyncAssignment encodes the assignments.
func (p unfinishedPlan) IntoSyncAssignment() []kmsg.SyncGroupRequestGroupAssignment {
	all := p.plan.IntoSyncAssignment()
	for i, a := range all {
		var meta kmsg.ConsumerMemberAssignment
		if err := meta.ReadFrom(a.MemberAssignment); err != nil {
			continue // unreachable: it was encoded a moment ago
		}
		meta.UserData = moreToCome
		all[i].MemberAssignment = meta.AppendTo(nil)
	}
	return all
}

// MemberBalancer is called on the leader.
func (b *Balancer) MemberBalancer(members []kmsg.JoinGroupResponseMember) (kgo.GroupMemberBalancer, map[string]struct{}, error) {
	cb, err := kgo.NewConsumerBalancer(b, members)
	if err != nil {
		return nil, nil, fmt.Errorf("decode the members' metadata: %w", err)
	}
	return cb, cb.MemberTopics(), nil
}

// Balance assigns the tasks. It is called by franz-go on the leader; topics holds
// the partition counts.
func (b *Balancer) Balance(cb *kgo.ConsumerBalancer, topics map[string]int32) kgo.IntoSyncAssignment {
	var members []*groupMember
	cb.EachMember(func(m *kmsg.JoinGroupResponseMember, meta *kmsg.ConsumerMemberMetadata) {
		gm := &groupMember{id: m.MemberID, generation: meta.Generation, owned: make(map[topicPartition]bool)}
		for _, o := range meta.OwnedPartitions {
			for _, p := range o.Partitions {
				gm.owned[topicPartition{o.Topic, p}] = true
			}
		}
		if err := gm.data.decode(meta.UserData); err != nil {
			// It gets no task, but what it claims to own is respected.
			gm.data = userData{Instance: "?" + m.MemberID}
			if b.cfg.Logger != nil {
				b.cfg.Logger.Warn("a group member cannot be given tasks: its metadata is not understood; is it another program or a newer version?", "member", m.MemberID, "error", err)
			}
		}
		members = append(members, gm)
	})
	a := newAssignment(members, topics)
	a.run()
	if b.cfg.OnUnassigned != nil {
		b.cfg.OnUnassigned(a.unassigned)
	}
	plan := cb.NewPlan()
	byID := plan.AsMemberIDMap()
	for _, m := range members {
		for _, t := range m.final {
			for _, topic := range t.topics {
				byID[m.id][topic] = append(byID[m.id][topic], t.id.Partition)
			}
		}
	}
	if a.withheld {
		return unfinishedPlan{plan: plan}
	}
	return plan
}
