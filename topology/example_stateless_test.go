package topology_test

import (
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

// show runs a topology that reads topic "words" (keys and values are strings)
// and prints what it writes to each topic. A word is "key value".
func show(b *topology.Builder, words []string, topics ...string) {
	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "words", serde.String(), serde.String())
	for i, word := range words {
		key, value, _ := strings.Cut(word, " ")
		in.Pipe(key, value, int64(i))
	}
	for _, topic := range topics {
		out := topologytest.Output(d, topic, serde.String(), serde.String())
		fmt.Printf("%s: %s\n", topic, strings.Join(out.Text(), ", "))
	}
	for _, f := range d.Failures() {
		fmt.Printf("%s: %v\n", f.Action, f.Err)
	}
}

func ExampleStream() {
	b := topology.New("shop")
	words := topology.Stream(b, "words", serde.String(), serde.String())
	words.To("copy")
	show(b, []string{"a one", "b two"}, "copy")
	// Output: copy: a:one@0, b:two@1
}

func ExampleKStream_Filter() {
	b := topology.New("shop")
	words := topology.Stream(b, "words", serde.String(), serde.String())
	isLong := func(_, word string) bool { return len(word) > 3 }
	words.Filter(isLong).To("long")
	words.FilterNot(isLong).To("short")
	show(b, []string{"a one", "b three"}, "long", "short")
	// Output:
	// long: b:three@1
	// short: a:one@0
}

func ExampleMapValues() {
	b := topology.New("shop")
	words := topology.Stream(b, "words", serde.String(), serde.String())
	topology.MapValues(words, strings.ToUpper).To("loud")
	show(b, []string{"a one", "b two"}, "loud")
	// Output: loud: a:ONE@0, b:TWO@1
}

// A function that may fail chooses what becomes of its record.
func ExampleTryMapValues() {
	b := topology.New("shop")
	words := topology.Stream(b, "words", serde.String(), serde.String())
	checked := topology.TryMapValues(words, func(r processors.Record[string, string]) (string, error) {
		switch r.Value {
		case "noise":
			return "", processors.WithAction(processors.Skip, errors.New("not a word"))
		case "odd":
			return "", errors.New("unknown word")
		}
		return r.Value, nil
	}, topology.Named("check"))
	checked.To("checked")
	show(b, []string{"a one", "b noise", "c odd"}, "checked")
	// Output:
	// checked: a:one@0
	// skip: process: step "check": not a word
	// dead-letter: process: step "check": unknown word
}

func ExampleMap() {
	b := topology.New("shop")
	words := topology.Stream(b, "words", serde.String(), serde.String())
	topology.Map(words, func(key, word string) (string, string) { return word, key }).To("swapped")
	show(b, []string{"a one", "b two"}, "swapped")
	// Output: swapped: one:a@0, two:b@1
}

func ExampleSelectKey() {
	b := topology.New("shop")
	words := topology.Stream(b, "words", serde.String(), serde.String())
	byLetter := topology.SelectKey(words, func(_, word string) string { return word[:1] })
	byLetter.To("by-letter")
	show(b, []string{"a one", "b two"}, "by-letter")
	// Output: by-letter: o:one@0, t:two@1
}

func ExampleFlatMap() {
	b := topology.New("shop")
	words := topology.Stream(b, "words", serde.String(), serde.String())
	both := topology.FlatMap(words, func(key, word string) iter.Seq2[string, string] {
		return func(yield func(string, string) bool) {
			_ = yield(key, word) && yield(word, key)
		}
	})
	both.To("both")
	show(b, []string{"a one"}, "both")
	// Output: both: a:one@0, one:a@0
}

func ExampleFlatMapValues() {
	b := topology.New("shop")
	words := topology.Stream(b, "words", serde.String(), serde.String())
	topology.FlatMapValues(words, func(words string) iter.Seq[string] { return strings.FieldsSeq(words) }).To("single")
	show(b, []string{"a one two", "b three"}, "single")
	// Output: single: a:one@0, a:two@0, b:three@1
}

func ExampleKStream_Peek() {
	b := topology.New("shop")
	words := topology.Stream(b, "words", serde.String(), serde.String())
	words.Peek(func(key, word string) { fmt.Println("saw", key, word) }).To("copy")
	show(b, []string{"a one"}, "copy")
	// Output:
	// saw a one
	// copy: a:one@0
}

func ExampleKStream_ForEach() {
	b := topology.New("shop")
	words := topology.Stream(b, "words", serde.String(), serde.String())
	words.ForEach(func(key, word string) { fmt.Println(key, word) })
	show(b, []string{"a one", "b two"})
	// Output:
	// a one
	// b two
}

func ExampleKStream_Split() {
	b := topology.New("shop")
	words := topology.Stream(b, "words", serde.String(), serde.String())
	branches := words.Split()
	branches.Branch("short", func(_, word string) bool { return len(word) < 4 }).To("short")
	branches.Branch("with t", func(_, word string) bool { return strings.Contains(word, "t") }).To("with-t")
	branches.Default("rest").To("rest")
	show(b, []string{"a two", "b three", "c seven"}, "short", "with-t", "rest")
	// Output:
	// short: a:two@0
	// with-t: b:three@1
	// rest: c:seven@2
}

func ExampleKStream_Merge() {
	b := topology.New("shop")
	words := topology.Stream(b, "words", serde.String(), serde.String())
	loud := topology.MapValues(words, strings.ToUpper)
	words.Merge(loud).To("both")
	show(b, []string{"a one"}, "both")
	// Output: both: a:ONE@0, a:one@0
}

func ExampleKStream_Repartition() {
	b := topology.New("shop")
	words := topology.Stream(b, "words", serde.String(), serde.String())
	byWord := topology.SelectKey(words, func(_, word string) string { return word })
	byWord.Repartition("by-word", topology.Partitions(12)).To("words-by-word")
	show(b, []string{"a one"}, "shop.by-word-repartition", "words-by-word")
	// Output:
	// shop.by-word-repartition: one:one@0
	// words-by-word: one:one@0
}

func ExampleKStream_ToEach() {
	b := topology.New("shop")
	words := topology.Stream(b, "words", serde.String(), serde.String())
	words.ToEach(func(r processors.Record[string, string]) (string, error) { return "words." + r.Key, nil })
	show(b, []string{"a one", "b two"}, "words.a", "words.b")
	// Output:
	// words.a: a:one@0
	// words.b: b:two@1
}

// Timestamps takes the event time from the record.
func ExampleTimestamps() {
	b := topology.New("shop")
	words := topology.Stream(b, "words", serde.String(), serde.String(),
		topology.Timestamps(func(r processors.Record[string, string], _ int64) (int64, error) {
			t, err := time.Parse(time.RFC3339, r.Value)
			return t.UnixMilli(), err
		}))
	words.To("timed")
	show(b, []string{"a 1970-01-01T00:00:42Z"}, "timed")
	// Output: timed: a:1970-01-01T00:00:42Z@42000
}

// Extractors that build on Kafka's timestamp see it once.
func ExampleTimestamps_seconds() {
	b := topology.New("shop")
	words := topology.Stream(b, "words", serde.String(), serde.String(),
		topology.Timestamps(func(r processors.Record[string, string], _ int64) (int64, error) { return r.Timestamp * 1000, nil }))
	words.To("timed")
	show(b, []string{"a one", "b two"}, "timed")
	// Output: timed: a:one@0, b:two@1000
}

// lastSeen forwards a word together with the one its key had before.
type lastSeen struct {
	ctx  *processors.Context[string, string]
	last state.KeyValueStore[string, string]
}

func (p *lastSeen) Init(ctx *processors.Context[string, string]) (err error) {
	p.ctx = ctx
	p.last, err = processors.KeyValueStore[string, string](ctx, "last")
	return err
}

func (p *lastSeen) Process(r processors.Record[string, string]) error {
	before, _, err := p.last.Get(r.Key)
	if err != nil {
		return err
	}
	if err := p.last.Put(r.Key, r.Value, r.Timestamp); err != nil {
		return err
	}
	r.Value = fmt.Sprintf("%q then %q", before, r.Value)
	return p.ctx.Forward(r)
}

func (p *lastSeen) Close() error { return nil }

func ExampleProcessValues() {
	b := topology.New("shop")
	topology.AddKeyValueStore(b, "last", serde.String(), serde.String())
	words := topology.Stream(b, "words", serde.String(), serde.String())
	pairs := topology.ProcessValues(words, "pairs", func() processors.Processor[string, string, string, string] { return &lastSeen{} }, topology.Stores("last"))
	pairs.To("pairs")
	show(b, []string{"a one", "b two", "a three"}, "pairs")
	// Output: pairs: a:"" then "one"@0, b:"" then "two"@1, a:"one" then "three"@2
}

// A function serves as a processor that keeps nothing itself.
func ExampleProcess() {
	b := topology.New("shop")
	words := topology.Stream(b, "words", serde.String(), serde.String())
	letters := processors.ProcessorFunc[string, string, string, string](func(ctx *processors.Context[string, string], r processors.Record[string, string]) error {
		for letter := range strings.SplitSeq(r.Value, "") {
			r.Key = letter
			if err := ctx.Forward(r); err != nil {
				return err
			}
		}
		return nil
	})
	topology.Process(words, "letters", letters.New).To("letters")
	show(b, []string{"a one"}, "letters")
	// Output: letters: o:one@0, n:one@0, e:one@0
}

func ExampleTopology_Describe() {
	b := topology.New("shop")
	words := topology.Stream(b, "words", serde.String(), serde.String())
	byWord := topology.SelectKey(words, func(_, word string) string { return word })
	byWord.GroupByKey().Count("per-word").ToStream().To("counts")
	t, err := b.Build()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Print(t.Describe())
	// Output:
	// Application shop
	// Sub-topology words (group shop, tasks shop.words-task)
	//   source-0 reads words (string, string)
	//     --> select-key-1
	//   select-key-1
	//     --> per-word (repartition)
	//   per-word (repartition) writes shop.per-word-repartition (string, string): without null keys
	//   dead letters to shop.dlq
	// Sub-topology per-word (group shop, tasks shop.per-word-task)
	//   per-word (source) reads shop.per-word-repartition (string, string)
	//     --> per-word (count)
	//   per-word (count) [per-word]
	//     --> to-stream-4
	//   to-stream-4
	//     --> sink-5
	//   sink-5 writes counts (string, int64)
	//   key-value store per-word (string, int64), logged in shop.per-word-table
	//   dead letters to shop.dlq
}

// Build reports all mistakes at once.
func ExampleBuilder_Build() {
	b := topology.New("shop")
	words := topology.Stream(b, "words", serde.String(), serde.String())
	words.Filter(func(_, word string) bool { return word != "" })
	words.To("all words")
	_, err := b.Build()
	fmt.Println(err)
	// Output:
	// sink "all words": the name "all words" holds ' '; use letters, digits, '.', '_' and '-'
	// filter "filter-1": nothing uses its result; end it with To or ForEach, or remove it
}
