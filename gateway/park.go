package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/streams"
)

// Park says where messages go that cannot be unsealed: as they are, under
//
//	<subject>.<route>.<chain>.<sequence in the sealed stream>
//
// with the headers they had, except Nats-*, and those of package streams that say
// why and whence (streams.HeaderError and so on).
type Park struct {
	Conn    *nats.Conn // nil: that of the sealed stream
	Stream  string     // required with UndecryptablePark; it must exist
	Subject string     // required with it: a subject without wildcards
}

// withPark fills in and checks where messages are parked.
func (u *unsealing) withPark(r *Route) error {
	if u.policy != UndecryptablePark {
		return nil
	}
	p := &u.parking
	if p.Conn == nil {
		p.Conn = r.Source.Conn
	}
	switch err := checkPattern(p.Subject); {
	case err != nil || strings.ContainsAny(p.Subject, "*>") || strings.HasPrefix(p.Subject, "$") || strings.HasPrefix(p.Subject, "_"):
		return fmt.Errorf("park subject %q, want one without wildcards", p.Subject)
	case !streamName.MatchString(p.Stream):
		return fmt.Errorf("park stream %q, want 1 to 255 of A-Z a-z 0-9 _ -", p.Stream)
	case p.Conn == nil:
		return nil // refused for the source's sake
	case p.Conn == r.Source.Conn && p.Stream == r.Source.Stream, p.Conn == r.Sealed.Conn && p.Stream == r.Sealed.Stream:
		return fmt.Errorf("park stream %s is read or written by the route itself", p.Stream)
	}
	var err error
	u.parkJS, err = jetstream.New(p.Conn)
	return err
}

// parks reports whether a message with this error is put aside. u may be nil.
func (u *unsealing) parks(err error) bool {
	return u != nil && u.policy == UndecryptablePark && errors.Is(err, ErrUndecryptable)
}

// checkPark makes sure, before a tenure, that parked messages would be stored. u
// may be nil.
func (u *unsealing) checkPark(ctx context.Context) error {
	if u == nil || u.policy != UndecryptablePark {
		return nil
	}
	info, err := streamInfo(ctx, u.parkJS, u.parking.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("%w: stream %s does not exist", ErrPark, u.parking.Stream)
	}
	if err != nil {
		return err
	}
	if want := u.parking.Subject + ".>"; !covered(info.Config.Subjects, []string{want}) {
		return fmt.Errorf("%w: stream %s takes %s, not %s", ErrPark, u.parking.Stream, strings.Join(info.Config.Subjects, ", "), want)
	}
	return nil
}

// park puts one message aside and moves on behind it, however long that takes: no
// later message leaves before its copy is acknowledged. A crash between the two
// parks it again, under a subject that must be empty, so that it is stored once.
func (t *tenure) park(ctx context.Context, it *item, gap uint64, cause error) error {
	w := t.w
	wait := newPause(w.tune.retry, w.tune.retryMax)
	for {
		err := w.route.unseal.store(ctx, w.route.Name, w.route.Source.Stream, t.place.chain, it, cause)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if stops(err) {
			return err
		}
		w.board.failed(StateRetrying, err)
		w.log.Warn("parking failed, trying again", "sequence", it.seq, "error", err)
		if err := wait.wait(ctx); err != nil {
			return err
		}
	}
	w.log.Warn("message parked", "sequence", it.seq, "error", cause)
	w.board.update(func(s *RouteStats) { s.Parked++; s.State = StateRunning })
	t.passed(it, gap)
	return nil
}

// codeWrongSubjectSequence: the subject already holds a message.
const codeWrongSubjectSequence = 10071

// store publishes one parked message and waits until it is stored.
func (u *unsealing) store(ctx context.Context, route, sealed string, chain envelope.ChainID, it *item, cause error) error {
	sequence := strconv.FormatUint(it.seq, 10)
	m := &nats.Msg{
		Subject: u.parking.Subject + "." + route + "." + chain.String() + "." + sequence, Data: it.msg.Data, Header: make(nats.Header),
	}
	for name, values := range it.msg.Header {
		if !hasPrefixFold(name, "nats-") {
			m.Header[name] = values
		}
	}
	m.Header.Set(streams.HeaderError, undecryptableCode(cause))
	m.Header.Set(streams.HeaderStream, sealed)
	m.Header.Set(streams.HeaderSequence, sequence)
	m.Header.Set(streams.HeaderSubject, it.msg.Subject)
	m.Header.Set(jetstream.ExpectedStreamHeader, u.parking.Stream)
	m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, "0")
	pctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := u.parkJS.PublishMsg(pctx, m)
	var api *jetstream.APIError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &api) && api.ErrorCode == codeWrongSubjectSequence:
		return u.same(ctx, m)
	case errors.Is(err, nats.ErrMaxPayload), api != nil && api.Code == 400:
		return fmt.Errorf("%w: message %d: %v", ErrPark, it.seq, err)
	}
	return fmt.Errorf("parking message %d: %w", it.seq, err)
}

// same makes sure that what a parked message's subject holds is that message.
func (u *unsealing) same(ctx context.Context, m *nats.Msg) error {
	held, err := getFromLeader(ctx, u.parking.Conn, u.parking.Stream, getRequest{LastFor: m.Subject})
	if err != nil {
		return fmt.Errorf("reading what is parked under %s: %w", m.Subject, err)
	}
	if !bytes.Equal(held.data, m.Data) {
		return fmt.Errorf("%w: somebody else stored a message under %s", ErrPark, m.Subject)
	}
	return nil
}
