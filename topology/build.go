package topology

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/millrace/millrace/llm/prompt"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
)

// Build checks the description and compiles it. It reports all mistakes at once,
// joined by [errors.Join], each with what to do. The builder may be extended and
// built again.
func (b *Builder) Build() (*Topology, error) {
	errs := slices.Concat(b.errs, b.checkNodes(), b.checkTopics(), b.checkStores(), b.checkPrompts())
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	t := &Topology{App: b.app, Globals: slices.Clone(b.global), Prompts: b.promptUses()}
	if len(t.Prompts) > 0 {
		t.Globals = append(t.Globals, promptTable(b.app, t.Prompts))
	}
	pieces := b.cut()
	names := nameAll(pieces)
	for i, p := range pieces {
		t.Subs = append(t.Subs, b.compile(p, names[i]))
	}
	if errs := t.checkInternal(b); len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return t, nil
}

// compile turns a piece into a sub-topology of that name.
func (b *Builder) compile(p *piece, name string) *SubTopology {
	s := &SubTopology{
		App: b.app, Name: name, piece: p,
		KafkaGroup: b.app, GokaGroup: b.app + "." + name + "-task", DeadLetterTopic: b.app + ".dlq",
	}
	if p.async != nil {
		s.KafkaGroup = b.app + "." + s.Name
		s.GokaGroup = s.KafkaGroup
		s.DeadLetterTopic = s.KafkaGroup + ".dlq"
		s.LoopTopic = s.GokaGroup + "-loop"
		s.Caller = p.async.caller
	}
	sinks := map[string]*InternalTopic{s.DeadLetterTopic: {Kind: TopicDeadLetter}}
	if p.async != nil && p.async.raw != "" {
		sinks[p.async.raw] = &InternalTopic{Kind: TopicDeadLetter}
	}
	stores := map[string]bool{}
	for _, i := range p.instances {
		n := i.n
		switch {
		case i.read:
			s.addSource(n)
		case n.kind == kindRepartition:
			sinks[n.topic] = &InternalTopic{Kind: TopicRepartition, Partitions: n.source.partitions}
		case n.kind == kindSink && n.topic != "":
			sinks[n.topic] = nil
		case n.kind == kindStateful || n.kind == kindAsync:
			s.NeedsRows = true
		}
		s.NeedsRows = s.NeedsRows || n.timers
		for _, name := range n.uses {
			stores[name] = true
		}
	}
	for _, topic := range slices.Sorted(maps.Keys(sinks)) {
		s.Sinks = append(s.Sinks, Sink{Topic: topic, Internal: sinks[topic]})
	}
	for _, name := range b.order {
		if stores[name] {
			s.Stores = append(s.Stores, b.stores[name].spec)
		}
	}
	s.CoPartitioned = p.aligned()
	s.Fingerprint = b.fingerprint(p)
	s.Start = func(t processors.Task) (Pipeline, error) { return p.start(t, s.Sources) }
	return s
}

// addSource adds the topic that n reads, once.
func (s *SubTopology) addSource(n *node) {
	at := slices.IndexFunc(s.Sources, func(src Source) bool { return src.Topic == n.topic })
	if at < 0 {
		at = len(s.Sources)
		s.Sources = append(s.Sources, Source{Topic: n.topic, Start: n.source.start})
	}
	src := &s.Sources[at]
	if n.kind == kindRepartition {
		src.Internal = &InternalTopic{Kind: TopicRepartition, Partitions: n.source.partitions}
	}
	if n.source.store != "" {
		src.Store = n.source.store
	}
	if n.source.timestamp != nil {
		src.Timestamp = n.source.timestamp
	}
}

// nameAll names the pieces: by the first name each owns in sorted order, or by
// its first topic if it owns none. The names of steps, stores and groups differ,
// so only a topic's name can be taken; such a piece keeps no state under it.
func nameAll(pieces []*piece) []string {
	names := make([]string, len(pieces))
	taken := map[string]bool{}
	for i, p := range pieces {
		names[i] = p.owned()
		taken[names[i]] = true
	}
	for i, p := range pieces {
		if names[i] != "" {
			continue
		}
		var topics []string
		for _, i := range p.instances {
			if i.read {
				topics = append(topics, i.n.topic)
			}
		}
		names[i] = slices.Min(topics)
		for taken[names[i]] {
			names[i] += "-stream"
		}
		taken[names[i]] = true
	}
	return names
}

// owned returns the first name the piece owns in sorted order, or "".
func (p *piece) owned() string {
	if p.async != nil {
		return p.async.name
	}
	var owned []string
	for _, i := range p.instances {
		if !i.n.auto && (i.n.kind == kindStateful || i.n.kind == kindRepartition && i.read) {
			owned = append(owned, i.n.name)
		}
		owned = append(owned, i.n.uses...)
	}
	if len(owned) == 0 {
		return ""
	}
	return slices.Min(owned)
}

// aligned reports whether all sources of the piece need the same partition
// count: a store, or a node that says so, is fed by more than one topic.
func (p *piece) aligned() bool {
	topics := map[instance]map[string]bool{}
	feeders := map[string]map[string]bool{} // store -> topics
	for _, i := range p.instances {
		if topics[i] == nil {
			topics[i] = map[string]bool{}
		}
		if i.read {
			topics[i][i.n.topic] = true
		}
		for _, e := range p.edges[i] {
			to := instance{n: e.to}
			if topics[to] == nil {
				topics[to] = map[string]bool{}
			}
			maps.Copy(topics[to], topics[i])
		}
		if len(topics[i]) > 1 && (i.n.aligned || i.n.kind == kindStateful) {
			return true
		}
		for _, s := range i.n.uses {
			if feeders[s] == nil {
				feeders[s] = map[string]bool{}
			}
			maps.Copy(feeders[s], topics[i])
			if len(feeders[s]) > 1 {
				return true
			}
		}
	}
	return false
}

// fingerprint hashes the shape of a piece. Names made from numbers are left out:
// they change when another part of the application does.
func (b *Builder) fingerprint(p *piece) string {
	index := map[instance]int{}
	for at, i := range p.instances {
		index[i] = at
	}
	var text strings.Builder
	fmt.Fprintf(&text, "millrace fingerprint 1 app %q\n", b.app)
	for at, i := range p.instances {
		name := i.n.name
		if i.n.auto {
			name = ""
		}
		fmt.Fprintf(&text, "%d %v %q %q topic %q serdes %q detail %q\n", at, i.read, i.n.op, name, i.n.topic, i.n.serdes, i.n.detail)
		for _, e := range p.edges[i] {
			fmt.Fprintf(&text, "  %d -> %d %d\n", e.out, index[instance{n: e.to}], e.in)
		}
		for _, store := range i.n.uses {
			d := b.stores[store].spec
			fmt.Fprintf(&text, "  store %q kind %d serdes %q %q window %d retention %d log %q\n",
				d.Name, d.Kind, d.KeySerde, d.ValueSerde, d.WindowSize, d.Retention, d.SourceTopic)
			if d.TTL > 0 {
				fmt.Fprintf(&text, "  ttl %d\n", d.TTL)
			}
		}
	}
	sum := sha256.Sum256([]byte(text.String()))
	return hex.EncodeToString(sum[:16])
}

// checkNodes reports steps that cannot work.
func (b *Builder) checkNodes() []error {
	var errs []error
	sources := 0
	for _, n := range b.nodes {
		what := fmt.Sprintf("%s %q", n.op, n.name)
		if n.kind == kindSource {
			sources++
			what = fmt.Sprintf("source %q", n.topic)
		}
		used := map[int]bool{}
		for _, e := range n.children {
			used[e.out] = true
		}
		switch n.kind {
		case kindSource, kindRepartition:
			if len(used) == 0 {
				errs = append(errs, fmt.Errorf("%s: nothing uses it; add a step behind it, or remove it", what))
			}
		case kindStateless:
			if len(used) == 0 && n.op != "peek" {
				errs = append(errs, fmt.Errorf("%s: nothing uses its result; end it with To or ForEach, or remove it", what))
			}
		}
		if n.kind == kindAsync && n.outs > 1 && n.run != nil && n.fallback != used[1] {
			if n.fallback {
				errs = append(errs, fmt.Errorf("%s: nothing uses its fallbacks, which OnFailure, FallbackOn or OnOpenBreaker asks for; end them with To, or leave that out", what))
			} else {
				errs = append(errs, fmt.Errorf("%s: its fallbacks never hold an event; pass OnFailure(FallbackEvent), or remove what uses them", what))
			}
		}
		if n.kind == kindAsync && n.auto {
			errs = append(errs, fmt.Errorf("%s: it has no name; an asynchronous step owns topics and needs an explicit one", what))
		}
	}
	if sources == 0 {
		errs = append(errs, fmt.Errorf("application %q: it reads no topic; begin with topology.Stream or topology.Table", b.app))
	}
	return errs
}

// checkTopics reports topics whose uses contradict each other.
func (b *Builder) checkTopics() []error {
	var errs []error
	first := map[string]*node{}    // topic -> node that first used it
	source := map[string]*node{}   // topic -> source
	written := map[string]string{} // repartition topic -> step
	for _, n := range b.nodes {
		if n.topic == "" {
			continue
		}
		if n.kind == kindRepartition {
			if _, ok := written[n.topic]; ok {
				errs = append(errs, fmt.Errorf("topic %q: two steps named %q repartition into it; give one of them another name", n.topic, n.name))
			}
			written[n.topic] = n.name
			continue
		}
		f, ok := first[n.topic]
		if !ok {
			first[n.topic], f = n, n
		}
		for part, i := range map[string]int{"keys": 0, "values": 1} {
			if a, b := f.serdes[i], n.serdes[i]; a != b && a != "" && b != "" && a != "bytes" && b != "bytes" {
				errs = append(errs, fmt.Errorf("topic %q: its %s are %s in %s and %s in %s; use one serde", n.topic, part, a, f.op, b, n.op))
			}
		}
		if n.kind != kindSource {
			continue
		}
		s, ok := source[n.topic]
		if !ok {
			source[n.topic] = n
			continue
		}
		if s.source.start != n.source.start {
			errs = append(errs, fmt.Errorf("topic %q: it is read twice from different starts; an application has one offset per topic, pass the same From", n.topic))
		}
		if s.source.timestamp != nil || n.source.timestamp != nil {
			errs = append(errs, fmt.Errorf("topic %q: it is read twice, one time with a timestamp extractor; read it once and use the stream twice", n.topic))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errs
}

// checkStores reports stores that do not exist or that nobody uses.
func (b *Builder) checkStores() []error {
	var errs []error
	used := map[string]bool{}
	for _, n := range b.nodes {
		for _, s := range n.uses {
			used[s] = true
			if _, ok := b.stores[s]; !ok {
				errs = append(errs, fmt.Errorf("%s %q: there is no store %q; declare it with AddKeyValueStore or AddWindowStore", n.op, n.name, s))
			}
		}
	}
	for _, name := range b.order {
		d := b.stores[name]
		if !used[name] {
			errs = append(errs, fmt.Errorf("store %q: no step uses it; connect it with topology.Stores, or remove it", name))
		}
		if d.spec.Kind == state.Window && (d.spec.WindowSize <= 0 || d.spec.Retention < d.spec.WindowSize) {
			errs = append(errs, fmt.Errorf("store %q: window size %v and retention %v; the size must be positive and the retention at least as long", name, d.spec.WindowSize, d.spec.Retention))
		}
	}
	return errs
}

// checkInternal reports clashes of internal topics, with each other and with the
// topics of the user.
func (t *Topology) checkInternal(b *Builder) []error {
	var errs []error
	owner := map[string]string{}
	add := func(topic, what string) {
		if topic == "" {
			return
		}
		if err := checkName(topic); err != nil {
			errs = append(errs, fmt.Errorf("%s: its topic: %w; use shorter names", what, err))
		}
		if other, ok := owner[topic]; ok && other != what {
			errs = append(errs, fmt.Errorf("%s: its topic %q is also that of %s; rename one", what, topic, other))
		}
		owner[topic] = what
	}
	for _, s := range t.Subs {
		add(s.LoopTopic, fmt.Sprintf("the loop of %q", s.Name))
		for _, log := range s.Changelogs() {
			what := fmt.Sprintf("store %q", log.Store.Name)
			if log.Store.Name == state.TaskRows {
				what = fmt.Sprintf("the task rows of %q", s.Name)
			}
			add(log.Topic, what)
		}
		for _, sink := range s.Sinks {
			if sink.Internal != nil && sink.Internal.Kind == TopicRepartition {
				add(sink.Topic, fmt.Sprintf("the repartition %q", sink.Topic))
			}
		}
		add(s.DeadLetterTopic, "the dead letters "+s.DeadLetterTopic)
		if a := s.piece.async; a != nil {
			add(a.raw, fmt.Sprintf("the refused answers of %q", s.Name))
		}
	}
	if len(t.Prompts) > 0 {
		add(prompt.Topic(t.App), "the prompts")
	}
	for _, n := range b.nodes {
		if n.kind != kindSource && n.kind != kindSink {
			continue
		}
		if what, ok := owner[n.topic]; ok {
			errs = append(errs, fmt.Errorf("%s %q: the application keeps %s in this topic; use another one", n.op, n.topic, what))
		}
	}
	return errs
}
