package gateway

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// mark says how far the messages of one scope were released.
type mark struct {
	hold   uint64 // sequence in the hold stream of the last one
	sealed uint64 // the sealed stream's last sequence by then
}

// maxMarks bounds the marks of a position record, and with them its size: beyond,
// no other scope begins to be released until held messages were removed.
const maxMarks = 1000

// marks are those of all scopes. The position record carries them: limits may
// remove the sealed copies from which a worker would otherwise tell what was
// released. Filled by the worker, read by the keeper.
type marks struct {
	created int64 // of the hold stream, unix nanoseconds

	mu      sync.Mutex          // guards what follows
	last    uint64              // sequence of the hold stream up to which this worker knows what is held
	known   map[string]mark     // by tag: acknowledged
	pending []pendingMark       // in the order of the sealed stream
	tags    map[string]struct{} // of both
}

func newMarks(created int64, last uint64) *marks {
	return &marks{created: created, last: last, known: make(map[string]mark), tags: make(map[string]struct{})}
}

// begin notes how far a scope was released before this tenure.
func (k *marks) begin(tag string, m mark) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.known[tag], k.tags[tag] = m, struct{}{}
}

type pendingMark struct {
	tag string
	mark
}

// add notes a message that is about to be released as m.sealed. It comes before
// the publishing, so that no record that counts the sealed copy lacks the mark.
func (k *marks) add(tag string, m mark) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pending = append(k.pending, pendingMark{tag, m})
	k.tags[tag] = struct{}{}
}

// drop forgets the mark of messages that were removed.
func (k *marks) drop(tag string, upTo uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.known[tag].hold <= upTo && !slices.ContainsFunc(k.pending, func(p pendingMark) bool { return p.tag == tag }) {
		delete(k.known, tag)
		delete(k.tags, tag)
	}
}

// room reports whether a scope may be released.
func (k *marks) room(tag string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.tags[tag]
	return ok || len(k.tags) < maxMarks
}

// saw notes up to where the worker knows what is held.
func (k *marks) saw(last uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.last = last
}

// text returns what a record says whose sealed stream ends at acked:
//
//	<created>:<last> <tag>:<hold>:<sealed> <tag>:<hold>:<sealed>
func (k *marks) text(acked uint64) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := 0
	for n < len(k.pending) && k.pending[n].sealed <= acked {
		p := k.pending[n]
		k.known[p.tag] = p.mark
		n++
	}
	k.pending = slices.Delete(k.pending, 0, n)
	b := append(strconv.AppendInt(nil, k.created, 10), ':')
	b = strconv.AppendUint(b, k.last, 10)
	for _, tag := range slices.Sorted(maps.Keys(k.known)) {
		m := k.known[tag]
		b = append(append(append(b, ' '), tag...), ':')
		b = append(strconv.AppendUint(b, m.hold, 10), ':')
		b = strconv.AppendUint(b, m.sealed, 10)
	}
	return string(b)
}

// parseMarks reads what text wrote into an authenticated record. ok is false where
// it says nothing of the hold stream that was made at created.
func parseMarks(s string, created int64) (known map[string]mark, last uint64, ok bool, err error) {
	if s == "" {
		return nil, 0, false, nil
	}
	malformed := fmt.Errorf("%w: position record: malformed marks", ErrHold)
	f := strings.Split(s, " ")
	head, seq, _ := strings.Cut(f[0], ":")
	at, err1 := strconv.ParseInt(head, 10, 64)
	last, err2 := strconv.ParseUint(seq, 10, 64)
	if err1 != nil || err2 != nil {
		return nil, 0, false, malformed
	}
	if at != created {
		return nil, 0, false, nil
	}
	known = make(map[string]mark)
	for _, m := range f[1:] {
		p := strings.Split(m, ":")
		if len(p) != 3 {
			return nil, 0, false, malformed
		}
		hold, err1 := strconv.ParseUint(p[1], 10, 64)
		sealed, err2 := strconv.ParseUint(p[2], 10, 64)
		if err1 != nil || err2 != nil {
			return nil, 0, false, malformed
		}
		known[p[0]] = mark{hold, sealed}
	}
	return known, last, true, nil
}
