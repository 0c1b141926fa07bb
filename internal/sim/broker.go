package sim

import (
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// offsetForLeaderEpoch answers as a broker does whose log was never truncated. The
// cluster's own answer for a log without records is offset 0, which clients take
// for data loss; a real broker keeps the epochs of an emptied log.
func (r *run) offsetForLeaderEpoch(kreq kmsg.Request) (kmsg.Response, error, bool) {
	r.cluster.KeepControl()
	req := kreq.(*kmsg.OffsetForLeaderEpochRequest)
	resp := req.ResponseKind().(*kmsg.OffsetForLeaderEpochResponse)
	for _, t := range req.Topics {
		rt := kmsg.NewOffsetForLeaderEpochResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			rp := kmsg.NewOffsetForLeaderEpochResponseTopicPartition()
			rp.Partition = p.Partition
			info := r.cluster.PartitionInfo(t.Topic, p.Partition)
			switch {
			case info == nil:
				rp.ErrorCode = kerr.UnknownTopicOrPartition.Code
			case info.Leader != r.cluster.CurrentNode():
				rp.ErrorCode = kerr.NotLeaderForPartition.Code
			case p.CurrentLeaderEpoch >= 0 && p.CurrentLeaderEpoch < info.Epoch:
				rp.ErrorCode = kerr.FencedLeaderEpoch.Code
			case p.CurrentLeaderEpoch > info.Epoch:
				rp.ErrorCode = kerr.UnknownLeaderEpoch.Code
			default:
				rp.LeaderEpoch, rp.EndOffset = p.LeaderEpoch, info.HighWatermark
			}
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp, nil, true
}

// heartbeat tells the members of muted instances that all is well, and does not let
// their group know of them: their sessions end without their knowledge.
func (r *run) heartbeat(kreq kmsg.Request) (kmsg.Response, error, bool) {
	r.cluster.KeepControl()
	req := kreq.(*kmsg.HeartbeatRequest)
	if req.InstanceID == nil {
		return nil, nil, false
	}
	r.muteMu.Lock()
	defer r.muteMu.Unlock()
	for id, on := range r.muted {
		if on && strings.Contains(*req.InstanceID, id) {
			return req.ResponseKind(), nil, true
		}
	}
	return nil, nil, false
}

// mute makes the brokers ignore the heartbeats of an instance for a while.
func (n *node) mute(d time.Duration) {
	id := n.identity()
	if id == "" {
		return // it has never run
	}
	n.r.setMuted(id, true)
	time.AfterFunc(d, func() { n.r.setMuted(id, false) })
}

func (r *run) setMuted(id string, on bool) {
	r.muteMu.Lock()
	defer r.muteMu.Unlock()
	r.muted[id] = on
}

// identity reads the instance's UUID from its disk.
func (n *node) identity() string {
	f, err := n.fs.Open(n.fs.PathJoin(stateDir, "identity"))
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// bury removes members whose instance does not exist any more. The cluster forgets
// to end the session of a member that it answered over a connection that was gone;
// a real broker ends every session.
func (r *run) bury(ctx context.Context) {
	alive := map[string]bool{}
	for _, n := range r.nodes {
		alive[n.identity()] = true
	}
	for _, group := range groups {
		info := r.cluster.GroupInfo(group)
		if info == nil {
			continue
		}
		for _, m := range info.Members {
			id := strings.TrimPrefix(*m.InstanceID, group+"-")
			if id = id[:strings.LastIndexByte(id, '-')]; alive[id] {
				continue
			}
			r.trace.add("member %s of group %s is buried", *m.InstanceID, group)
			req := kmsg.NewPtrLeaveGroupRequest()
			req.Group = group
			member := kmsg.NewLeaveGroupRequestMember()
			member.InstanceID = m.InstanceID
			req.Members = append(req.Members, member)
			if _, err := req.RequestWith(ctx, r.cl); err != nil {
				r.trace.add("burying: %v", err)
			}
		}
	}
}

// faultsOver ends the faults that brokers have.
func (r *run) faultsOver() {
	for _, f := range r.installed {
		f.Remove()
	}
	r.installed = slices.Delete(r.installed, 0, len(r.installed))
	r.muteMu.Lock()
	defer r.muteMu.Unlock()
	clear(r.muted)
}
