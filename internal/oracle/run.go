package oracle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/millrace/millrace/internal/cases"
)

// Config says what [Run] compares.
type Config struct {
	Count   int    // random cases
	Seed    uint64 // of the first; those that follow have the next ones
	Stop    int    // differences after which it stops
	RocksDB bool   // see [StartKafka]
	Dir     string // where cases that differ are written
	// Suites are files of cases that run first; what they expect is compared with
	// Kafka Streams too.
	Suites []string
	Out    io.Writer // for the report
}

// Run compares the listed accidents, the suites and random cases. It returns an
// error if one runs differently; a random one is made small and written to Dir.
func Run(ctx context.Context, cfg Config) (err error) {
	started := time.Now()
	k, err := StartKafka(ctx, cfg.RocksDB)
	if err != nil {
		return err
	}
	defer func() {
		if closed := k.Close(); err == nil {
			err = closed
		}
	}()
	accidents, err := checkAccidents(k)
	if err != nil {
		return err
	}
	listed, err := compareSuites(k, cfg.Suites)
	if err != nil {
		return err
	}
	found, emitted, i := 0, 0, 0
	for ; i < cfg.Count && found < cfg.Stop; i++ {
		c := Generate(cfg.Seed + uint64(i))
		d, err := Compare(k, c)
		if err == nil && d == nil {
			emitted += len(c.Expected)
			continue
		}
		if err == nil {
			d, err = Shrink(k, d)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
		found++
		file, err := d.write(cfg.Dir)
		if err != nil {
			return err
		}
		fmt.Fprintf(cfg.Out, "%s: written to %s\n%s\n", c.Name, file, d)
	}
	fmt.Fprintf(cfg.Out, "%d random cases from seed %d, %d listed ones and %d accidents in %s: %d differences\n",
		i, cfg.Seed, listed, accidents, time.Since(started).Round(time.Second), found)
	if found > 0 {
		return fmt.Errorf("%d random cases run differently on Kafka Streams", found)
	}
	return nil
}

// compareSuites runs the cases of files, with what they expect, and returns their
// number.
func compareSuites(k *Kafka, files []string) (n int, err error) {
	for _, file := range files {
		s, err := cases.Read(file)
		if err != nil {
			return n, err
		}
		for _, c := range s.Cases {
			d, err := Compare(k, c)
			if err == nil && d != nil {
				err = errors.New("it runs differently\n" + d.String())
			}
			if err != nil {
				return n, fmt.Errorf("%s: %s: %w", file, c.Name, err)
			}
			if r := c.Check(); !r.Pass {
				return n, fmt.Errorf("%s: %s: Kafka Streams emits something else than the case expects", file, c.Name)
			}
			n++
		}
	}
	return n, nil
}

// write writes the case to a file of its own, expecting what Kafka Streams emits.
func (d *Difference) write(dir string) (string, error) {
	c := d.Case
	c.Expected = d.Kafka
	data, err := json.MarshalIndent(cases.Suite{Cases: []cases.Case{c}}, "", " ")
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	file := filepath.Join(dir, fmt.Sprintf("%.40s.json", c.Name))
	return file, os.WriteFile(file, append(data, '\n'), 0o644)
}
