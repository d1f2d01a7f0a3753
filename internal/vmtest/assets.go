package vmtest

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Assets are the files that a guest is made of.
type Assets struct {
	Kernel, Busybox, Guestd string
}

// kernelMetas are the packages that depend on a kernel that will do, best first: bookworm
// has 6.12 as a backport, later releases have it or a newer one as their own.
var kernelMetas = []string{"linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"}

var kernelPackage = regexp.MustCompile(`(?m)^\s*Depends: (linux-image-[0-9]\S*-cloud-amd64)$`)

// FetchAssets downloads what the cache does not have, and builds guestd. It needs apt-get,
// dpkg and a package list (apt-get update) the first time.
func FetchAssets() (Assets, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return Assets{}, err
	}
	cache = filepath.Join(cache, "heraldfs", "vmtest")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Assets{}, err
	}
	unlock, err := lockDir(cache)
	if err != nil {
		return Assets{}, err
	}
	defer unlock()
	var a Assets
	if a.Kernel, err = kernel(cache); err != nil {
		return a, fmt.Errorf("kernel: %w", err)
	}
	dir, err := unpacked(cache, "busybox-static")
	if err != nil {
		return a, fmt.Errorf("busybox: %w", err)
	}
	a.Busybox = filepath.Join(dir, "bin/busybox")
	if _, err := os.Stat(a.Busybox); err != nil {
		a.Busybox = filepath.Join(dir, "usr/bin/busybox")
	}
	a.Guestd = filepath.Join(cache, "guestd")
	return a, BuildStatic("github.com/heraldfs/heraldfs/internal/vmtest/guestd", a.Guestd)
}

// BuildStatic builds a command of this module without cgo, so that it runs in the guest.
func BuildStatic(pkg, output string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", output, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=")
	return quiet(cmd)
}

// DebianPackage downloads and unpacks a package, without installing it, and returns the directory.
func DebianPackage(name string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	cache = filepath.Join(cache, "heraldfs", "vmtest")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	unlock, err := lockDir(cache)
	if err != nil {
		return "", err
	}
	defer unlock()
	return unpacked(cache, name)
}

// lockDir keeps test binaries that run at the same time from unpacking over each other.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

func kernel(cache string) (string, error) {
	if found, _ := filepath.Glob(filepath.Join(cache, "linux-image-*", "boot", "vmlinuz-*")); len(found) > 0 {
		slices.Sort(found)
		return found[len(found)-1], nil
	}
	var errs []error
	for _, meta := range kernelMetas {
		out, err := exec.Command("apt-cache", "depends", meta).Output()
		m := kernelPackage.FindStringSubmatch(string(out))
		if m == nil {
			errs = append(errs, fmt.Errorf("apt-cache depends %s: no kernel (is the package list there? apt-get update): %v", meta, err))
			continue
		}
		dir, err := unpacked(cache, m[1])
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
		if len(found) == 1 {
			return found[0], nil
		}
		errs = append(errs, fmt.Errorf("%s has %d kernels", m[1], len(found)))
	}
	return "", errors.Join(errs...)
}

// unpacked returns the directory with the content of a package. It appears whole or not at all.
func unpacked(cache, pkg string) (string, error) {
	dir := filepath.Join(cache, pkg)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	tmp, err := os.MkdirTemp(cache, "tmp-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	// apt drops its privileges for a download into a directory that its own user can write to.
	if err := os.Chmod(tmp, 0o777); err != nil {
		return "", err
	}
	get := exec.Command("apt-get", "download", pkg)
	get.Dir = tmp
	if err := quiet(get); err != nil {
		return "", err
	}
	debs, _ := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if len(debs) != 1 {
		return "", fmt.Errorf("apt-get download %s: %d packages", pkg, len(debs))
	}
	out := filepath.Join(tmp, "root")
	if err := quiet(exec.Command("dpkg", "-x", debs[0], out)); err != nil {
		return "", err
	}
	return dir, os.Rename(out, dir)
}

// KernelModules are files of the guest's kernel, by the paths that they get there: lib/NAME.ko, which may be compressed. What they
// depend on is the caller's business.
func KernelModules(names ...string) (map[string]string, error) {
	a, err := FetchAssets()
	if err != nil {
		return nil, err
	}
	modules := filepath.Join(filepath.Dir(filepath.Dir(a.Kernel)), "lib", "modules")
	files := map[string]string{}
	err = filepath.WalkDir(modules, func(path string, d fs.DirEntry, err error) error {
		if name, _, ok := strings.Cut(filepath.Base(path), ".ko"); ok && slices.Contains(names, name) {
			files["lib/"+name+".ko"] = path
		}
		return err
	})
	if err == nil && len(files) != len(names) {
		err = fmt.Errorf("%s has %v of the modules %v", modules, slices.Collect(maps.Keys(files)), names)
	}
	return files, err
}

func quiet(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}
