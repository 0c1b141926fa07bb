package broker

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

// MavenProject builds a Maven project once: it copies the project to the cache of
// Kafka's jars and runs Maven with args there, which makes the directory result.
// That is kept as result in the cache's directory name, which therefore names the
// project's contents, and is returned. Several processes may call it at once.
func MavenProject(ctx context.Context, name string, project fs.FS, result string, args ...string) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, name)
	built := filepath.Join(dir, result)
	if isDir(built) {
		return built, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("cache of Kafka's jars: %w", err)
	}
	work, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return "", fmt.Errorf("cache of Kafka's jars: %w", err)
	}
	defer os.RemoveAll(work)
	if err := os.CopyFS(work, project); err != nil {
		return "", err
	}
	// --strict-checksums: a damaged download fails instead of warning.
	cmd := exec.CommandContext(ctx, "mvn", append([]string{"--batch-mode", "--quiet", "--strict-checksums"}, args...)...)
	cmd.Dir = work
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("mvn %v: %w\n%s", args, err, tail(out, 2000))
	}
	// The rename makes a complete directory appear at once; when another process
	// was faster, its result is as good.
	if err := os.Rename(filepath.Join(work, result), built); err != nil && !isDir(built) {
		return "", fmt.Errorf("cache of Kafka's jars: %w", err)
	}
	return built, nil
}
