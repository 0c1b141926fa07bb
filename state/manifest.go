package state

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strings"
	"time"
)

// FormatVersion is the version of the layout of rows and checkpoints.
const FormatVersion = 1

// A Manifest says whose state a directory holds and how it is encoded.
type Manifest struct {
	// Application is the name of the app, which is in all its topic names.
	Application string
	// Stores are all stores of the topology, global tables included.
	Stores []Spec
	// SubTopologies are those that keep state.
	SubTopologies []SubTopologyManifest
}

// A SubTopologyManifest describes a sub-topology that keeps state.
type SubTopologyManifest struct {
	Name string
	// Stores and Sources are the names of its stores and source topics. They tell
	// which sub-topology one was before it was renamed.
	Stores, Sources []string
	// HasRows says that its tasks keep rows of their own: stream times, timers,
	// in-flight entries.
	HasRows bool
}

// manifestFile is the manifest as it is stored: JSON followed by a line with its
// checksum.
type manifestFile struct {
	Version       int                         `json:"version"`
	Application   string                      `json:"application"`
	Identity      string                      `json:"identity"`
	Database      bool                        `json:"database"` // it has been created
	Stores        map[string]storeManifest    `json:"stores"`
	SubTopologies map[string]subTopologyEntry `json:"sub_topologies"`
}

type storeManifest struct {
	Kind      string `json:"kind"`
	Key       string `json:"key"`
	Value     string `json:"value"`
	Window    string `json:"window,omitempty"`
	Retention string `json:"retention,omitempty"`
}

type subTopologyEntry struct {
	Stores  []string `json:"stores"`
	Sources []string `json:"sources"`
	HasRows bool     `json:"has_rows"`
}

// String returns the name of the kind.
func (k Kind) String() string {
	switch k {
	case KeyValue:
		return "key-value"
	case Window:
		return "window"
	case Events:
		return "event"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

func newManifestFile(m Manifest, identity string) *manifestFile {
	f := &manifestFile{
		Version:       FormatVersion,
		Application:   m.Application,
		Identity:      identity,
		Stores:        map[string]storeManifest{},
		SubTopologies: map[string]subTopologyEntry{},
	}
	for _, s := range m.Stores {
		e := storeManifest{Kind: s.Kind.String(), Key: s.KeySerde, Value: s.ValueSerde}
		if s.Kind == Window {
			e.Window, e.Retention = s.WindowSize.String(), s.Retention.String()
		}
		if s.Kind == Events {
			e.Retention = s.Retention.String()
		}
		f.Stores[s.Name] = e
	}
	for _, s := range m.SubTopologies {
		if len(s.Stores) > 0 || s.HasRows {
			f.SubTopologies[s.Name] = subTopologyEntry{slices.Sorted(slices.Values(s.Stores)), slices.Sorted(slices.Values(s.Sources)), s.HasRows}
		}
	}
	return f
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (f *manifestFile) encode() ([]byte, error) {
	data, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return nil, err
	}
	data = append(data, '\n')
	return fmt.Appendf(data, "crc32c %08x\n", crc32.Checksum(data, castagnoli)), nil
}

// decodeManifest reads a manifest. The error is [ErrCorrupt], or names the newer
// version that wrote it.
func decodeManifest(data []byte) (*manifestFile, error) {
	text, ok := bytes.CutSuffix(data, []byte("\n"))
	at := bytes.LastIndexByte(text, '\n') + 1
	body := data[:min(at, len(data))]
	if want := fmt.Sprintf("crc32c %08x", crc32.Checksum(body, castagnoli)); !ok || string(text[at:]) != want {
		return nil, fmt.Errorf("%w: the manifest does not match its checksum", ErrCorrupt)
	}
	var version struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(body, &version); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrCorrupt, err)
	}
	if version.Version != FormatVersion {
		return nil, &MismatchError{What: "the format version", Have: fmt.Sprint(version.Version), Want: fmt.Sprint(FormatVersion)}
	}
	f := new(manifestFile)
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(f); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrCorrupt, err)
	}
	return f, nil
}

// A MismatchError says that a state directory holds something else than the
// application would put there. Have is in the directory, Want in the application.
type MismatchError struct {
	Dir  string
	What string
	Have string
	Want string
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("state directory %s: %s is %q there and %q in this application: "+
		"change it back, or use another directory to rebuild the state from the changelogs", e.Dir, e.What, e.Have, e.Want)
}

// check compares the manifest of a directory with that of the application and
// returns all mismatches.
func (f *manifestFile) check(want *manifestFile) (bad []*MismatchError) {
	differ := func(what, have, want string) {
		if have != want {
			bad = append(bad, &MismatchError{What: what, Have: have, Want: want})
		}
	}
	differ("the application", f.Application, want.Application)
	for _, name := range slices.Sorted(maps.Keys(want.Stores)) {
		have, ok := f.Stores[name]
		if !ok {
			continue
		}
		w := want.Stores[name]
		of := fmt.Sprintf(" of store %q", name)
		differ("the kind"+of, have.Kind, w.Kind)
		differ("the key serde"+of, have.Key, w.Key)
		differ("the value serde"+of, have.Value, w.Value)
		differ("the window size"+of, have.Window, w.Window)
		differ("the retention"+of, have.Retention, w.Retention)
	}
	for _, old := range slices.Sorted(maps.Keys(f.SubTopologies)) {
		if _, ok := want.SubTopologies[old]; ok {
			continue
		}
		if name := f.renamed(old, want); name != "" {
			differ("the name of the sub-topology with "+f.SubTopologies[old].describe(), old, name)
		}
	}
	return bad
}

// renamed returns the new name of a sub-topology that is gone: a new one with a
// store or a source topic of it.
func (f *manifestFile) renamed(old string, want *manifestFile) string {
	was := f.SubTopologies[old]
	for _, name := range slices.Sorted(maps.Keys(want.SubTopologies)) {
		if _, known := f.SubTopologies[name]; known {
			continue
		}
		is := want.SubTopologies[name]
		if overlap(was.Stores, is.Stores) || overlap(was.Sources, is.Sources) {
			return name
		}
	}
	return ""
}

func overlap(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}

func (e subTopologyEntry) describe() string {
	if len(e.Stores) > 0 {
		return "stores " + strings.Join(e.Stores, ", ")
	}
	return "sources " + strings.Join(e.Sources, ", ")
}

// orphans returns the stores and sub-topologies of the directory that the
// application does not have.
func (f *manifestFile) orphans(want *manifestFile) (stores, subs []string) {
	for _, name := range slices.Sorted(maps.Keys(f.Stores)) {
		if _, ok := want.Stores[name]; !ok {
			stores = append(stores, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(f.SubTopologies)) {
		if _, ok := want.SubTopologies[name]; !ok {
			subs = append(subs, name)
		}
	}
	return stores, subs
}

// merge takes over what the application has and keeps the rest.
func (f *manifestFile) merge(want *manifestFile) {
	maps.Copy(f.Stores, want.Stores)
	maps.Copy(f.SubTopologies, want.SubTopologies)
}

// validate reports what is wrong with the application's own manifest.
func (m Manifest) validate() error {
	if m.Application == "" {
		return fmt.Errorf("state: the manifest names no application")
	}
	for _, s := range m.Stores {
		switch {
		case s.Name == TaskRows:
			return fmt.Errorf("state: a store without a name")
		case strings.ContainsAny(s.Name, "\x00\x01"):
			return fmt.Errorf("state: store %q: control characters in the name", s.Name)
		case s.Kind == Window && (s.Retention < time.Millisecond || s.WindowSize < time.Millisecond):
			return fmt.Errorf("state: store %q: window size %s and retention %s: both must be at least 1 ms", s.Name, s.WindowSize, s.Retention)
		case s.Kind == Events && s.Retention < time.Millisecond:
			return fmt.Errorf("state: store %q: retention %s: it must be at least 1 ms", s.Name, s.Retention)
		}
	}
	return nil
}
