package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// released tells which held messages were released, from what the position record
// marks and what the sealed stream says since.
type released struct {
	h   *holds
	d   *destination // the sealed stream
	rec *record      // nil: none

	marks map[string]mark
	// What is held behind last was unknown to who wrote the record: up to the source
	// sequence passed, that one sealed it from the source.
	last, passed uint64
	created      int64 // of the source stream of passed
	// newest is the last sealed message of an origin subject, as far as it was read.
	newest map[string]sealedCopy
	// unsure: sealed messages are gone that no mark speaks of.
	unsure bool
}

// read reads what the sealed stream says about what was found in the hold stream.
//
// A record that belongs to this sealed stream and is not ahead of it says all about
// what was sealed up to its LastSeq; the rest, a second or two of a worker's life,
// is read. Without such a record, the last message of each subject has to say it.
func (r *released) read(ctx context.Context, found map[string]*foundLane) (err error) {
	w := r.h.w
	r.newest = make(map[string]sealedCopy)
	rec, known := r.rec, false
	if rec != nil {
		if r.marks, r.last, known, err = parseMarks(rec.Released, r.h.d.created.UnixNano()); err != nil {
			return err
		}
	}
	if !known || rec.Sealed != w.home.sealed || rec.SealedCreated != w.home.sealedCreated || rec.Hold != r.h.d.config.Name {
		r.marks, r.unsure = nil, r.d.streamFirst > 1
		return r.readSubjects(ctx, found)
	}
	if rec.LastSeq > r.d.lastSeq {
		// The sealed stream lost its end. What was released with that is so again.
		for tag, m := range r.marks {
			if m.sealed > r.d.lastSeq {
				delete(r.marks, tag)
				r.unsure = r.d.streamFirst > 1
			}
		}
		return r.readSubjects(ctx, found)
	}
	r.passed, r.created = rec.Previous, rec.SourceCreated
	if rec.LastSeq == r.d.lastSeq || len(found) == 0 {
		return nil
	}
	r.unsure = r.d.streamFirst > rec.LastSeq+1
	end := *r.d
	last, err := getFromLeader(ctx, w.route.Sealed.Conn, r.d.config.Name, getRequest{LastFor: w.prefix + ">"})
	if errors.Is(err, errNoMessage) {
		return nil
	}
	if err != nil {
		return err
	}
	if end.lastSeq = min(end.lastSeq, last.seq); end.lastSeq <= rec.LastSeq {
		return nil
	}
	return w.eachSealed(ctx, &end, rec.LastSeq+1, func(it *item) error {
		origin, ok := strings.CutPrefix(it.msg.Subject, w.prefix)
		if !ok {
			return nil
		}
		c, err := r.copyAt(it.seq, it.msg.Header.Get(HeaderSource))
		if old, known := r.newest[origin]; err == nil && (!known || old.before(&c.link)) {
			r.newest[origin] = c
		}
		return err
	})
}

// readSubjects asks for the last sealed message of every subject of which some is
// held.
func (r *released) readSubjects(ctx context.Context, found map[string]*foundLane) error {
	w := r.h.w
	for tag, f := range found {
		asked := make(map[uint32]bool)
		for _, m := range f.messages {
			if asked[m.subject] || m.seq <= r.marks[tag].hold {
				continue
			}
			asked[m.subject] = true
			got, err := getFromLeader(ctx, w.route.Sealed.Conn, r.d.config.Name, getRequest{LastFor: w.prefix + f.subjects[m.subject]})
			if errors.Is(err, errNoMessage) {
				continue
			}
			if err != nil {
				return err
			}
			if r.newest[f.subjects[m.subject]], err = r.copyAt(got.seq, got.header.Get(HeaderSource)); err != nil {
				return err
			}
		}
	}
	return nil
}

// sealedCopy is a message of the sealed stream.
type sealedCopy struct {
	link
	seq uint64
}

// copyAt reads what the message at a sequence of the sealed stream stands for.
func (r *released) copyAt(seq uint64, header string) (sealedCopy, error) {
	w := r.h.w
	pos, err := readPosition(w.routeKey, &w.home, seq, header)
	if err != nil {
		return sealedCopy{}, fmt.Errorf("%w: message %d of sealed stream %s was written by somebody else: %v", ErrPosition, seq, r.d.config.Name, err)
	}
	return sealedCopy{pos.message(), seq}, nil
}

// count returns how many messages of a lane were released. What was released is the
// beginning of the lane; of those in it that became dead letters, the sealed stream
// does not say it.
func (r *released) count(tag string, f *foundLane) int {
	for n := len(f.messages); n > 0; n-- {
		m := f.messages[n-1]
		if m.seq <= r.marks[tag].hold {
			return n
		}
		if m.seq > r.last && m.created == r.created && m.sequence <= r.passed {
			return n
		}
		l := link{sequence: m.sequence, created: m.created}
		if last, ok := r.newest[f.subjects[m.subject]]; ok && !last.before(&l) {
			return n
		}
	}
	return 0
}

// markOf is the mark that says that the first n messages of a lane were released.
func (r *released) markOf(tag string, f *foundLane, n int) mark {
	m := f.messages[n-1]
	if old := r.marks[tag]; old.hold == m.seq {
		return old
	}
	if c, ok := r.newest[f.subjects[m.subject]]; ok && c.sequence == m.sequence && c.created == m.created {
		return mark{m.seq, c.seq}
	}
	return mark{m.seq, r.d.lastSeq}
}

// copyOf returns the link of the sealed copy that a mark speaks of; nil if it is not
// there any more, or is none of the lane's message m that was held.
func (r *released) copyOf(ctx context.Context, at mark, m *foundMessage) (*link, error) {
	got, err := getFromLeader(ctx, r.h.w.route.Sealed.Conn, r.d.config.Name, getRequest{Seq: at.sealed})
	if errors.Is(err, errNoMessage) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c, err := r.copyAt(got.seq, got.header.Get(HeaderSource))
	if err != nil {
		return nil, err
	}
	if _, held := c.chain.ReleasedFrom(c.sequence, c.previous); !held || c.sequence != m.sequence || c.created != m.created {
		return nil, nil
	}
	return &c.link, nil
}
