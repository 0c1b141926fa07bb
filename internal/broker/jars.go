package broker

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
)

// KafkaVersion is the version of Apache Kafka that [StartKafka] runs.
const KafkaVersion = "4.3.1"

// CacheEnv names the environment variable that overrides the directory in which
// the jars of Apache Kafka are kept.
const CacheEnv = "MILLRACE_KAFKA_CACHE"

//go:embed pom.xml
var pom embed.FS

// Available returns nil if a JDK of version 17 or newer and either Maven or the
// cached jars are there, else an error that says what is missing.
func Available() error {
	var missing []error
	if err := javaVersion(); err != nil {
		missing = append(missing, err)
	}
	if dir, err := cacheDir(); err != nil {
		missing = append(missing, err)
	} else if !isDir(filepath.Join(dir, "libs")) {
		if _, err := exec.LookPath("mvn"); err != nil {
			missing = append(missing, fmt.Errorf("install Maven (mvn), by which the jars of Apache Kafka are fetched once: %w", err))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("Apache Kafka %s cannot be started here: %w", KafkaVersion, errors.Join(missing...))
	}
	return nil
}

var javaMajor = regexp.MustCompile(`version "(\d+)`)

func javaVersion() error {
	out, err := exec.Command("java", "-version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("install Java 17 or newer (java): %w", err)
	}
	m := javaMajor.FindSubmatch(out)
	if m == nil {
		return fmt.Errorf("java -version printed %q, which names no version", bytes.TrimSpace(out))
	}
	if n, _ := strconv.Atoi(string(m[1])); n < 17 {
		return fmt.Errorf("java is version %s: install 17 or newer", m[1])
	}
	return nil
}

// cacheDir is where the jars are kept between runs.
func cacheDir() (string, error) {
	if dir := os.Getenv(CacheEnv); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache directory for Kafka's jars, set %s: %w", CacheEnv, err)
	}
	return filepath.Join(dir, "millrace", "kafka-"+KafkaVersion), nil
}

// FetchJars makes sure that the jars of Apache Kafka are in the cache, fetching
// them with Maven if they are not, and returns their directory. Several
// processes may call it at once.
func FetchJars(ctx context.Context) (string, error) {
	libs, err := MavenProject(ctx, "", pom, "libs", "dependency:copy-dependencies", "-DoutputDirectory=libs")
	if err != nil {
		return "", fmt.Errorf("fetch the jars of Apache Kafka %s: %w", KafkaVersion, err)
	}
	return libs, nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }
