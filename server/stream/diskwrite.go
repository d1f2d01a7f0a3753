package stream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"github.com/heraldfs/heraldfs/protocol"
)

// write appends entries with one write; it does not wait for the disk itself.
func (d *disk) write(list []*entry) error {
	if d.file != nil && d.size >= d.limit {
		if err := d.finish(); err != nil {
			return err
		}
	}
	if d.file == nil {
		if err := d.begin(list[0].seq); err != nil {
			return err
		}
	}
	d.buf = d.buf[:0]
	for _, e := range list {
		if err := d.encode(e); err != nil {
			return err
		}
	}
	n, err := d.file.Write(d.buf)
	d.size += int64(n)
	if cap(d.buf) > 1<<20 {
		d.buf = nil
	}
	return err
}

func (d *disk) encode(e *entry) error {
	at := len(d.buf)
	d.buf = append(d.buf, make([]byte, recordHeader)...)
	if e.lost != 0 {
		var frame bytes.Buffer
		g := &protocol.Gap{First: e.seq, Last: e.seq, Scope: e.scope, Reason: e.lost}
		if err := protocol.NewEncoder(&frame).Encode(g); err != nil {
			return err
		}
		d.buf = append(d.buf, kindGap)
		d.buf = append(d.buf, frame.Bytes()[4:]...)
	} else {
		d.buf = append(d.buf, kindEvent)
		d.buf = append(d.buf, e.raw...)
	}
	data := d.buf[at+recordHeader:]
	binary.BigEndian.PutUint32(d.buf[at:], uint32(len(data)))
	binary.BigEndian.PutUint32(d.buf[at+4:], crc32.Checksum(data, castagnoli()))
	return nil
}

// begin opens the segment whose first sequence is seq.
func (d *disk) begin(seq uint64) error {
	path := filepath.Join(d.dir, fmt.Sprintf("%020d%s", seq, segmentExt))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(segmentMagic); err != nil {
		return errors.Join(err, f.Close())
	}
	d.file, d.size = f, int64(len(segmentMagic))
	d.segments = append(d.segments, segment{seq, path})
	return nil
}

func (d *disk) finish() error {
	err := d.file.Close()
	d.file = nil
	return err
}

// drop removes the segments of which nothing is kept from sequence first on.
func (d *disk) drop(first uint64) {
	for len(d.segments) > 1 && d.segments[1].first <= first {
		if err := os.Remove(d.segments[0].path); err != nil {
			d.log.Warn("journal segment stays", "err", err)
		}
		d.segments = d.segments[1:]
	}
}

// close makes sure that everything is on the disk, and says so there.
func (d *disk) close() error {
	var err error
	if d.file != nil {
		err = errors.Join(d.file.Sync(), d.finish())
	}
	if err == nil {
		d.meta.Clean = true
		err = errors.Join(syncDir(d.dir), d.writeMeta())
	}
	return errors.Join(err, d.lock.Close())
}

// abandon gives up: what is on disk is not continued by anybody.
func (d *disk) abandon() {
	if err := os.Remove(d.metaPath()); err != nil {
		d.log.Warn("journal cannot be given up", "err", err)
	}
	if d.file != nil {
		_ = d.finish()
	}
	_ = d.lock.Close()
}
