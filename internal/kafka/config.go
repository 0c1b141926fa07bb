package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// The timeouts of a worker, each below the next: a member that is slow to revoke
// is gone before its transaction is, and a transaction before the member.
const (
	RebalanceTimeout   = 15 * time.Second
	TransactionTimeout = 30 * time.Second
	SessionTimeout     = 45 * time.Second
)

const (
	// MaxDecompressed bounds the bytes that one batch may decompress to.
	MaxDecompressed = 64 << 20
	// maxBuffered bounds the records waiting to be written; Produce then blocks.
	maxBuffered = 100_000
	// DefaultBatchBytes is the largest batch written to a topic of which nothing
	// else is known: the default of the broker's max.message.bytes.
	DefaultBatchBytes = 1_000_012
)

// The SASL mechanisms.
const (
	Plain       = "PLAIN" // only over TLS
	ScramSHA256 = "SCRAM-SHA-256"
	ScramSHA512 = "SCRAM-SHA-512"
	OAuthBearer = "OAUTHBEARER"
)

// Credentials are what a SASL mechanism sends.
type Credentials struct {
	User     string // empty for OAUTHBEARER
	Password Secret // the token for OAUTHBEARER
}

// SASL says how to authenticate.
type SASL struct {
	// Mechanism is one of Plain, ScramSHA256, ScramSHA512 and OAuthBearer.
	Mechanism string
	// Credentials is called for every new connection, so that credentials can
	// change while the program runs. It must be safe for concurrent use.
	Credentials func(context.Context) (Credentials, error)
}

// Config says how to reach a cluster. The zero value of everything but Brokers is
// usable.
type Config struct {
	// Brokers are the addresses to start from, host:port.
	Brokers []string
	// ClientID is shown in the brokers' logs and quotas. Default "millrace".
	ClientID string
	// TLS encrypts all connections; with a certificate it is mutual. nil means
	// plaintext.
	TLS *tls.Config
	// SASL authenticates all connections; nil means not at all.
	SASL *SASL
	// Dialer opens connections in place of net.Dialer; TLS goes on top.
	Dialer func(ctx context.Context, network, address string) (net.Conn, error)
	// Logger gets the client's messages: warnings and errors at their level, the
	// rest at debug and below. nil drops them.
	Logger *slog.Logger
	// Compression of what is written, in order of preference. Default none, as in
	// Kafka's own producers.
	Compression []kgo.CompressionCodec
}

// Validate returns every problem of the configuration, each with what to do, nil
// if there is none.
func (c *Config) Validate() []error {
	var errs []error
	if len(c.Brokers) == 0 {
		errs = append(errs, errors.New("no broker: give at least one host:port"))
	}
	for _, b := range c.Brokers {
		host, port, err := net.SplitHostPort(b)
		if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n == 0 || host == "" {
			errs = append(errs, fmt.Errorf("broker %q: write it as host:port, without a scheme or path", b))
		}
	}
	if t := c.TLS; t != nil {
		if t.MinVersion != 0 && t.MinVersion < tls.VersionTLS12 {
			errs = append(errs, fmt.Errorf("TLS: MinVersion allows %s; use tls.VersionTLS12 or newer", tls.VersionName(t.MinVersion)))
		}
		if t.MaxVersion != 0 && t.MaxVersion < tls.VersionTLS12 {
			errs = append(errs, fmt.Errorf("TLS: MaxVersion forbids all but %s; use tls.VersionTLS12 or newer", tls.VersionName(t.MaxVersion)))
		}
		if t.InsecureSkipVerify && t.VerifyConnection == nil && t.VerifyPeerCertificate == nil {
			errs = append(errs, errors.New("TLS: InsecureSkipVerify without a verification of your own; put the broker's CA into RootCAs instead"))
		}
	}
	if s := c.SASL; s != nil {
		switch s.Mechanism {
		case Plain, OAuthBearer:
			if c.TLS == nil {
				errs = append(errs, fmt.Errorf("SASL %s sends the secret readable: set TLS, or use %s", s.Mechanism, ScramSHA512))
			}
		case ScramSHA256, ScramSHA512:
		default:
			errs = append(errs, fmt.Errorf("SASL mechanism %q is not known: use %s, %s, %s or %s", s.Mechanism, Plain, ScramSHA256, ScramSHA512, OAuthBearer))
		}
		if s.Credentials == nil {
			errs = append(errs, errors.New("SASL without credentials: set SASL.Credentials"))
		}
	}
	return errs
}

// Codec returns the compression codec of that name, nil for "" and "none".
func Codec(name string) (*kgo.CompressionCodec, error) {
	var codec kgo.CompressionCodec
	switch name {
	case "", "none":
		return nil, nil
	case "gzip":
		codec = kgo.GzipCompression()
	case "snappy":
		codec = kgo.SnappyCompression()
	case "lz4":
		codec = kgo.Lz4Compression()
	case "zstd":
		codec = kgo.ZstdCompression()
	default:
		return nil, fmt.Errorf("compression %q is not known: use none, gzip, snappy, lz4 or zstd", name)
	}
	return &codec, nil
}

// mechanism builds the franz-go mechanism of a valid SASL.
func (s *SASL) mechanism() sasl.Mechanism {
	get := s.Credentials
	switch s.Mechanism {
	case Plain:
		return plain.Plain(func(ctx context.Context) (plain.Auth, error) {
			c, err := get(ctx)
			return plain.Auth{User: c.User, Pass: c.Password.Reveal()}, err
		})
	case OAuthBearer:
		return oauth.Oauth(func(ctx context.Context) (oauth.Auth, error) {
			c, err := get(ctx)
			return oauth.Auth{Token: c.Password.Reveal()}, err
		})
	}
	auth := func(ctx context.Context) (scram.Auth, error) {
		c, err := get(ctx)
		return scram.Auth{User: c.User, Pass: c.Password.Reveal()}, err
	}
	if s.Mechanism == ScramSHA256 {
		return scram.Sha256(auth)
	}
	return scram.Sha512(auth)
}

// base holds the options of every client.
func (c *Config) base() []kgo.Opt {
	id := c.ClientID
	if id == "" {
		id = "millrace"
	}
	compression := append(slices.Clone(c.Compression), kgo.NoCompression())
	opts := []kgo.Opt{
		kgo.SeedBrokers(c.Brokers...),
		kgo.ClientID(id),
		kgo.SoftwareNameAndVersion("millrace", "0"),
		kgo.WithLogger(&slogger{l: c.Logger}),
		kgo.DisableClientMetrics(),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.MaxDecompressBatchBytes(MaxDecompressed),
		// Offsets are decided by us: whatever is out of range is an error.
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(Partitioner()),
		kgo.ProducerBatchCompression(compression...),
		kgo.MaxBufferedRecords(maxBuffered),
		kgo.MetadataMinAge(metadataMinAge),
	}
	if c.SASL != nil {
		opts = append(opts, kgo.SASL(c.SASL.mechanism()))
	}
	dial := c.Dialer
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	dial = unhurried(dial)
	if c.TLS != nil {
		dial = tlsDialer(dial, c.TLS.Clone())
	}
	return append(opts, kgo.Dialer(dial))
}

// metadataMinAge is how long a batch that the broker refused for a moment waits: kgo
// asks for metadata before it tries again, and by default at most every 5 s. With
// transaction.version 2 a busy broker often refuses the first batch for a partition.
// It is Kafka's own retry.backoff.ms.
const metadataMinAge = 100 * time.Millisecond

// How long a connection may take to open, and how long a failure takes at least.
const (
	dialTimeout = 10 * time.Second
	dialPause   = 50 * time.Millisecond
)

// unhurried makes failures take their time: before transaction.version 2 franz-go
// tries to add partitions to a transaction again without a pause while the broker
// refuses connections, thousands of times per second.
func unhurried(dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			select {
			case <-time.After(dialPause):
			case <-ctx.Done():
			}
		}
		return conn, err
	}
}

// tlsDialer puts TLS on top of another dialer.
func tlsDialer(dial func(context.Context, string, string) (net.Conn, error), conf *tls.Config) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		conf := conf
		if conf.ServerName == "" {
			host, _, err := net.SplitHostPort(address)
			if err != nil {
				return nil, errors.Join(err, conn.Close())
			}
			conf = conf.Clone()
			conf.ServerName = host
		}
		tc := tls.Client(conn, conf)
		if err := tc.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		return tc, nil
	}
}

// Worker says what the client of one worker is: a member of one group and a
// transactional producer.
type Worker struct {
	Group           string
	TransactionalID string
	// InstanceID makes it a static member (group.instance.id).
	InstanceID string
	// Broker is what [CheckBroker] found.
	Broker BrokerInfo
	// Topics are the inputs of all sub-topologies in the group, loops included.
	Topics   []string
	Balancer kgo.GroupBalancer
	// The rebalance callbacks run only while nothing is polled
	// (BlockRebalanceOnPoll). OnAssigned is where the [Fence] is recorded.
	OnAssigned, OnRevoked, OnLost func(context.Context, *kgo.Client, map[string][]int32)
	// AdjustOffsets decides where partitions start, nil for committed offsets else
	// the first record. It is kgo.AdjustFetchOffsetsFn.
	AdjustOffsets func(context.Context, map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error)
	// BatchBytes limits the batches of a topic, nil for [DefaultBatchBytes].
	BatchBytes func(topic string) int32
}

// WorkerOpts returns the options of a worker's client. Offsets are committed by a
// [Ledger] only.
func (c *Config) WorkerOpts(w Worker) []kgo.Opt {
	opts := append(c.base(),
		kgo.ConsumerGroup(w.Group),
		kgo.TransactionalID(w.TransactionalID),
		kgo.ConsumeTopics(w.Topics...),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(),
		kgo.RebalanceTimeout(RebalanceTimeout),
		kgo.TransactionTimeout(TransactionTimeout),
		kgo.SessionTimeout(SessionTimeout),
		// A fetch that waits does not include partitions resumed meanwhile.
		kgo.FetchMaxWait(500*time.Millisecond),
		// An answer is held unpacked, and the next one beside it: with hundreds of
		// partitions this, and not the bound per partition, is what a worker holds.
		kgo.FetchMaxBytes(16<<20),
		// Flush sends at once; until then waiting makes batches larger.
		kgo.ProducerLinger(5*time.Millisecond),
	)
	if w.InstanceID != "" {
		opts = append(opts, kgo.InstanceID(w.InstanceID))
	}
	if w.Balancer != nil {
		opts = append(opts, kgo.Balancers(w.Balancer))
	}
	if w.OnAssigned != nil {
		opts = append(opts, kgo.OnPartitionsAssigned(w.OnAssigned))
	}
	if w.OnRevoked != nil {
		opts = append(opts, kgo.OnPartitionsRevoked(w.OnRevoked))
	}
	if w.OnLost != nil {
		opts = append(opts, kgo.OnPartitionsLost(w.OnLost))
	}
	if w.AdjustOffsets != nil {
		opts = append(opts, kgo.AdjustFetchOffsetsFn(w.AdjustOffsets))
	}
	if v := w.Broker.maxVersions(); v != nil {
		opts = append(opts, kgo.MaxVersions(v))
	}
	return append(opts, batchBytes(w.BatchBytes))
}

// PlainOpts returns the options of an instance's other client: direct
// read_committed reading ([Reader], views), administration, and idempotent appends
// outside transactions. batchBytes is as in [Worker]. Control records are kept, so
// that a reader sees the position pass them.
func (c *Config) PlainOpts(batch func(topic string) int32) []kgo.Opt {
	return append(c.base(),
		kgo.KeepControlRecords(),
		kgo.FetchMaxBytes(64<<20),
		kgo.FetchMaxPartitionBytes(4<<20),
		kgo.ProducerLinger(0),
		batchBytes(batch),
	)
}

func batchBytes(fn func(topic string) int32) kgo.Opt {
	if fn == nil {
		return kgo.ProducerBatchMaxBytes(DefaultBatchBytes)
	}
	return kgo.ProducerBatchMaxBytesFn(fn)
}

// FenceOf returns the client's identity in its group; call it in OnPartitionsAssigned
// and nowhere else, and keep it.
func FenceOf(cl *kgo.Client) Fence {
	member, generation := cl.GroupMetadata()
	instance, _ := cl.OptValue(kgo.InstanceID).(string)
	return Fence{MemberID: member, Generation: generation, InstanceID: instance}
}

// metadataTopics builds the topic list of a metadata request; it is never nil,
// which would ask for all topics.
func metadataTopics(topics []string) []kmsg.MetadataRequestTopic {
	list := make([]kmsg.MetadataRequestTopic, 0, len(topics))
	for _, t := range topics {
		rt := kmsg.NewMetadataRequestTopic()
		rt.Topic = new(t)
		list = append(list, rt)
	}
	return list
}
