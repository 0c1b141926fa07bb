package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// How long requests that meet a passing error are repeated, and how often.
const (
	retryFor   = 15 * time.Second
	retryPause = 100 * time.Millisecond
)

// An Offset is the position behind the last processed record.
type Offset struct {
	At int64
	// Epoch is the leader epoch of the record before At, -1 if unknown.
	Epoch int32
}

// BrokerInfo is what a cluster can do.
type BrokerInfo struct {
	Version string // the broker software's version as far as its requests tell
	// TransactionVersion is the finalized level of transaction.version: 0 (also
	// for brokers that do not know the feature), 1 or 2.
	TransactionVersion int16
	// TxnOffsetCommit is the lowest maximum version among the brokers.
	TxnOffsetCommit int16
}

// ErrNoBroker says that no broker told what it supports.
var ErrNoBroker = errors.New("no broker answered")

// ErrBrokerTooOld says that the cluster lacks what exactly-once needs.
var ErrBrokerTooOld = errors.New("the broker is too old: exactly-once processing needs Apache Kafka 2.5 or newer")

// CheckBroker asks every broker what it supports. Brokers older than 2.5 are
// refused with [ErrBrokerTooOld]: they know neither RequireStable nor the
// generation in TxnOffsetCommit. Any other error is an [ErrNoBroker].
func CheckBroker(ctx context.Context, cl *kgo.Client) (BrokerInfo, error) {
	all, err := kadm.NewClient(cl).ApiVersions(ctx)
	if err != nil {
		return BrokerInfo{}, fmt.Errorf("%w: ask for their versions: %w", ErrNoBroker, err)
	}
	info := BrokerInfo{TxnOffsetCommit: -1}
	epoch, answers := int64(-2), 0
	var errs []error
	for _, b := range all {
		if b.Err != nil {
			errs = append(errs, fmt.Errorf("broker %d: %w", b.NodeID, b.Err))
			continue
		}
		answers++
		for key, want := range map[kmsg.Key]int16{kmsg.OffsetFetch: 7, kmsg.TxnOffsetCommit: 3, kmsg.InitProducerID: 3} {
			if v, ok := b.KeyMaxVersion(key.Int16()); !ok || v < want {
				return BrokerInfo{}, fmt.Errorf("broker %d looks like Kafka %s: %w", b.NodeID, b.VersionGuess(), ErrBrokerTooOld)
			}
		}
		v, _ := b.KeyMaxVersion(kmsg.TxnOffsetCommit.Int16())
		if info.TxnOffsetCommit < 0 || v < info.TxnOffsetCommit {
			info.TxnOffsetCommit = v
		}
		raw := b.Raw()
		if raw.FinalizedFeaturesEpoch > epoch {
			epoch, info.Version = raw.FinalizedFeaturesEpoch, b.VersionGuess()
			info.TransactionVersion = 0
			for _, f := range raw.FinalizedFeatures {
				if f.Name == "transaction.version" {
					info.TransactionVersion = f.MaxVersionLevel
				}
			}
		}
	}
	if answers == 0 {
		return BrokerInfo{}, fmt.Errorf("%w: %w", ErrNoBroker, errors.Join(errs...))
	}
	return info, nil
}

// implicitOffsets reports whether TxnOffsetCommit adds the group to the
// transaction by itself (KIP-890).
func (b BrokerInfo) implicitOffsets() bool {
	return b.TransactionVersion >= 2 && b.TxnOffsetCommit >= 5
}

// maxVersions caps TxnOffsetCommit at 4 where version 5 has no meaning yet; nil
// if there is nothing to cap.
func (b BrokerInfo) maxVersions() *kversion.Versions {
	if b.implicitOffsets() {
		return nil
	}
	v := kversion.Stable()
	v.SetMaxKeyVersion(kmsg.TxnOffsetCommit.Int16(), 4)
	return v
}

// passing reports whether an error goes away by itself: a broker restarts, a
// leader or coordinator moves, a transaction of another producer is being ended.
func passing(err error) bool {
	if err == nil {
		return false
	}
	if ke, ok := errors.AsType[*kerr.Error](err); ok {
		return ke.Retriable || ke == kerr.UnstableOffsetCommit || ke == kerr.ConcurrentTransactions
	}
	return IsUnreachable(err)
}

// IsUnreachable reports whether an error is about reaching a broker, and not an
// answer of one.
func IsUnreachable(err error) bool {
	if _, answer := errors.AsType[*kerr.Error](err); answer || errors.Is(err, context.Canceled) {
		return false
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		// franz-go leaves it to us to try again.
		dns, ok := errors.AsType[*net.DNSError](err)
		return !ok || !dns.IsNotFound
	}
	return kgo.IsRetryableBrokerErr(err)
}

// retry repeats fn while its error is a passing one, for at most d.
func retry(ctx context.Context, d time.Duration, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for pause := retryPause; ; pause = min(2*pause, time.Second) {
		err := fn(ctx)
		if !passing(err) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("given up: %w", err)
		}
	}
}

// FetchOffsets reads the committed offsets of a group. It waits until no
// transaction holds an uncommitted offset of these partitions (RequireStable).
// Partitions without a committed offset are missing in the result.
func FetchOffsets(ctx context.Context, cl *kgo.Client, group string, partitions map[string][]int32) (map[string]map[int32]Offset, error) {
	got := make(map[string]map[int32]Offset, len(partitions))
	if len(partitions) == 0 {
		return got, nil
	}
	req := kmsg.NewPtrOffsetFetchRequest()
	req.RequireStable = true
	g := kmsg.NewOffsetFetchRequestGroup()
	g.Group = group
	for t, ps := range partitions {
		rt := kmsg.NewOffsetFetchRequestGroupTopic()
		rt.Topic, rt.Partitions = t, ps
		g.Topics = append(g.Topics, rt)
	}
	req.Groups = append(req.Groups, g)

	// A dangling transaction of a dead member ends with its timeout at the latest.
	err := retry(ctx, 2*TransactionTimeout, func(ctx context.Context) error {
		clear(got)
		resp, err := req.RequestWith(ctx, cl)
		if err != nil {
			return err
		}
		if len(resp.Groups) != 1 {
			return fmt.Errorf("the broker answered for %d groups instead of 1", len(resp.Groups))
		}
		if err := kerr.ErrorForCode(resp.Groups[0].ErrorCode); err != nil {
			return err
		}
		for _, t := range resp.Groups[0].Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					return fmt.Errorf("%s/%d: %w", t.Topic, p.Partition, err)
				}
				if p.Offset < 0 {
					continue
				}
				put(got, t.Topic, p.Partition, Offset{At: p.Offset, Epoch: p.LeaderEpoch})
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the committed offsets of group %q: %w", group, err)
	}
	return got, nil
}

// put sets m[topic][partition].
func put[V any](m map[string]map[int32]V, topic string, partition int32, v V) {
	if m[topic] == nil {
		m[topic] = make(map[int32]V)
	}
	m[topic][partition] = v
}

// Edge names a position in a log.
type Edge uint8

const (
	// LogStart is the first offset that still exists.
	LogStart Edge = iota
	// HighWatermark is the offset behind the last replicated record, those of
	// open transactions and markers included.
	HighWatermark
	// LastStable is the first offset of the oldest open transaction, else the high
	// watermark.
	LastStable
)

// ListOffsets asks the leaders for an edge of each partition. Passing errors are
// retried for a while.
func ListOffsets(ctx context.Context, cl *kgo.Client, edge Edge, partitions map[string][]int32) (map[string]map[int32]int64, error) {
	got := make(map[string]map[int32]int64, len(partitions))
	if len(partitions) == 0 {
		return got, nil
	}
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID = -1
	timestamp := int64(-1)
	switch edge {
	case LogStart:
		timestamp = -2
	case LastStable:
		req.IsolationLevel = 1
	}
	for t, ps := range partitions {
		rt := kmsg.NewListOffsetsRequestTopic()
		rt.Topic = t
		for _, p := range ps {
			rp := kmsg.NewListOffsetsRequestTopicPartition()
			rp.Partition, rp.Timestamp, rp.CurrentLeaderEpoch = p, timestamp, -1
			rt.Partitions = append(rt.Partitions, rp)
		}
		req.Topics = append(req.Topics, rt)
	}
	err := retry(ctx, retryFor, func(ctx context.Context) error {
		clear(got)
		resp, err := req.RequestWith(ctx, cl)
		if err != nil {
			return err
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					return fmt.Errorf("%s/%d: %w", t.Topic, p.Partition, err)
				}
				put(got, t.Topic, p.Partition, p.Offset)
			}
		}
		for t, ps := range partitions {
			for _, p := range ps {
				if _, ok := got[t][p]; !ok {
					return fmt.Errorf("%s/%d: %w", t, p, kerr.UnknownTopicOrPartition)
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list offsets of %s: %w", strings.Join(slices.Sorted(maps.Keys(partitions)), ", "), err)
	}
	return got, nil
}

// DeleteRecords purges the records before the given offsets. Offsets behind the
// high watermark, or of partitions that do not exist, are errors; all partitions
// are tried.
func DeleteRecords(ctx context.Context, cl *kgo.Client, before map[string]map[int32]int64) error {
	var offsets kadm.Offsets
	for t, ps := range before {
		for p, at := range ps {
			offsets.AddOffset(t, p, at, -1)
		}
	}
	if len(offsets) == 0 {
		return nil
	}
	resp, err := kadm.NewClient(cl).DeleteRecords(ctx, offsets)
	var errs []error
	if err != nil {
		errs = append(errs, err)
	}
	resp.Each(func(r kadm.DeleteRecordsResponse) {
		if r.Err != nil {
			errs = append(errs, fmt.Errorf("%s/%d before %d: %w", r.Topic, r.Partition, before[r.Topic][r.Partition], r.Err))
		}
	})
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("purge processed records: %w", err)
	}
	return nil
}

// LeaveGroup removes the static member with this instance id from the group, so
// that its partitions move at once instead of after the session timeout: franz-go
// never sends it for a static member. A member already gone is no error.
func LeaveGroup(ctx context.Context, cl *kgo.Client, group, instanceID string) error {
	err := retry(ctx, retryFor, func(ctx context.Context) error {
		req := kmsg.NewPtrLeaveGroupRequest()
		req.Group = group
		m := kmsg.NewLeaveGroupRequestMember()
		m.InstanceID = &instanceID
		m.Reason = new("the instance shuts down")
		req.Members = append(req.Members, m)
		resp, err := req.RequestWith(ctx, cl)
		if err != nil {
			return err
		}
		err = kerr.ErrorForCode(resp.ErrorCode)
		if err == nil && len(resp.Members) == 1 {
			err = kerr.ErrorForCode(resp.Members[0].ErrorCode)
		}
		if errors.Is(err, kerr.UnknownMemberID) || errors.Is(err, kerr.GroupIDNotFound) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("leave group %q as %q: %w", group, instanceID, err)
	}
	return nil
}
