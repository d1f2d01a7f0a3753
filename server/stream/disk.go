package stream

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/heraldfs/heraldfs/protocol"
)

// disk is the journal's copy on disk: segments, each named after its first sequence.
//
//	segment = "HFSJ0001" record...
//	record  = length crc kind data
//
// length (4 bytes, most significant first) is that of kind and data, crc their CRC-32C. Kind 1
// is an event as protocol.EventEncoder makes it, kind 2 a gap as the payload of a frame.
type disk struct {
	dir  string
	log  *slog.Logger
	meta meta
	lock *os.File

	segments []segment // oldest first; the last one is written to
	file     *os.File
	size     int64
	limit    int64 // a segment is closed at this size
	buf      []byte

	head uint64 // the last sequence on disk when it was opened
	// continued says that the journal goes on where it was.
	continued bool
}

type segment struct {
	first uint64
	path  string
}

// meta is journal.json.
type meta struct {
	Stream []byte `json:"stream"`
	Secret []byte `json:"secret"`
	// Boot is the machine's boot in which the journal was last open; Clean that it was closed.
	Boot  string `json:"boot"`
	Clean bool   `json:"clean"`
}

const (
	segmentMagic = "HFSJ0001"
	segmentExt   = ".seg"
	recordHeader = 8
	kindEvent    = 1
	kindGap      = 2
	// maxRecord bounds what a damaged length makes us read.
	maxRecord = protocol.MaxFrame
)

var (
	// errDamaged says that the journal is not what was written.
	errDamaged = errors.New("journal is damaged")
	// ErrInUse says that another process has the journal.
	ErrInUse = errors.New("journal is in use")
)

// castagnoli is computed per use: crc32 keeps the table itself.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// openDisk opens or begins the journal in dir. id and secret are for a new one.
func openDisk(dir string, o *Options, id, secret []byte) (d *disk, kept []*entry, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	d = &disk{dir: dir, log: o.Logger, limit: max(int64(o.JournalBytes/8), 64<<10)}
	if d.lock, err = lockDir(filepath.Join(dir, "lock")); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			_ = d.lock.Close()
		}
	}()
	boot := bootID()
	if d.readMeta() && (d.meta.Clean || boot != "" && d.meta.Boot == boot) {
		kept, err = d.load()
		d.continued = err == nil
		if err != nil {
			d.log.Warn("journal begins anew", "dir", dir, "err", err)
		}
	}
	if !d.continued {
		if err := d.wipe(); err != nil {
			return nil, nil, err
		}
		kept = nil
		d.meta.Stream = id
	}
	if len(d.meta.Secret) != len(secret) {
		d.meta.Secret = secret
	}
	d.meta.Boot, d.meta.Clean = boot, false
	if err := d.writeMeta(); err != nil {
		return nil, nil, err
	}
	return d, kept, nil
}

func (d *disk) metaPath() string { return filepath.Join(d.dir, "journal.json") }

func (d *disk) readMeta() bool {
	b, err := os.ReadFile(d.metaPath())
	return err == nil && json.Unmarshal(b, &d.meta) == nil && len(d.meta.Stream) == protocol.StreamSize
}

// writeMeta replaces journal.json whole, on the disk itself.
func (d *disk) writeMeta() error {
	b, err := json.Marshal(&d.meta)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(d.dir, "journal-*.tmp") // 0600: it holds the secret
	if err != nil {
		return err
	}
	_, err = tmp.Write(b)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), d.metaPath())
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return err
	}
	return syncDir(d.dir)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// wipe removes all segments.
func (d *disk) wipe() error {
	segments, err := d.list()
	if err != nil {
		return err
	}
	for _, s := range segments {
		if err := os.Remove(s.path); err != nil {
			return err
		}
	}
	d.segments, d.head = nil, 0
	return nil
}

func (d *disk) list() ([]segment, error) {
	entries, err := os.ReadDir(d.dir) // sorted: the names have a fixed width
	if err != nil {
		return nil, err
	}
	var segments []segment
	for _, e := range entries {
		stem, ok := strings.CutSuffix(e.Name(), segmentExt)
		if !ok {
			continue
		}
		var first uint64
		if _, err := fmt.Sscanf(stem, "%020d", &first); err != nil || first == 0 {
			return nil, fmt.Errorf("%s: %w", e.Name(), errDamaged)
		}
		segments = append(segments, segment{first, filepath.Join(d.dir, e.Name())})
	}
	return segments, nil
}

// load reads all segments. A record that was cut off by the end of the last one was not seen
// by anybody, and is cut off.
func (d *disk) load() ([]*entry, error) {
	segments, err := d.list()
	if err != nil {
		return nil, err
	}
	var kept []*entry
	for i, s := range segments {
		list, good, err := readSegment(s.path, s.first)
		last := i == len(segments)-1
		switch {
		case errors.Is(err, io.ErrUnexpectedEOF) && last:
			if err := os.Truncate(s.path, good); err != nil {
				return nil, err
			}
		case err != nil:
			return nil, fmt.Errorf("%s: %w", filepath.Base(s.path), err)
		}
		if i > 0 && s.first != d.head+1 {
			return nil, fmt.Errorf("%s does not follow: %w", filepath.Base(s.path), errDamaged)
		}
		kept = append(kept, list...)
		d.head = s.first + uint64(len(list)) - 1
	}
	d.segments = segments
	if n := len(segments); n > 0 {
		// The next write begins a new segment; an empty one would get its name.
		if last := segments[n-1]; d.head < last.first {
			d.segments = segments[:n-1]
			return kept, os.Remove(last.path)
		}
	}
	return kept, nil
}

// readSegment returns the records of a segment, and how many bytes of it are whole.
func readSegment(path string, first uint64) (list []*entry, good int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 64<<10)
	magic := make([]byte, len(segmentMagic))
	if _, err := io.ReadFull(r, magic); err != nil {
		return nil, 0, io.ErrUnexpectedEOF
	}
	if string(magic) != segmentMagic {
		return nil, 0, errDamaged
	}
	good = int64(len(magic))
	for seq := first; ; seq++ {
		data, err := readRecord(r)
		if err == io.EOF {
			return list, good, nil
		}
		if err != nil {
			return list, good, err
		}
		e, err := decodeRecord(data)
		if err != nil || e.seq != seq {
			return list, good, fmt.Errorf("record %d: %w", seq, errDamaged)
		}
		list = append(list, e)
		good += int64(recordHeader + len(data))
	}
}

// readRecord returns kind and data; io.EOF between records, io.ErrUnexpectedEOF inside one.
func readRecord(r io.Reader) ([]byte, error) {
	var hdr [recordHeader]byte
	if _, err := io.ReadFull(r, hdr[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(hdr[:])
	if n < 1 || n > maxRecord {
		return nil, errDamaged
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	if crc32.Checksum(data, castagnoli()) != binary.BigEndian.Uint32(hdr[4:]) {
		return nil, errDamaged
	}
	return data, nil
}

func decodeRecord(data []byte) (*entry, error) {
	switch data[0] {
	case kindEvent:
		ev, err := protocol.DecodeEvent(data[1:])
		if err != nil {
			return nil, err
		}
		return entryOf(&ev, data[1:]), nil
	case kindGap:
		m, err := protocol.DecodeMessage(data[1:])
		g, ok := m.(*protocol.Gap)
		if err != nil || !ok {
			return nil, errDamaged
		}
		return &entry{seq: g.Last, lost: g.Reason, scope: g.Scope}, nil
	}
	return nil, errDamaged
}
