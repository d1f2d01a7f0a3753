package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// prepareModule copies this module into the source and builds it once, so that the build cache
// is warm.
func (b *bench) prepareModule(bed *filesBed) error {
	out, err := exec.CommandContext(b.ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/heraldfs/heraldfs").Output()
	if err != nil {
		return fmt.Errorf("find the module: %w", err)
	}
	dir := filepath.Join(bed.src, "module")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	const what = "tar -C \"$0\" -c --exclude=./bin --exclude=./.git . | tar -C \"$1\" -x"
	if text, err := exec.CommandContext(b.ctx, "sh", "-c", what, strings.TrimSpace(string(out)), dir).CombinedOutput(); err != nil {
		return fmt.Errorf("copy the module: %w\n%s", err, text)
	}
	if err := b.goBuild(b.ctx, dir); err != nil {
		return err
	}
	bed.module = dir
	return nil
}

func (b *bench) goBuild(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", filepath.Join(dir, "heraldfs"), "./cmd/heraldfs")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod")
	return quietly(cmd, dir)
}

// prepareNPM installs the packages of the end-to-end tests once, which fills a cache.
func (b *bench) prepareNPM(bed *filesBed, other string) error {
	if _, err := exec.LookPath("npm"); err != nil {
		return err
	}
	dir := filepath.Join(bed.src, "npm")
	manifest, err := os.ReadFile(filepath.Join(bed.src, "module", "internal/e2e/testdata/package.json"))
	if err != nil {
		return err
	}
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "package.json"), manifest, 0o644)); err != nil {
		return err
	}
	bed.npm = filepath.Join(other, "npm-cache")
	if err := npm(b.ctx, dir, bed.npm, "install"); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(dir, "node_modules"))
}

func npm(ctx context.Context, dir, cache string, args ...string) error {
	args = append(args, "--cache", cache, "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error")
	return quietly(exec.CommandContext(ctx, "npm", args...), dir)
}

func quietly(cmd *exec.Cmd, dir string) error {
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s in %s: %w\n%s", strings.Join(cmd.Args[:2], " "), dir, err, text)
	}
	return nil
}
