package state

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/uuid"
)

// The entries of a state directory.
const (
	lockName     = "LOCK"
	identityName = "identity"
	manifestName = "manifest.json"
	databaseName = "db"
	damagedName  = "damaged-" // followed by the time, for what was moved aside
	tempSuffix   = ".tmp"
)

// A Dir is an open state directory: one process has it at a time. Its methods
// are not safe for concurrent use.
type Dir struct {
	path     string
	cfg      dirConfig
	lock     io.Closer
	identity uuid.UUID
	manifest *manifestFile
	stores   []string
	subs     []string
}

// ErrLocked is returned by [OpenDir] if another process, or another app in this
// one, has the directory open.
var ErrLocked = errors.New("the state directory is in use")

// ErrForeign is returned by [OpenDir] for a directory that has files but is not a
// state directory.
var ErrForeign = errors.New("not a state directory")

// OpenDir opens the state directory of an application, and creates it with mode
// 0700 if it does not exist. The first start makes the identity: a UUID that is
// the instance's as long as the directory lives.
//
// Errors: [ErrLocked]; [ErrForeign]; [ErrCorrupt] for a damaged or half-deleted
// directory, see [Quarantine]; one or several [MismatchError] for state of
// another application, format version, codec or window, or of a sub-topology
// that was renamed. Nothing is changed then.
func OpenDir(path string, m Manifest, opts ...DirOption) (*Dir, error) {
	if err := m.validate(); err != nil {
		return nil, err
	}
	d, err := lockDir(path, opts)
	if err != nil {
		return nil, err
	}
	if err := d.load(m); err != nil {
		return nil, errors.Join(d.explain(err), d.Close())
	}
	return d, nil
}

// lockDir creates and locks a directory.
func lockDir(path string, opts []DirOption) (*Dir, error) {
	d := &Dir{path: path, cfg: newDirConfig()}
	for _, o := range opts {
		o.applyDir(&d.cfg)
	}
	_, missing := d.cfg.fs.Stat(path)
	err := d.cfg.fs.MkdirAll(path, 0o700)
	if err == nil && missing != nil {
		// Without its own entry all that is synced in it is lost with the power.
		err = syncDir(d.cfg.fs, d.cfg.fs.PathDir(path))
	}
	if err != nil {
		return nil, fmt.Errorf("state directory %s: %w", path, err)
	}
	if d.cfg.fs == vfs.Default {
		// One spelling per directory: locks within the process go by the name.
		real, err := filepath.EvalSymlinks(path)
		if err == nil {
			real, err = filepath.Abs(real)
		}
		if err == nil {
			err = os.Chmod(real, 0o700)
		}
		if err != nil {
			return nil, fmt.Errorf("state directory %s: %w", path, err)
		}
		d.path = real
	}
	known, err := d.list()
	if err != nil {
		return nil, d.explain(err)
	}
	if i := slices.IndexFunc(known, foreign); i >= 0 && !slices.Contains(known, manifestName) {
		return nil, fmt.Errorf("state directory %s: %w: it contains %q; use an empty directory", d.path, ErrForeign, known[i])
	}
	if d.lock, err = d.cfg.fs.Lock(d.file(lockName)); err != nil {
		return nil, fmt.Errorf("state directory %s: %w: %w", d.path, ErrLocked, err)
	}
	return d, nil
}

func foreign(name string) bool {
	return name != lockName && name != identityName && name != manifestName && name != databaseName &&
		!strings.HasPrefix(name, damagedName) && !strings.HasSuffix(name, tempSuffix)
}

// load reads and checks, or makes, identity and manifest.
func (d *Dir) load(m Manifest) error {
	identity, err := d.read(identityName)
	if err != nil {
		return err
	}
	manifest, err := d.read(manifestName)
	if err != nil {
		return err
	}
	database, err := d.exists(databaseName)
	if err != nil {
		return err
	}
	switch {
	case identity == nil && manifest == nil && !database:
		return d.create(m)
	case identity == nil && manifest == nil:
		return fmt.Errorf("%w: it has a database but no manifest", ErrCorrupt)
	case identity == nil:
		return fmt.Errorf("%w: it has a manifest but no identity", ErrCorrupt)
	}
	if d.identity, err = uuid.Parse(strings.TrimSuffix(string(identity), "\n")); err != nil {
		return fmt.Errorf("%w: identity: %w", ErrCorrupt, err)
	}
	want := newManifestFile(m, d.identity.String())
	if manifest == nil {
		if database {
			return fmt.Errorf("%w: it has a database but no manifest", ErrCorrupt)
		}
		d.manifest = want // the first start was cut short between the two files
		return d.save()
	}
	if d.manifest, err = decodeManifest(manifest); err != nil {
		return err
	}
	if d.manifest.Identity != d.identity.String() {
		return fmt.Errorf("%w: the manifest is of identity %s, the directory of %s", ErrCorrupt, d.manifest.Identity, d.identity)
	}
	if bad := d.manifest.check(want); len(bad) > 0 {
		errs := make([]error, len(bad))
		for i, e := range bad {
			errs[i] = e
		}
		return errors.Join(errs...)
	}
	d.stores, d.subs = d.manifest.orphans(want)
	d.manifest.merge(want)
	return d.save()
}

func (d *Dir) create(m Manifest) (err error) {
	if d.identity, err = uuid.NewRandom(); err != nil {
		return err
	}
	if err := d.write(identityName, []byte(d.identity.String()+"\n")); err != nil {
		return err
	}
	d.manifest = newManifestFile(m, d.identity.String())
	return d.save()
}

// explain completes errors with the directory and what to do.
func (d *Dir) explain(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		all := true
		for _, e := range joined.Unwrap() {
			all = d.locate(e) && all
		}
		if all {
			return err
		}
	}
	if d.locate(err) {
		return err
	}
	if errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("state directory %s: %w; move it aside and start again to rebuild the state", d.path, err)
	}
	return fmt.Errorf("state directory %s: %w", d.path, err)
}

func (d *Dir) locate(err error) bool {
	m, ok := errors.AsType[*MismatchError](err)
	if ok {
		m.Dir = d.path
	}
	return ok
}

// Path returns the directory as an absolute path.
func (d *Dir) Path() string { return d.path }

// Identity returns the instance's identity.
func (d *Dir) Identity() uuid.UUID { return d.identity }

// Orphans returns the names of the stores and sub-topologies that the directory
// has rows of and the topology lacks. They stay until somebody deletes them.
func (d *Dir) Orphans() (stores, subTopologies []string) { return d.stores, d.subs }

// OpenBackend opens the directory's database, or creates it. The error is
// [ErrCorrupt] if it is damaged, missing, or not the one this directory was made
// with: then [Dir.Quarantine] makes room for a new one. The caller closes it
// before the directory.
//
// Options: [BlockCache]; file system and logger are those of the directory.
func (d *Dir) OpenBackend(opts ...PebbleOption) (*Pebble, error) {
	path := d.file(databaseName)
	exists, err := d.exists(databaseName)
	if err != nil {
		return nil, d.explain(err)
	}
	if d.manifest.Database && !exists {
		return nil, d.explain(fmt.Errorf("%w: the database is missing", ErrCorrupt))
	}
	all := append([]PebbleOption{FS(d.cfg.fs), Logger(d.cfg.log), existing(d.manifest.Database)}, opts...)
	db, err := OpenPebble(path, all...)
	if err != nil {
		return nil, err
	}
	if err := d.claim(db); err != nil {
		return nil, errors.Join(d.explain(err), db.Close())
	}
	return db, nil
}

type existing bool

func (e existing) applyPebble(c *pebbleConfig) { c.mustExist = bool(e) }

// ownerKey is the row that says whose the database is.
var ownerKey = []byte("m/owner")

// claim checks the owner of a database, or marks a new one.
func (d *Dir) claim(db *Pebble) error {
	mine := d.manifest.Application + "\n" + d.identity.String()
	owner, err := db.Get(ownerKey)
	if err != nil {
		return err
	}
	switch {
	case owner != nil && string(owner) != mine:
		return fmt.Errorf("%w: the database belongs to %q, the directory to %q", ErrCorrupt, owner, mine)
	case owner != nil && d.manifest.Database:
		return nil
	case owner == nil && d.manifest.Database:
		return fmt.Errorf("%w: the database does not say whose it is", ErrCorrupt)
	case owner == nil:
		for _, err := range db.Scan(nil, nil, false) {
			if err != nil {
				return err
			}
			return fmt.Errorf("%w: the database has rows but does not say whose", ErrCorrupt)
		}
		if err := db.Write(&Batch{Ops: []Op{{Key: ownerKey, Value: []byte(mine)}}, Sync: true}); err != nil {
			return err
		}
	}
	d.manifest.Database = true
	return d.save()
}

// Quarantine moves the database aside, within the directory, and returns its new
// path; "" if there was none. The database must be closed. A new one may be opened
// then; its state is restored from the changelogs. Nothing is deleted.
func (d *Dir) Quarantine(now time.Time) (string, error) {
	moved, err := d.aside(now, databaseName)
	if err == nil {
		d.manifest.Database = false
		err = d.save()
	}
	if err != nil {
		return moved, d.explain(err)
	}
	return moved, nil
}

// Quarantine moves everything in a state directory that OpenDir refused with
// [ErrCorrupt] aside, within the directory, and returns where to; "" if there was
// nothing. The next OpenDir makes a new identity.
func Quarantine(path string, now time.Time, opts ...DirOption) (string, error) {
	d, err := lockDir(path, opts)
	if err != nil {
		return "", err
	}
	moved, err := d.aside(now, databaseName, manifestName, identityName)
	if err != nil {
		err = d.explain(err)
	}
	return moved, errors.Join(err, d.Close())
}

// aside moves entries into a new directory.
func (d *Dir) aside(now time.Time, names ...string) (string, error) {
	found, err := d.list()
	if err != nil {
		return "", err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !slices.Contains(found, n) })
	if len(names) == 0 {
		return "", nil
	}
	base := damagedName + now.UTC().Format("20060102T150405.000")
	target := base
	for i := 2; slices.Contains(found, target); i++ {
		target = fmt.Sprintf("%s-%d", base, i)
	}
	if err := d.cfg.fs.MkdirAll(d.file(target), 0o700); err != nil {
		return "", err
	}
	for _, n := range names {
		if err := d.cfg.fs.Rename(d.file(n), d.cfg.fs.PathJoin(d.file(target), n)); err != nil {
			return d.file(target), err
		}
	}
	return d.file(target), errors.Join(syncDir(d.cfg.fs, d.file(target)), syncDir(d.cfg.fs, d.path))
}

// Close releases the directory. It is idempotent.
func (d *Dir) Close() error {
	if d.lock == nil {
		return nil
	}
	lock := d.lock
	d.lock = nil
	return lock.Close()
}

func (d *Dir) file(name string) string { return d.cfg.fs.PathJoin(d.path, name) }

func (d *Dir) list() ([]string, error) { return d.cfg.fs.List(d.path) }

func (d *Dir) exists(name string) (bool, error) {
	_, err := d.cfg.fs.Stat(d.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// read returns the content of a file, nil if there is none.
func (d *Dir) read(name string) ([]byte, error) {
	f, err := d.cfg.fs.Open(d.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	return append([]byte{}, data...), nil
}

func (d *Dir) save() error {
	data, err := d.manifest.encode()
	if err != nil {
		return err
	}
	old, err := d.read(manifestName)
	if err != nil || string(old) == string(data) {
		return err
	}
	return d.write(manifestName, data)
}

// write replaces a file atomically and durably.
func (d *Dir) write(name string, data []byte) error {
	temp := d.file(name + tempSuffix)
	f, err := d.cfg.fs.Create(temp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := d.cfg.fs.Rename(temp, d.file(name)); err != nil {
		return err
	}
	return syncDir(d.cfg.fs, d.path)
}

func syncDir(fsys vfs.FS, path string) error {
	f, err := fsys.OpenDir(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
