// Package cases runs conformance cases: topologies, inputs and expected outputs
// written as JSON. The same cases run on Kafka Streams; see internal/oracle.
package cases

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

// A Suite is a file of cases.
type Suite struct {
	Cases []Case `json:"cases"`
}

// A Case is a topology, records for its topics, and what it emits.
type Case struct {
	Name     string   `json:"name"`
	Setup    Setup    `json:"setup"`
	Input    []Input  `json:"input"`
	Expected []Output `json:"expected"`
}

// A Setup describes the application.
type Setup struct {
	Topology []Step `json:"topology"`
	// Dropped is how many records operators drop, if that is compared.
	Dropped *int `json:"dropped_records,omitempty"`
	// AsIs has the oracle build Kafka Streams with all its accidents.
	AsIs bool `json:"as_is,omitempty"`
}

// An Input is a record of a source topic. A nil key or value is null; others are
// strings and whole numbers.
type Input struct {
	Topic     string `json:"topic"`
	Key       any    `json:"key"`
	Value     any    `json:"value"`
	Timestamp int64  `json:"timestamp"`
}

// An Output is a record that a topology emits.
type Output struct {
	Topic     string `json:"topic,omitempty"`
	Key       any    `json:"key"`
	Value     any    `json:"value"`
	Timestamp int64  `json:"timestamp"`
	After     *int   `json:"after,omitempty"` // the input that caused it, from 0
}

// Read reads a file of cases.
func Read(file string) (Suite, error) {
	var s Suite
	data, err := os.ReadFile(file)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("%s: %w", file, err)
	}
	if len(s.Cases) == 0 {
		return s, fmt.Errorf("%s: it holds no cases", file)
	}
	return s, nil
}

// Unsupported is the error for an operator that there is not.
type Unsupported string

func (u Unsupported) Error() string { return string(u) }

// Run returns what the case's topology emits on the topology test driver, every
// record with its topic. The error is [Unsupported], or what failed.
func (c *Case) Run() (got []Output, err error) {
	b := topology.New("cases")
	sinks, err := build(b, c.Setup.Topology)
	if err != nil {
		return nil, err
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	for i, in := range c.Input {
		d.PipeRaw(in.Topic, 0, processors.Raw{Key: encode(in.Key), Value: encode(in.Value), Timestamp: in.Timestamp})
		for _, topic := range sinks {
			for _, rec := range d.RawOutput(topic) {
				got = append(got, Output{Topic: topic, Key: decode(rec.Key), Value: decode(rec.Value), Timestamp: rec.Timestamp, After: &i})
			}
		}
	}
	if f := d.Failures(); len(f) > 0 {
		return got, f[0].Err
	}
	if want := c.Setup.Dropped; want != nil && *want != len(d.Drops()) {
		return got, fmt.Errorf("%d records dropped, want %d", len(d.Drops()), *want)
	}
	return got, nil
}

// A Result is what became of a case.
type Result struct {
	Name        string   `json:"name"`
	Pass        bool     `json:"pass"`
	Got         []Output `json:"got"`
	Unsupported string   `json:"unsupported,omitempty"`
	Error       string   `json:"error,omitempty"`
}

// Check runs the case and compares.
func (c *Case) Check() Result {
	r := Result{Name: c.Name, Got: []Output{}}
	got, err := c.Run()
	if u, ok := errors.AsType[Unsupported](err); ok {
		r.Unsupported = string(u)
		return r
	}
	want := slices.Clone(c.Expected)
	if sinks := c.sinks(); len(sinks) == 1 {
		for i := range want {
			want[i].Topic = sinks[0] // most cases do not name their only topic
		}
		r.Pass = err == nil && Same(got, want)
		for i := range got {
			got[i].Topic = ""
		}
	} else {
		r.Pass = err == nil && Same(got, want)
	}
	r.Got = append(r.Got, got...)
	if err != nil {
		r.Error = err.Error()
	}
	return r
}

func (c *Case) sinks() []string {
	var topics []string
	for _, s := range c.Setup.Topology {
		if s.Op == "to" && !slices.Contains(topics, s.Topic) {
			topics = append(topics, s.Topic)
		}
	}
	return topics
}

// Same compares outputs topic by topic; After is compared where want has it.
func Same(got, want []Output) bool {
	if len(got) != len(want) {
		return false
	}
	byTopic := func(all []Output) map[string][]Output {
		m := map[string][]Output{}
		for _, o := range all {
			m[o.Topic] = append(m[o.Topic], o)
		}
		return m
	}
	gotBy, wantBy := byTopic(got), byTopic(want)
	for topic, want := range wantBy {
		got := gotBy[topic]
		if len(got) != len(want) {
			return false
		}
		for i, w := range want {
			g := got[i]
			if w.After == nil {
				g.After = nil
			}
			if !reflect.DeepEqual(g, w) {
				return false
			}
		}
	}
	return true
}

func encode(v any) []byte {
	if v == nil {
		return nil
	}
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // it came from JSON
	}
	return data
}

func decode(data []byte) (v any) {
	if data == nil {
		return nil
	}
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(&v); err != nil {
		panic(err) // a serde of ours wrote it
	}
	return v
}
