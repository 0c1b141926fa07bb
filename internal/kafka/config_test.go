package kafka

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"
)

const canary = "hunter2-canary"

func creds(user, pass string) func(context.Context) (Credentials, error) {
	return func(context.Context) (Credentials, error) { return Credentials{user, NewSecret(pass)}, nil }
}

func TestValidateReportsEverything(t *testing.T) {
	good := &tls.Config{MinVersion: tls.VersionTLS12}
	for name, tc := range map[string]struct {
		conf Config
		want []string
	}{
		"nothing":        {Config{}, []string{"no broker"}},
		"scheme":         {Config{Brokers: []string{"kafka://x"}}, []string{"host:port"}},
		"fine":           {Config{Brokers: []string{"a:9092", "[::1]:9092"}}, nil},
		"old TLS":        {Config{Brokers: []string{"a:1"}, TLS: &tls.Config{MinVersion: tls.VersionTLS11, MaxVersion: tls.VersionTLS11}}, []string{"MinVersion allows TLS 1.1", "MaxVersion forbids"}},
		"unverified":     {Config{Brokers: []string{"a:1"}, TLS: &tls.Config{InsecureSkipVerify: true}}, []string{"RootCAs"}},
		"own check":      {Config{Brokers: []string{"a:1"}, TLS: &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(tls.ConnectionState) error { return nil }}}, nil},
		"plain open":     {Config{Brokers: []string{"a:1"}, SASL: &SASL{Mechanism: Plain, Credentials: creds("u", "p")}}, []string{"set TLS, or use SCRAM"}},
		"token open":     {Config{Brokers: []string{"a:1"}, SASL: &SASL{Mechanism: OAuthBearer, Credentials: creds("", "p")}}, []string{"set TLS"}},
		"plain over TLS": {Config{Brokers: []string{"a:1"}, TLS: good, SASL: &SASL{Mechanism: Plain, Credentials: creds("u", "p")}}, nil},
		"scram open":     {Config{Brokers: []string{"a:1"}, SASL: &SASL{Mechanism: ScramSHA256, Credentials: creds("u", "p")}}, nil},
		"unknown":        {Config{Brokers: []string{"a:1"}, SASL: &SASL{Mechanism: "GSSAPI"}}, []string{`"GSSAPI" is not known`, "set SASL.Credentials"}},
		"all at once":    {Config{TLS: &tls.Config{MinVersion: tls.VersionTLS10}, SASL: &SASL{}}, []string{"no broker", "TLS 1.0", "not known", "Credentials"}},
	} {
		t.Run(name, func(t *testing.T) {
			errs := tc.conf.Validate()
			if len(errs) != len(tc.want) {
				t.Fatalf("%d errors: %v", len(errs), errs)
			}
			for i, w := range tc.want {
				if !strings.Contains(errs[i].Error(), w) {
					t.Errorf("%v lacks %q", errs[i], w)
				}
			}
		})
	}
}

// The secret of credentials never shows, however they are logged.
func TestCredentialsNeverShow(t *testing.T) {
	var out strings.Builder
	c := Credentials{"u", NewSecret(canary)}
	fmt.Fprintf(&out, "%v %+v %#v %s", c, c, c, c)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "creds", c)
	slog.New(slog.NewTextHandler(&out, nil)).Info("m", "creds", c)
	if strings.Contains(out.String(), canary) {
		t.Fatalf("the secret shows:\n%s", out.String())
	}
}

func TestLogAdapter(t *testing.T) {
	for _, tc := range []struct {
		at   slog.Level
		kgo  kgo.LogLevel
		want int // of the four messages below
	}{
		{levelTrace, kgo.LogLevelDebug, 4},
		{slog.LevelDebug, kgo.LogLevelInfo, 3},
		{slog.LevelInfo, kgo.LogLevelWarn, 2},
		{slog.LevelWarn, kgo.LogLevelWarn, 2},
		{slog.LevelError, kgo.LogLevelError, 1},
		{slog.LevelError + 1, kgo.LogLevelNone, 0},
	} {
		var out bytes.Buffer
		l := &slogger{l: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: tc.at}))}
		mustEqual(t, fmt.Sprint("level at ", tc.at), l.Level(), tc.kgo)
		for _, lv := range []kgo.LogLevel{kgo.LogLevelError, kgo.LogLevelWarn, kgo.LogLevelInfo, kgo.LogLevelDebug} {
			l.Log(lv, "hello "+fmt.Sprint(lv), "broker", 1, "sasl_password", canary, "Token", canary, "odd")
		}
		mustEqual(t, fmt.Sprint("lines at ", tc.at), strings.Count(out.String(), "\n"), tc.want)
		if strings.Contains(out.String(), canary) {
			t.Fatalf("a secret is logged: %s", out.String())
		}
	}
	(&slogger{}).Log(kgo.LogLevelError, "dropped")
	mustEqual(t, "level without a logger", (&slogger{}).Level(), kgo.LogLevelNone)
}

func TestWorkerOptions(t *testing.T) {
	conf := Config{Brokers: []string{"localhost:1"}}
	cl, err := kgo.NewClient(conf.WorkerOpts(Worker{Group: "g", TransactionalID: "t", InstanceID: "i", Topics: []string{"in"}, Broker: BrokerInfo{TransactionVersion: 1, TxnOffsetCommit: 6}})...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.CloseAllowingRebalance()
	rebalance, _ := cl.OptValue(kgo.RebalanceTimeout).(time.Duration)
	txn, _ := cl.OptValue(kgo.TransactionTimeout).(time.Duration)
	session, _ := cl.OptValue(kgo.SessionTimeout).(time.Duration)
	if !(rebalance < txn && txn < session) {
		t.Errorf("timeouts %v, %v, %v do not rise", rebalance, txn, session)
	}
	for name, got := range map[string]any{
		"ConsumerGroup": "g", "TransactionalID": "t", "InstanceID": "i", "DisableAutoCommit": true, "BlockRebalanceOnPoll": true,
		"KeepControlRecords": false, "FetchIsolationLevel": int8(1), "MaxDecompressBatchBytes": 64 << 20, "RequiredAcks": kgo.AllISRAcks(),
		"ClientID": "millrace",
	} {
		if v := cl.OptValue(name); v != got {
			t.Errorf("%s is %v, want %v", name, v, got)
		}
	}
	v, _ := cl.OptValue(kgo.MaxVersions).(*kversion.Versions)
	if m, ok := v.LookupMaxKeyVersion(28); !ok || m != 4 {
		t.Errorf("TxnOffsetCommit may go up to %d on transaction.version 1", m)
	}
}

func TestCodec(t *testing.T) {
	for _, name := range []string{"", "none"} {
		if c, err := Codec(name); c != nil || err != nil {
			t.Fatalf("%q: %v %v", name, c, err)
		}
	}
	for _, name := range []string{"gzip", "snappy", "lz4", "zstd"} {
		if c, err := Codec(name); c == nil || err != nil {
			t.Fatalf("%q: %v %v", name, c, err)
		}
	}
	if _, err := Codec("rar"); err == nil || !strings.Contains(err.Error(), "use none") {
		t.Fatal(err)
	}
}

func TestPartitioner(t *testing.T) {
	// From Kafka's own UtilsTest: murmur2 of these strings.
	for key, hash := range map[string]int32{"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536, "a-little-bit-longer-string": -1486304829, "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971} {
		masked := uint32(hash) & 0x7fffffff
		mustEqual(t, "murmur2 of "+key, murmur2([]byte(key)), masked)
		h := NewKeyHash()
		if _, err := h.Write([]byte(key)); err != nil {
			t.Fatal(err)
		}
		mustEqual(t, "hasher of "+key, h.Sum32(), masked)
		mustEqual(t, "partition of "+key, PartitionOf([]byte(key), 7), int32(masked%7))
		h.Reset()
		_, _ = h.Write([]byte("other"))
		mustEqual(t, "after Reset", h.Sum32(), murmur2([]byte("other")))
		mustEqual(t, "Sum", len(h.Sum([]byte{1})), 1+h.Size())
	}
	p := Partitioner().ForTopic("t")
	mustEqual(t, "explicit", p.Partition(&kgo.Record{Partition: 5, Key: []byte("21")}, 3), 5)
	mustEqual(t, "explicit is consistent", p.RequiresConsistency(&kgo.Record{Partition: 5}), true)
	mustEqual(t, "by key", p.Partition(&kgo.Record{Partition: -1, Key: []byte("21")}, 7), int(PartitionOf([]byte("21"), 7)))
	mustEqual(t, "key is consistent", p.RequiresConsistency(&kgo.Record{Partition: -1, Key: []byte{}}), true)
	mustEqual(t, "no key is not", p.RequiresConsistency(&kgo.Record{Partition: -1}), false)
	mustEqual(t, "an empty key is a key", PartitionOf(nil, 1000), PartitionOf([]byte{}, 1000))
	for range 100 {
		if got := p.Partition(&kgo.Record{Partition: -1}, 4); got < 0 || got > 3 {
			t.Fatal(got)
		}
		p.(kgo.TopicPartitionerOnNewBatch).OnNewBatch()
	}
}

func TestCheckBroker(t *testing.T) {
	for name, tc := range map[string]struct {
		versions *kversion.Versions
		want     int16
		old      bool
	}{
		"2.4": {kversion.V2_4_0(), 0, true},
		"2.5": {kversion.V2_5_0(), 0, false},
		"3.9": {kversion.V3_9_0(), 0, false},
		"4.3": {kversion.V4_3_0(), 2, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBroker(t, kfake.MaxVersions(tc.versions), kfake.SeedTopics(1, "in", "out"))
				defer b.stop()
				info, err := CheckBroker(t.Context(), b.cl)
				if tc.old {
					if !errors.Is(err, ErrBrokerTooOld) {
						t.Fatal(err)
					}
					return
				}
				if err != nil || info.TransactionVersion != tc.want || info.Version == "" {
					t.Fatalf("%+v %v", info, err)
				}
				m := b.join(info, "i") // and a whole cycle works
				defer m.close()
				m.produce("a")
				m.commit(Committed, at(1))
				mustEqualSlices(t, "visible", b.committed("out", 0), []string{"a"})
				got, _ := b.readAll("out", 0)
				mustEqualSlices(t, "read", got, []string{"a"})
			})
		})
	}
}

func TestDeleteRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker(t, kfake.SeedTopics(2, "t"))
		defer b.stop()
		b.produce("t", 0, "a", "b", "c")
		if err := DeleteRecords(t.Context(), b.cl, nil); err != nil {
			t.Fatal(err)
		}
		if err := DeleteRecords(t.Context(), b.cl, map[string]map[int32]int64{"t": {0: 2, 1: 0}}); err != nil {
			t.Fatal(err)
		}
		starts, err := ListOffsets(t.Context(), b.cl, LogStart, map[string][]int32{"t": {0, 1}})
		if err != nil || starts["t"][0] != 2 || starts["t"][1] != 0 {
			t.Fatal(starts, err)
		}
		if err := DeleteRecords(t.Context(), b.cl, map[string]map[int32]int64{"t": {0: 9}}); err == nil || !strings.Contains(err.Error(), "t/0 before 9") {
			t.Fatal(err)
		}
	})
}

// TLS on top of a dialer, SCRAM with credentials that change, and a wrong password.
func TestTLSAndSASL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cert, pool := selfSigned(t)
		vn := new(kfake.VirtualNetwork)
		c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.Ports(9092), kfake.EnableSASL(),
			kfake.Superuser("SCRAM-SHA-512", "u", canary), kfake.Superuser("PLAIN", "u", canary),
			kfake.ListenFn(func(network, addr string) (net.Listener, error) {
				l, err := vn.Listen(network, addr)
				if err != nil {
					return nil, err
				}
				return tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}), nil
			}))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, mechanism := range []string{Plain, ScramSHA512} {
			var logged bytes.Buffer
			pass := canary
			conf := Config{
				Brokers: []string{"127.0.0.1:9092"}, Dialer: vn.DialContext, TLS: &tls.Config{RootCAs: pool},
				SASL: &SASL{Mechanism: mechanism, Credentials: func(context.Context) (Credentials, error) {
					return Credentials{"u", NewSecret(pass)}, nil
				}},
				Logger: slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: levelTrace})),
			}
			if errs := conf.Validate(); errs != nil {
				t.Fatal(errs)
			}
			cl, err := kgo.NewClient(conf.PlainOpts(nil)...)
			if err != nil {
				t.Fatal(err)
			}
			if err := cl.Ping(t.Context()); err != nil {
				t.Fatal(mechanism, err)
			}
			cl.Close()
			pass = "wrong-" + canary
			cl, err = kgo.NewClient(append(conf.PlainOpts(nil), kgo.RequestRetries(0))...)
			if err != nil {
				t.Fatal(err)
			}
			if err := cl.Ping(t.Context()); err == nil || strings.Contains(err.Error(), canary) {
				t.Fatal(mechanism, err)
			}
			cl.Close()
			if strings.Contains(logged.String(), canary) {
				t.Fatalf("%s: the password is in the log", mechanism)
			}
		}
	})
}

func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}
