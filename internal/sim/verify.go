package sim

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/millrace/millrace/internal/chaos"
	"github.com/millrace/millrace/internal/checker"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// verify stops all instances and checks what they leave: the outputs once more,
// the offsets, and on every disk that the rows are those of the changelog up to the
// checkpoint, and of the input where they are complete.
func (r *run) verify(ctx context.Context) error {
	for _, n := range r.nodes {
		n.stop()
		if n.err != nil {
			return fmt.Errorf("%s ended with an error after the faults: %w", n.name, n.err)
		}
	}
	logs, err := r.read(ctx, topics...)
	if err != nil {
		return err
	}
	if report := check(logs, false); !report.OK() {
		return fmt.Errorf("after the end: %v", report)
	}
	top, err := Topology().Build()
	if err != nil {
		return err
	}
	if err := r.verifyOffsets(ctx, top); err != nil {
		return err
	}
	changelogs := map[string]checker.Log{}
	for _, sub := range top.Subs {
		for _, log := range sub.Changelogs() {
			if changelogs[log.Topic] == nil {
				read, err := r.read(ctx, log.Topic)
				if err != nil {
					return err
				}
				changelogs[log.Topic] = read[log.Topic]
			}
		}
	}
	if err := verifyCounts(logs[chaos.Input], changelogs["chaos.counts-table"]); err != nil {
		return err
	}
	for _, n := range r.nodes {
		if err := n.verifyDisk(top, changelogs); err != nil {
			return fmt.Errorf("disk of %s: %w", n.name, err)
		}
	}
	return nil
}

// verifyOffsets checks that every group has committed the ends of what it reads,
// and that no transaction is open.
func (r *run) verifyOffsets(ctx context.Context, top *topology.Topology) error {
	var errs []error
	for _, sub := range top.Subs {
		read := []string{sub.LoopTopic}
		for _, src := range sub.Sources {
			read = append(read, src.Topic)
		}
		offsets, err := r.adm.FetchOffsets(ctx, sub.KafkaGroup)
		if err != nil {
			return err
		}
		for _, topic := range read {
			if topic == "" {
				continue
			}
			ends, err := r.adm.ListEndOffsets(ctx, topic)
			if err != nil {
				return err
			}
			ends.Each(func(end kadm.ListedOffset) {
				if at, ok := offsets.Lookup(topic, end.Partition); end.Offset > 0 && (!ok || at.At != end.Offset) {
					errs = append(errs, fmt.Errorf("group %s has committed %d of %s/%d, which ends at %d", sub.KafkaGroup, at.At, topic, end.Partition, end.Offset))
				}
			})
		}
		all := read[1:]
		for _, log := range sub.Changelogs() {
			all = append(all, log.Topic)
		}
		for _, sink := range sub.Sinks {
			all = append(all, sink.Topic)
		}
		stable, err := r.adm.ListCommittedOffsets(ctx, all...)
		if err != nil {
			return err
		}
		ends, err := r.adm.ListEndOffsets(ctx, all...)
		if err != nil {
			return err
		}
		stable.Each(func(s kadm.ListedOffset) {
			if end, _ := ends.Lookup(s.Topic, s.Partition); end.Offset != s.Offset {
				errs = append(errs, fmt.Errorf("%s/%d: a transaction is open: the last stable offset is %d, the end %d", s.Topic, s.Partition, s.Offset, end.Offset))
			}
		})
	}
	return errors.Join(errs...)
}

// verifyCounts checks that the changelog of the counts is that of the input.
func verifyCounts(in, changelog checker.Log) error {
	for p, rs := range in {
		want, got := map[string]int64{}, map[string]int64{}
		for _, r := range rs {
			want[r.Key]++
		}
		for _, r := range changelog[p] {
			got[r.Key] = int64(binary.BigEndian.Uint64(r.Value))
		}
		if !maps.Equal(want, got) {
			return fmt.Errorf("changelog of the counts, partition %d: %v, must be %v", p, got, want)
		}
	}
	return nil
}

// verifyDisk compares the rows of every task on the disk with the changelogs.
func (n *node) verifyDisk(top *topology.Topology, changelogs map[string]checker.Log) error {
	db, err := state.OpenPebble(n.fs.PathJoin(stateDir, "db"), state.FS(n.fs))
	if err != nil {
		return err
	}
	var errs []error
	for _, sub := range top.Subs {
		for p := range n.r.Partitions {
			id := state.TaskID{SubTopology: sub.Name, Partition: p}
			check, err := state.LoadCheckpoint(db, id)
			if err != nil {
				errs = append(errs, err)
			}
			if check == nil {
				continue
			}
			for _, log := range sub.Changelogs() {
				if err := verifyRows(db, id, log, check.Logs[log.Store.Name].Next, changelogs[log.Topic][p]); err != nil {
					errs = append(errs, err)
				}
			}
		}
	}
	return errors.Join(append(errs, db.Close())...)
}

// verifyRows compares the rows of one store with its changelog below next. Rows of
// windows that have expired may be missing.
func verifyRows(db state.Backend, id state.TaskID, log topology.Changelog, next int64, records []checker.Record) error {
	want := map[string][]byte{}
	latest := int64(0)
	for _, r := range records {
		if r.Offset >= next {
			break
		}
		key, row := []byte(r.Key), r.Value
		switch {
		case log.Store.Name == state.TaskRows:
		case log.Store.Kind == state.Window:
			start := int64(binary.BigEndian.Uint64(key[len(key)-8:]))
			latest = max(latest, start)
			segment := start / max(log.Store.Retention.Milliseconds()/2, 60_000)
			key = slices.Concat(binary.BigEndian.AppendUint64(nil, uint64(segment)), key[:len(key)-8], []byte{0, 1}, key[len(key)-8:])
		case !r.Null:
			row = append(binary.BigEndian.AppendUint64(nil, uint64(r.Timestamp)), row...)
		}
		if want[string(key)] = row; r.Null {
			delete(want, string(key))
		}
	}
	prefix := state.StorePrefix(id, log.Store.Name)
	upper := slices.Clone(prefix)
	upper = binary.BigEndian.AppendUint32(upper[:len(upper)-4], uint32(id.Partition)+1)
	for kv, err := range db.Scan(prefix, upper, false) {
		if err != nil {
			return err
		}
		key := string(kv.Key[len(prefix):])
		w, ok := want[key]
		if !ok || !bytes.Equal(w, kv.Value) {
			return fmt.Errorf("task %s, store %q at offset %d: row %q is %x, must be %x", id, log.Store.Name, next, key, kv.Value, w)
		}
		delete(want, key)
	}
	for key, row := range want {
		if log.Store.Kind == state.Window && log.Store.Name != state.TaskRows {
			if start := int64(binary.BigEndian.Uint64([]byte(key[len(key)-8:]))); start+log.Store.Retention.Milliseconds() <= latest {
				continue
			}
		}
		return fmt.Errorf("task %s, store %q at offset %d: row %q is missing, must be %x", id, log.Store.Name, next, key, row)
	}
	return nil
}
