package oracle

import (
	"bufio"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/internal/cases"
)

//go:embed kafka-streams/pom.xml kafka-streams/src
var project embed.FS

// Available returns nil if Kafka Streams can be built and run here: with a JDK of
// version 17 or newer and Maven. Else the error says what is missing.
func Available() error {
	if err := broker.Available(); err != nil {
		return err
	}
	for _, tool := range []string{"javac", "mvn"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("the oracle's program in Java cannot be built here: install a JDK and Maven: %w", err)
		}
	}
	return nil
}

// Kafka is a running Java program that runs cases on the TopologyTestDriver of
// Kafka Streams. It is not safe for concurrent use.
type Kafka struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	dir string
}

// A Thrown is the exception that a case ended with.
type Thrown string

func (t Thrown) Error() string { return string(t) }

// StartKafka builds the program, if these sources have not been built yet, and
// starts it. Its stores are in memory, or with rocksDB on disk, as Kafka Streams
// has them by default.
func StartKafka(ctx context.Context, rocksDB bool) (*Kafka, error) {
	sources, err := fs.Sub(project, "kafka-streams")
	if err != nil {
		return nil, err
	}
	name, err := version(sources)
	if err != nil {
		return nil, err
	}
	built, err := broker.MavenProject(ctx, "oracle-"+name, sources, "target", "package")
	if err != nil {
		return nil, fmt.Errorf("build the oracle's program in Java: %w", err)
	}
	dir, err := os.MkdirTemp("", "oracle-")
	if err != nil {
		return nil, err
	}
	stores := "memory"
	if rocksDB {
		stores = "rocksdb"
	}
	k := &Kafka{dir: dir}
	k.cmd = exec.CommandContext(ctx, "java", "-Xmx1g", "-XX:+UseSerialGC",
		"-cp", filepath.Join(built, "oracle-1.jar")+string(os.PathListSeparator)+filepath.Join(built, "libs", "*"),
		"millrace.oracle.Main", dir, stores)
	k.cmd.Stderr = os.Stderr
	if k.in, err = k.cmd.StdinPipe(); err == nil {
		var out io.Reader
		out, err = k.cmd.StdoutPipe()
		k.out = bufio.NewReader(out)
	}
	if err == nil {
		err = k.cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the oracle's program in Java: %w", err), os.RemoveAll(dir))
	}
	return k, nil
}

// version is a hash of the program's files.
func version(sources fs.FS) (string, error) {
	h := sha256.New()
	err := fs.WalkDir(sources, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(sources, path)
		fmt.Fprintf(h, "%s %d\n", path, len(data))
		h.Write(data)
		return err
	})
	return hex.EncodeToString(h.Sum(nil)[:6]), err
}

// Run returns what the case emits, every record with its topic. The error is
// [Thrown] if the case failed; after another one the program is of no use.
func (k *Kafka) Run(c *cases.Case) ([]cases.Output, error) {
	line, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Output []cases.Output `json:"output"`
		Error  string         `json:"error"`
	}
	if _, err := k.in.Write(append(line, '\n')); err != nil {
		return nil, fmt.Errorf("the oracle's program in Java: %w", err)
	}
	if line, err = k.out.ReadBytes('\n'); err != nil {
		return nil, fmt.Errorf("the oracle's program in Java: %w", err)
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		return nil, fmt.Errorf("the oracle's program in Java printed %q: %w", line, err)
	}
	if answer.Error != "" {
		return answer.Output, Thrown(answer.Error)
	}
	return answer.Output, nil
}

// Close ends the program.
func (k *Kafka) Close() error {
	return errors.Join(k.in.Close(), k.cmd.Wait(), os.RemoveAll(k.dir))
}
