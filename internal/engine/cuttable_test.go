package engine_test

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"sync"
)

// A cuttable network can be cut off: its connections break, or, if it is silent,
// nothing comes through them any more.
type cuttable struct {
	dial   func(ctx context.Context, network, addr string) (net.Conn, error)
	silent bool
	// request, if not nil, is told the API key of every request, and says whether to
	// cut the network instead of sending it.
	request func(key int16) (cut bool)

	mu    sync.Mutex
	gone  bool
	conns []*cuttableConn
}

type cuttableConn struct {
	net.Conn
	net  *cuttable
	cut  chan struct{} // closed when it is cut
	done chan struct{} // closed when it is closed
	once sync.Once
}

func (c *cuttable) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	c.mu.Lock()
	gone := c.gone
	c.mu.Unlock()
	if gone && c.silent {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if gone {
		return nil, errors.New("cut off")
	}
	conn, err := c.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	cc := &cuttableConn{Conn: conn, net: c, cut: make(chan struct{}), done: make(chan struct{})}
	c.conns = append(c.conns, cc)
	return cc, nil
}

func (c *cuttableConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	select {
	case <-c.cut:
		<-c.done
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

// Write takes a whole request, as franz-go writes them.
func (c *cuttableConn) Write(p []byte) (int, error) {
	if c.net.request != nil && len(p) >= 6 && c.net.request(int16(binary.BigEndian.Uint16(p[4:]))) {
		c.net.cut()
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

func (c *cuttableConn) Close() error {
	c.once.Do(func() { close(c.done) })
	return c.Conn.Close()
}

func (c *cuttable) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return
	}
	c.gone = true
	for _, conn := range c.conns {
		if c.silent {
			close(conn.cut)
		} else {
			_ = conn.Close() // it may have ended
		}
	}
}

func (c *cuttable) isCut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone
}
