package broker

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	tempPattern = "millrace-kafka-"
	lockName    = "LOCK"
)

// tempDir makes a locked temporary directory and removes those that killed
// processes left.
func tempDir() (dir string, lock io.Closer, err error) {
	sweep()
	dir, err = os.MkdirTemp("", tempPattern)
	if err != nil {
		return "", nil, fmt.Errorf("kafka broker: %w", err)
	}
	lock, err = vfs.Default.Lock(filepath.Join(dir, lockName))
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("kafka broker: lock %s: %w", dir, err), os.RemoveAll(dir))
	}
	return dir, lock, nil
}

// sweep removes the directories whose owner is gone. It does its best: what it
// cannot lock or remove stays for another time.
func sweep() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), tempPattern+"*"))
	for _, dir := range dirs {
		name := filepath.Join(dir, lockName)
		if _, err := os.Stat(name); err != nil {
			continue // just being made
		}
		lock, err := vfs.Default.Lock(name)
		if err != nil {
			continue // in use
		}
		_ = os.RemoveAll(dir)
		_ = lock.Close()
	}
}

func (k *Kafka) removeDir() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lock == nil {
		return nil
	}
	err := errors.Join(os.RemoveAll(k.dir), k.lock.Close())
	k.lock = nil
	if err != nil {
		return fmt.Errorf("kafka broker: remove its data: %w", err)
	}
	return nil
}
