package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	// memTableBytes is the size of a memtable. At most maxMemTables wait for their
	// flush; then writes wait.
	memTableBytes = 64 << 20
	maxMemTables  = 4
	// blockCacheBytes is the default size of the cache of decompressed blocks. A row
	// that neither cache holds costs ten times as much: its block is read, checked
	// and decompressed.
	blockCacheBytes = 256 << 20
)

// Pebble is a [Backend] on disk. Writes are durable after Flush or Close only:
// there is no write-ahead log, since the changelog is one.
//
// While background flushes fail, for example because the disk is full, Write and
// Flush return the failure; they work again after the next flush that succeeds.
// Damage that is found is reported as [ErrCorrupt].
type Pebble struct {
	db   *pebble.DB
	dir  string
	opts *pebble.Options
	log  *slog.Logger
	life health

	// gate is read-locked by every operation and locked for good by Close. It is
	// only ever tried by readers, so that an operation within a scan cannot wait
	// for a Close that waits for the scan.
	gate   sync.RWMutex
	closed atomic.Bool
	ingest atomic.Int64 // numbers the files to ingest
}

// ErrClosed is returned by operations on a closed database.
var ErrClosed = errors.New("the database is closed")

var (
	_ Backend  = (*Pebble)(nil)
	_ Ingester = (*Pebble)(nil)
)

// OpenPebble opens the database in dir, or creates it. An application opens its
// database with [Dir.OpenBackend], which also checks whose it is.
//
// Options: [FS], [Logger], [BlockCache]. The error is [ErrCorrupt] if the
// database is damaged.
func OpenPebble(dir string, opts ...PebbleOption) (*Pebble, error) {
	cfg := pebbleConfig{dirConfig: newDirConfig(), blockCache: blockCacheBytes}
	for _, o := range opts {
		o.applyPebble(&cfg)
	}
	p := &Pebble{dir: dir, log: cfg.log}
	p.life.init()
	p.opts = &pebble.Options{
		// Newest: older formats migrate in the background, which must not happen in
		// a testing/synctest bubble.
		FormatMajorVersion:          pebble.FormatNewest,
		FS:                          &guardedFS{FS: cfg.fs, life: &p.life},
		Logger:                      pebbleLogger{p},
		EventListener:               p.listener(),
		DisableWAL:                  true,
		CacheSize:                   cfg.blockCache + maxMemTables*memTableBytes, // memtables are taken out of it
		MemTableSize:                memTableBytes,
		MemTableStopWritesThreshold: maxMemTables,
		ErrorIfNotExists:            cfg.mustExist,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 2 },
	}
	// Without a log a file that is ingested "as flushable", over rows in memory, is
	// lost in a crash although Ingest has returned.
	p.opts.Experimental.DisableIngestAsFlushable = func() bool { return true }
	for i := range p.opts.Levels {
		p.opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	p.opts.EnsureDefaults()
	var err error
	if p.db, err = pebble.Open(dir, p.opts); err != nil {
		if damaged(err) {
			err = fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		return nil, fmt.Errorf("open database %s: %w", dir, err)
	}
	if err := p.life.fatalErr(); err != nil {
		return nil, fmt.Errorf("open database %s: %w", dir, errors.Join(err, p.close()))
	}
	return p, nil
}

// damaged reports whether an error of opening a database means that its files do
// not fit together.
func damaged(err error) bool {
	return pebble.IsCorruptionError(err) || errors.Is(err, fs.ErrNotExist) ||
		errors.Is(err, pebble.ErrDBDoesNotExist)
}

func (p *Pebble) wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	if pebble.IsCorruptionError(err) && !errors.Is(err, pebble.ErrBatchTooLarge) {
		err = fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return fmt.Errorf("database %s: %s: %w", p.dir, op, err)
}

// Get implements [Backend].
func (p *Pebble) Get(key []byte) ([]byte, error) {
	if !p.gate.TryRLock() {
		return nil, p.wrap("read", ErrClosed)
	}
	defer p.gate.RUnlock()
	v, closer, err := p.db.Get(key)
	if err != nil {
		if errors.Is(err, pebble.ErrNotFound) {
			return nil, nil
		}
		return nil, p.wrap("read", err)
	}
	v = append(make([]byte, 0, len(v)), v...)
	return v, p.wrap("read", closer.Close())
}

// Scan implements [Backend]. The rows are those of one moment.
func (p *Pebble) Scan(lower, upper []byte, reverse bool) iter.Seq2[KV, error] {
	return func(yield func(KV, error) bool) {
		if !p.gate.TryRLock() {
			yield(KV{}, p.wrap("scan", ErrClosed))
			return
		}
		defer p.gate.RUnlock()
		it, err := p.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
		if err != nil {
			yield(KV{}, p.wrap("scan", err))
			return
		}
		first, next := it.First, it.Next
		if reverse {
			first, next = it.Last, it.Prev
		}
		goOn := true
		for ok := first(); ok && goOn; ok = next() {
			v, err := it.ValueAndErr()
			if err != nil {
				break // it.Close returns it
			}
			goOn = yield(KV{it.Key(), v}, nil)
		}
		if err := it.Close(); err != nil && goOn {
			yield(KV{}, p.wrap("scan", err))
		}
	}
}

// Write implements [Backend].
func (p *Pebble) Write(b *Batch) error {
	if !p.gate.TryRLock() {
		return p.wrap("write", ErrClosed)
	}
	defer p.gate.RUnlock()
	if err := p.life.err(); err != nil {
		return p.wrap("write", err)
	}
	size := 32
	for _, op := range b.Ops {
		size += len(op.Key) + len(op.Value) + len(op.End) + 8
	}
	pb := p.db.NewBatchWithSize(size)
	for _, op := range b.Ops {
		var err error
		switch {
		case op.End != nil:
			err = pb.DeleteRange(op.Key, op.End, nil)
		case op.Value == nil:
			err = pb.Delete(op.Key, nil)
		default:
			err = pb.Set(op.Key, op.Value, nil)
		}
		if err != nil {
			return p.wrap("write", errors.Join(err, pb.Close()))
		}
	}
	if err := p.db.Apply(pb, pebble.NoSync); err != nil {
		return p.wrap("write", errors.Join(err, pb.Close()))
	}
	if err := pb.Close(); err != nil {
		return p.wrap("write", err)
	}
	if b.Sync {
		return p.flush()
	}
	return nil
}

// Flush implements [Backend].
func (p *Pebble) Flush() error {
	if !p.gate.TryRLock() {
		return p.wrap("flush", ErrClosed)
	}
	defer p.gate.RUnlock()
	return p.flush()
}

func (p *Pebble) flush() error {
	failed, err := p.life.watch()
	if err != nil {
		return p.wrap("flush", err)
	}
	done, err := p.db.AsyncFlush()
	if err != nil {
		return p.wrap("flush", err)
	}
	select {
	case <-done:
		return p.wrap("flush", p.life.fatalErr())
	case <-failed:
		return p.wrap("flush", p.life.lastErr())
	}
}

// Close waits for running operations, flushes and closes the database. It is
// idempotent, and must not be called from within a scan.
func (p *Pebble) Close() error {
	if p.closed.Swap(true) {
		return nil
	}
	p.gate.Lock()
	return errors.Join(p.flush(), p.close())
}

func (p *Pebble) close() (err error) {
	if p.life.isFatal() {
		// Pebble expects the process to end after such an error, and its bookkeeping
		// may trip while it closes. The files are consistent: nothing was written
		// after the error.
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("database %s: close after a fatal error: %v", p.dir, r)
			}
		}()
	}
	return p.wrap("close", p.db.Close())
}

// Ingest implements [Ingester]: the rows become one file that is durable when
// Ingest returns.
func (p *Pebble) Ingest(rows iter.Seq2[[]byte, []byte]) error {
	if !p.gate.TryRLock() {
		return p.wrap("ingest", ErrClosed)
	}
	defer p.gate.RUnlock()
	if err := p.life.err(); err != nil {
		return p.wrap("ingest", err)
	}
	name := p.opts.FS.PathJoin(p.dir, fmt.Sprintf("ingest-%d.tmp", p.ingest.Add(1)))
	defer func() { _ = p.opts.FS.Remove(name) }() // a second name of what was ingested
	if err := p.writeTable(name, rows); err != nil {
		return p.wrap("ingest", err)
	}
	err := p.db.Ingest(context.Background(), []string{name})
	return p.wrap("ingest", errors.Join(err, p.life.fatalErr()))
}

func (p *Pebble) writeTable(name string, rows iter.Seq2[[]byte, []byte]) error {
	f, err := p.opts.FS.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	w := sstable.NewWriter(objstorageprovider.NewFileWritable(f), p.opts.MakeWriterOptions(0, p.db.TableFormat()))
	for key, value := range rows {
		if value == nil {
			err = w.Delete(key)
		} else {
			err = w.Set(key, value)
		}
		if err != nil {
			return errors.Join(err, w.Close())
		}
	}
	return w.Close()
}

func (p *Pebble) listener() *pebble.EventListener {
	// Of the two events of a failed flush only the second is sent for failures
	// alone: a flush that had nothing to write ends with an error too. Pebble sends
	// them under its lock.
	var flushed error
	return &pebble.EventListener{
		BackgroundError: func(err error) {
			p.log.Error("state: background work of the database failed", "dir", p.dir, "error", err)
			if flush := flushed; flush != nil && errors.Is(err, flush) {
				p.life.fail(err)
			}
		},
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			err := fmt.Errorf("%w: %s", ErrCorrupt, info)
			p.log.Error("state: the database is damaged", "dir", p.dir, "error", err)
			p.life.fatal(err)
		},
		FlushEnd: func(info pebble.FlushInfo) {
			if flushed = info.Err; flushed == nil {
				p.life.recovered()
			}
		},
	}
}

// pebbleLogger passes Pebble's log on. Pebble's own logger would end the process
// on a fatal error.
type pebbleLogger struct{ p *Pebble }

func (l pebbleLogger) Infof(format string, args ...any) {
	if l.p.log.Enabled(context.Background(), slog.LevelDebug) {
		l.p.log.Debug("state: " + fmt.Sprintf(format, args...))
	}
}

func (l pebbleLogger) Errorf(format string, args ...any) {
	l.p.log.Error("state: " + fmt.Sprintf(format, args...))
}

// Fatalf is called when the database's manifest cannot be written, after which
// only reopening is safe: the database stops. Any other cause is a broken
// invariant.
func (l pebbleLogger) Fatalf(format string, args ...any) {
	msg := fmt.Sprintf(format, args...)
	if !strings.Contains(msg, "MANIFEST") {
		panic(msg)
	}
	l.p.log.Error("state: the database stops; reopen it", "dir", l.p.dir, "error", msg)
	l.p.life.fatal(errors.New(msg))
}
