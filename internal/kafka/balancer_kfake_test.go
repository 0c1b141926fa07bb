package kafka

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// owners records who reads what, as the members' callbacks tell.
type owners struct {
	t  testing.TB
	mu sync.Mutex
	of map[topicPartition]string
}

func (o *owners) assigned(id string, m map[string][]int32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for t, ps := range m {
		for _, p := range ps {
			tp := topicPartition{t, p}
			if by, ok := o.of[tp]; ok {
				o.t.Errorf("%v given to %s while %s reads it", tp, id, by)
			}
			o.of[tp] = id
		}
	}
}

func (o *owners) revoked(m map[string][]int32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for t, ps := range m {
		for _, p := range ps {
			delete(o.of, topicPartition{t, p})
		}
	}
}

func (o *owners) counts() map[string]int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := make(map[string]int)
	for _, id := range o.of {
		n[id]++
	}
	return n
}

// settled waits until n members share all partitions evenly.
func (o *owners) settled(n, partitions int) {
	o.t.Helper()
	for start := time.Now(); ; <-time.After(100 * time.Millisecond) { // fake time
		counts := o.counts()
		total := 0
		for _, c := range counts {
			total += c
		}
		if len(counts) == n && total == partitions {
			return
		}
		if time.Since(start) > 2*time.Minute {
			o.t.Fatalf("after two minutes %d members read %v", n, counts)
		}
	}
}

// Real clients on a real group coordinator: members come, go and restart, and no
// partition ever has two readers.
func TestBalancerWithClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker(t, kfake.SeedTopics(6, "a", "b"), kfake.SeedTopics(3, "x"))
		defer b.stop()
		info := b.info()
		own := &owners{t: t, of: make(map[topicPartition]string)}
		subs := []SubTopology{sub("join", "a", "b"), sub("single", "x")}
		start := func(instance string) *kgo.Client {
			bal := NewBalancer(BalancerConfig{Subs: subs, Instance: instance, OnUnassigned: func(u []Unassigned) {
				if len(u) > 0 {
					t.Errorf("unassigned: %v", u)
				}
			}})
			cl := b.client(b.conf.WorkerOpts(Worker{
				Group: "app", TransactionalID: instance, InstanceID: instance, Topics: []string{"a", "b", "x"}, Broker: info, Balancer: bal,
				OnAssigned: func(_ context.Context, _ *kgo.Client, m map[string][]int32) { own.assigned(instance, m) },
				OnRevoked:  func(_ context.Context, _ *kgo.Client, m map[string][]int32) { own.revoked(m) },
				OnLost:     func(_ context.Context, _ *kgo.Client, m map[string][]int32) { own.revoked(m) },
			})...)
			return cl
		}
		stop := func(cl *kgo.Client, instance string) {
			cl.CloseAllowingRebalance()
			if err := LeaveGroup(t.Context(), b.cl, "app", instance); err != nil {
				t.Error(err)
			}
			own.mu.Lock()
			for tp, id := range own.of {
				if id == instance {
					delete(own.of, tp) // a static member does not revoke when it closes
				}
			}
			own.mu.Unlock()
		}

		clients := make(map[string]*kgo.Client)
		for i := range 3 {
			id := fmt.Sprintf("i%d", i)
			clients[id] = start(id)
			own.settled(i+1, 15)
		}
		own.mu.Lock()
		for p := range int32(6) {
			if own.of[topicPartition{"a", p}] != own.of[topicPartition{"b", p}] {
				t.Errorf("a/%d and b/%d are read by different members", p, p)
			}
		}
		own.mu.Unlock()

		begin := time.Now()
		stop(clients["i0"], "i0")
		own.settled(2, 15)
		if d := time.Since(begin); d >= SessionTimeout {
			t.Errorf("the tasks of a member that left moved after %v, not before the session timeout", d)
		}
		clients["i0"] = start("i0")
		own.settled(3, 15)
		for id, cl := range clients {
			stop(cl, id)
		}
	})
}
