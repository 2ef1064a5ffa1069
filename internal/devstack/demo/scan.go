package demo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// maxPieces bounds how many pieces of payload the search of files looks for.
const maxPieces = 1 << 16

// pieces is a set of pieces of payload, found in a stream of bytes by one pass.
type pieces struct {
	set   map[[window]byte]struct{}
	bloom [1 << 16]uint64 // by a hash of the piece's first 8 bytes
	seen  int
}

func newPieces() *pieces { return &pieces{set: map[[window]byte]struct{}{}} }

// add takes a few pieces of a payload: many of each at the beginning, then one
// of each until the set is full.
func (p *pieces) add(payload []byte) {
	n := 8
	if p.seen++; p.seen > 2048 {
		n = 1
	}
	for i := range n {
		if len(payload) < window || len(p.set) == maxPieces {
			return
		}
		at := (len(payload) - window) * i / 8
		if n == 1 {
			at = (p.seen * 31) % (len(payload) - window + 1)
		}
		piece := [window]byte(payload[at:])
		p.set[piece] = struct{}{}
		h := bloomHash(payload[at:])
		p.bloom[h>>6] |= 1 << (h & 63)
	}
}

func bloomHash(b []byte) uint64 {
	return binary.LittleEndian.Uint64(b) * 0x9E3779B97F4A7C15 >> 42
}

// count counts the places of b where a piece begins.
func (p *pieces) count(b []byte) int {
	n := 0
	for i := 0; i+window <= len(b); i++ {
		h := bloomHash(b[i:])
		if p.bloom[h>>6]&(1<<(h&63)) == 0 {
			continue
		}
		if _, ok := p.set[[window]byte(b[i:])]; ok {
			n++
		}
	}
	return n
}

// scanDir searches every file below dir. files and bytes are how much there was.
func (p *pieces) scanDir(dir string) (hits, files int, size int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		n, sz, err := p.scanFile(path)
		hits, size, files = hits+n, size+sz, files+1
		return err
	})
	if err != nil {
		return 0, 0, 0, fmt.Errorf("searching %s: %w", dir, err)
	}
	return hits, files, size, nil
}

func (p *pieces) scanFile(path string) (hits int, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = f.Close() }() // only read
	buf := make([]byte, 256<<10)
	kept := 0
	for {
		n, err := io.ReadFull(f, buf[kept:])
		size += int64(n)
		b := buf[:kept+n]
		hits += p.count(b)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return hits, size, nil
		}
		if err != nil {
			return 0, 0, err
		}
		kept = copy(buf, b[len(b)-(window-1):]) // a piece may go over the edge
	}
}
