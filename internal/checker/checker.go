// Package checker recomputes what an application must have written and compares
// it with what it wrote. It reads with a client of its own and shares no code with
// the engine: what it says does not depend on what it checks.
//
// The application it knows is the one of internal/chaos: records of one input
// topic are echoed, counted per key, counted per key and window, looked up
// asynchronously, and written under other keys. Each output must be exactly the recomputation, per partition and
// in order, of the input: nothing lost, nothing twice, nothing made up.
package checker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A Record is what the checker knows of a record.
type Record struct {
	Offset    int64
	Key       string
	Value     []byte
	Null      bool // it has no value
	NoKey     bool
	Timestamp int64
	Headers   map[string]string
}

// A Log is a topic by partition, in offset order.
type Log map[int32][]Record

// Len counts the records of all partitions.
func (l Log) Len() int {
	n := 0
	for _, rs := range l {
		n += len(rs)
	}
	return n
}

// Read reads topics from their beginnings to their last stable offsets as of now,
// committed records only.
func Read(ctx context.Context, opts []kgo.Opt, topics ...string) (map[string]Log, error) {
	cl, err := kgo.NewClient(append(slices.Clone(opts), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())...)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	ends, err := adm.ListCommittedOffsets(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("list the ends of %v: %w", topics, err)
	}
	starts, err := adm.ListStartOffsets(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("list the starts of %v: %w", topics, err)
	}
	logs := map[string]Log{}
	open := map[string]map[int32]int64{}
	parts := map[string]map[int32]kgo.Offset{}
	for _, t := range topics {
		logs[t], open[t], parts[t] = Log{}, map[int32]int64{}, map[int32]kgo.Offset{}
	}
	if err := errors.Join(ends.Error(), starts.Error()); err != nil {
		return nil, fmt.Errorf("list the offsets of %v: %w", topics, err)
	}
	left := 0
	ends.Each(func(o kadm.ListedOffset) {
		at, _ := starts.Lookup(o.Topic, o.Partition)
		if o.Offset <= at.Offset {
			return
		}
		open[o.Topic][o.Partition] = o.Offset
		parts[o.Topic][o.Partition] = kgo.NewOffset().At(at.Offset)
		left++
	})
	cl.AddConsumePartitions(parts)
	for left > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return nil, fmt.Errorf("read: %w", err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			end, ok := open[r.Topic][r.Partition]
			if !ok || r.Offset >= end {
				return
			}
			if !r.Attrs.IsControl() {
				logs[r.Topic][r.Partition] = append(logs[r.Topic][r.Partition], toRecord(r))
			}
			if r.Offset == end-1 {
				delete(open[r.Topic], r.Partition)
				left--
			}
		})
	}
	return logs, nil
}

func toRecord(r *kgo.Record) Record {
	rec := Record{Offset: r.Offset, Key: string(r.Key), Value: r.Value, Null: r.Value == nil, NoKey: r.Key == nil, Timestamp: r.Timestamp.UnixMilli(), Headers: map[string]string{}}
	for _, h := range r.Headers {
		rec.Headers[h.Key] = string(h.Value)
	}
	return rec
}

// A Report lists what is wrong, at most a few lines per topic.
type Report struct {
	Inputs, Outputs int
	Problems        []string
}

// OK reports whether everything was as it must be.
func (r *Report) OK() bool { return len(r.Problems) == 0 }

func (r *Report) String() string {
	if r.OK() {
		return fmt.Sprintf("%d inputs, %d outputs, 0 lost, 0 duplicated", r.Inputs, r.Outputs)
	}
	return fmt.Sprintf("%d inputs, %d outputs:\n  %s", r.Inputs, r.Outputs, strings.Join(r.Problems, "\n  "))
}

func (r *Report) fail(format string, args ...any) {
	if len(r.Problems) < 20 {
		r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
	}
}

// Ordered compares an output whose partitions follow the input's: record for
// record, in order. With prefix, the output may end early: it is read while the
// application runs.
func (r *Report) Ordered(name string, want map[int32][]Output, got Log, prefix bool) {
	for _, p := range slices.Sorted(maps.Keys(want)) {
		w, g := want[p], got[p]
		r.Outputs += len(g)
		for i := range min(len(w), len(g)) {
			if have := (Output{g[i].Key, decode(g[i].Value), g[i].Timestamp}); have != w[i] {
				r.fail("%s/%d: record %d (offset %d) is %v, must be %v", name, p, i, g[i].Offset, have, w[i])
				break
			}
		}
		if len(g) > len(w) {
			r.fail("%s/%d: %d records, must be %d: duplicated or made up", name, p, len(g), len(w))
		}
		if len(g) < len(w) && !prefix {
			r.fail("%s/%d: %d records, must be %d: lost", name, p, len(g), len(w))
		}
	}
	for p := range got {
		if _, ok := want[p]; !ok && len(got[p]) > 0 {
			r.fail("%s/%d: %d records in a partition that must be empty", name, p, len(got[p]))
		}
	}
}

// An Output is a record that must have been written.
type Output struct {
	Key       string
	Value     int64
	Timestamp int64
}

func decode(v []byte) int64 {
	if len(v) != 8 {
		return -1 << 62
	}
	return int64(binary.BigEndian.Uint64(v))
}

// Echo is the input, unchanged.
func Echo(in Log) map[int32][]Output {
	out := map[int32][]Output{}
	for p, rs := range in {
		for _, r := range rs {
			out[p] = append(out[p], Output{r.Key, decode(r.Value), r.Timestamp})
		}
	}
	return out
}

// Counts is the running count of each key: one output per input. The timestamp of
// a count is the largest of its key so far.
func Counts(in Log) map[int32][]Output {
	out := map[int32][]Output{}
	for p, rs := range in {
		count, latest := map[string]int64{}, map[string]int64{}
		for _, r := range rs {
			count[r.Key]++
			latest[r.Key] = max(latest[r.Key], r.Timestamp)
			out[p] = append(out[p], Output{r.Key, count[r.Key], latest[r.Key]})
		}
	}
	return out
}

// Windows is the running count of each key in tumbling windows, late records
// dropped: those whose window ended at or before stream time less grace. The key
// of an output is "key@start".
func Windows(in Log, size, grace time.Duration) map[int32][]Output {
	out := map[int32][]Output{}
	type window struct {
		key   string
		start int64
	}
	for p, rs := range in {
		count, latest := map[window]int64{}, map[window]int64{}
		streamTime := int64(-1)
		for _, r := range rs {
			streamTime = max(streamTime, r.Timestamp)
			w := window{r.Key, r.Timestamp - r.Timestamp%size.Milliseconds()}
			if w.start+size.Milliseconds() <= streamTime-grace.Milliseconds() {
				continue
			}
			count[w]++
			latest[w] = max(latest[w], r.Timestamp)
			out[p] = append(out[p], Output{fmt.Sprintf("%s@%d", w.key, w.start), count[w], latest[w]})
		}
	}
	return out
}

// PerKey compares an output that keeps the order of each key only: every input
// once, its value unchanged. Keys stay in their partition.
func (r *Report) PerKey(name string, in Log, got Log, prefix bool) {
	for _, p := range slices.Sorted(maps.Keys(in)) {
		want, have := byKey(in[p]), byKey(got[p])
		r.Outputs += len(got[p])
		for _, key := range slices.Sorted(maps.Keys(have)) {
			w, h := want[key], have[key]
			for i := range min(len(w), len(h)) {
				if w[i] != h[i] {
					r.fail("%s/%d: record %d of key %q has value %d, must be %d", name, p, i, key, h[i], w[i])
					break
				}
			}
			if len(h) > len(w) {
				r.fail("%s/%d: %d records of key %q, must be %d: duplicated or made up", name, p, len(h), key, len(w))
			}
		}
		if prefix {
			continue
		}
		for _, key := range slices.Sorted(maps.Keys(want)) {
			if len(have[key]) < len(want[key]) {
				r.fail("%s/%d: %d records of key %q, must be %d: lost", name, p, len(have[key]), key, len(want[key]))
			}
		}
	}
}

// Regrouped compares an output that has every input under another key: of names that
// key for an input key. Each value is there once, under the right key, all of a key
// in one partition, and those of one input key in their order. Input values are
// unique.
func (r *Report) Regrouped(name string, in Log, got Log, of func(key string) string, prefix bool) {
	from := map[int64]string{}   // the input key of a value
	want := map[string][]int64{} // the values of an input key, in order
	for _, rs := range in {
		for key, values := range byKey(rs) {
			want[key] = append(want[key], values...)
			for _, v := range values {
				from[v] = key
			}
		}
	}
	have := map[string]int{} // how many of an input key's values there were
	home := map[string]int32{}
	for _, p := range slices.Sorted(maps.Keys(got)) {
		r.Outputs += len(got[p])
		for _, rec := range got[p] {
			r.homeOf(name, home, rec.Key, p)
			v := decode(rec.Value)
			key, ok := from[v]
			at := have[key]
			switch {
			case !ok:
				r.fail("%s/%d: offset %d: value %d is made up", name, p, rec.Offset, v)
				continue
			case rec.Key != of(key):
				r.fail("%s/%d: offset %d: value %d has key %q, must have %q", name, p, rec.Offset, v, rec.Key, of(key))
			case at >= len(want[key]) || want[key][at] != v:
				r.fail("%s/%d: offset %d: value %d is not number %d of input key %q: lost, duplicated or out of order", name, p, rec.Offset, v, at, key)
			}
			have[key]++
		}
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if have[key] < len(want[key]) && !prefix {
			r.fail("%s: %d records of input key %q, must be %d: lost", name, have[key], key, len(want[key]))
		}
	}
}

// Counted compares an output that counts the input under another key, which of
// names: for every key 1, 2, 3 and so on, in one partition.
func (r *Report) Counted(name string, in Log, got Log, of func(key string) string, prefix bool) {
	want := map[string]int64{}
	for _, rs := range in {
		for _, rec := range rs {
			want[of(rec.Key)]++
		}
	}
	have := map[string]int64{}
	home := map[string]int32{}
	for _, p := range slices.Sorted(maps.Keys(got)) {
		r.Outputs += len(got[p])
		for _, rec := range got[p] {
			r.homeOf(name, home, rec.Key, p)
			have[rec.Key]++
			if n := decode(rec.Value); n != have[rec.Key] || n > want[rec.Key] {
				r.fail("%s/%d: offset %d: count %d of key %q, must be %d, and at most %d", name, p, rec.Offset, n, rec.Key, have[rec.Key], want[rec.Key])
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if have[key] < want[key] && !prefix {
			r.fail("%s: %d counts of key %q, must be %d: lost", name, have[key], key, want[key])
		}
	}
}

// homeOf checks that a key has one partition.
func (r *Report) homeOf(name string, home map[string]int32, key string, p int32) {
	if at, ok := home[key]; ok && at != p {
		r.fail("%s: key %q is in partitions %d and %d", name, key, at, p)
	}
	home[key] = p
}

func byKey(rs []Record) map[string][]int64 {
	out := map[string][]int64{}
	for _, r := range rs {
		out[r.Key] = append(out[r.Key], decode(r.Value))
	}
	return out
}
