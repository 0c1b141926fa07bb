package processors

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/llm/prompt"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// PromptStore names the instance's copy of the application's topic of prompts.
const PromptStore = "millrace.prompts"

// A PromptTable is a table whose rows a prompt reads by its name.
type PromptTable[K, V any] struct {
	Name string
	Open TableReader[K, V]
	// Local says that the table is the task's: it has the rows of its partition only.
	Local bool
}

// A TableReader opens a table in a task.
type TableReader[K, V any] func(t Task) (RowOf[K, V], error)

// RowOf returns the row that belongs to a record, nil if there is none, and its
// encoded key.
type RowOf[K, V any] func(rec Record[K, V]) (row any, key []byte, err error)

// prompts are the versions of a step's prompt, and the tables they read, in a task.
type prompts[K, V any] struct {
	chooser prompt.Chooser
	rows    prompt.Rows
	tables  []PromptTable[K, V]
	row     []RowOf[K, V] // of tables
	task    Task
	loop    string // a topic that has as many partitions as there are tasks
}

func openPrompts[K, V any](t Task, step string, builtIn *prompt.Prompt, shape *millracev1.DataShape, tables []PromptTable[K, V], loop string) (*prompts[K, V], error) {
	store := t.Global(PromptStore)
	if store == nil {
		return nil, fmt.Errorf("step %q: the prompts are not in this instance", step)
	}
	keyed := state.NewKeyValueStore(store, serde.String(), serde.Bytes())
	p := &prompts[K, V]{
		task: t, tables: tables, loop: loop,
		chooser: prompt.Chooser{BuiltIn: builtIn, Shape: shape, Unusable: func(err error) {
			t.Logger().LogAttrs(context.Background(), slog.LevelError, "a version of a prompt cannot be used by a step, which stays with the one before",
				slog.String("step", step), slog.Int("partition", int(t.Partition())), slog.Any("error", err))
		}},
		rows: func(key string) ([]byte, error) {
			value, _, err := keyed.Get(key)
			return value, err
		},
	}
	for _, table := range tables {
		row, err := table.Open(t)
		if err != nil {
			return nil, fmt.Errorf("step %q: table %q of the prompt: %w", step, table.Name, err)
		}
		p.row = append(p.row, row)
	}
	return p, nil
}

// choose returns the version for an entry, and notes it there for the headers of every
// end that the entry may have.
func (p *prompts[K, V]) choose(e *millracev1.Entry, schema string, generation int) (v *prompt.Prompt, label string, err error) {
	progress := decodeProgress(e.Progress)
	progress.Prompt, progress.Schema, progress.Generation = p.chooser.BuiltIn.Name(), schema, int32(generation)
	if progress.PromptVersion = pinned(e, progress.Prompt); progress.PromptVersion != "" {
		label = prompt.Pinned
		v, err = p.chooser.Version(p.rows, progress.PromptVersion)
	} else {
		key := e.Event.Key
		if key == nil {
			key = []byte(e.Id)
		}
		v, label, err = p.chooser.Choose(p.rows, key)
	}
	if err == nil {
		progress.PromptVersion = v.Version()
	}
	progress.PromptLabel, progress.PromptVersion = label, strings.ToValidUTF8(progress.PromptVersion, "")
	data, merr := proto.Marshal(progress)
	if merr != nil { // names of prompts are text
		panic(merr)
	}
	e.Progress = data
	return v, label, err
}

// pinned returns the version of a prompt that an event asks for, "" for none.
func pinned(e *millracev1.Entry, name string) string {
	for _, h := range slices.Backward(e.Event.Headers) {
		if string(h.Key) != ReplayPromptHeader {
			continue
		}
		if at := strings.LastIndexByte(string(h.Value), '@'); at >= 0 && string(h.Value[:at]) == name {
			return string(h.Value[at+1:])
		}
	}
	return ""
}

// read returns the rows that belong to an event.
func (p *prompts[K, V]) read(e *millracev1.Entry, rec Record[K, V]) (map[string]any, error) {
	rows := map[string]any{}
	for i, table := range p.tables {
		row, key, err := p.row[i](rec)
		if err == nil && table.Local && key != nil {
			err = p.isHere(e, key)
		}
		if err != nil {
			return nil, fmt.Errorf("table %q of the prompt: %w", table.Name, err)
		}
		rows[table.Name] = row
	}
	return rows, nil
}

// isHere returns an error if rows of the key are in another partition, as far as that
// can be told: if the event itself is where its key says.
func (p *prompts[K, V]) isHere(e *millracev1.Entry, key []byte) error {
	counter, ok := p.task.(PartitionCounter)
	if !ok || e.Event.Key == nil {
		return nil
	}
	n, err := counter.Partitions(p.loop)
	if err != nil || n < 1 {
		return err
	}
	here := p.task.Partition()
	if at := state.PartitionOf(key, n); at != here && state.PartitionOf(e.Event.Key, n) == here {
		return fmt.Errorf("the key's row is in partition %d and the event in %d: take the event's key, or use a global table", at, here)
	}
	return nil
}
