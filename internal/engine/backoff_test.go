package engine_test

import (
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// The pauses between sessions grow with an outage and are forgotten with the first
// commit behind it: what fails a moment later is tried again at once.
func TestBackoffEndsWithTheOutage(t *testing.T) {
	bubble(t, func(r *rig) {
		outage := r.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.InitProducerID}, Err: kerr.TransactionalIDAuthorizationFailed, Count: -1, When: func(req kmsg.Request) bool {
			return req.(*kmsg.InitProducerIDRequest).TransactionalID != nil
		}})
		a := r.start(counting(), vfs.NewMem())
		defer a.stop()
		r.pass(5 * time.Minute)
		tries := outage.Hits()
		if tries < 8 || tries > 30 {
			t.Errorf("%d attempts in 5 minutes", tries)
		}
		outage.Remove()
		r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
		r.await("out", 1)

		r.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.UnknownServerError})
		r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
		start := time.Now()
		for len(r.read("out")) < 2 && time.Since(start) < time.Minute {
			r.pass(100 * time.Millisecond)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("the record came through %s after a moment's trouble", took)
		}
		r.await("out", 2)
	}, "in", "out")
}
