package state

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
)

// TopicID is Kafka's id of a topic: a topic that was deleted and created again
// has another one.
type TopicID [16]byte

// TopicPartition names a partition of a topic.
type TopicPartition struct {
	Topic     string
	Partition int32
}

// A LogPosition says up to where a store holds its changelog.
type LogPosition struct {
	Topic TopicID
	Next  int64 // offset of the first record that is not in the store
}

// A Checkpoint is the row of a task that says what its other rows hold. It is
// written in the same batch as they are.
type Checkpoint struct {
	// Logs are the positions by store name, [TaskRows] included.
	Logs map[string]LogPosition
	// Inputs are the offsets of the first records that the rows do not reflect.
	Inputs map[TopicPartition]int64
	// Time is the wall clock of the batch, in ms since the epoch.
	Time int64
}

// checkpointVersion is the first byte of an encoded checkpoint.
const checkpointVersion = 1

// Clone returns a deep copy.
func (c *Checkpoint) Clone() *Checkpoint {
	d := *c
	d.Logs, d.Inputs = maps.Clone(c.Logs), maps.Clone(c.Inputs)
	return &d
}

// MarshalBinary encodes the checkpoint; equal checkpoints give equal bytes.
func (c *Checkpoint) MarshalBinary() ([]byte, error) {
	b := []byte{checkpointVersion}
	b = binary.AppendVarint(b, c.Time)
	b = binary.AppendUvarint(b, uint64(len(c.Logs)))
	for _, store := range slices.Sorted(maps.Keys(c.Logs)) {
		pos := c.Logs[store]
		b = append(appendString(b, store), pos.Topic[:]...)
		b = binary.AppendVarint(b, pos.Next)
	}
	b = binary.AppendUvarint(b, uint64(len(c.Inputs)))
	for _, in := range slices.SortedFunc(maps.Keys(c.Inputs), compareTopicPartitions) {
		b = binary.AppendVarint(appendString(b, in.Topic), int64(in.Partition))
		b = binary.AppendVarint(b, c.Inputs[in])
	}
	return b, nil
}

func compareTopicPartitions(a, b TopicPartition) int {
	return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
}

// UnmarshalBinary decodes a checkpoint. It accepts exactly what MarshalBinary
// gives; the error is [ErrCorrupt], or says which version wrote it.
func (c *Checkpoint) UnmarshalBinary(data []byte) error {
	d := decoder{data: data}
	if v := d.byte(); d.err == nil && v != checkpointVersion {
		return fmt.Errorf("checkpoint has format version %d, this program reads %d", v, checkpointVersion)
	}
	*c = Checkpoint{Logs: map[string]LogPosition{}, Inputs: map[TopicPartition]int64{}}
	c.Time = d.varint()
	last := ""
	for i := range d.count() {
		store := d.string()
		if i > 0 && store <= last {
			d.fail("stores out of order")
		}
		last = store
		var pos LogPosition
		copy(pos.Topic[:], d.take(len(pos.Topic)))
		pos.Next = d.varint()
		c.Logs[store] = pos
	}
	var before TopicPartition
	for i := range d.count() {
		in := TopicPartition{Topic: d.string()}
		partition := d.varint()
		if partition < 0 || partition > math.MaxInt32 {
			d.fail("partition %d", partition)
		}
		in.Partition = int32(partition)
		if i > 0 && compareTopicPartitions(in, before) <= 0 {
			d.fail("inputs out of order")
		}
		before = in
		c.Inputs[in] = d.varint()
	}
	if len(d.data) > 0 {
		d.fail("%d bytes too many", len(d.data))
	}
	if d.err != nil {
		return fmt.Errorf("checkpoint: %w", d.err)
	}
	return nil
}

// CheckpointKey returns the backend key of a task's checkpoint.
func CheckpointKey(id TaskID) []byte {
	b := append([]byte{'k'}, id.SubTopology...)
	return binary.BigEndian.AppendUint32(append(b, 0), uint32(id.Partition))
}

// AppendTo adds the checkpoint of a task to a batch.
func (c *Checkpoint) AppendTo(b *Batch, id TaskID) error {
	data, err := c.MarshalBinary()
	if err == nil {
		b.Set(CheckpointKey(id), data)
	}
	return err
}

// LoadCheckpoint reads the checkpoint of a task. It returns nil if there is none:
// the task has no rows, or rows whose origin is unknown. One that is damaged or of
// another format is an [UnusableError]: the rows of the task have to be rebuilt.
func LoadCheckpoint(db Backend, id TaskID) (*Checkpoint, error) {
	data, err := db.Get(CheckpointKey(id))
	if err != nil || data == nil {
		return nil, err
	}
	c := new(Checkpoint)
	if err := c.UnmarshalBinary(data); err != nil {
		return nil, &UnusableError{Reason: err.Error()}
	}
	return c, nil
}

// A LogState describes the changelog of a store as the broker has it.
type LogState struct {
	Topic TopicID
	// Start and End are the offsets of the first record and behind the last.
	Start, End int64
	// MaxAge bounds how old a checkpoint may be; 0 is no bound. See
	// [MaxCheckpointAge].
	MaxAge time.Duration
}

// MaxCheckpointAge returns the age above which a compacted changelog may have
// lost tombstones that the rows of a checkpoint lack: delete.retention.ms minus
// one hour, for clocks that differ and a restore that takes its time.
func MaxCheckpointAge(deleteRetention time.Duration) time.Duration {
	return max(deleteRetention-time.Hour, time.Millisecond)
}

// Usable reports whether the store's rows may be brought up to date from the
// checkpoint's position. If not, the error is an [UnusableError] with the
// reason, and the store must be rebuilt from the start of its changelog. A nil
// checkpoint is unusable.
func (c *Checkpoint) Usable(store string, log LogState, now time.Time) error {
	if c == nil {
		return &UnusableError{store, "there is no checkpoint"}
	}
	pos, ok := c.Logs[store]
	age := now.Sub(time.UnixMilli(c.Time))
	switch {
	case !ok:
		return &UnusableError{store, "the checkpoint does not have it"}
	case pos.Topic != log.Topic:
		return &UnusableError{store, fmt.Sprintf("the changelog was created anew: its id is %x, the checkpoint has %x", log.Topic, pos.Topic)}
	case pos.Next < log.Start:
		return &UnusableError{store, fmt.Sprintf("the changelog begins at offset %d, behind the checkpoint's %d", log.Start, pos.Next)}
	case pos.Next > log.End:
		return &UnusableError{store, fmt.Sprintf("the changelog ends at offset %d, before the checkpoint's %d: the broker has lost records", log.End, pos.Next)}
	case log.MaxAge > 0 && age > log.MaxAge:
		return &UnusableError{store, fmt.Sprintf("the checkpoint is %s old, more than %s: deletions may be missing in the changelog", age.Round(time.Second), log.MaxAge)}
	}
	return nil
}

// An UnusableError says why the rows of a store cannot be continued from its
// checkpoint.
type UnusableError struct {
	Store  string // [TaskRows] for the task's own rows, or all
	Reason string
}

func (e *UnusableError) Error() string {
	if e.Store == TaskRows {
		return "the rows of the task cannot be continued: " + e.Reason
	}
	return fmt.Sprintf("store %q cannot be continued: %s", e.Store, e.Reason)
}

// DeleteTask adds to b the deletion of the checkpoint and of all rows of a
// task's stores: before a rebuild.
func DeleteTask(b *Batch, id TaskID, stores []string) {
	b.Set(CheckpointKey(id), nil)
	for _, store := range append([]string{TaskRows}, stores...) {
		prefix := StorePrefix(id, store)
		b.DeleteRange(prefix, prefixEnd(prefix))
	}
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// A decoder reads a checkpoint. After an error it returns zeros.
type decoder struct {
	data []byte
	err  error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
	}
	d.data = nil
}

func (d *decoder) take(n int) []byte {
	if n > len(d.data) {
		d.fail("cut short")
		return nil
	}
	b := d.data[:n]
	d.data = d.data[n:]
	return b
}

func (d *decoder) byte() byte {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.data)
	if n <= 0 || n != len(binary.AppendVarint(nil, v)) {
		d.fail("not a number")
		return 0
	}
	d.take(n)
	return v
}

// count reads the length of what follows, each item at least one byte.
func (d *decoder) count() int {
	v, n := binary.Uvarint(d.data)
	if n <= 0 || n != len(binary.AppendUvarint(nil, v)) || v > uint64(len(d.data)-n) {
		d.fail("not a length")
		return 0
	}
	d.take(n)
	return int(v)
}

func (d *decoder) string() string { return string(d.take(d.count())) }
