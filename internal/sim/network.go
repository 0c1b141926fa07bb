package sim

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A link is the network between one instance and the brokers. It loses and delays
// what its rules say.
type link struct {
	dial  func(ctx context.Context, network, address string) (net.Conn, error)
	mu    sync.Mutex
	cut   bool // no connection lives, none is made
	conns map[*linkConn]bool
	rules []*rule
}

// A rule is a fault of requests of one kind, or of all if key is -1.
type rule struct {
	key   kmsg.Key
	what  effect
	delay time.Duration
	left  int // requests it still hits, -1 for no limit
}

type effect uint8

const (
	loseRequest effect = iota // the connection breaks before it is sent
	loseReply                 // the broker acts, the connection breaks before the answer
	lieReply                  // the broker acts and answers UNKNOWN_SERVER_ERROR; EndTxn only
	delaySend
	delayReply
)

func (e effect) String() string {
	return [...]string{"lost request", "lost reply", "applied, then an error", "delayed request", "delayed reply"}[e]
}

var errCut = errors.New("the network is cut")

func (l *link) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	l.mu.Lock()
	cut := l.cut
	l.mu.Unlock()
	if cut {
		return nil, errCut
	}
	c, err := l.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	lc := &linkConn{Conn: c, link: l, tampered: map[uint32]*rule{}, closed: make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		return nil, errors.Join(errCut, c.Close())
	}
	l.conns[lc] = true
	return lc, nil
}

// setCut cuts the network or mends it.
func (l *link) setCut(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	if cut {
		l.breakLocked()
	}
}

// breakAll breaks all connections; new ones can be made.
func (l *link) breakAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.breakLocked()
}

func (l *link) breakLocked() {
	for c := range l.conns {
		_ = c.shut()
	}
	clear(l.conns)
}

func (l *link) add(r *rule) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rules = append(l.rules, r)
}

// match returns the rule that hits a request, and counts it.
func (l *link) match(key kmsg.Key) *rule {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.rules {
		if r.left != 0 && (r.key == key || r.key == -1) {
			if r.left > 0 {
				r.left--
			}
			return r
		}
	}
	return nil
}

func (l *link) heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut, l.rules = false, nil
}

type linkConn struct {
	net.Conn
	link     *link
	mu       sync.Mutex
	tampered map[uint32]*rule // by correlation id
	buf      []byte           // read, not delivered
	once     sync.Once
	closed   chan struct{}
}

func (c *linkConn) Close() error {
	c.link.mu.Lock()
	delete(c.link.conns, c)
	c.link.mu.Unlock()
	return c.shut()
}

// shut closes the connection; it leaves the link's list alone.
func (c *linkConn) shut() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// wait lets time pass, until the connection is closed.
func (c *linkConn) wait(d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-c.closed:
		return net.ErrClosed
	}
}

// Write sends one request, as franz-go does: length, key, version, correlation id.
func (c *linkConn) Write(p []byte) (int, error) {
	if len(p) < 12 {
		return c.Conn.Write(p)
	}
	r := c.link.match(kmsg.Key(binary.BigEndian.Uint16(p[4:])))
	if r == nil {
		return c.Conn.Write(p)
	}
	switch r.what {
	case loseRequest:
		return 0, errors.Join(errCut, c.Close())
	case delaySend:
		if err := c.wait(r.delay); err != nil {
			return 0, err
		}
	default:
		c.mu.Lock()
		c.tampered[binary.BigEndian.Uint32(p[8:])] = r
		c.mu.Unlock()
	}
	return c.Conn.Write(p)
}

func (c *linkConn) Read(p []byte) (int, error) {
	if len(c.buf) == 0 {
		frame, err := c.frame()
		if err != nil {
			return 0, err
		}
		c.buf = frame
	}
	n := copy(p, c.buf)
	c.buf = c.buf[n:]
	return n, nil
}

// frame reads one answer and does to it what its rule says.
func (c *linkConn) frame() ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(c.Conn, head[:]); err != nil {
		return nil, err
	}
	frame := make([]byte, 4+binary.BigEndian.Uint32(head[:]))
	copy(frame, head[:])
	if _, err := io.ReadFull(c.Conn, frame[4:]); err != nil {
		return nil, err
	}
	corr := binary.BigEndian.Uint32(frame[4:])
	c.mu.Lock()
	r := c.tampered[corr]
	delete(c.tampered, corr)
	c.mu.Unlock()
	if r == nil {
		return frame, nil
	}
	switch r.what {
	case loseReply:
		return nil, errors.Join(io.EOF, c.Close())
	case lieReply: // correlation id, tags, throttle time, error code
		binary.BigEndian.PutUint16(frame[4+9:], uint16(kerr.UnknownServerError.Code))
	case delayReply:
		if err := c.wait(r.delay); err != nil {
			return nil, err
		}
	}
	return frame, nil
}
