package kafka

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// userDataVersion is the first byte of the assignor's user data. Fields added at
// the end keep it: decoders ignore what follows what they know.
const userDataVersion = 1

// userData is what a member tells the leader beyond Kafka's own fields.
type userData struct {
	Instance string
	Worker   uint32
	Version  uint32 // counts Bump
	Subs     []SubTopology
	Held     []HeldTask // of sub-topologies in Subs; others are left out
}

func (u *userData) encode() []byte {
	str := func(b []byte, s string) []byte { return append(binary.AppendUvarint(b, uint64(len(s))), s...) }
	b := []byte{userDataVersion}
	b = str(b, u.Instance)
	b = binary.AppendUvarint(b, uint64(u.Worker))
	b = binary.AppendUvarint(b, uint64(u.Version))
	b = binary.AppendUvarint(b, uint64(len(u.Subs)))
	index := make(map[string]int, len(u.Subs))
	for i, s := range u.Subs {
		index[s.Name] = i
		b = str(str(b, s.Name), s.Fingerprint)
		flags := byte(0)
		if s.CoPartitioned {
			flags = 1
		}
		b = append(b, flags)
		b = binary.AppendUvarint(b, uint64(s.Partitions))
		b = binary.AppendUvarint(b, uint64(len(s.Topics)))
		for _, t := range s.Topics {
			b = str(b, t)
		}
	}
	n := 0
	var held []byte
	for _, h := range u.Held {
		i, ok := index[h.Sub]
		if !ok {
			continue
		}
		n++
		held = binary.AppendUvarint(held, uint64(i))
		held = binary.AppendUvarint(held, uint64(h.Partition))
		held = binary.AppendVarint(held, h.Checkpoint)
	}
	return append(binary.AppendUvarint(b, uint64(n)), held...)
}

var errUserData = errors.New("assignor user data is cut short or malformed")

// decode replaces u. On an error u is undefined.
func (u *userData) decode(b []byte) error {
	if len(b) == 0 {
		return errUserData
	}
	if b[0] != userDataVersion {
		return fmt.Errorf("assignor user data has version %d, this program knows %d", b[0], userDataVersion)
	}
	r := reader{b: b[1:]}
	*u = userData{Instance: r.str(), Worker: r.u32(), Version: r.u32()}
	u.Subs = make([]SubTopology, 0, min(r.count(), 64))
	for range r.n {
		s := SubTopology{Name: r.str(), Fingerprint: r.str(), CoPartitioned: r.byte()&1 != 0, Partitions: r.i31()}
		subs := r.n
		for range r.count() {
			s.Topics = append(s.Topics, r.str())
			if r.failed {
				return errUserData
			}
		}
		r.n = subs
		if r.failed {
			return errUserData
		}
		u.Subs = append(u.Subs, s)
	}
	for range r.count() {
		i, p := r.uvarint(), r.i31()
		h := HeldTask{TaskID: TaskID{Partition: p}, Checkpoint: r.varint()}
		if r.failed || i >= uint64(len(u.Subs)) {
			return errUserData
		}
		h.Sub = u.Subs[i].Name
		u.Held = append(u.Held, h)
	}
	if r.failed {
		return errUserData
	}
	return nil
}

// reader decodes; after the first mistake it returns zero values.
type reader struct {
	b      []byte
	n      int // the last count
	failed bool
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.failed, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.failed, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) u32() uint32 {
	v := r.uvarint()
	if v > 1<<32-1 {
		r.failed = true
	}
	return uint32(v)
}

func (r *reader) i31() int32 {
	v := r.uvarint()
	if v > 1<<31-1 {
		r.failed = true
		return 0
	}
	return int32(v)
}

// count reads the number of elements to follow; each takes at least a byte.
func (r *reader) count() int {
	v := r.uvarint()
	if v > uint64(len(r.b)) {
		r.failed, r.n = true, 0
		return 0
	}
	r.n = int(v)
	return r.n
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.failed = true
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) str() string {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.failed, r.b = true, nil
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}
