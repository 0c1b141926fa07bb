package main

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

// A suite is a file of cases.
type suite struct {
	Cases []testCase `json:"cases"`
}

type testCase struct {
	Name  string `json:"name"`
	Setup struct {
		Topology []step `json:"topology"`
		Dropped  *int   `json:"dropped_records"`
	} `json:"setup"`
	Input    []input  `json:"input"`
	Expected []output `json:"expected"`
}

type input struct {
	Topic     string `json:"topic"`
	Key       any    `json:"key"`
	Value     any    `json:"value"`
	Timestamp int64  `json:"timestamp"`
}

type output struct {
	Topic     string `json:"topic,omitempty"`
	Key       any    `json:"key"`
	Value     any    `json:"value"`
	Timestamp int64  `json:"timestamp"`
	After     *int   `json:"after,omitempty"` // the input that caused it
}

func readSuite(file string) (suite, error) {
	var s suite
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

// run runs a case and compares.
func (c *testCase) run() (r result) {
	r = result{Name: c.Name, Got: []output{}}
	b := topology.New("cases")
	sinks, err := build(b, c.Setup.Topology)
	if u, ok := errors.AsType[unsupported](err); ok {
		r.Unsupported = string(u)
		return r
	}
	if err != nil {
		r.Error = err.Error()
		return r
	}
	defer func() {
		if p := recover(); p != nil {
			r.Pass, r.Error = false, fmt.Sprint(p)
		}
	}()
	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	for i, in := range c.Input {
		d.PipeRaw(in.Topic, 0, processors.Raw{Key: encode(in.Key), Value: encode(in.Value), Timestamp: in.Timestamp})
		for _, topic := range sinks {
			for _, rec := range d.RawOutput(topic) {
				out := output{Key: decode(rec.Key), Value: decode(rec.Value), Timestamp: rec.Timestamp, After: &i}
				if len(sinks) > 1 {
					out.Topic = topic
				}
				r.Got = append(r.Got, out)
			}
		}
	}
	if f := d.Failures(); len(f) > 0 {
		r.Error = f[0].Err.Error()
		return r
	}
	if want := c.Setup.Dropped; want != nil && *want != len(d.Drops()) {
		r.Error = fmt.Sprintf("%d records dropped, want %d", len(d.Drops()), *want)
		return r
	}
	want := slices.Clone(c.Expected)
	for i := range want {
		if len(sinks) == 1 && want[i].Topic == sinks[0] {
			want[i].Topic = "" // some cases name their only topic
		}
	}
	r.Pass = same(r.Got, want)
	return r
}

// same compares outputs topic by topic; after is compared where it is given.
func same(got, want []output) bool {
	if len(got) != len(want) {
		return false
	}
	byTopic := func(all []output) map[string][]output {
		m := map[string][]output{}
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
