package engine_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/millrace/millrace/internal/engine"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
)

// A topic that is deleted, recreated or given partitions while the application runs
// stops the sub-topology that uses it, loudly, and no other.
func TestTopicChanges(t *testing.T) {
	delete := func(r *rig, topic string) {
		if err := r.DeleteTopic(topic); err != nil {
			r.t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		change func(r *rig)
		want   string
	}{
		"source deleted":   {func(r *rig) { delete(r, "in") }, `topic "in" was deleted`},
		"sink deleted":     {func(r *rig) { delete(r, "out") }, `topic "out" was deleted`},
		"source recreated": {func(r *rig) { delete(r, "in"); r.create("in", nil) }, `topic "in" was recreated`},
		"changelog recreated": {func(r *rig) {
			delete(r, "app.n-table")
			r.create("app.n-table", map[string]string{"cleanup.policy": "compact"})
		}, `topic "app.n-table" was recreated`},
		"partitions added": {func(r *rig) {
			if _, err := r.adm.UpdatePartitions(r.t.Context(), 2, "in"); err != nil {
				r.t.Fatal(err)
			}
		}, `topic "in" has 2 partitions, it had 1`},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(r *rig) {
				b := topology.New("app")
				topology.Stream(b, "in", serde.String(), serde.String()).GroupByKey().Count("n").ToStream().To("out")
				topology.Stream(b, "in2", serde.String(), serde.String()).To("out2")
				send := func(topic string) { r.produce(topic, &kgo.Record{Key: []byte("k"), Value: []byte("v")}) }
				a := r.start(b, vfs.NewMem(), func(c *engine.Config) {
					c.TopicCheck, c.Logger = time.Second, slog.New(slog.DiscardHandler)
					// Without the time that a network takes, a client that asks for a topic
					// which is gone asks again and again, and no time passes.
					c.Kafka.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
						conn, err := r.net.DialContext(ctx, network, addr)
						return slowConn{conn}, err
					}
				})
				defer a.stop()
				send("in")
				send("in2")
				r.await("out", 1)
				r.await("out2", 1)
				tc.change(r)
				r.pass(time.Minute)
				send("in2")
				r.await("out2", 2)
				for _, task := range a.Tasks() {
					switch {
					case task.Task.SubTopology != "n":
						if task.State != engine.Running {
							t.Errorf("%s is %s: %v", task.Task, task.State, task.Err)
						}
					case task.State != engine.Parked || !strings.Contains(task.Err.Error(), tc.want):
						t.Errorf("%s is %s: %v, want %q", task.Task, task.State, task.Err, tc.want)
					}
				}
			}, "in", "out", "in2", "out2")
		})
	}
}

// A slowConn takes a while for every request.
type slowConn struct{ net.Conn }

func (c slowConn) Write(p []byte) (int, error) {
	<-time.After(5 * time.Millisecond) // it is what the test is about
	return c.Conn.Write(p)
}

// create creates a topic of one partition.
func (r *rig) create(topic string, configs map[string]string) {
	r.t.Helper()
	if err := r.CreateTopic(topic, 1, configs); err != nil {
		r.t.Fatal(err)
	}
}

// Topics that are missing are all named, and what to do about them.
func TestMissingTopics(t *testing.T) {
	bubble(t, func(r *rig) {
		a := r.start(counting(), vfs.NewMem())
		err := <-a.done
		for _, want := range []string{`"in"`, `"out"`, "create it"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("the error %v does not say %s", err, want)
			}
		}
	})
}

// Without a broker the start is tried again, with a report, for a bounded time.
func TestNoBrokerAtStart(t *testing.T) {
	for name, comes := range map[string]bool{"it comes": true, "it never comes": false} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(r *rig) {
				log := new(buffer)
				from := time.Now().Add(40 * time.Second)
				a := r.start(counting(), vfs.NewMem(), func(c *engine.Config) {
					c.Logger = slog.New(slog.NewTextHandler(log, nil))
					c.Kafka.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
						if !comes || time.Now().Before(from) {
							return nil, errors.New("connection refused")
						}
						return r.net.DialContext(ctx, network, addr)
					}
				})
				if comes {
					r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
					r.await("out", 1)
					a.stop()
				} else {
					began := time.Now()
					err := <-a.done
					if took := time.Since(began); took > 3*time.Minute || err == nil || !strings.Contains(err.Error(), "check the addresses") {
						t.Errorf("after %v: %v", took, err)
					}
				}
				if !strings.Contains(log.String(), "no broker answers, trying again") {
					t.Errorf("it is not reported:\n%s", log)
				}
			}, "in", "out")
		})
	}
}

// A context that has ended already, or ends while there is no broker, ends Run, which
// is no error.
func TestCancelledStart(t *testing.T) {
	for _, after := range []time.Duration{0, time.Millisecond, 10 * time.Second} {
		t.Run(after.String(), func(t *testing.T) {
			bubble(t, func(r *rig) {
				a := r.start(counting(), vfs.NewMem(), func(c *engine.Config) {
					c.Logger = slog.New(slog.DiscardHandler)
					c.Kafka.Dialer = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("connection refused") }
				})
				r.pass(after)
				began := time.Now()
				a.stop()
				if took := time.Since(began); took > 10*time.Second {
					t.Errorf("the end took %v", took)
				}
			}, "in", "out")
		})
	}
}

// permission is a right of SECURITY.md.
type permission struct {
	kind kmsg.ACLResourceType
	name string
	pre  bool // name is a prefix
	op   kmsg.ACLOperation
}

func (p permission) String() string { return fmt.Sprintf("%s on %s %s", p.op, p.kind, p.name) }

// minimum are the rights of SECURITY.md for the application of TestPermissions.
func minimum() (all []permission) {
	add := func(kind kmsg.ACLResourceType, name string, pre bool, ops ...kmsg.ACLOperation) {
		for _, op := range ops {
			all = append(all, permission{kind, name, pre, op})
		}
	}
	topic, group, id := kmsg.ACLResourceTypeTopic, kmsg.ACLResourceTypeGroup, kmsg.ACLResourceTypeTransactionalId
	add(topic, "in", false, kmsg.ACLOperationRead, kmsg.ACLOperationDescribe, kmsg.ACLOperationDescribeConfigs)
	add(topic, "out", false, kmsg.ACLOperationWrite, kmsg.ACLOperationDescribe, kmsg.ACLOperationDescribeConfigs)
	add(topic, "app.", true, kmsg.ACLOperationCreate, kmsg.ACLOperationRead, kmsg.ACLOperationWrite, kmsg.ACLOperationDescribe, kmsg.ACLOperationDescribeConfigs, kmsg.ACLOperationDelete)
	add(group, "app", false, kmsg.ACLOperationRead, kmsg.ACLOperationDescribe)
	add(group, "app.", true, kmsg.ACLOperationRead, kmsg.ACLOperationDescribe)
	add(id, "app", true, kmsg.ACLOperationWrite, kmsg.ACLOperationDescribe)
	return all
}

// The rights that SECURITY.md names are enough, and one that is missing is an error
// that says so, of Run or of the tasks, or is reported in the log; nothing is written
// meanwhile that should not be. Rights that others imply are left out by nobody's loss.
func TestPermissions(t *testing.T) {
	all := minimum()
	for without := -1; without < len(all); without++ {
		name := "all"
		if without >= 0 {
			name = "without " + all[without].String()
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { testPermissions(t, all, without) })
		})
	}
}

// asking has internal topics of every kind.
func asking() *topology.Builder {
	b := topology.New("app")
	in := topology.Stream(b, "in", serde.String(), serde.String())
	answers := topology.AsyncLookup(in, "ask", func(_ context.Context, r processors.Record[string, string]) (string, error) { return r.Value, nil }, serde.String())
	results := topology.MapValues(answers.Results(), func(a processors.Answer[string, string]) string { return a.Result })
	topology.GroupBy(results.WithValueSerde(serde.String()), "by-answer", func(_, v string) string { return v }).Count("n").ToStream().To("out")
	return b
}

func testPermissions(t *testing.T, all []permission, without int) {
	var acls []kfake.ACL
	for i, p := range all {
		if i == without {
			continue
		}
		pattern := kmsg.ACLResourcePatternTypeLiteral
		if p.pre {
			pattern = kmsg.ACLResourcePatternTypePrefixed
		}
		acls = append(acls, kfake.ACL{Resource: p.kind, Name: p.name, Pattern: pattern, Operation: p.op, Allow: true})
	}
	const mechanism, password = "SCRAM-SHA-256", "secret"
	r := newRigWith(t, scram.Auth{User: "admin", Pass: password}.AsSha256Mechanism(), []kfake.Opt{
		kfake.EnableSASL(), kfake.Superuser(mechanism, "admin", password), kfake.EnableACLs(), kfake.User(mechanism, "app", password, acls...),
	}, "in", "out")
	defer r.close()
	r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
	log := new(buffer)
	a := r.start(asking(), vfs.NewMem(), func(c *engine.Config) {
		c.Logger = slog.New(slog.NewTextHandler(log, nil))
		c.Kafka.SASL = &kafka.SASL{Mechanism: mechanism, Credentials: func(context.Context) (kafka.Credentials, error) {
			return kafka.Credentials{User: "app", Password: kafka.NewSecret(password)}, nil
		}}
	})
	r.pass(2 * time.Minute)
	var ended error
	select {
	case ended = <-a.done:
	default:
		defer a.stop()
	}
	said := log.String() + fmt.Sprint(ended)
	for _, task := range a.Tasks() {
		said += fmt.Sprint(task.Err)
	}
	outputs := len(r.read("out"))
	t.Logf("%d outputs, ended with %v", outputs, ended)
	if strings.Contains(said, password) {
		t.Error("the password is in the log")
	}
	denied := strings.Contains(said, "AUTHORIZATION_FAILED")
	if without < 0 {
		if outputs != 1 || denied || ended != nil {
			t.Errorf("the minimum is not enough:\n%s", said)
		}
		return
	}
	if outputs == 1 && !denied && ended == nil {
		if op := all[without].op; op != kmsg.ACLOperationDescribe { // Read and Write imply it
			t.Errorf("the right is not needed")
		}
		return
	}
	if !denied {
		t.Errorf("nothing says which right is missing:\n%s", said)
	}
	if !strings.Contains(said, "grant") {
		t.Errorf("nothing says what to do:\n%s", said)
	}
}
