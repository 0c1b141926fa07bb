package kafka

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the fixtures in testdata")

// A simMember is a member of a simulated group. owned is what it reads now.
type simMember struct {
	id         string
	b          *Balancer
	generation int32
	owned      map[string][]int32
	held       []HeldTask
}

// A simGroup plays the classic protocol with real encoded metadata.
type simGroup struct {
	t          testing.TB
	topics     map[string]int32
	generation int32
	members    map[string]*simMember
	unassigned []Unassigned
	// state is what instances have on disk: the round in which they last owned it.
	state map[string]map[TaskID]int32
}

func newSim(t testing.TB, topics map[string]int32) *simGroup {
	return &simGroup{t: t, topics: topics, members: make(map[string]*simMember), state: make(map[string]map[TaskID]int32)}
}

func (g *simGroup) held(m *simMember) []HeldTask {
	held := slices.Clone(m.held)
	for t, round := range g.state[m.b.cfg.Instance] {
		held = append(held, HeldTask{TaskID: t, Checkpoint: int64(round)})
	}
	slices.SortFunc(held, func(a, b HeldTask) int { return cmp.Compare(a.String(), b.String()) })
	return held
}

func (g *simGroup) remember(m *simMember) {
	instance := m.b.cfg.Instance
	if g.state[instance] == nil {
		g.state[instance] = make(map[TaskID]int32)
	}
	for _, s := range m.b.cfg.Subs {
		for _, p := range m.owned[s.Topics[0]] {
			g.state[instance][TaskID{s.Name, p}] = g.generation
		}
	}
}

func (g *simGroup) join(instance string, worker int, subs []SubTopology) *simMember {
	m := &simMember{id: fmt.Sprintf("%s-%d", instance, worker), generation: -1, owned: map[string][]int32{}}
	m.b = NewBalancer(BalancerConfig{
		Subs: subs, Instance: instance, Worker: worker,
		Held:         func() []HeldTask { return g.held(m) },
		OnUnassigned: func(u []Unassigned) { g.unassigned = u },
	})
	g.members[m.id] = m
	return m
}

func (g *simGroup) leave(id string) { delete(g.members, id) }

// round runs one rebalance and checks that nobody is given what another one may
// still be reading. It reports whether anything moved.
func (g *simGroup) round() (changed bool) {
	g.t.Helper()
	g.generation++
	var in []kmsg.JoinGroupResponseMember
	for _, id := range slices.Sorted(maps.Keys(g.members)) {
		m := g.members[id]
		var interests []string
		for _, s := range m.b.cfg.Subs {
			interests = append(interests, s.Topics...)
		}
		slices.Sort(interests)
		jm := kmsg.NewJoinGroupResponseMember()
		jm.MemberID = id
		jm.ProtocolMetadata = m.b.JoinGroupMetadata(slices.Compact(interests), m.owned, m.generation)
		in = append(in, jm)
	}
	leader := g.members[slices.Min(slices.Collect(maps.Keys(g.members)))]
	mb, topics, err := leader.b.MemberBalancer(in)
	if err != nil {
		g.t.Fatal(err)
	}
	counts := make(map[string]int32)
	for t := range topics {
		counts[t] = g.topics[t]
	}
	into, err := mb.(kgo.GroupMemberBalancerOrError).BalanceOrError(counts)
	if err != nil {
		g.t.Fatal(err)
	}
	reading := make(map[topicPartition][]string)
	for id, m := range g.members {
		for t, ps := range m.owned {
			for _, p := range ps {
				reading[topicPartition{t, p}] = append(reading[topicPartition{t, p}], id)
			}
		}
	}
	given := make(map[topicPartition]string)
	for _, sa := range into.IntoSyncAssignment() {
		m := g.members[sa.MemberID]
		now, err := m.b.ParseSyncAssignment(sa.MemberAssignment)
		if err != nil {
			g.t.Fatal(err)
		}
		for t, ps := range now {
			for _, p := range ps {
				tp := topicPartition{t, p}
				if by, ok := given[tp]; ok {
					g.t.Fatalf("%v given to %s and %s", tp, by, m.id)
				}
				given[tp] = m.id
				had := slices.Contains(m.owned[t], p)
				if others := slices.DeleteFunc(slices.Clone(reading[tp]), func(id string) bool { return id == m.id }); !had && len(others) > 0 {
					g.t.Fatalf("%v given to %s while %v may read it", tp, m.id, others)
				}
				if !had {
					changed = true
				}
			}
		}
		for t, ps := range m.owned {
			for _, p := range ps {
				if !slices.Contains(now[t], p) {
					changed = true
				}
			}
		}
		m.owned, m.generation = now, g.generation
		g.remember(m)
	}
	return changed
}

// settle runs rounds until nothing moves: cooperative members join again after a
// revoke only, so a round too many would be a livelock.
func (g *simGroup) settle() {
	g.t.Helper()
	for range 6 {
		if !g.round() {
			return
		}
	}
	g.t.Fatal("the group does not settle")
}

func (g *simGroup) load(id string) int {
	n := 0
	for _, ps := range g.members[id].owned {
		n += len(ps)
	}
	return n
}

func sub(name string, topics ...string) SubTopology {
	return SubTopology{Name: name, Fingerprint: "1", Topics: topics, CoPartitioned: true}
}

func TestBalanceProperties(t *testing.T) {
	for seed := range uint64(400) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			topics := make(map[string]int32)
			var subs []SubTopology
			tasks := 0
			for i := range 1 + rnd.IntN(4) {
				name := fmt.Sprintf("s%d", i)
				n := int32(1 + rnd.IntN(12))
				topics[name] = n // one topic each, so that partitions are tasks
				subs = append(subs, sub(name, name))
				tasks += int(n)
			}
			g := newSim(t, topics)
			workers := 1 + rnd.IntN(3)
			live := make(map[string]bool)
			for step := range 8 {
				instance := fmt.Sprintf("i%d", rnd.IntN(6))
				before := g.snapshot()
				switch {
				case live[instance] && len(live) > 1:
					for w := range workers {
						g.leave(fmt.Sprintf("%s-%d", instance, w))
					}
					delete(live, instance)
					g.settle()
					g.checkKept(before)
				case !live[instance]:
					for w := range workers {
						m := g.join(instance, w, subs)
						if rnd.IntN(2) == 0 {
							m.held = []HeldTask{{TaskID: TaskID{"s0", 0}, Checkpoint: rnd.Int64N(10)}}
						}
					}
					live[instance] = true
					g.settle()
					moved, shuffled := g.changes(before)
					if most := (tasks + len(live) - 1) / len(live); moved > most || shuffled > len(live) {
						t.Fatalf("step %d: a join moved %d of %d tasks among %d instances, %d within one", step, moved, tasks, len(live), shuffled)
					}
				}
				if len(live) > 0 {
					g.checkBalanced(tasks, workers)
					if g.round() {
						t.Fatal("a settled group moved something")
					}
				}
			}
		})
	}
}

func (g *simGroup) snapshot() map[topicPartition]string {
	s := make(map[topicPartition]string)
	for id, m := range g.members {
		for t, ps := range m.owned {
			for _, p := range ps {
				s[topicPartition{t, p}] = id
			}
		}
	}
	return s
}

// changes counts what went to another instance, and to another worker of one.
func (g *simGroup) changes(before map[topicPartition]string) (moved, shuffled int) {
	instance := func(id string) string { return id[:strings.LastIndex(id, "-")] }
	now := g.snapshot()
	for tp, id := range before {
		switch {
		case instance(now[tp]) != instance(id):
			moved++
		case now[tp] != id:
			shuffled++
		}
	}
	return moved, shuffled
}

// checkKept says that those who stay keep what they had: leaving can only add.
func (g *simGroup) checkKept(before map[topicPartition]string) {
	g.t.Helper()
	now := g.snapshot()
	for tp, id := range before {
		if g.members[id] != nil && now[tp] != id {
			g.t.Fatalf("%v moved from %s, which stayed, to %s", tp, id, now[tp])
		}
	}
}

// checkBalanced says that all tasks are given and that workers, and instances, do
// not differ by more than one.
func (g *simGroup) checkBalanced(tasks, workers int) {
	g.t.Helper()
	total, least, most := 0, 1<<30, 0
	instances := make(map[string]int)
	for id := range g.members {
		n := g.load(id)
		total, least, most = total+n, min(least, n), max(most, n)
		instances[id[:strings.LastIndex(id, "-")]] += n
	}
	if total != tasks {
		g.t.Fatalf("%d of %d tasks are assigned", total, tasks)
	}
	if most-least > 1 {
		g.t.Fatalf("workers have between %d and %d tasks", least, most)
	}
	loads := slices.Collect(maps.Values(instances))
	if slices.Max(loads)-slices.Min(loads) > 1 {
		g.t.Fatalf("instances with %d workers each have between %d and %d tasks", workers, slices.Min(loads), slices.Max(loads))
	}
}

func TestBalanceUnequalWorkers(t *testing.T) {
	g := newSim(t, map[string]int32{"a": 7})
	subs := []SubTopology{sub("a", "a")}
	g.join("small", 0, subs)
	for w := range 4 {
		g.join("large", w, subs)
	}
	g.settle()
	least, most := 10, 0
	for id := range g.members {
		least, most = min(least, g.load(id)), max(most, g.load(id))
	}
	if least != 1 || most != 2 {
		t.Fatalf("workers have between %d and %d of 7 tasks", least, most)
	}
}

// All topics of a task move together, and a task covers those that have it.
func TestBalanceWholeTasks(t *testing.T) {
	g := newSim(t, map[string]int32{"a": 4, "b": 4, "x": 3, "y": 5})
	merge := SubTopology{Name: "merge", Fingerprint: "1", Topics: []string{"x", "y"}}
	subs := []SubTopology{sub("join", "a", "b"), merge}
	for i := range 3 {
		g.join(fmt.Sprintf("i%d", i), 0, subs)
		g.settle()
	}
	total := 0
	for _, m := range g.members {
		if !slices.Equal(m.owned["a"], m.owned["b"]) {
			t.Fatalf("%s has a%v and b%v", m.id, m.owned["a"], m.owned["b"])
		}
		for _, p := range m.owned["x"] {
			if !slices.Contains(m.owned["y"], p) {
				t.Fatalf("%s has x/%d without y/%d", m.id, p, p)
			}
		}
		total += len(m.owned["a"]) + len(m.owned["y"])
	}
	mustEqual(t, "tasks", total, 9)
	mustEqual(t, "unassigned", len(g.unassigned), 0)
}

func TestBalanceUnassigned(t *testing.T) {
	for name, tc := range map[string]struct {
		topics map[string]int32
		sub    SubTopology
		want   string
		count  int
	}{
		"unequal":          {map[string]int32{"a": 4, "b": 3}, sub("s", "a", "b"), "same number of partitions", 4},
		"missing":          {map[string]int32{"a": 4}, sub("s", "a", "b"), `"b" does not exist`, 4},
		"partitions added": {map[string]int32{"a": 6}, SubTopology{Name: "s", Fingerprint: "1", Topics: []string{"a"}, Partitions: 4}, "was added", 2},
		"partitions gone":  {map[string]int32{"a": 2}, SubTopology{Name: "s", Fingerprint: "1", Topics: []string{"a"}, Partitions: 4}, "no topic has partition", 2},
	} {
		t.Run(name, func(t *testing.T) {
			g := newSim(t, tc.topics)
			g.join("i", 0, []SubTopology{tc.sub})
			g.settle()
			if len(g.unassigned) != tc.count || !strings.Contains(g.unassigned[0].Reason, tc.want) {
				t.Fatalf("%v", g.unassigned)
			}
		})
	}
}

// A rolling deploy: the changed sub-topology stays with the old version until it
// has left, the unchanged one is shared from the start.
func TestBalanceTwoVersions(t *testing.T) {
	g := newSim(t, map[string]int32{"a": 4, "b": 4, "c": 4})
	older := []SubTopology{sub("changed", "a"), sub("same", "b")}
	newer := []SubTopology{{Name: "changed", Fingerprint: "2", Topics: []string{"a", "c"}, CoPartitioned: true}, sub("same", "b")}
	g.join("old0", 0, older)
	g.join("old1", 0, older)
	g.settle()
	g.join("new0", 0, newer)
	g.join("new1", 0, newer)
	g.settle()
	for _, id := range []string{"new0-0", "new1-0"} {
		mustEqual(t, id+" of the changed one", len(g.members[id].owned["a"]), 0)
		mustEqual(t, id+" of the same one", len(g.members[id].owned["b"]), 2)
	}
	g.leave("old0-0")
	g.settle()
	mustEqual(t, "the last old one", len(g.members["old1-0"].owned["a"]), 4)
	g.leave("old1-0")
	g.settle()
	for _, id := range []string{"new0-0", "new1-0"} {
		m := g.members[id]
		if !slices.Equal(m.owned["a"], m.owned["c"]) || len(m.owned["a"]) != 2 {
			t.Fatalf("%s: %s", id, describe(m.owned))
		}
	}
	mustEqual(t, "unassigned", len(g.unassigned), 0)
}

// A topic that moved to another sub-topology between versions has one reader.
func TestBalanceTopicChangesSubTopology(t *testing.T) {
	g := newSim(t, map[string]int32{"a": 2, "b": 2})
	g.join("old", 0, []SubTopology{sub("x", "a", "b")})
	g.settle()
	g.join("new", 0, []SubTopology{sub("x", "a"), sub("y", "b")})
	g.settle()
	mustEqual(t, "old", describe(g.members["old-0"].owned), "a[0 1] b[0 1] ")
	if len(g.unassigned) != 2 || !strings.Contains(g.unassigned[0].Reason, "still read by") {
		t.Fatalf("%v", g.unassigned)
	}
	g.leave("old-0")
	g.settle()
	mustEqual(t, "new", describe(g.members["new-0"].owned), "a[0 1] b[0 1] ")
}

// A member that missed rebalances claims what was given to another one since.
func TestBalanceIgnoresOldClaims(t *testing.T) {
	g := newSim(t, map[string]int32{"a": 2})
	subs := []SubTopology{sub("s", "a")}
	zombie := g.join("z", 0, subs)
	g.settle()
	other := g.join("o", 0, subs)
	delete(g.members, zombie.id) // evicted without knowing
	g.settle()
	mustEqual(t, "after the eviction", describe(other.owned), "a[0 1] ")

	g.members[zombie.id] = zombie // back, claiming a[0 1] at its old generation
	g.round()
	if len(zombie.owned["a"]) != 0 {
		t.Fatalf("the zombie keeps %v", zombie.owned)
	}
	g.settle()
	mustEqual(t, "shared", len(zombie.owned["a"])+len(other.owned["a"]), 2)

	// Even alone it must let go first, or it would go on at old positions.
	g2 := newSim(t, map[string]int32{"a": 2})
	z := g2.join("z", 0, subs)
	g2.settle()
	fresh := g2.join("f", 0, subs)
	fresh.generation = g2.generation + 5 // it was there meanwhile and owns nothing
	g2.round()
	mustEqual(t, "in the first round", len(z.owned["a"]), 0)
	g2.settle()
	mustEqual(t, "in the end", len(z.owned["a"])+len(fresh.owned["a"]), 2)
}

// State on disk draws a task nobody owns, that nearest to the end of its changelog most.
func TestBalanceFollowsState(t *testing.T) {
	g := newSim(t, map[string]int32{"a": 3})
	subs := []SubTopology{sub("s", "a")}
	for i, instance := range []string{"x", "y", "z"} {
		m := g.join(instance, 0, subs)
		m.held = []HeldTask{
			{TaskID: TaskID{"s", int32(2 - i)}, Checkpoint: 100},
			{TaskID: TaskID{"s", int32(i)}, Checkpoint: 50},
			{TaskID: TaskID{"unknown", 0}},
		}
	}
	g.settle()
	for i, id := range []string{"x-0", "y-0", "z-0"} {
		mustEqual(t, id, describe(g.members[id].owned), fmt.Sprintf("a[%d] ", 2-i))
	}
}

func TestBalanceForeignMember(t *testing.T) {
	g := newSim(t, map[string]int32{"a": 2})
	g.join("i", 0, []SubTopology{sub("s", "a")})
	foreign := kmsg.NewConsumerMemberMetadata()
	foreign.Version, foreign.Topics, foreign.UserData = 3, []string{"a"}, []byte{99}
	mine := g.members["i-0"].b
	fm, im := kmsg.NewJoinGroupResponseMember(), kmsg.NewJoinGroupResponseMember()
	fm.MemberID, fm.ProtocolMetadata = "foreign", foreign.AppendTo(nil)
	im.MemberID, im.ProtocolMetadata = "i-0", mine.JoinGroupMetadata([]string{"a"}, nil, -1)
	mb, _, err := mine.MemberBalancer([]kmsg.JoinGroupResponseMember{fm, im})
	if err != nil {
		t.Fatal(err)
	}
	into, err := mb.(kgo.GroupMemberBalancerOrError).BalanceOrError(map[string]int32{"a": 2})
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, sa := range into.IntoSyncAssignment() {
		m, err := mine.ParseSyncAssignment(sa.MemberAssignment)
		if err != nil {
			t.Fatal(err)
		}
		got[sa.MemberID] = describe(m)
	}
	if want := map[string]string{"foreign": "", "i-0": "a[0 1] "}; !maps.Equal(got, want) {
		t.Fatalf("%v", got)
	}
}

func TestBumpChangesMetadata(t *testing.T) {
	b := NewBalancer(BalancerConfig{Subs: []SubTopology{sub("s", "a")}, Instance: "i"})
	first := b.JoinGroupMetadata([]string{"a"}, nil, 3)
	if !bytes.Equal(first, b.JoinGroupMetadata([]string{"a"}, nil, 3)) {
		t.Fatal("equal input, other metadata: the group would balance without need")
	}
	b.Bump()
	if bytes.Equal(first, b.JoinGroupMetadata([]string{"a"}, nil, 3)) {
		t.Fatal("Bump changes nothing")
	}
}

var sampleUserData = userData{
	Instance: "8f14e45f-ceea-467f-a8d4-1f0e2a7c3b55", Worker: 2, Version: 7,
	Subs: []SubTopology{
		{Name: "by-team", Fingerprint: "c0ffee", Topics: []string{"app.by-team-repartition"}, CoPartitioned: true, Partitions: 4},
		{Name: "triage", Fingerprint: "beef", Topics: []string{"app.triage-loop", "tickets"}},
	},
	Held: []HeldTask{
		{TaskID: TaskID{"by-team", 3}, Checkpoint: 1 << 40},
		{TaskID: TaskID{"triage", 0}, Checkpoint: -1},
	},
}

// The format of the first release must stay readable, and stay the same.
func TestUserDataFixture(t *testing.T) {
	const file = "testdata/userdata-v1.hex"
	if *rewrite {
		if err := os.WriteFile(file, []byte(hex.EncodeToString(sampleUserData.encode())+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	var got userData
	if err := got.decode(raw); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, sampleUserData) {
		t.Fatalf("got %+v", got)
	}
	if !bytes.Equal(got.encode(), raw) {
		t.Fatal("the encoding changed: raise userDataVersion and keep this fixture")
	}
	// Fields a later release appends are ignored.
	if err := got.decode(append(raw, 1, 2, 3)); err != nil || !reflect.DeepEqual(got, sampleUserData) {
		t.Fatal(err)
	}
	if err := got.decode(append([]byte{2}, raw[1:]...)); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Fatal(err)
	}
}

func FuzzUserData(f *testing.F) {
	f.Add(sampleUserData.encode())
	f.Add([]byte{})
	f.Add([]byte{1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		var u, again userData
		if err := u.decode(b); err != nil {
			return
		}
		if err := again.decode(u.encode()); err != nil {
			t.Fatalf("%v after encoding %+v", err, u)
		}
	})
}

func BenchmarkBalance(b *testing.B) {
	topics := map[string]int32{}
	var subs []SubTopology
	for i := range 8 {
		n := fmt.Sprint("s", i)
		topics[n] = 256
		subs = append(subs, sub(n, n))
	}
	for b.Loop() {
		g := newSim(b, topics)
		for i := range 20 {
			for w := range 4 {
				g.join(fmt.Sprint("i", i), w, subs)
			}
		}
		g.round()
	}
}
