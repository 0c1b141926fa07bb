package main

import (
	"encoding/binary"
	"strings"
	"testing"
)

type output struct {
	key, value []byte
}

// exactOutput is what a correct arm writes, by partition.
func exactOutput(d *dataset, job string) [][]output {
	out := make([][]output, len(d.order))
	for p, order := range d.order {
		for _, i := range order {
			o := output{key: appendKey(nil, d.key[i]), value: make([]byte, valueSize)}
			fillValue(o.value, int(i))
			if job == "count" {
				o.value = binary.BigEndian.AppendUint64(nil, uint64(d.nth[i]))
			}
			out[p] = append(out[p], o)
		}
	}
	return out
}

func TestCheckerFindsPlantedErrors(t *testing.T) {
	t.Parallel()
	d := newDataset(1000, 50, 4)
	for _, tc := range []struct {
		name  string
		plant func(out [][]output)
		want  string // part of the error, empty for none
	}{
		{"exact", func([][]output) {}, ""},
		{"lost at the end", func(out [][]output) { out[2] = out[2][:len(out[2])-1] }, "999 records for 1000 inputs"},
		{"lost in the middle", func(out [][]output) { out[1] = append(out[1][:7:7], out[1][8:]...) }, "partition 1 offset 7"},
		{"repeated at the end", func(out [][]output) { out[3] = append(out[3], out[3][len(out[3])-1]) }, "after the last expected"},
		{"repeated in the middle", func(out [][]output) { out[0] = append(out[0][:5:5], out[0][4:]...) }, "partition 0 offset 5"},
		{"swapped", func(out [][]output) { out[0][3], out[0][4] = out[0][4], out[0][3] }, "partition 0 offset 3"},
		{"other value", func(out [][]output) { out[1][9].value[7] ^= 1 }, "partition 1 offset 9"},
		{"other partition", func(out [][]output) { out[1], out[2] = out[2], out[1] }, "partition 0"},
	} {
		for _, job := range []string{"pass", "count"} {
			t.Run(job+"/"+tc.name, func(t *testing.T) {
				t.Parallel()
				out := exactOutput(d, job)
				tc.plant(out)
				c := newChecker(job, d, d.records())
				for p := range out {
					for at, o := range out[p] {
						c.record(int32(p), int64(at), o.key, o.value)
					}
				}
				err := c.result()
				switch {
				case tc.want == "" && err != nil:
					t.Fatalf("exact output: %v", err)
				case tc.want != "" && err == nil:
					t.Fatal("planted error not found")
				case tc.name == "other partition":
					// Any partition of the two may be seen first.
				case tc.want != "" && !strings.Contains(err.Error(), tc.want):
					t.Fatalf("error %q does not name %q", err, tc.want)
				}
			})
		}
	}
}

func TestDatasetCoversItsKeys(t *testing.T) {
	t.Parallel()
	d := newDataset(5000, 1000, 4)
	counts := make(map[uint32]uint32)
	for i, k := range d.key {
		counts[k]++
		if d.nth[i] != counts[k] {
			t.Fatalf("record %d: nth %d, want %d", i, d.nth[i], counts[k])
		}
		if i == d.keys-1 && len(counts) != d.keys {
			t.Fatalf("the first %d records have %d keys", d.keys, len(counts))
		}
	}
	total := 0
	for p, order := range d.order {
		total += len(order)
		for at, i := range order {
			if got := d.partition(int(i)); got != int32(p) {
				t.Fatalf("record %d: partition %d, want %d", i, got, p)
			}
			if at > 0 && order[at-1] >= i {
				t.Fatalf("partition %d is out of order at %d", p, at)
			}
		}
	}
	if total != d.records() {
		t.Fatalf("%d records in partitions, want %d", total, d.records())
	}
}
