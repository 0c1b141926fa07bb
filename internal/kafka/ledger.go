package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// A Fence proves which member commits. It is recorded at the last
// OnPartitionsAssigned and never read from the client at commit: franz-go may
// have rejoined silently by then, and the offsets of an evicted member would pass.
type Fence struct {
	MemberID   string
	Generation int32
	InstanceID string // group.instance.id; empty for a dynamic member
}

// Outcome is what became of a cycle.
type Outcome uint8

const (
	// Committed: output, changelogs and offsets are visible, together.
	Committed Outcome = iota
	// Aborted: nothing is. The client goes on: rewind to the last ledger.
	Aborted
	// Fenced: nothing is committed, because the member or the generation is not
	// valid any more. The transaction is aborted and the client goes on with the
	// next assignment. This is also the normal end of a cycle that overlaps a
	// rebalance.
	Fenced
	// Unknown: it may be committed or not, or the producer is unusable. The client
	// must be thrown away and offsets read from the broker by a new one.
	Unknown
)

// String returns the name of the outcome in lower case.
func (o Outcome) String() string {
	return [...]string{"committed", "aborted", "fenced", "unknown"}[min(o, Unknown)]
}

// Errors of a [Ledger].
var (
	// ErrNoOffsets refuses a transaction with records and without offsets: nothing
	// would fence it against a zombie.
	ErrNoOffsets = errors.New("the transaction has records but no offsets, so nothing fences it: pass the offsets of every task that took part, unchanged ones too")
	// ErrNoFence refuses a commit without a member id.
	ErrNoFence = errors.New("no member id: commit only after OnPartitionsAssigned")
	// ErrProducerChanged says that franz-go got itself a new producer epoch within
	// the transaction, which ended what was produced before.
	ErrProducerChanged = errors.New("the producer id or epoch changed within the transaction")
	// ErrLedgerDead answers everything after an unknown outcome.
	ErrLedgerDead = errors.New("the client has an unknown outcome behind it: discard it")
)

// A ProduceFailure is a record that was not written.
type ProduceFailure struct {
	Record *kgo.Record
	Err    error
}

// A ProduceError is the reason of an abort whose records could not be written.
type ProduceError struct {
	// Failures are in no particular order. A rejected batch fails as a whole, so
	// most of them may be innocent.
	Failures []ProduceFailure
}

// Error names the first failure and how many there are.
func (e *ProduceError) Error() string {
	f := e.Failures[0]
	return fmt.Sprintf("%d records were not written, one of them to %s/%d: %v", len(e.Failures), f.Record.Topic, f.Record.Partition, f.Err)
}

// Unwrap returns the first failure's error.
func (e *ProduceError) Unwrap() error { return e.Failures[0].Err }

// IsRecordError reports whether err condemns a record (or the batch it was in),
// as opposed to trouble with the network, the broker, the topic or permissions, which
// is nobody's record and must never end in a dead letter. CORRUPT_MESSAGE is a batch
// that was damaged on its way: the protocol has it tried again, although franz-go
// does not do that.
func IsRecordError(err error) bool {
	for _, ke := range []error{kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.InvalidRecord, kerr.InvalidTimestamp} {
		if errors.Is(err, ke) {
			return true
		}
	}
	return false
}

// IsFencedByOther reports whether another process uses our transactional or
// instance id. A producer can also be fenced by its own expired transaction:
// only the second time in a row is proof of a copied state directory.
func IsFencedByOther(err error) bool {
	return errors.Is(err, kerr.FencedInstanceID) || errors.Is(err, kerr.ProducerFenced) || errors.Is(err, kerr.InvalidProducerEpoch)
}

// A Ledger commits a worker's cycles: its records and the offsets of its tasks in
// one transaction. It owns the client's transaction from the first [Ledger.Produce]
// to [Ledger.Commit] or [Ledger.Abort]; nothing else may produce with the client.
//
// Produce is safe for concurrent use. Commit and Abort are not, and must not
// overlap with Produce.
type Ledger struct {
	cl       *kgo.Client
	group    string
	txnID    string
	implicit bool // TxnOffsetCommit adds the group to the transaction by itself
	topicIDs map[string][16]byte
	promise  func(*kgo.Record, error) // l.onPromise, bound once

	begun atomic.Bool
	dead  atomic.Bool
	// beginning holds a value while begin sets what follows.
	beginning chan struct{}
	pid       int64 // producer id and epoch since begun
	epoch     int16
	beginErr  error // why the transaction could not begin

	mu       sync.Mutex // guards failures
	failures []ProduceFailure
}

// NewLedger makes the ledger of a client built with [Config.WorkerOpts] for the
// same info. It initialises the producer id, which ends the client's own dangling
// transaction: call it right after kgo.NewClient, before anything is restored.
func NewLedger(ctx context.Context, cl *kgo.Client, info BrokerInfo) (*Ledger, error) {
	group, _ := cl.OptValue(kgo.ConsumerGroup).(string)
	txnID, _ := cl.OptValue(kgo.TransactionalID).(string)
	if group == "" || txnID == "" {
		return nil, errors.New("ledger: the client has no group or no transactional id; build it with WorkerOpts")
	}
	if !info.implicitOffsets() {
		v, _ := cl.OptValue(kgo.MaxVersions).(*kversion.Versions)
		if v == nil {
			return nil, errors.New("ledger: the client may send TxnOffsetCommit v5 to a cluster with transaction.version < 2; build it with WorkerOpts")
		}
		if m, ok := v.LookupMaxKeyVersion(kmsg.TxnOffsetCommit.Int16()); ok && m > 4 {
			return nil, fmt.Errorf("ledger: the client may send TxnOffsetCommit v%d to a cluster with transaction.version < 2; build it with WorkerOpts", m)
		}
	}
	err := retry(ctx, 2*TransactionTimeout, func(ctx context.Context) error {
		_, _, err := cl.ProducerID(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ledger: initialise transactional id %q: %w", txnID, err)
	}
	l := &Ledger{cl: cl, group: group, txnID: txnID, implicit: info.implicitOffsets(), topicIDs: make(map[string][16]byte), beginning: make(chan struct{}, 1)}
	l.promise = l.onPromise
	return l, nil
}

// Produce buffers a record in the transaction, beginning one if there is none.
// The record belongs to the client until Commit or Abort returns. Failures are
// collected and make Commit abort; ctx bounds only the wait for room in the
// client's buffer.
func (l *Ledger) Produce(ctx context.Context, rec *kgo.Record) {
	if !l.begun.Load() {
		if err := l.begin(ctx); err != nil {
			l.onPromise(rec, err)
			return
		}
	}
	l.cl.Produce(ctx, rec, l.promise)
}

func (l *Ledger) onPromise(rec *kgo.Record, err error) {
	if err == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, ProduceFailure{rec, err})
}

// begin is called by all tasks at once; one of them asks the broker, and the others
// wait for that without holding up what mu guards.
func (l *Ledger) begin(ctx context.Context) error {
	l.beginning <- struct{}{}
	defer func() { <-l.beginning }()
	if l.begun.Load() {
		return nil
	}
	if l.dead.Load() {
		return ErrLedgerDead
	}
	if l.beginErr != nil {
		return l.beginErr
	}
	err := l.cl.BeginTransaction()
	if err == nil {
		l.pid, l.epoch, err = l.cl.ProducerID(ctx)
	}
	if err != nil {
		l.beginErr = fmt.Errorf("begin a transaction as %q: %w", l.txnID, err)
		return l.beginErr
	}
	l.begun.Store(true)
	return nil
}

// Commit ends the cycle. offsets are the positions of every input partition of
// every task that took part, unchanged ones too. Without any record produced since
// the last commit they are committed plainly, under the same fence, and without
// offsets too nothing happens. Any record that was not written turns the commit
// into an abort with a [*ProduceError].
//
// The error is nil exactly if the outcome is Committed. A canceled ctx aborts until
// the decision is sent; after that, as in Abort, only the end of the client's context
// ends the waiting.
func (l *Ledger) Commit(ctx context.Context, fence Fence, offsets map[string]map[int32]Offset) (Outcome, error) {
	if l.dead.Load() {
		return Unknown, ErrLedgerDead
	}
	count := 0
	for _, ps := range offsets {
		count += len(ps)
	}
	if !l.begun.Load() && len(l.failures) == 0 {
		if count == 0 {
			return Committed, nil
		}
		return l.commitPlain(ctx, fence, offsets)
	}
	if err := l.flush(ctx); err != nil {
		return l.abortAs(Aborted, err)
	}
	if count == 0 {
		return l.abortAs(Aborted, ErrNoOffsets)
	}
	if fence.MemberID == "" {
		return l.abortAs(Aborted, ErrNoFence)
	}
	if pid, epoch, err := l.cl.ProducerID(ctx); err != nil {
		return l.abortAs(Aborted, fmt.Errorf("producer id: %w", err))
	} else if pid != l.pid || epoch != l.epoch {
		return l.abortAs(Aborted, fmt.Errorf("%w: %d/%d to %d/%d", ErrProducerChanged, l.pid, l.epoch, pid, epoch))
	}
	if out, err := l.commitInTxn(ctx, fence, offsets); err != nil {
		return l.abortAs(out, err)
	}
	if err := ctx.Err(); err != nil {
		return l.abortAs(Aborted, err)
	}
	return l.end()
}

// flush waits for all records and returns why one was not written.
func (l *Ledger) flush(ctx context.Context) error {
	if l.begun.Load() {
		fctx, cancel := context.WithTimeout(ctx, TransactionTimeout)
		defer cancel()
		if err := l.cl.Flush(fctx); err != nil {
			return fmt.Errorf("flush: the records were not acknowledged within %v: %w", TransactionTimeout, err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.failures) > 0 {
		return &ProduceError{Failures: l.failures}
	}
	return nil
}

// end sends the decision to commit.
func (l *Ledger) end() (Outcome, error) {
	// Cancelling would leave the outcome open. A transaction that is not ended
	// after its timeout is aborted by the broker.
	ectx, cancel := context.WithTimeout(l.cl.Context(), 2*TransactionTimeout)
	defer cancel()
	err := l.cl.EndTransaction(ectx, kgo.TryCommit)
	switch {
	case err == nil:
		l.reset()
		return Committed, nil
	case errors.Is(err, kerr.OperationNotAttempted), errors.Is(err, kerr.TransactionAbortable):
		return l.abortAs(Aborted, fmt.Errorf("commit the transaction: %w", err))
	default:
		// Also UNKNOWN_SERVER_ERROR: brokers answer it after applying the commit.
		l.dead.Store(true)
		return Unknown, fmt.Errorf("commit the transaction of %q: the outcome is unknown: %w", l.txnID, err)
	}
}

// Abort drops the records of the transaction; without one it does nothing. The
// outcome is Aborted with a nil error, or Unknown if the producer is unusable now
// (the records are dropped all the same, at the latest by the transaction timeout).
func (l *Ledger) Abort() (Outcome, error) {
	if l.dead.Load() {
		return Unknown, ErrLedgerDead
	}
	if l.begun.Load() {
		actx, cancel := context.WithTimeout(l.cl.Context(), 2*TransactionTimeout)
		defer cancel()
		err := l.cl.AbortBufferedRecords(actx)
		if err == nil {
			err = l.cl.EndTransaction(actx, kgo.TryAbort)
		}
		if err != nil {
			l.dead.Store(true)
			return Unknown, fmt.Errorf("abort the transaction of %q: %w", l.txnID, err)
		}
	}
	if err := l.beginErr; err != nil {
		l.dead.Store(true)
		return Unknown, err
	}
	l.reset()
	return Aborted, nil
}

// abortAs aborts because of cause, and reports out if that worked.
func (l *Ledger) abortAs(out Outcome, cause error) (Outcome, error) {
	for _, fenced := range []error{kerr.ProducerFenced, kerr.InvalidProducerEpoch, kerr.InvalidProducerIDMapping} {
		if errors.Is(cause, fenced) {
			// The transaction is not ours any more, and the broker could take an
			// abort for a late repetition of another one's and hand us its epoch.
			l.dead.Store(true)
			return Unknown, cause
		}
	}
	if _, err := l.Abort(); err != nil {
		return Unknown, errors.Join(cause, err)
	}
	if out == Unknown {
		l.dead.Store(true)
	}
	return out, cause
}

func (l *Ledger) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begun.Store(false)
	l.failures = nil
}

// fencing are the answers that say: this member may not commit any more.
var fencing = []error{
	kerr.UnknownMemberID, kerr.IllegalGeneration, kerr.FencedInstanceID, kerr.RebalanceInProgress,
	kerr.StaleMemberEpoch, kerr.FencedMemberEpoch, kerr.GroupIDNotFound,
}

// outcomeOf classifies an error of an offset commit within a transaction that
// will be aborted.
func (l *Ledger) outcomeOf(err error) Outcome {
	for _, f := range fencing {
		if errors.Is(err, f) {
			return Fenced
		}
	}
	if _, ok := errors.AsType[*kerr.Error](err); !ok && !l.implicit {
		// The request may be under way still. Without an epoch per transaction it
		// could be applied to the next one.
		return Unknown
	}
	return Aborted
}

// commitInTxn adds the offsets to the transaction. If it fails, the outcome is
// what to report after the abort.
func (l *Ledger) commitInTxn(ctx context.Context, fence Fence, offsets map[string]map[int32]Offset) (Outcome, error) {
	if err := l.loadTopicIDs(ctx, offsets); err != nil {
		return Aborted, err
	}
	if !l.implicit {
		err := retry(ctx, retryFor, func(ctx context.Context) error {
			req := kmsg.NewPtrAddOffsetsToTxnRequest()
			req.TransactionalID, req.ProducerID, req.ProducerEpoch, req.Group = l.txnID, l.pid, l.epoch, l.group
			resp, err := req.RequestWith(ctx, l.cl)
			if err != nil {
				return err
			}
			return kerr.ErrorForCode(resp.ErrorCode)
		})
		if err != nil {
			return l.outcomeOf(err), fmt.Errorf("add the offsets of group %q to the transaction: %w", l.group, err)
		}
	}
	err := retry(ctx, retryFor, func(ctx context.Context) error {
		resp, err := l.txnOffsetCommit(fence, offsets).RequestWith(ctx, l.cl)
		if err != nil {
			return err
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					return fmt.Errorf("%s/%d: %w", l.topicName(t.Topic, t.TopicID), p.Partition, err)
				}
			}
		}
		return nil
	})
	if err != nil {
		return l.outcomeOf(err), fmt.Errorf("commit the offsets of group %q as member %q of generation %d: %w", l.group, fence.MemberID, fence.Generation, err)
	}
	return Committed, nil
}

func (l *Ledger) txnOffsetCommit(fence Fence, offsets map[string]map[int32]Offset) *kmsg.TxnOffsetCommitRequest {
	req := kmsg.NewPtrTxnOffsetCommitRequest()
	req.TransactionalID, req.Group, req.ProducerID, req.ProducerEpoch = l.txnID, l.group, l.pid, l.epoch
	req.MemberID, req.Generation = fence.MemberID, fence.Generation
	if fence.InstanceID != "" {
		req.InstanceID = &fence.InstanceID
	}
	for topic, ps := range offsets {
		rt := kmsg.NewTxnOffsetCommitRequestTopic()
		rt.Topic, rt.TopicID = topic, l.topicIDs[topic]
		for p, o := range ps {
			rp := kmsg.NewTxnOffsetCommitRequestTopicPartition()
			rp.Partition, rp.Offset, rp.LeaderEpoch = p, o.At, o.Epoch
			rt.Partitions = append(rt.Partitions, rp)
		}
		req.Topics = append(req.Topics, rt)
	}
	return req
}

// commitPlain commits offsets outside a transaction: nothing was produced, and
// franz-go would send no EndTxn.
func (l *Ledger) commitPlain(ctx context.Context, fence Fence, offsets map[string]map[int32]Offset) (Outcome, error) {
	if fence.MemberID == "" {
		return Aborted, ErrNoFence
	}
	if err := l.loadTopicIDs(ctx, offsets); err != nil {
		return Aborted, err
	}
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group, req.MemberID, req.Generation = l.group, fence.MemberID, fence.Generation
	if fence.InstanceID != "" {
		req.InstanceID = &fence.InstanceID
	}
	for topic, ps := range offsets {
		rt := kmsg.NewOffsetCommitRequestTopic()
		rt.Topic, rt.TopicID = topic, l.topicIDs[topic]
		for p, o := range ps {
			rp := kmsg.NewOffsetCommitRequestTopicPartition()
			rp.Partition, rp.Offset, rp.LeaderEpoch = p, o.At, o.Epoch
			rt.Partitions = append(rt.Partitions, rp)
		}
		req.Topics = append(req.Topics, rt)
	}
	some := false // a partition was committed
	err := retry(ctx, retryFor, func(ctx context.Context) error {
		resp, err := req.RequestWith(ctx, l.cl)
		if err != nil {
			some = true // perhaps
			return err
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if perr := kerr.ErrorForCode(p.ErrorCode); perr != nil {
					err = fmt.Errorf("%s/%d: %w", l.topicName(t.Topic, t.TopicID), p.Partition, perr)
				} else {
					some = true
				}
			}
		}
		return err
	})
	if err == nil {
		return Committed, nil
	}
	err = fmt.Errorf("commit the offsets of group %q as member %q of generation %d: %w", l.group, fence.MemberID, fence.Generation, err)
	out := l.outcomeOf(err)
	if out != Fenced && (some || passing(err)) {
		// A request that timed out may still be applied, after a later one even: a
		// new member id is the only fence against it.
		out = Unknown
		l.dead.Store(true)
	}
	return out, err
}

func (l *Ledger) topicName(name string, id [16]byte) string {
	if name == "" {
		for n, i := range l.topicIDs {
			if i == id {
				return n
			}
		}
	}
	return name
}

// loadTopicIDs makes sure the ids of all topics are known; brokers want them from
// version 6 of the request on. They are kept for the life of the client: a topic
// that was deleted and created again is refused, as it must be.
func (l *Ledger) loadTopicIDs(ctx context.Context, offsets map[string]map[int32]Offset) error {
	var missing []string
	for topic := range offsets {
		if _, ok := l.topicIDs[topic]; !ok {
			missing = append(missing, topic)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = metadataTopics(missing)
	err := retry(ctx, retryFor, func(ctx context.Context) error {
		resp, err := l.cl.RequestCachedMetadata(ctx, req, time.Minute)
		if err != nil {
			return err
		}
		for _, t := range resp.Topics {
			if err := kerr.ErrorForCode(t.ErrorCode); err != nil {
				return fmt.Errorf("topic %s: %w", *t.Topic, err)
			}
			l.topicIDs[*t.Topic] = t.TopicID
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("load topic ids: %w", err)
	}
	return nil
}
