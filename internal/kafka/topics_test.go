package kafka

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

var allKinds = []TopicSpec{
	{Name: "app.s-table", Kind: Changelog, Partitions: 3},
	{Name: "app.w-table", Kind: WindowChangelog, Partitions: 3, Retention: 8 * 24 * time.Hour},
	{Name: "app.task-table", Kind: GroupTable, Partitions: 3},
	{Name: "app.a-loop", Kind: Loop, Partitions: 3},
	{Name: "app.r-repartition", Kind: Repartition, Partitions: 5},
	{Name: "app.dlq", Kind: DeadLetter, Partitions: 1, MaxMessageBytes: 2 << 20},
}

func TestEnsureCreatesEveryKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker(t)
		defer b.stop()
		adm := kadm.NewClient(b.cl)
		for range 2 { // the second time it checks
			if err := Ensure(t.Context(), adm, allKinds); err != nil {
				t.Fatal(err)
			}
		}
		want := map[string]string{
			"app.s-table":       "cleanup.policy=compact delete.retention.ms=86400000",
			"app.w-table":       "cleanup.policy=compact,delete retention.ms=691200000 retention.bytes=-1 delete.retention.ms=86400000",
			"app.task-table":    "cleanup.policy=compact retention.ms=-1 retention.bytes=-1",
			"app.a-loop":        "cleanup.policy=delete retention.ms=-1 retention.bytes=-1 segment.bytes=52428800",
			"app.r-repartition": "cleanup.policy=delete retention.ms=-1 retention.bytes=-1",
			"app.dlq":           "cleanup.policy=delete max.message.bytes=2097152",
		}
		infos, err := Describe(t.Context(), adm, "app.s-table", "app.w-table", "app.task-table", "app.a-loop", "app.r-repartition", "app.dlq")
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range allKinds {
			info := infos[s.Name]
			if info.Err != nil || info.Partitions != s.Partitions || info.ID == [16]byte{} {
				t.Errorf("%s: %+v", s.Name, info)
			}
			conf, err := adm.DescribeTopicConfigs(t.Context(), s.Name)
			if err != nil {
				t.Fatal(err)
			}
			have := make(map[string]string)
			for _, c := range conf[0].Configs {
				have[c.Key] = c.MaybeValue()
			}
			for kv := range strings.FieldsSeq(want[s.Name] + " message.timestamp.type=CreateTime") {
				k, v, _ := strings.Cut(kv, "=")
				if have[k] != v {
					t.Errorf("%s: %s is %q, want %q", s.Name, k, have[k], v)
				}
			}
		}
	})
}

// An existing topic that would lose records is refused, with the command that
// mends it, and left as it is.
func TestEnsureReportsDifferences(t *testing.T) {
	for name, tc := range map[string]struct {
		have       map[string]string
		partitions int32
		spec       TopicSpec
		want       []string // empty: accepted
	}{
		"as it must be": {map[string]string{"cleanup.policy": "compact", "delete.retention.ms": "86400000"}, 3, allKinds[0], nil},
		"keeps more":    {map[string]string{"cleanup.policy": "delete, compact", "retention.ms": "-1", "delete.retention.ms": "99999999"}, 3, allKinds[1], nil},
		"partitions":    {map[string]string{"cleanup.policy": "compact"}, 4, allKinds[0], []string{"has 4 partitions", "needs 3", "reset"}},
		"policy":        {map[string]string{"cleanup.policy": "delete"}, 3, allKinds[0], []string{"cleanup.policy=delete", "--add-config cleanup.policy=compact"}},
		"window policy": {map[string]string{"cleanup.policy": "delete", "retention.ms": "-1"}, 3, allKinds[1], []string{"--add-config cleanup.policy=[compact,delete]"}},
		"retention":     {map[string]string{"cleanup.policy": "delete", "retention.ms": "1000"}, 3, allKinds[3], []string{"retention.ms=1000", "needs -1"}},
		"size":          {map[string]string{"max.message.bytes": "1000"}, 3, TopicSpec{Kind: DeadLetter, Partitions: 3, MaxMessageBytes: 2000}, []string{"max.message.bytes=1000", "needs 2000"}},
		"tombstones":    {map[string]string{"cleanup.policy": "compact", "delete.retention.ms": "1000"}, 3, allKinds[0], []string{"delete.retention.ms=1000"}},
		"clock":         {map[string]string{"cleanup.policy": "compact", "message.timestamp.type": "LogAppendTime"}, 3, allKinds[2], []string{"message.timestamp.type=LogAppendTime"}},
		"two at once":   {map[string]string{"cleanup.policy": "compact", "retention.ms": "5"}, 1, TopicSpec{Kind: Loop, Partitions: 2}, []string{"has 1 partitions", "cleanup.policy=delete,", "retention.ms=-1"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBroker(t)
				defer b.stop()
				if err := b.CreateTopic("t", tc.partitions, tc.have); err != nil {
					t.Fatal(err)
				}
				tc.spec.Name = "t"
				alters := b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.IncrementalAlterConfigs, kmsg.AlterConfigs, kmsg.CreatePartitions, kmsg.DeleteTopics}, Count: -1, Observe: true})
				err := Ensure(t.Context(), kadm.NewClient(b.cl), []TopicSpec{tc.spec})
				if (err == nil) != (tc.want == nil) {
					t.Fatalf("%v", err)
				}
				for _, w := range tc.want {
					if !strings.Contains(err.Error(), w) {
						t.Errorf("%v\nlacks %q", err, w)
					}
				}
				mustEqual(t, "alterations", alters.Hits(), 0)
			})
		})
	}
}

func TestEnsureWithoutPermission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker(t)
		defer b.stop()
		adm := kadm.NewClient(b.cl)
		b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.CreateTopics}, Err: kerr.TopicAuthorizationFailed, Count: -1})
		err := Ensure(t.Context(), adm, allKinds[:1])
		if !errors.Is(err, kerr.TopicAuthorizationFailed) || !strings.Contains(err.Error(), "grant Create") || !strings.Contains(err.Error(), "3 partitions") || !strings.Contains(err.Error(), "cleanup.policy=compact") {
			t.Fatal(err)
		}
		// Whoever may not create can use what an administrator created.
		if err := b.CreateTopic("app.s-table", 3, map[string]string{"cleanup.policy": "compact"}); err != nil {
			t.Fatal(err)
		}
		if err := Ensure(t.Context(), adm, allKinds[:1]); err != nil {
			t.Fatal(err)
		}
	})
}

// A topic that may not be seen does not hide the others.
func TestDescribeWithoutPermission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker(t, kfake.SeedTopics(2, "open", "secret"))
		defer b.stop()
		b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: "secret", Err: kerr.TopicAuthorizationFailed, Count: -1})
		infos, err := Describe(t.Context(), kadm.NewClient(b.cl), "open", "secret", "missing")
		if err != nil {
			t.Fatal(err)
		}
		if i := infos["open"]; i.Err != nil || i.Partitions != 2 {
			t.Fatalf("%+v", i)
		}
		if err := infos["secret"].Err; !errors.Is(err, kerr.TopicAuthorizationFailed) || !strings.Contains(err.Error(), "grant Describe") {
			t.Fatal(err)
		}
		if err := infos["missing"].Err; !errors.Is(err, kerr.UnknownTopicOrPartition) {
			t.Fatal(err)
		}
	})
}

func TestDescribeAndChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker(t, kfake.SeedTopics(2, "same", "grows", "gone", "again"))
		defer b.stop()
		adm := kadm.NewClient(b.cl)
		names := []string{"same", "grows", "gone", "again"}
		before, err := Describe(t.Context(), adm, names...)
		if err != nil {
			t.Fatal(err)
		}
		if c := Changes(before, before); len(c) != 0 {
			t.Fatal(c[0])
		}
		if _, err := adm.UpdatePartitions(t.Context(), 3, "grows"); err != nil {
			t.Fatal(err)
		}
		for _, topic := range []string{"gone", "again"} {
			if err := b.DeleteTopic(topic); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.CreateTopic("again", 2, nil); err != nil {
			t.Fatal(err)
		}
		now, err := Describe(t.Context(), adm, names...)
		if err != nil {
			t.Fatal(err)
		}
		if err := now["gone"].Err; !errors.Is(err, kerr.UnknownTopicOrPartition) || !strings.Contains(err.Error(), "create it") {
			t.Fatal(err)
		}
		var got []string
		for _, c := range Changes(before, now) {
			got = append(got, c.Error())
		}
		if len(got) != 3 || !strings.Contains(got[0], `"again" was recreated`) || !strings.Contains(got[1], `"gone" was deleted`) || !strings.Contains(got[2], `"grows" has 3 partitions, it had 2`) {
			t.Fatalf("%q", got)
		}
	})
}
