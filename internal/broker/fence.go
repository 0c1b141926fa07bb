package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// A controller that starts again after a kill believes that its broker lives, until
// the broker's session has timed out. A broker that comes back earlier is refused
// until then, but already acts as transaction coordinator; when it is fenced its
// partitions lose their leader, and Kafka 4.3.1 leaves out the markers of every
// transaction it is about to end ("Couldn't find leader endpoint for partitions
// ..., these partitions are likely deleted already and hence can be skipped"): what
// was aborted is committed with the next transaction, what was committed stays
// open. With several replicas other brokers lead meanwhile, so this is a trait of a
// single node. Here the controller runs alone until it has fenced the broker.

// The controller's log when it has fenced the broker, and the broker's when it has
// left out markers.
var (
	fencedText  = []byte("handleBrokerFenced: ")
	skippedText = []byte("Couldn't find leader endpoint for partitions")
)

// fence runs the controller alone until the dead broker is fenced.
func (k *Kafka) fence(ctx context.Context) (err error) {
	end, err := k.logEnd()
	if err != nil {
		return err
	}
	listener := "CONTROLLER://" + k.controllerAddr()
	config := k.properties(map[string]string{
		"process.roles":        "controller",
		"listeners":            listener,
		"advertised.listeners": listener,
		// There is no broker to lose.
		"broker.session.timeout.ms":    "500",
		"broker.heartbeat.interval.ms": "100",
	})
	p, err := k.java("controller.properties", config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop(30*time.Second)) }() // orderly: what it says is on disk
	ctx, cancel := context.WithTimeoutCause(ctx, 60*time.Second, errors.New("not fenced after 60 s"))
	defer cancel()
	return poll(ctx, 50*time.Millisecond, func() error {
		select {
		case <-p.done:
			return permanent{fmt.Errorf("the controller ended: %v", p.cmd.ProcessState)}
		default:
		}
		found, err := k.logged(end, fencedText)
		if err == nil && !found {
			err = errors.New("the controller has not fenced the broker yet")
		}
		return err
	})
}

// checkMarkers returns an error if the broker has left out transaction markers.
func (k *Kafka) checkMarkers() error {
	found, err := k.logged(0, skippedText)
	if err == nil && found {
		err = fmt.Errorf("kafka broker: it has skipped transaction markers, what it holds is not what was committed: see %s", k.LogFile())
	}
	return err
}

func (k *Kafka) logEnd() (int64, error) {
	info, err := os.Stat(k.LogFile())
	if err != nil {
		return 0, fmt.Errorf("kafka broker: %w", err)
	}
	return info.Size(), nil
}

// logged reports whether the log has the text behind offset from.
func (k *Kafka) logged(from int64, text []byte) (bool, error) {
	f, err := os.Open(k.LogFile())
	if err != nil {
		return false, fmt.Errorf("kafka broker: %w", err)
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return false, fmt.Errorf("kafka broker: %w", err)
	}
	log, err := io.ReadAll(f)
	if err != nil {
		return false, fmt.Errorf("kafka broker: %w", err)
	}
	return bytes.Contains(log, text), nil
}

// java starts a node of the cluster with the configuration, which is written to
// the file of that name.
func (k *Kafka) java(file string, config []byte) (*process, error) {
	if err := k.write(file, config); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(k.LogFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("kafka broker: %w", err)
	}
	defer log.Close() // the child has its own descriptor
	heap := fmt.Sprintf("-Xmx%dm", k.cfg.HeapMB)
	// No context: the process lives until Stop, Kill or Close.
	cmd := exec.Command("java", k.args("-Xms256m", heap, "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20",
		"-XX:+ExitOnOutOfMemoryError", "kafka.Kafka", file)...)
	cmd.Dir = k.dir
	cmd.Stdout, cmd.Stderr = log, log
	p, err := startProcess(cmd)
	if err != nil {
		return nil, fmt.Errorf("kafka broker: start java: %w", err)
	}
	return p, nil
}
