package state

import (
	"log/slog"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A DirOption configures [OpenDir] and [Quarantine].
type DirOption interface{ applyDir(*dirConfig) }

// A PebbleOption configures [OpenPebble] and [Dir.OpenBackend].
type PebbleOption interface{ applyPebble(*pebbleConfig) }

// A StorageOption is both a [DirOption] and a [PebbleOption].
type StorageOption func(*dirConfig)

func (o StorageOption) applyDir(c *dirConfig)       { o(c) }
func (o StorageOption) applyPebble(c *pebbleConfig) { o(&c.dirConfig) }

type dirConfig struct {
	fs  vfs.FS
	log *slog.Logger
}

type pebbleConfig struct {
	dirConfig
	blockCache int64
	mustExist  bool
}

func newDirConfig() dirConfig {
	return dirConfig{fs: vfs.Default, log: slog.New(slog.DiscardHandler)}
}

// FS sets the file system. The default is the operating system's.
func FS(fs vfs.FS) StorageOption { return func(c *dirConfig) { c.fs = fs } }

// Logger sets where failures of background work are logged. By default they are
// not.
func Logger(log *slog.Logger) StorageOption { return func(c *dirConfig) { c.log = log } }

type blockCacheOption int64

func (o blockCacheOption) applyPebble(c *pebbleConfig) { c.blockCache = int64(o) }

// BlockCache sets the size in bytes of Pebble's cache of blocks, which serves
// scans, views and rows that are not in the cache of encoded rows. The default
// is 256 MiB.
func BlockCache(bytes int64) PebbleOption { return blockCacheOption(bytes) }
