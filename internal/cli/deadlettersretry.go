package cli

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/internal/deadletter"
	"github.com/keyweir/keyweir/internal/pattern"
	"github.com/keyweir/keyweir/keysvc"
)

// retryFlags are those of "keyweir deadletters retry".
type retryFlags struct {
	conn                         natsFlags
	profile, identity            string
	sourceServer, sourceContext  string
	sourceCreds                  string
	all, yes, dryRun, again, raw bool
}

func newDeadLettersRetry(u *ui) *cobra.Command {
	var f retryFlags
	cmd := &cobra.Command{
		Use: "retry STREAM [SUBJECT|ID...]", Short: "Send dead letters back to their source stream", Args: argsBetween(1, 1<<20, "STREAM"),
		Long: `Opens dead letters as show does and publishes them again, payload and headers, to
the subject and stream they came from, for the route to seal; do it once what made
them dead letters is mended. Each is a new message at the end of the source stream.
IDs go in the order given. A SUBJECT, which may have wildcards, stands for all dead
letters that were published there, and --all for every one, in the order of their
parking. The first failure ends the command; what was sent back before it stays so.

Headers of NATS and Keyweir are left out, as the server would act on them. The
message gets a Nats-Msg-Id of its own, always the same for a dead letter, so that
the source stream stores it once even if this command is interrupted and repeated
within the stream's duplicate window. After that it refuses to repeat, because it
cannot know whether the message was stored; --again does it regardless.

Where the source stream is on another server than the dead letters, say which.`,
		Example: `  keyweir deadletters retry DEAD_LETTERS 12 14 --profile ops.json
  keyweir deadletters retry DEAD_LETTERS --all --yes --profile ops.json --source-server nats://landing`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd.Context(), u, args[0], args[1:])
		},
	}
	f.conn.add(cmd)
	profileFlags(cmd, &f.profile, &f.identity)
	fs := cmd.Flags()
	fs.StringVar(&f.sourceServer, "source-server", "", "NATS servers of the source stream, with the same login (default those of the dead letters)")
	fs.StringVar(&f.sourceCreds, "source-creds", "", "credentials file for --source-server")
	fs.StringVar(&f.sourceContext, "source-context", "", "context of the nats CLI for the source stream, and nothing else")
	fs.BoolVar(&f.all, "all", false, "send all of them back")
	fs.BoolVarP(&f.yes, "yes", "y", false, "do so with --all or a SUBJECT")
	fs.BoolVarP(&f.dryRun, "dry-run", "n", false, "open them and say what would be sent, and send nothing")
	fs.BoolVar(&f.again, "again", false, "send even those that an interrupted retry may have sent")
	fs.BoolVar(&f.raw, "json", false, "print one object per line")
	return cmd
}

func (f *retryFlags) check(what []string) error {
	picks := f.all || slices.ContainsFunc(what, func(s string) bool { return !isID(s) })
	switch {
	case f.all == (len(what) > 0):
		return usagef("name dead letters by ID or SUBJECT, or give --all")
	case picks && !f.yes && !f.dryRun:
		return usagef("this may send many messages: --dry-run shows them, --yes sends them")
	case f.yes && f.dryRun:
		return usagef("--yes excludes --dry-run")
	case f.sourceContext != "" && (f.sourceServer != "" || f.sourceCreds != ""):
		return usagef("--source-context excludes --source-server and --source-creds")
	case f.sourceCreds != "" && f.sourceServer == "":
		return usagef("--source-creds needs --source-server")
	}
	return nil
}

func isID(s string) bool {
	_, err := strconv.ParseUint(s, 10, 64)
	return err == nil
}

// dialSource connects to where source streams are; own is the connection of the
// dead letters.
func (f *retryFlags) dialSource(ctx context.Context, own *nats.Conn) (nc *nats.Conn, end func(), err error) {
	switch {
	case f.sourceContext != "":
		e, err := (&natsFlags{context: f.sourceContext}).resolveOnlyContext()
		if err != nil {
			return nil, nil, err
		}
		if nc, err = nats.Connect(e.url, append(e.opts, nats.Name("keyweir deadletters"), nats.Timeout(f.conn.timeout))...); err != nil {
			return nil, nil, connectError(e.url, err)
		}
	case f.sourceServer != "":
		c := f.conn
		c.server = f.sourceServer
		if f.sourceCreds != "" {
			c.creds = f.sourceCreds
		}
		if nc, err = c.dial(ctx, "deadletters"); err != nil {
			return nil, nil, err
		}
	default:
		return own, func() {}, nil
	}
	return nc, nc.Close, nil
}

func (f *retryFlags) run(ctx context.Context, u *ui, stream string, what []string) error {
	if err := f.check(what); err != nil {
		return err
	}
	r, err := openLetterReader(ctx, &f.conn, stream, f.profile, f.identity)
	if err != nil {
		return err
	}
	defer r.close()
	nc, end, err := f.dialSource(ctx, r.nc)
	if err != nil {
		return err
	}
	defer end()
	source, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("opening JetStream: %w", err)
	}
	ls, err := listLetters(ctx, r.nc, stream)
	if err != nil {
		return err
	}
	t := &retrier{letterReader: r, source: source, timeout: f.conn.timeout, again: f.again, dryRun: f.dryRun}
	if !f.dryRun {
		if err := t.sweep(ctx, ls); err != nil {
			return err
		}
	}
	chosen, err := chooseLetters(ls, what)
	if err != nil {
		return err
	}
	for done, l := range chosen {
		s, err := t.retry(ctx, l)
		if s != nil { // it was stored, whatever came after that
			if werr := s.write(u, f.raw); werr != nil {
				return errors.Join(err, werr)
			}
		}
		if err != nil {
			if len(chosen) > 1 {
				err = fmt.Errorf("%w (%d of %d done, the rest was not tried)", err, done, len(chosen))
			}
			return err
		}
	}
	return nil
}

// chooseLetters returns which dead letters to send back, in order; for no args all
// that were not yet.
func chooseLetters(ls []deadLetter, args []string) ([]deadLetter, error) {
	var out []deadLetter
	seen := make(map[uint64]bool)
	add := func(l deadLetter) {
		if !seen[l.ID] {
			seen[l.ID] = true
			out = append(out, l)
		}
	}
	if len(args) == 0 {
		args = []string{">"}
	}
	for _, a := range args {
		id, err := strconv.ParseUint(a, 10, 64)
		found := false
		for _, l := range ls {
			if err == nil && l.ID == id || err != nil && l.Retried == nil && (keysvc.SubjectMatches(a, l.Subject) || a == ">") {
				found = true
				add(l)
			}
		}
		if !found && a != ">" {
			return nil, withHint(fmt.Errorf("no dead letter %s", printable(a)), "keyweir deadletters list shows those there are; one that was sent back has another ID")
		}
	}
	return out, nil
}

// retrier sends dead letters back.
//
// The order is: a message beside the dead letter that says so, the message itself,
// the mark in the place of the dead letter, away with the rest. Until the mark is
// stored, the dead letter is there in full. A crash after the first of these leaves
// it open whether the second was done. The source stream knows for its duplicate
// window, since the message has the same ID each time; and so does the operator.
type retrier struct {
	*letterReader
	source  jetstream.JetStream
	timeout time.Duration // for each request
	again   bool
	dryRun  bool
}

// sentBack is what "keyweir deadletters retry" prints of one dead letter.
type sentBack struct {
	ID        uint64   `json:"id"`
	Route     string   `json:"route"`
	Subject   string   `json:"subject"`
	Stream    string   `json:"stream"`            // the source stream
	Sequence  uint64   `json:"sequence"`          // in it, of the message that was parked
	Stored    uint64   `json:"stored,omitempty"`  // in it, of the message now
	Duplicate bool     `json:"duplicate"`         // an earlier retry had stored it
	Dropped   []string `json:"dropped,omitempty"` // headers that were left out
	DryRun    bool     `json:"dry_run,omitempty"`
	Bytes     int      `json:"bytes"` // of the payload
}

func (s *sentBack) write(u *ui, asJSON bool) error {
	if asJSON {
		return u.jsonLine(s)
	}
	what := fmt.Sprintf("sent back to %s as %d", s.Stream, s.Stored)
	switch {
	case s.DryRun:
		what = "would be sent back to " + s.Stream
	case s.Duplicate:
		what = fmt.Sprintf("was in %s already, as %d", s.Stream, s.Stored)
	}
	line := fmt.Sprintf("dead letter %d (%s, %d bytes) %s", s.ID, s.Subject, s.Bytes, what)
	if len(s.Dropped) > 0 {
		line += ", without " + strings.Join(s.Dropped, ", ")
	}
	return u.printf("%s\n", printable(line))
}

// retry sends one back. What it returns is not nil once the source stream has the
// message, even with an error.
func (t *retrier) retry(ctx context.Context, l deadLetter) (*sentBack, error) {
	fail := func(err error) error { return fmt.Errorf("dead letter %d: %w", l.ID, err) }
	c, opened, err := t.read(ctx, l.ID)
	if err != nil {
		return nil, err
	}
	proof, err := deadletter.ParseProof(c.header.Get(deadletter.HeaderProof))
	if err != nil || proof.Hash != sha256.Sum256(c.envelope) {
		return nil, fail(errors.New("its proof is not that of what it holds: it is not as the gateway stored it"))
	}
	m, dropped := messageOf(opened)
	s := &sentBack{
		ID: l.ID, Route: l.Route, Subject: opened.Subject, Stream: opened.Stream, Sequence: opened.Sequence,
		Dropped: dropped, DryRun: t.dryRun, Bytes: len(m.Data),
	}
	info, err := t.sourceInfo(ctx, opened.Stream)
	if err != nil {
		return nil, fail(err)
	}
	// Asked beforehand: a condition on the message would be stored with it, as a
	// header that routes may reject.
	if !slices.ContainsFunc(info.Config.Subjects, func(p string) bool { return pattern.Covers(p, opened.Subject) }) {
		return nil, fail(withHint(fmt.Errorf("source stream %s does not take %s any more", printable(opened.Stream), printable(opened.Subject)), "give the stream that subject again, or publish what show prints where it belongs"))
	}
	if err := t.mayRepeat(ctx, l, info.Config.Duplicates); err != nil {
		return nil, fail(err)
	}
	if t.dryRun {
		return s, nil
	}
	fresh := l.intent == 0
	if fresh {
		if l.intent, err = t.begin(ctx, l); err != nil {
			return nil, fail(err)
		}
	}
	ack, err := t.publish(ctx, m, deadletter.RetryID(c.envelope))
	if err != nil {
		if fresh && refusedForGood(err) {
			err = errors.Join(err, t.remove(ctx, l.intent)) // nothing is open, so nothing may say so
		}
		return nil, fail(explainRetry(err, opened))
	}
	s.Stored, s.Duplicate = ack.Sequence, ack.Duplicate
	if ack.Stream != opened.Stream {
		return s, fail(fmt.Errorf("stream %s took it, and not the source stream %s: the subjects changed in between; it is not marked as sent back", printable(ack.Stream), printable(opened.Stream)))
	}
	if err := t.mark(ctx, l, c.header); err != nil {
		return s, fail(withHint(fmt.Errorf("it is in stream %s as %d, but marking it failed: %w", printable(opened.Stream), ack.Sequence, err),
			"repeat this within %v, the duplicate window of stream %s; while the dead-letter stream is full, raise its limits first", info.Config.Duplicates, printable(opened.Stream)))
	}
	if err := t.remove(ctx, append(slices.Clone(l.rest), l.intent)...); err != nil {
		return s, fail(withHint(fmt.Errorf("it was sent back and marked, but what is left of it was not removed: %w", err), "the next retry removes it"))
	}
	return s, nil
}

// messageOf makes the message to send, and names the headers it leaves out: those
// of NATS steer the stream, those of Keyweir the gateway.
func messageOf(l *deadletter.Letter) (m *nats.Msg, dropped []string) {
	m = &nats.Msg{Subject: l.Subject, Header: nats.Header{}, Data: l.Data}
	for name, values := range l.Header {
		if n := strings.ToLower(name); strings.HasPrefix(n, "nats-") || strings.HasPrefix(n, "keyweir-") || n == "keyweir" {
			dropped = append(dropped, name)
			continue
		}
		m.Header[name] = slices.Clone(values)
	}
	slices.Sort(dropped)
	return m, dropped
}

func (t *retrier) sourceInfo(ctx context.Context, stream string) (*jetstream.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	s, err := t.source.Stream(ctx, stream)
	if err != nil {
		return nil, withHint(fmt.Errorf("looking at source stream %s: %w", printable(stream), err), "is it on another server? --source-server or --source-context names that one")
	}
	return s.CachedInfo(), nil
}

// mayRepeat refuses a dead letter that an earlier retry may have sent so long ago
// that the source stream does not know its ID any more.
func (t *retrier) mayRepeat(ctx context.Context, l deadLetter, window time.Duration) error {
	if l.Retrying == nil || t.again {
		return nil
	}
	info, err := t.stream.Info(ctx)
	if err != nil {
		return fmt.Errorf("reading the server's time: %w", err)
	}
	// Both times are of the servers of the dead letters. The message may be on its
	// way for as long as a request takes.
	if info.TimeStamp.Sub(*l.Retrying)+t.timeout < window {
		return nil
	}
	return withHint(fmt.Errorf("a retry that began at %s did not end, and may have sent it; the duplicate window of stream %s, %v, is too short to tell", l.Retrying.Format(time.RFC3339), printable(l.Stream), window),
		"look for its copy in the source stream or, opened, in the sealed one: if it is missing, or may come twice, repeat this with --again")
}

// begin stores that the dead letter is being sent back, and returns the message
// that says so. It fails if another retry did.
func (t *retrier) begin(ctx context.Context, l deadLetter) (uint64, error) {
	h := nats.Header{}
	h.Set(deadletter.HeaderRetrying, time.Now().UTC().Format(time.RFC3339))
	h.Set(deadletter.HeaderProof, l.header.Get(deadletter.HeaderProof))
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	ack, err := t.put(ctx, l.position.RetrySubject(l.prefix), h, 0)
	if err != nil {
		return 0, withHint(fmt.Errorf("noting that it is being sent back: %w", err), "nothing was sent; is another retry running, is the dead-letter stream full, may this user publish to it?")
	}
	// Another one may have begun and ended since the letter was read.
	m, err := t.stream.GetLastMsgForSubject(ctx, l.location)
	if err == nil && m.Sequence != l.ID {
		err = errors.New("it was sent back in the meantime")
	}
	if err != nil {
		return 0, errors.Join(err, t.remove(ctx, ack))
	}
	return ack, nil
}

// put stores a message without payload where sequence last is the last one.
func (t *retrier) put(ctx context.Context, subject string, h nats.Header, last uint64) (uint64, error) {
	ack, err := t.js.PublishMsg(ctx, &nats.Msg{Subject: subject, Header: h},
		jetstream.WithExpectStream(t.stream.CachedInfo().Config.Name), jetstream.WithExpectLastSequencePerSubject(last))
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

func (t *retrier) publish(ctx context.Context, m *nats.Msg, id string) (*jetstream.PubAck, error) {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	return t.source.PublishMsg(ctx, m, jetstream.WithMsgID(id))
}

// mark puts an empty message in the place of the dead letter.
func (t *retrier) mark(ctx context.Context, l deadLetter, old nats.Header) error {
	h := nats.Header{}
	for name, values := range old {
		if !strings.HasPrefix(name, "Nats-") {
			h[name] = values
		}
	}
	h.Set(deadletter.HeaderRetried, time.Now().UTC().Format(time.RFC3339))
	// The message is out: an interrupt must not keep this from being said.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.timeout)
	defer cancel()
	_, err := t.put(ctx, l.location, h, l.ID)
	return err
}

// remove deletes messages of the dead-letter stream.
func (t *retrier) remove(ctx context.Context, ids ...uint64) error {
	for _, id := range ids {
		if err := t.stream.DeleteMsg(ctx, id); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
			return fmt.Errorf("removing message %d: %w", id, err)
		}
	}
	return nil
}

// sweep removes what a crash left of dead letters that were sent back.
func (t *retrier) sweep(ctx context.Context, ls []deadLetter) error {
	for _, l := range ls {
		if l.Retried == nil {
			continue
		}
		ids := l.rest
		if l.intent != 0 {
			ids = append(slices.Clone(ids), l.intent)
		}
		if err := t.remove(ctx, ids...); err != nil {
			return err
		}
	}
	return nil
}

// refusedForGood reports whether an error of publishing says that nothing was
// stored.
func refusedForGood(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, nats.ErrMaxPayload) || errors.Is(err, nats.ErrBadHeaderMsg) || errors.Is(err, nats.ErrBadSubject) ||
		errors.Is(err, jetstream.ErrNoStreamResponse) || errors.As(err, &api) && api.Code == 400
}

func explainRetry(err error, l *deadletter.Letter) error {
	wrapped := fmt.Errorf("sending it back to %s: %w", printable(l.Subject), err)
	switch {
	case errors.Is(err, nats.ErrMaxPayload):
		return withHint(wrapped, "raise max_payload of the server of stream %s", printable(l.Stream))
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		return withHint(wrapped, "no stream takes this subject there; is it on another server? --source-server or --source-context names that one")
	case refusedForGood(err):
		return withHint(wrapped, "nothing was stored; the dead letter stays as it is")
	}
	return withHint(wrapped, "whether it was stored is not known, so the dead letter stays: repeat this soon, within the duplicate window of stream %s; may this user publish there?", printable(l.Stream))
}
