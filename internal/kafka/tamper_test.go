package kafka

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// tamper stands between a client and the broker and falsifies or loses answers:
// the broker has done the work, the client does not learn of it.
type tamper struct {
	key  kmsg.Key
	hits atomic.Int32
	// reply gets the answer behind its length, correlation id first. It may change
	// it in place; true loses it and closes the connection.
	reply func(version int16, body []byte) (lose bool)
}

func (tm *tamper) dialer(b *fakeBroker) kgo.Opt {
	return kgo.Dialer(func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := b.net.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &tamperConn{Conn: c, tm: tm, sent: make(map[uint32]int16)}, nil
	})
}

type tamperConn struct {
	net.Conn
	tm   *tamper
	mu   sync.Mutex
	sent map[uint32]int16 // correlation id to version, of requests to tamper with
	buf  []byte
}

func (c *tamperConn) Write(p []byte) (int, error) {
	// franz-go writes one request at a time: length, key, version, correlation id.
	if len(p) >= 12 && kmsg.Key(binary.BigEndian.Uint16(p[4:])) == c.tm.key {
		c.mu.Lock()
		c.sent[binary.BigEndian.Uint32(p[8:])] = int16(binary.BigEndian.Uint16(p[6:]))
		c.mu.Unlock()
	}
	return c.Conn.Write(p)
}

func (c *tamperConn) Read(p []byte) (int, error) {
	if len(c.buf) == 0 {
		var head [4]byte
		if _, err := io.ReadFull(c.Conn, head[:]); err != nil {
			return 0, err
		}
		frame := make([]byte, 4+binary.BigEndian.Uint32(head[:]))
		copy(frame, head[:])
		if _, err := io.ReadFull(c.Conn, frame[4:]); err != nil {
			return 0, err
		}
		corr := binary.BigEndian.Uint32(frame[4:])
		c.mu.Lock()
		version, ours := c.sent[corr]
		delete(c.sent, corr)
		c.mu.Unlock()
		if ours {
			c.tm.hits.Add(1)
			if c.tm.reply(version, frame[4:]) {
				_ = c.Conn.Close()
				return 0, io.EOF
			}
		}
		c.buf = frame
	}
	n := copy(p, c.buf)
	c.buf = c.buf[n:]
	return n, nil
}

// sealBatch encodes a batch without records, with its length and checksum.
func sealBatch(rb kmsg.RecordBatch) []byte {
	rb.Length = int32(len(rb.AppendTo(nil)) - 12)
	raw := rb.AppendTo(nil)
	rb.CRC = int32(crc32.Checksum(raw[21:], crc32.MakeTable(crc32.Castagnoli)))
	return rb.AppendTo(nil)
}
