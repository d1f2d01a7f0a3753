package vmtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// systemdRoot is the name in the cache; another number makes it anew.
const systemdRoot = "systemd-1"

// bootUnits are what sysinit.target, sockets.target and multi-user.target start of what Debian's packages have them start. The
// others (consoles, disks that are encrypted, first-boot questions) make a guest under TCG take four times as long, and have nothing to do here.
var bootUnits = []string{"systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket",
	"sys-fs-fuse-connections.mount", "systemd-tmpfiles-setup.service"}

// SystemdRoot makes, in dir, the root file system of a guest whose init is systemd: Debian's package and what it depends on, as
// apt finds it, with busybox for all other programs. Nothing is installed. guestd is started as a service.
func SystemdRoot(dir string) error {
	a, err := FetchAssets()
	if err != nil {
		return err
	}
	cache := filepath.Dir(a.Guestd)
	unlock, err := lockDir(cache)
	if err != nil {
		return err
	}
	defer unlock()
	from := filepath.Join(cache, systemdRoot)
	if _, err := os.Stat(from); err != nil {
		tmp, err := os.MkdirTemp(cache, "tmp-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		root := filepath.Join(tmp, "root")
		if err := makeSystemdRoot(tmp, root, a.Busybox); err != nil {
			return err
		}
		if err := os.Rename(root, from); err != nil {
			return err
		}
	}
	if err := quiet(exec.Command("cp", "-a", from+"/.", dir)); err != nil {
		return err
	}
	return quiet(exec.Command("cp", a.Guestd, filepath.Join(dir, "bin/guestd")))
}

// makeSystemdRoot needs apt's package lists and 15 MB of packages. tmp is for these.
func makeSystemdRoot(tmp, root, busybox string) error {
	if err := os.MkdirAll(filepath.Join(tmp, "debs", "partial"), 0o755); err != nil {
		return err
	}
	status := filepath.Join(tmp, "status")
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return err
	}
	// As if nothing were installed, so that it finds everything that is needed.
	if err := quiet(exec.Command("apt-get", "-q", "-y", "--no-install-recommends", "--download-only", "-o", "Dir::State::status="+status,
		"-o", "Dir::Cache::archives="+tmp+"/debs", "-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root", "install", "systemd")); err != nil {
		return err
	}
	for _, d := range []string{"usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "dev", "proc", "sys", "run", "tmp", "mnt", "root", "srv", "var/log",
		"etc/systemd/system/multi-user.target.wants", "etc/heraldfs"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+d, filepath.Join(root, d)); err != nil {
			return err
		}
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "debs", "*.deb"))
	if err != nil || len(debs) == 0 {
		return fmt.Errorf("no packages: %v", err)
	}
	for _, deb := range debs {
		if err := quiet(exec.Command("sh", "-ec", `dpkg-deb --fsys-tarfile "$1" | tar -x --keep-directory-symlink -C "$2"`, "sh", deb, root)); err != nil {
			return err
		}
	}
	if err := fewerUnits(root); err != nil {
		return err
	}
	if err := quiet(exec.Command("cp", busybox, filepath.Join(root, "bin/busybox"))); err != nil {
		return err
	}
	list, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(list)) {
		if _, err := os.Lstat(filepath.Join(root, "sbin", name)); err == nil {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil && !os.IsExist(err) {
			return err
		}
	}
	for name, text := range map[string]string{
		"passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n", "group": "root:x:0:\nkvm:x:104:\nnogroup:x:65534:\n",
		"machine-id": "0123456789abcdef0123456789abcdef\n", "hostname": "guest\n",
		"systemd/system/guestd.service": "[Unit]\nDescription=vmtest\n[Service]\nExecStart=/bin/guestd\n",
	} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return os.Symlink("../guestd.service", filepath.Join(root, "etc/systemd/system/multi-user.target.wants/guestd.service"))
}

// fewerUnits takes out what is not in bootUnits, and the generators that look for disks, consoles and scripts.
func fewerUnits(root string) error {
	wants, err := filepath.Glob(filepath.Join(root, "usr/lib/systemd/system/*.target.wants/*"))
	if err != nil {
		return err
	}
	generators, err := filepath.Glob(filepath.Join(root, "usr/lib/systemd/system-generators/*"))
	if err != nil {
		return err
	}
	keep := append([]string{"systemd-fstab-generator"}, bootUnits...)
	for _, path := range append(wants, generators...) {
		if !slices.Contains(keep, filepath.Base(path)) {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return nil
}
