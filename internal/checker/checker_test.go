package checker

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"
)

func rec(key string, v, ts int64) Record {
	return Record{Key: key, Value: binary.BigEndian.AppendUint64(nil, uint64(v)), Timestamp: ts}
}

func log(outs map[int32][]Output) Log {
	l := Log{}
	for p, os := range outs {
		for _, o := range os {
			l[p] = append(l[p], rec(o.Key, o.Value, o.Timestamp))
		}
	}
	return l
}

var input = Log{
	0: {rec("a", 1, 10), rec("b", 2, 5), rec("a", 3, 7), rec("a", 4, 40), rec("b", 5, 8)},
	1: {rec("c", 6, 3)},
}

// The checker must see what it is there for: a record lost, doubled, swapped or
// changed, wherever it is.
func TestPlantedErrors(t *testing.T) {
	t.Parallel()
	plant := map[string]func(rs []Record) []Record{
		"lost":       func(rs []Record) []Record { return slices.Delete(rs, 1, 2) },
		"lost last":  func(rs []Record) []Record { return rs[:len(rs)-1] },
		"duplicated": func(rs []Record) []Record { return slices.Insert(rs, 2, rs[1]) },
		"made up":    func(rs []Record) []Record { return append(rs, rec("z", 1, 1)) },
		"changed":    func(rs []Record) []Record { rs[2] = rec(rs[2].Key, 99, rs[2].Timestamp); return rs },
		"swapped":    func(rs []Record) []Record { rs[0], rs[2] = rs[2], rs[0]; return rs },
	}
	outputs := map[string]func(r *Report, got Log){
		"echo":   func(r *Report, got Log) { r.Ordered("echo", Echo(input), got, false) },
		"counts": func(r *Report, got Log) { r.Ordered("counts", Counts(input), got, false) },
		"windows": func(r *Report, got Log) {
			r.Ordered("windows", Windows(input, 10*time.Millisecond, 20*time.Millisecond), got, false)
		},
		"perkey":    func(r *Report, got Log) { r.PerKey("perkey", input, got, false) },
		"regrouped": func(r *Report, got Log) { r.Regrouped("regrouped", input, got, group, false) },
		"counted":   func(r *Report, got Log) { r.Counted("counted", input, got, group, false) },
	}
	right := map[string]map[int32][]Output{
		"echo": Echo(input), "counts": Counts(input), "perkey": Echo(input),
		"windows":   Windows(input, 10*time.Millisecond, 20*time.Millisecond),
		"regrouped": {0: {{"ab", 1, 10}, {"ab", 2, 5}, {"ab", 3, 7}, {"ab", 4, 40}, {"ab", 5, 8}}, 1: {{"c", 6, 3}}},
		"counted":   {0: {{"ab", 1, 10}, {"ab", 2, 10}, {"ab", 3, 10}, {"ab", 4, 40}, {"ab", 5, 40}}, 1: {{"c", 1, 3}}},
	}
	for name, check := range outputs {
		var r Report
		check(&r, log(right[name]))
		if !r.OK() {
			t.Errorf("%s: the right output is refused: %v", name, &r)
		}
		for what, spoil := range plant {
			got := log(right[name])
			got[0] = spoil(got[0])
			var r Report
			if check(&r, got); r.OK() {
				t.Errorf("%s: a record %s is not noticed", name, what)
			}
		}
	}
}

// group is the other key of an input key.
func group(key string) string {
	if key == "c" {
		return "c"
	}
	return "ab"
}

// A key has one partition, whatever its records are.
func TestRegroupedKeyHasOnePartition(t *testing.T) {
	t.Parallel()
	outs := map[int32][]Output{0: {{"ab", 1, 10}, {"ab", 2, 5}, {"ab", 3, 7}, {"ab", 4, 40}}, 1: {{"c", 6, 3}, {"ab", 5, 8}}}
	var r Report
	if r.Regrouped("regrouped", input, log(outs), group, false); r.OK() {
		t.Error("a key in two partitions is not noticed")
	}
}

func TestWindowsDropLateRecords(t *testing.T) {
	t.Parallel()
	got := Windows(input, 10*time.Millisecond, 20*time.Millisecond)[0]
	// At stream time 40 the window [0,10) of the last record has been closed since
	// 30; the windows of the records before were open.
	want := []Output{{"a@10", 1, 10}, {"b@0", 1, 5}, {"a@0", 1, 7}, {"a@40", 1, 40}}
	if !slices.Equal(got, want) {
		t.Errorf("windows: %v, want %v", got, want)
	}
}
