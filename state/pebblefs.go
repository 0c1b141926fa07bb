package state

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// flushPause is the wait before a failed flush is tried again. Pebble itself
// retries at once, without end.
const flushPause = 250 * time.Millisecond

// health is what a database knows of its background work. The last error stands
// until a flush succeeds, or for good if it is fatal.
type health struct {
	mu      sync.Mutex
	last    error
	stopped bool
	changed chan struct{} // closed at the next failure
}

func (h *health) init() { h.changed = make(chan struct{}) }

func (h *health) err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last
}

// watch returns a channel that is closed at the next failure. A failure that is
// not fatal may have passed meanwhile, so it does not keep anybody from trying.
func (h *health) watch() (<-chan struct{}, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return nil, h.last
	}
	return h.changed, nil
}

func (h *health) lastErr() error {
	if err := h.err(); err != nil {
		return err
	}
	return errors.New("a background flush failed")
}

func (h *health) fail(err error)  { h.set(err, false) }
func (h *health) fatal(err error) { h.set(err, true) }

func (h *health) set(err error, fatal bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.stopped {
		h.last, h.stopped = err, fatal
	}
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *health) recovered() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.stopped {
		h.last = nil
	}
}

func (h *health) isFatal() bool { return h.fatalErr() != nil }

func (h *health) fatalErr() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return h.last
	}
	return nil
}

var errStopped = errors.New("the database has stopped after an error; reopen it")

// guardedFS slows down the retries of failed flushes, and lets nothing be
// written after a fatal error: what is on disk then is what the database will
// open with. A directory that cannot be synced, for which Pebble would end the
// process, is such an error.
type guardedFS struct {
	vfs.FS
	life *health
}

func (g *guardedFS) Unwrap() vfs.FS { return g.FS }

func (g *guardedFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if g.life.isFatal() {
		return nil, errStopped
	}
	if g.life.err() != nil {
		time.Sleep(flushPause) //nolint:forbidigo // paces Pebble's retries of a failed flush, which have no pause of their own
	}
	f, err := g.FS.Create(name, category)
	if err == nil && strings.HasPrefix(g.PathBase(name), "MANIFEST") {
		f = &guardedFile{f, g.life}
	}
	return f, err
}

func (g *guardedFS) Remove(name string) error {
	if g.life.isFatal() {
		return errStopped
	}
	return g.FS.Remove(name)
}

func (g *guardedFS) OpenDir(name string) (vfs.File, error) {
	f, err := g.FS.OpenDir(name)
	if err == nil {
		f = &guardedDir{f, g.life}
	}
	return f, err
}

type guardedFile struct {
	vfs.File
	life *health
}

func (f *guardedFile) Write(p []byte) (int, error) {
	if f.life.isFatal() {
		return 0, errStopped
	}
	return f.File.Write(p)
}

func (f *guardedFile) Sync() error {
	if f.life.isFatal() {
		return errStopped
	}
	return f.File.Sync()
}

type guardedDir struct {
	vfs.File
	life *health
}

// Sync tells Pebble of no failure; whoever waits for the sync asks health.
func (f *guardedDir) Sync() error {
	if err := f.File.Sync(); err != nil {
		f.life.fatal(fmt.Errorf("sync of the directory: %w", err))
	}
	return nil
}
