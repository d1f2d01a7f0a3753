package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// filesDirs directories of files are what passthrough_hp can know with 20,000 descriptors.
const filesDirs = 600

// workload is something that is done with the files of a mount. Each run gets a mount of its own, so that
// no other mount of the same files has work to do.
type workload struct {
	name   string
	rounds int
	// warm runs are not timed; without one the mount is cold.
	warm int
	// factor is the target of the documentation: of the native time, and with overFloor of the native
	// time and the requests of the run, each at the round trip of a bare C daemon.
	factor    float64
	overFloor bool
	// bare says that the bare daemon can serve it.
	bare bool
	// prepare and clean work on the source, while nothing is mounted.
	prepare, clean func(src string) error
	run            func(ctx context.Context, dir string) error
}

// filesBed are the trees that the workloads need.
type filesBed struct {
	src, tar, module, npm string
	few                   int
	bigSize               int64
}

func (b *bench) workloads(bed *filesBed) []workload {
	tree := func(f func(ctx context.Context, dir string) error) func(context.Context, string) error {
		return func(ctx context.Context, dir string) error { return f(ctx, filepath.Join(dir, "tree")) }
	}
	prog := func(name string, args ...string) func(context.Context, string) error {
		return tree(func(ctx context.Context, dir string) error { return command(ctx, dir, name, args...) })
	}
	find := prog("find", ".", "-printf", "%s\n")
	grep := prog("grep", "-r", "--exclude-dir=.git", "no such words", ".")
	big := func(dir string) string { return filepath.Join(dir, "big") }
	list := []workload{
		{name: "find -printf, cold", rounds: 5, bare: true, factor: 1.3, run: find},
		{name: "find -printf, warm", rounds: 5, bare: true, warm: 2, factor: 1.05, run: find},
		{name: "stat of every file, warm", rounds: 5, bare: true, warm: 2, factor: 1.05, run: tree(func(_ context.Context, dir string) error {
			_, _, err := lstatWalk(dir)
			return err
		})},
		{name: "git status, warm", rounds: 5, bare: true, warm: 2, factor: 1.05, run: prog("git", "status", "--porcelain")},
		{name: "grep -r, cold", rounds: 5, bare: true, factor: 1.3, run: grep},
		{name: "grep -r, warm", rounds: 5, bare: true, warm: 2, factor: 1.05, run: grep},
	}
	if _, err := exec.LookPath("rg"); err == nil {
		list = append(list, workload{name: "rg, warm", rounds: 5, bare: true, warm: 2, factor: 1.05, run: prog("rg", "--no-config", "no such words", ".")})
	}
	sequential := func(_ context.Context, dir string) error { return readAll(big(dir)) }
	list = append(list,
		workload{name: "sequential read, cold", rounds: 5, bare: true, factor: 1.3, run: sequential},
		workload{name: "sequential read, warm", rounds: 5, bare: true, warm: 1, factor: 1.05, run: sequential},
		workload{name: "random reads of 4 KiB, warm", rounds: 5, bare: true, warm: 1, factor: 1.05, run: func(_ context.Context, dir string) error {
			return randomReads(big(dir), bed.bigSize, 20000)
		}},
		workload{name: "sequential write", rounds: 5, bare: true, factor: 1.3, clean: removes("out"), run: func(_ context.Context, dir string) error {
			return writeAll(filepath.Join(dir, "out"), bed.bigSize, unix.O_CREAT|unix.O_EXCL)
		}},
		workload{name: "overwrite", rounds: 5, bare: true, warm: 1, factor: 1.3, clean: removes("out"), run: func(_ context.Context, dir string) error {
			return writeAll(filepath.Join(dir, "out"), bed.bigSize, unix.O_CREAT)
		}},
		workload{name: fmt.Sprintf("create %d small files", bed.few), rounds: 3, overFloor: true, factor: 1.5, prepare: makes("new"), clean: removes("new"),
			run: func(_ context.Context, dir string) error { return smallFiles(filepath.Join(dir, "new"), bed.few) }},
		workload{name: fmt.Sprintf("unlink %d small files", bed.few), rounds: 3, overFloor: true, factor: 1.5,
			prepare: func(src string) error {
				return errors.Join(makes("new")(src), smallFiles(filepath.Join(src, "new"), bed.few))
			},
			clean: removes("new"),
			run: func(_ context.Context, dir string) error {
				return repeat(bed.few, func(i int) error { return os.Remove(filepath.Join(dir, "new", strconv.Itoa(i))) })
			}},
		workload{name: "untar", rounds: 3, overFloor: true, factor: 1.5, prepare: makes("new"), clean: removes("new"),
			run: func(ctx context.Context, dir string) error {
				return command(ctx, filepath.Join(dir, "new"), "tar", "xf", bed.tar)
			}},
		workload{name: "rm -rf", rounds: 3, overFloor: true, factor: 1.5, clean: removes("new"),
			prepare: func(src string) error {
				return errors.Join(makes("new")(src), command(b.ctx, filepath.Join(src, "new"), "tar", "xf", bed.tar))
			},
			run: func(ctx context.Context, dir string) error { return command(ctx, dir, "rm", "-rf", "new") }},
	)
	if bed.module != "" {
		list = append(list, workload{name: "go build of this module", rounds: 3, warm: 1, factor: 1.3, run: func(ctx context.Context, dir string) error {
			return b.goBuild(ctx, filepath.Join(dir, "module"))
		}})
	}
	if bed.npm != "" {
		list = append(list, workload{name: "npm ci", rounds: 3, factor: 1.3, clean: removes("npm/node_modules"), run: func(ctx context.Context, dir string) error {
			return npm(ctx, filepath.Join(dir, "npm"), bed.npm, "ci", "--prefer-offline")
		}})
	}
	return list
}

func makes(name string) func(string) error {
	return func(src string) error { return os.Mkdir(filepath.Join(src, name), 0o755) }
}

func removes(name string) func(string) error {
	return func(src string) error { return os.RemoveAll(filepath.Join(src, name)) }
}

func readAll(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, make([]byte, 128<<10))
	return err
}

func randomReads(path string, size int64, n int) error {
	buf := make([]byte, 4096)
	rng := rand.New(rand.NewPCG(1, 2))
	return withFile(path, func(fd int) error {
		return repeat(n, func(int) error { return preadFull(fd, buf, rng.Int64N(size/4096)*4096) })
	})
}

func writeAll(path string, size int64, flags int) error {
	buf := make([]byte, 128<<10)
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC|flags, 0o644)
	if err != nil {
		return err
	}
	for ; size > 0 && err == nil; size -= int64(len(buf)) {
		_, err = unix.Write(fd, buf)
	}
	return errors.Join(err, unix.Close(fd))
}

func smallFiles(dir string, n int) error {
	text := []byte(strings.Repeat("small ", 20))
	return repeat(n, func(i int) error { return os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), text, 0o644) })
}

// prepareFiles makes the trees. What cannot be had is left out.
func (b *bench) prepareFiles() (*filesBed, error) {
	src, err := b.source("files")
	if err != nil {
		return nil, err
	}
	other, err := b.source("files-other")
	if err != nil {
		return nil, err
	}
	bed := &filesBed{src: src, tar: filepath.Join(other, "tree.tar"), few: 20000, bigSize: 256 << 20}
	if b.quick {
		bed.few, bed.bigSize = 1000, 32<<20
	}
	tree := filepath.Join(src, "tree")
	err = errors.Join(os.Mkdir(tree, 0o755), b.repository(tree, filesDirs), writeAll(filepath.Join(src, "big"), bed.bigSize, unix.O_CREAT))
	if err != nil {
		return nil, err
	}
	// A quarter of the repository.
	if err := command(b.ctx, tree, "tar", "cf", bed.tar, "p0", "p1", "p2", "p3", "p4"); err != nil {
		return nil, err
	}
	if err := b.prepareModule(bed); err != nil {
		b.say("  without go build: %v", err)
	}
	if err := b.prepareNPM(bed, other); err != nil {
		b.say("  without npm ci: %v", err)
		bed.npm = ""
	}
	return bed, nil
}

// files compares the peers in all that people do with files.
func (b *bench) files() error {
	b.say("  making trees")
	bed, err := b.prepareFiles()
	if err != nil {
		return err
	}
	trip, single, err := b.roundTrip()
	if err != nil {
		return err
	}
	peers := b.filePeers()
	header := []string{"job", "native"}
	for _, p := range peers[1:] {
		header = append(header, p.name, "ratio")
		if p.name != bareDaemon {
			b.columns = append(b.columns, p.name)
		}
	}
	t := b.report.add("Work with files: medians, and ratios to the native directory", append(header, "requests", "floor", "target", "fastest FUSE")...)
	for _, w := range b.workloads(bed) {
		if !b.jobs.MatchString(w.name) {
			continue
		}
		began := time.Now()
		times, requests, err := b.compare(bed, peers, w)
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		t.workload(b, w, peers, times, requests, trip)
		b.say("  %s: %.1f s", w.name, time.Since(began).Seconds())
	}
	t.note("Each run has a mount of its own, and nothing else is mounted; \"cold\" is its first use, \"warm\" comes after runs that are not timed. Peers take turns; medians of 3 to 5.")
	t.note("requests: FUSE requests of one run with heraldfs. floor: the native time, and each of these requests at %s, the round trip of a bare C daemon that answers from memory and reads /dev/fuse: the median of rounds of requests in a row. Requests that nobody waits for are counted alike, so that a daemon can be faster than the floor.", short(trip))
	t.note("Of the single requests to the bare C daemon, 10%% took at most %s, half at most %s, and 90%% at most %s: that depends on whether the scheduler has client and daemon on one CPU or on two.",
		short(percentile(single, 10)), short(percentile(single, 50)), short(percentile(single, 90)))
	t.note("bare daemon: one thread of C that has read the tree before, answers from memory and lets the kernel keep all for an hour (internal/bench/floor/still.c). It hears of no change: what a reader's job takes there is the kernel's own FUSE code and the way of the requests, the least that any FUSE mount without passthrough can take.")
	t.note("Targets are for heraldfs with its defaults; --no-open gives up what docs/semantics.md says, and --io-uring=off reads its requests from /dev/fuse as the other projects do.")
	return nil
}

// compare runs w on each peer, round by round.
func (b *bench) compare(bed *filesBed, peers []peer, w workload) (times [][]time.Duration, requests int, err error) {
	times = make([][]time.Duration, len(peers))
	rounds := w.rounds
	if b.quick {
		rounds = 1
	}
	for round := range rounds {
		for k := range peers {
			i := (k + round) % len(peers)
			if b.ctx.Err() != nil {
				return nil, 0, b.ctx.Err()
			}
			if peers[i].name == bareDaemon && !w.bare {
				continue
			}
			took, asked, err := b.once(bed.src, peers[i], w)
			if err != nil && !ours(peers[i].name) {
				// Some need a descriptor for each file that they know, and there are not so many.
				first, _, _ := strings.Cut(err.Error(), "\n")
				b.say("  %s, %s: failed: %s", w.name, peers[i].name, first)
				continue
			}
			if err != nil {
				return nil, 0, fmt.Errorf("%s: %w", peers[i].name, err)
			}
			times[i] = append(times[i], took)
			if i == 1 {
				requests = asked
			}
		}
	}
	return times, requests, nil
}

// ours reports whether a failure is one of the bench.
func ours(name string) bool { return name == "native" || strings.HasPrefix(name, "heraldfs") }

func (b *bench) once(src string, p peer, w workload) (took time.Duration, requests int, err error) {
	if w.prepare != nil {
		if err := w.prepare(src); err != nil {
			return 0, 0, err
		}
	}
	m, err := p.open(b, src)
	if err != nil {
		return 0, 0, err
	}
	for range w.warm {
		if err = w.run(b.ctx, m.point); err != nil {
			break
		}
	}
	count := func() (n int) {
		if !strings.HasPrefix(p.name, "heraldfs") {
			return 0
		}
		all, e := m.requests()
		err = errors.Join(err, e)
		for _, k := range all {
			n += k
		}
		return n
	}
	before := count()
	began := time.Now()
	if err == nil {
		err = w.run(b.ctx, m.point)
	}
	took = time.Since(began)
	requests = count() - before
	err = errors.Join(err, m.close())
	if w.clean != nil {
		err = errors.Join(err, w.clean(src))
	}
	return took, requests, err
}

// workload adds a row, and what the plot needs.
func (t *table) workload(b *bench, w workload, peers []peer, times [][]time.Duration, requests int, trip time.Duration) {
	native := median(times[0])
	cells := []string{w.name, short(native)}
	ours := median(times[1])
	fastest, name := time.Duration(1<<62), ""
	bars := group{name: w.name}
	for i, d := range times[1:] {
		if peers[i+1].name == bareDaemon {
			if len(d) == 0 {
				cells = append(cells, "", "")
			} else {
				cells = append(cells, short(median(d)), fmt.Sprintf("%.2f", ratio(median(d), native)))
			}
			continue
		}
		if len(d) == 0 {
			cells, bars.ratios = append(cells, "failed", ""), append(bars.ratios, 0)
			continue
		}
		m := median(d)
		cells = append(cells, short(m), fmt.Sprintf("%.2f", ratio(m, native)))
		bars.ratios = append(bars.ratios, ratio(m, native))
		if p := peers[i+1].name; !strings.HasPrefix(p, "heraldfs") && m < fastest {
			fastest, name = m, p
		}
	}
	b.bars = append(b.bars, bars)
	floor := native + time.Duration(requests)*trip
	limit := time.Duration(w.factor * float64(native))
	if w.overFloor {
		limit = time.Duration(w.factor * float64(floor))
	}
	said := "heraldfs"
	if fastest < ours {
		said = fmt.Sprintf("%s, by %.2f", name, ratio(ours, fastest))
	}
	what := "native"
	if w.overFloor {
		what = "floor"
	}
	t.row(append(cells, strconv.Itoa(requests), short(floor), fmt.Sprintf("%.2f x %s: %s", w.factor, what, verdict(ours <= limit)), said)...)
}
