package enrich

import (
	"context"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// watch counts the outcomes of events as they come, and tells the ledger which calls
// have theirs in the loop topic: from there no death of a worker can lose it. It
// returns when ctx ends.
func (r *runner) watch(ctx context.Context) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(r.Brokers...), kgo.ConsumeTopics(append([]string{loopTopic}, outputs...)...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		return err
	}
	defer cl.Close()
	for ctx.Err() == nil {
		cl.PollFetches(ctx).EachRecord(func(rec *kgo.Record) {
			if rec.Topic != loopTopic {
				r.ended.Add(1)
				return
			}
			var o millracev1.Outcome
			if proto.Unmarshal(rec.Value, &o) == nil && o.GetReleased() == nil {
				r.ledger.Durable(o.GetId(), int(o.GetRound()))
			}
		})
	}
	return nil
}
