package prompt_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	supportv1 "github.com/millrace/millrace/examples/support/proto/support/v1"
	"github.com/millrace/millrace/llm/prompt"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// A topic stands for <app>.prompts and the rows that an instance keeps of it.
type topic struct {
	t    *testing.T
	reg  prompt.Registry
	rows map[string][]byte
	uses []prompt.Use
}

func newTopic(t *testing.T, uses ...prompt.Use) *topic {
	return &topic{t: t, rows: map[string][]byte{}, uses: uses}
}

func (p *topic) row(key string) ([]byte, error) { return p.rows[key], nil }

// put writes records and returns what the instance says of the last bad one.
func (p *topic) put(records ...prompt.Record) error {
	p.t.Helper()
	var last error
	for _, r := range records {
		if err := p.reg.Apply(r); err != nil {
			last = err
		}
		keep, err := prompt.Apply(r, p.row, p.uses)
		if err != nil {
			last = err
		}
		if keep != nil && keep.Value == nil {
			delete(p.rows, keep.Key)
		} else if keep != nil {
			p.rows[keep.Key] = keep.Value
		}
	}
	return last
}

// must writes the records of a change that is not refused.
func (p *topic) must(records []prompt.Record, err error) {
	p.t.Helper()
	if err == nil {
		err = p.put(records...)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

func version(user string) *prompt.Prompt {
	return prompt.Must(prompt.Config{Name: "triage", System: "You triage.", User: user})
}

var ticketShape = prompt.ShapeOf(prompt.Data{Event: &supportv1.Ticket{}, Key: ""})

func use(p *prompt.Prompt) prompt.Use {
	return prompt.Use{
		Step: "triage", Prompt: p, Shape: ticketShape,
		Message: (&supportv1.Triage{}).ProtoReflect().Descriptor(), Topics: []string{"triaged"},
	}
}

func TestLabels(t *testing.T) {
	t.Parallel()
	builtIn, second, third := version("{{.Event.Text}}"), version("2 {{.Event.Text}}"), version("3 {{.Event.Text}}")
	top := newTopic(t, use(builtIn))
	c := &prompt.Chooser{BuiltIn: builtIn, Shape: ticketShape, Unusable: func(err error) { t.Error(err) }}
	chosen := func(key string) string {
		t.Helper()
		p, label, err := c.Choose(top.row, []byte(key))
		if err != nil {
			t.Fatal(err)
		}
		return label + " " + p.Version()
	}
	want := func(key, label string, p *prompt.Prompt) {
		t.Helper()
		if got, want := chosen(key), label+" "+p.Version(); got != want {
			t.Errorf("key %s gets %s, want %s", key, got, want)
		}
	}
	top.must(top.reg.Register(top.uses, noon))
	want("a", prompt.BuiltIn, builtIn)
	top.must(top.reg.Publish(second, noon, "shorter"))
	top.must(top.reg.Publish(third, noon.Add(time.Hour), ""))
	want("a", prompt.BuiltIn, builtIn)
	top.must(top.reg.SetLabel("triage", prompt.Prod, second.Version()[:6], 0, noon, "better"))
	want("a", prompt.Prod, second)

	top.must(top.reg.SetLabel("triage", prompt.Canary, third.Version(), 20, noon, ""))
	canary := map[string]bool{}
	for i := range 2000 {
		if key := fmt.Sprint("customer ", i); strings.HasPrefix(chosen(key), prompt.Canary) {
			canary[key] = true
			want(key, prompt.Canary, third)
		} else {
			want(key, prompt.Prod, second)
		}
	}
	if n := len(canary); n < 340 || n > 460 {
		t.Errorf("%d of 2,000 keys get a canary of 20 percent", n)
	}
	top.must(top.reg.SetLabel("triage", prompt.Canary, third.Version(), 50, noon, ""))
	for key := range canary {
		want(key, prompt.Canary, third) // sticky while the share grows
	}
	top.must(top.reg.RemoveLabel("triage", prompt.Canary))
	top.must(top.reg.SetLabel("triage", prompt.Prod, prompt.Prod, 0, noon, "")) // nothing new
	want("a", prompt.Prod, second)
	top.must(top.reg.RemoveLabel("triage", prompt.Prod))
	want("a", prompt.BuiltIn, builtIn)
	versions := top.reg.Versions("triage")
	if len(versions) != 3 || versions[0].Version() != third.Version() || versions[0].System() != third.System() {
		t.Errorf("versions %v", versions)
	}
}

// What comes into the topic past the checks does not replace what works.
func TestUnusableVersions(t *testing.T) {
	t.Parallel()
	builtIn, good, misfit := version("{{.Event.Text}}"), version("good {{.Event.Text}}"), version("{{if .Event.Text}}{{.Event.Nope}}{{end}}")
	top := newTopic(t, use(builtIn))
	top.must(top.reg.Register(top.uses, noon))
	top.must(top.reg.Publish(good, noon, ""))
	top.must(top.reg.SetLabel("triage", prompt.Prod, good.Version(), 0, noon, ""))
	if _, err := top.reg.Publish(misfit, noon, ""); err == nil || !strings.Contains(err.Error(), `step "triage"`) || !strings.Contains(err.Error(), "Nope") {
		t.Errorf("published what does not fit: %v", err)
	}
	// Written by hand.
	label := func(version string) prompt.Record {
		return forged("label/triage/prod", &millracev1.PromptRecord{Kind: &millracev1.PromptRecord_Label{Label: &millracev1.PromptLabel{
			Name: "triage", Label: "prod", Choice: &millracev1.PromptChoice{Version: version},
		}}})
	}
	changed := &millracev1.PromptRecord{}
	if err := proto.Unmarshal(good.Record(noon, "").Value, changed); err != nil {
		t.Fatal(err)
	}
	changed.GetVersion().User = "other words {{.Event.Text}}"
	for _, bad := range []struct {
		want string
		r    prompt.Record
	}{
		{"there is no Nope", misfit.Record(noon, "")},
		{"versions do not change", forged("version/triage/"+good.Version(), changed)},
		{"it holds", forged("version/triage/0", changed)},
		{"not in the topic", label(misfit.Version())},
		{"proto", prompt.Record{Key: "label/triage/canary", Value: []byte("{}")}},
	} {
		if err := top.put(bad.r); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("record %s: %v, want %q", bad.r.Key, err, bad.want)
		}
	}
	c := &prompt.Chooser{BuiltIn: builtIn, Shape: ticketShape, Unusable: func(err error) { t.Error(err) }}
	if p, l, err := c.Choose(top.row, nil); err != nil || l != prompt.Prod || p.Version() != good.Version() {
		t.Errorf("chose %s %s, %v", l, p.Version(), err)
	}
	// The events have changed since the version was stored.
	var said []string
	c = &prompt.Chooser{BuiltIn: version("{{.Event}}"), Shape: prompt.ShapeOf(prompt.Data{Event: ""}), Unusable: func(err error) { said = append(said, err.Error()) }}
	for range 2 {
		if _, l, err := c.Choose(top.row, nil); err != nil || l != prompt.BuiltIn {
			t.Errorf("chose %s, %v", l, err)
		}
	}
	if len(said) != 1 || !strings.Contains(said[0], "there is no Text in string") {
		t.Errorf("said %q", said)
	}
	if err := top.reg.Unusable(top.uses); err == nil || !strings.Contains(err.Error(), "is not used") {
		t.Errorf("the label of what does not fit: %v", err)
	}
}

func forged(key string, m *millracev1.PromptRecord) prompt.Record {
	value, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return prompt.Record{Key: key, Value: value}
}

func TestRefusedLabels(t *testing.T) {
	t.Parallel()
	p := version("{{.Event}}")
	top := newTopic(t)
	top.must(top.reg.Publish(p, noon, ""))
	for want, args := range map[string][3]any{
		"the labels are":           {"triage", "beta", 0.0},
		"has no share":             {"triage", prompt.Prod, 10.0},
		"a share of 0 percent":     {"triage", prompt.Canary, 0.0},
		"a share of 101 percent":   {"triage", prompt.Canary, 101.0},
		"has no version or label ": {"other", prompt.Prod, 0.0},
	} {
		if _, err := top.reg.SetLabel(args[0].(string), args[1].(string), p.Version(), args[2].(float64), noon, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
	if _, err := top.reg.RemoveLabel("triage", prompt.Canary); err == nil {
		t.Error("a label that is not there was removed")
	}
}

// triageWith returns the descriptor of the message after a change.
func triageWith(t *testing.T, change func(*descriptorpb.DescriptorProto)) protoreflect.MessageDescriptor {
	t.Helper()
	md := (&supportv1.Triage{}).ProtoReflect().Descriptor()
	file := protodesc.ToFileDescriptorProto(md.ParentFile())
	for _, m := range file.MessageType {
		if m.GetName() == string(md.Name()) {
			change(m)
		}
	}
	fd, err := protodesc.NewFile(file, protoregistry.GlobalFiles)
	if err != nil {
		t.Fatal(err)
	}
	return fd.Messages().ByName(md.Name())
}

func TestContracts(t *testing.T) {
	t.Parallel()
	added := triageWith(t, func(m *descriptorpb.DescriptorProto) {
		m.Field = append(m.Field, &descriptorpb.FieldDescriptorProto{
			Name: new("extra"), Number: new(int32(99)), JsonName: new("extra"),
			Type: descriptorpb.FieldDescriptorProto_TYPE_STRING.Enum(), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
		})
	})
	renamed := triageWith(t, func(m *descriptorpb.DescriptorProto) {
		m.Field[0].Name, m.Field[0].JsonName = new("other"), new("other")
	})
	u := use(version("{{.Event.Text}}"))
	top := newTopic(t)
	want := func(records int, message string, md protoreflect.MessageDescriptor, generation int, topics ...string) {
		t.Helper()
		u := u
		u.Message, u.Generation, u.Topics = md, generation, topics
		list, err := top.reg.Register([]prompt.Use{u}, noon)
		if err == nil {
			top.must(list, nil)
		}
		switch {
		case message == "" && (err != nil || len(list) != records):
			t.Errorf("%d records, %v; want %d", len(list), err, records)
		case message != "" && (err == nil || !strings.Contains(err.Error(), message)):
			t.Errorf("%v, want %q", err, message)
		}
	}
	want(2, "", u.Message, 0, "triaged") // the prompt and the contract
	want(0, "", u.Message, 0, "triaged")
	want(1, "", added, 0, "triaged")
	want(0, "", added, 0, "triaged")
	want(0, "", u.Message, 0, "triaged") // a program may go back
	want(0, "", added, 0, "triaged")
	want(0, "set Enrichment.Generation to 1", renamed, 0, "triaged")
	want(0, "is now called other", renamed, 0, "triaged")
	want(0, "is now called support.v1.Ticket", (&supportv1.Ticket{}).ProtoReflect().Descriptor(), 0, "triaged")
	want(0, "both are written to triaged", renamed, 1, "copy", "triaged")
	want(1, "", renamed, 1, "triaged-2")
	want(0, "", renamed, 1, "triaged-2")
	want(0, "", added, 0, "triaged")
	want(0, "set Enrichment.Generation to 2", added, 1, "triaged-2")
}

// No record of the topic, whatever it holds, makes an instance panic, or a prompt
// that is not what its version says.
func FuzzApply(f *testing.F) {
	p := version("{{range .Event.Tags}}{{.}}{{end}}")
	f.Add(p.Record(noon, "").Key, p.Record(noon, "").Value)
	f.Add("label/triage/prod", forged("", &millracev1.PromptRecord{Kind: &millracev1.PromptRecord_Label{Label: &millracev1.PromptLabel{Name: "triage", Label: "prod"}}}).Value)
	f.Add("contract/s/0", forged("", &millracev1.PromptRecord{Kind: &millracev1.PromptRecord_Contract{Contract: &millracev1.StepContract{Step: "s", Prompt: "triage"}}}).Value)
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		builtIn := version("{{.Event.Text}}")
		uses := []prompt.Use{use(builtIn)}
		top := newTopic(t, uses...)
		_ = top.put(prompt.Record{Key: key, Value: value}) // the error is what an instance logs
		_, _ = top.reg.Register(uses, noon)                // refusing is allowed
		_ = top.reg.Unusable(uses)
		_, _ = top.reg.Publish(builtIn, noon, "")
		for _, v := range top.reg.Versions("") {
			if key != "version/"+v.Name()+"/"+v.Version() {
				t.Errorf("key %q holds %s %s", key, v.Name(), v.Version())
			}
		}
		c := &prompt.Chooser{BuiltIn: builtIn, Shape: ticketShape, Unusable: func(error) {}}
		got, _, err := c.Choose(top.row, []byte("k"))
		if err != nil {
			t.Fatal(err) // what cannot be read was not kept
		}
		if err := got.Fits(ticketShape); err != nil {
			t.Error(err)
		}
	})
}

// A template that fits its data does not fail for a name that is not there.
func FuzzFits(f *testing.F) {
	for _, seed := range []string{
		"{{.Event.Text}}", "{{with .Event}}{{.Subject}}{{end}}", "{{range $i, $x := .Tables.t}}{{$x.Name}}{{end}}",
		"{{$x := .Event}}{{if $x.Text}}{{$x.GetText}}{{else}}{{.Key}}{{end}}", `{{define "x"}}{{.Score}}{{end}}{{template "x" .Tables.p}}`,
		"{{(index .Tables.t 0).Name}}", "{{printf `%s` .Event.Email | json}}", "{{range .Tables.m.x}}{{.Name}}{{end}}", "{{.Tables.none}}", "{{.Event.Text.Nope}}",
	} {
		f.Add(seed)
	}
	type row struct{ Name string }
	data := prompt.Data{
		Event: &supportv1.Ticket{Text: "t", Subject: "s"}, Key: "k", Context: &millracev1.Conversation{},
		Tables: map[string]any{"t": []row{{"a"}}, "p": plainEvent{}, "m": map[string][]row{"x": {{"b"}}}},
	}
	f.Fuzz(func(t *testing.T, user string) {
		p, err := prompt.New(prompt.Config{Name: "p", User: user, MaxBytes: 1000})
		if err != nil || len(user) > 500 || p.Check(data) != nil {
			return
		}
		// Of what functions and assignments come to, the check knows little.
		if _, err := p.User(data); err != nil && strings.Contains(err.Error(), "can't evaluate field") && !strings.ContainsAny(user, "(|=") {
			t.Errorf("%q fits, but: %v", user, err)
		}
	})
}

func TestFits(t *testing.T) {
	t.Parallel()
	type row struct {
		Name string
		Next *row
	}
	shape := prompt.ShapeOf(prompt.Data{
		Event: &supportv1.Ticket{}, Key: int64(0), Context: &millracev1.Conversation{},
		Tables: map[string]any{"rows": []*row{}, "free": map[string]any{}, "time": time.Time{}},
	})
	for user, want := range map[string]string{
		"{{.Event.Text}} {{.Event.GetText}} {{.Key}}": "",
		"{{.Event.text}}":                                          "there is no text",
		"{{if .Key}}{{.Event.Nope}}{{end}}":                        "there is no Nope",
		"{{if .Key}}{{else}}{{.Event.Nope}}{{end}}":                "there is no Nope",
		"{{with .Event}}{{.Text}}{{$.Key}}{{end}}":                 "",
		"{{with .Event}}{{.Key}}{{end}}":                           "there is no Key",
		"{{range .Tables.rows}}{{.Next.Next.Name}}{{end}}":         "",
		"{{range .Tables.rows}}{{.Next.Nome}}{{end}}":              "there is no Nome",
		"{{range $i, $r := .Tables.rows}}{{$i}}{{$r.Nome}}{{end}}": "there is no Nome",
		"{{(index .Tables.rows 0).Nome}}":                          "there is no Nome",
		"{{$r := index .Tables.rows 0}}{{$r.Nome}}":                "there is no Nome",
		"{{$r := .Event}}{{$r = .Key}}{{$r.Anything}}":             "",
		"{{.Tables.free.any.thing}} {{.Tables.time.Year}}":         "",
		"{{.Tables.product}}":                                      "there is no product in the tables, which has free, rows, time",
		"{{.Evnt}}":                                                "there is no Evnt in the data, which has Context, Event, Key, Tables",
		"{{range .Context.Turns}}{{.Role}} {{.Text}}{{end}}":       "",
		"{{range .Context.Turns}}{{.Words}}{{end}}":                "there is no Words",
		`{{define "x"}}{{.Nope}}{{end}}{{template "x" .Event}}`:    "there is no Nope",
		`{{define "x"}}{{with .Next}}{{template "x" .}}{{end}}{{.Name}}{{end}}{{range .Tables.rows}}{{template "x" .}}{{end}}`: "",
		"{{printf \"%d\" .Event.Nope}}": "there is no Nope",
		"{{len .Event.Text}} {{json .Event}} {{and .Key .Event.Subject | printf \"%v\"}}": "",
	} {
		err := prompt.Must(prompt.Config{Name: "p", User: user}).Fits(shape)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", user, err, want)
		}
	}
}
