package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/textproto"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/streams"
)

// HeaderMsgID carries the publisher's Nats-Msg-Id on an unsealed message.
const HeaderMsgID = "Keyweir-Msg-Id"

// unknownKeyWait is how old a message must be, at least, before a key that the
// key service does not know makes it undecryptable: its record may be on its way.
const unknownKeyWait = 30 * time.Second

// unsealer turns envelopes into what was published. It belongs to the worker's
// goroutine.
type unsealer struct {
	*unsealing
	stream string // the sealed one, for errors
	// maxSize is what the plaintext stream's server takes in one message, headers
	// included; fixed is what the engine's headers need of it.
	maxSize, fixed int

	ready  []outgoing // what prepare opened, in order
	next   int        // of ready
	bodies [][]byte
}

// prepare opens all items, or as many as open. Errors: ErrUndecryptable for one
// that never will, ErrKeys for one whose key is out of reach.
func (u *unsealer) prepare(ctx context.Context, items []item) (int, error) {
	clear(u.ready)
	u.ready, u.next, u.bodies = u.ready[:0], 0, u.bodies[:0]
	for i := range items {
		u.bodies = append(u.bodies, items[i].msg.Data)
	}
	u.opener.Prefetch(ctx, u.bodies)
	clear(u.bodies)
	for i := range items {
		out, err := u.open(ctx, &items[i])
		if err != nil {
			return i, err
		}
		u.ready = append(u.ready, out)
	}
	return len(items), nil
}

func (u *unsealer) open(ctx context.Context, it *item) (outgoing, error) {
	stored := time.Unix(0, it.timestamp)
	m, err := u.opener.OpenRaw(ctx, u.stream, &jetstream.RawStreamMsg{Subject: it.msg.Subject, Sequence: it.seq, Data: it.msg.Data, Time: stored})
	if err != nil {
		final := streams.Verdict(err) == streams.Reject
		if errors.Is(err, streams.ErrUnknownKey) {
			final = time.Since(stored) > unknownKeyWait
		}
		if final {
			return outgoing{}, fmt.Errorf("%w: %w", ErrUndecryptable, err)
		}
		return outgoing{}, fmt.Errorf("%w: %w", ErrKeys, err)
	}
	refuse := func(err error) (outgoing, error) {
		return outgoing{}, fmt.Errorf("%w: message %d on %s: %w", ErrUndecryptable, it.seq, it.msg.Subject, err)
	}
	origin := m.Subject()
	if !u.mayPublish(origin) {
		return refuse(errPlainSubject)
	}
	header, size, err := plainHeaders(m.Headers())
	if err != nil {
		return refuse(err)
	}
	if size += u.fixed + len(m.Data()); size > u.maxSize {
		return refuse(fmt.Errorf("%w: %d bytes with its headers, the server takes %d", errPlainSize, size, u.maxSize))
	}
	return outgoing{
		subject: u.prefix + origin, data: m.Data(), clear: header,
		source: it.seq, timestamp: it.timestamp, payload: len(m.Data()),
	}, nil
}

// transform returns what prepare opened.
func (u *unsealer) transform(it *item, previous, _ uint64, _ time.Time) (*outgoing, error) {
	for u.next < len(u.ready) {
		o := &u.ready[u.next]
		u.next++
		if o.source == it.seq {
			o.previous = previous
			return o, nil
		}
	}
	panic("gateway: internal error: message to unseal was not prepared")
}

// Why the plaintext of a message cannot be stored as it was published.
var (
	errPlainSubject = errors.New("its origin subject is not among those the route may publish to")
	errPlainHeader  = errors.New("a header cannot be written as it was")
	errPlainSize    = errors.New("it is too large")
)

// undecryptableCode names the class of an error in one word, for a parked message.
func undecryptableCode(err error) string {
	switch {
	case errors.Is(err, errPlainSubject):
		return "subject"
	case errors.Is(err, errPlainHeader):
		return "header"
	case errors.Is(err, errPlainSize):
		return "too_large"
	}
	return streams.Code(err)
}

// mayPublish reports whether an origin subject is one that may come out, and a
// subject at all. It was chosen by whoever sealed the message.
func (u *unsealing) mayPublish(origin string) bool {
	if checkPattern(origin) != nil || strings.ContainsAny(origin, "*>\x00") || strings.HasPrefix(origin, "$") || strings.HasPrefix(origin, "_") {
		return false
	}
	for _, p := range u.subjects {
		if patternCovers(p, origin) {
			return true
		}
	}
	return false
}

// plainHeaders are the headers of an unsealed message besides the engine's own,
// and their size on the wire. They were filtered when they were sealed; whoever
// may seal need not have used a gateway, so they are filtered again. The client
// library drops a header name, or trims a value, that it does not like, and says
// nothing: such a message is an error here.
func plainHeaders(h nats.Header) (out nats.Header, size int, err error) {
	for name, values := range h {
		switch {
		case name == headerMsgID:
			name = HeaderMsgID
		case reservedHeader(name):
			continue
		case !headerName.MatchString(name):
			return nil, 0, fmt.Errorf("%w: name %.64q", errPlainHeader, name)
		}
		for _, v := range values {
			if strings.ContainsAny(v, "\r\n") || textproto.TrimString(v) != v {
				return nil, 0, fmt.Errorf("%w: value of %q", errPlainHeader, name)
			}
			size += len(name) + len(v) + 4
		}
		if out == nil {
			out = make(nats.Header, len(h))
		}
		out[name] = values
	}
	return out, size, nil
}
