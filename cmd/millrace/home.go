package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

func newDigest() hash.Hash { return sha256.New() }

// manifest says what a demo directory belongs to.
type manifest struct {
	Format  int    `json:"format"`
	App     string `json:"app"`
	Brokers string `json:"brokers"` // "" for the embedded broker
	Input   string `json:"input"`   // digest
}

const manifestFormat = 1

// A home is the directory of a demo: the manifest, the embedded broker's data,
// the worker's state and log, the journal of calls, and the journal of what the
// demo was promised, by which a later run tells what the embedded broker lost.
type home struct {
	dir       string
	temporary bool
	continued bool
	manifest
	sentBefore, doneBefore map[int64]bool

	mu      sync.Mutex
	journal *os.File
	err     error // of the journal
}

// note is a line of the journal: an event that the broker acknowledged, or whose
// outcome was read.
type note struct {
	Sent int64 `json:"sent,omitempty"`
	Done int64 `json:"done,omitempty"`
}

func openHome(dir, brokers, input string) (h *home, err error) {
	h = &home{dir: dir, sentBefore: map[int64]bool{}, doneBefore: map[int64]bool{}}
	if dir == "" {
		h.temporary = true
		if h.dir, err = os.MkdirTemp("", "millrace-demo-"); err != nil {
			return nil, fmt.Errorf("temporary directory: %w", err)
		}
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("-dir: %w", err)
	}
	if h.dir, err = filepath.Abs(h.dir); err != nil {
		return nil, fmt.Errorf("-dir: %w", err)
	}
	if err := h.openManifest(brokers, input); err != nil {
		return nil, err
	}
	if err := h.readJournal(); err != nil {
		return nil, err
	}
	if h.journal, err = os.OpenFile(h.path("journal.jsonl"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	return h, nil
}

func (h *home) path(name string) string { return filepath.Join(h.dir, name) }

func (h *home) openManifest(brokers, input string) error {
	path := h.path("demo.json")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		entries, err := os.ReadDir(h.dir)
		if err != nil {
			return fmt.Errorf("-dir: %w", err)
		}
		if len(entries) > 0 {
			return usagef("-dir %s: it is not empty and holds no demo; give an empty or new directory", h.dir)
		}
		h.manifest = manifest{Format: manifestFormat, App: "reviews", Brokers: brokers, Input: input}
		if brokers != "" { // others may run the demo on the same cluster
			h.App += "-" + rand.Text()[:8]
		}
		data, err = json.MarshalIndent(h.manifest, "", "  ")
		if err != nil {
			return err
		}
		return os.WriteFile(path, append(data, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("-dir: %w", err)
	}
	h.continued = true
	if err := json.Unmarshal(data, &h.manifest); err != nil || h.Format != manifestFormat {
		return usagef("-dir %s: demo.json is damaged or of another version; use a new directory", h.dir)
	}
	if h.Brokers != brokers {
		return usagef("-dir %s: it belongs to a run with %s, not with %s; give the same -brokers or a new directory", h.dir, brokersName(h.Brokers), brokersName(brokers))
	}
	if h.Input != input {
		return usagef("-dir %s: it belongs to a run with another input; give the same -input or a new directory", h.dir)
	}
	return nil
}

func brokersName(addrs string) string {
	if addrs == "" {
		return "the embedded broker"
	}
	return "brokers " + addrs
}

// readJournal reads what earlier processes wrote down. A last line that a crash
// cut off is left out.
func (h *home) readJournal() error {
	data, err := os.ReadFile(h.path("journal.jsonl"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	s := bufio.NewScanner(bytes.NewReader(data))
	for s.Scan() {
		var n note
		if json.Unmarshal(s.Bytes(), &n) != nil {
			continue
		}
		if n.Sent > 0 {
			h.sentBefore[n.Sent] = true
		}
		if n.Done > 0 {
			h.doneBefore[n.Done] = true
		}
	}
	return s.Err()
}

// note writes down a promise. It is safe for concurrent use.
func (h *home) note(n note) {
	data, err := json.Marshal(n)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil {
		h.err = err
	}
	if h.err == nil {
		_, h.err = h.journal.Write(append(data, '\n'))
	}
}

// close closes the journal and, unless keep is set, removes a temporary
// directory.
func (h *home) close(keep bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := errors.Join(h.err, h.journal.Close())
	if h.temporary && !keep {
		err = errors.Join(err, os.RemoveAll(h.dir))
	}
	return err
}
