package cli

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/streams"
)

// maxInspect is the largest envelope read from a file.
const maxInspect = 64 << 20

// inspected is what "keyweir inspect --json" prints.
type inspected struct {
	Stream   string       `json:"stream,omitempty"`
	Sequence uint64       `json:"sequence,omitempty"`
	Subject  string       `json:"subject,omitempty"`
	Stored   *time.Time   `json:"stored,omitempty"`
	Headers  nats.Header  `json:"headers,omitempty"`
	Envelope streams.Info `json:"envelope"`
}

func newInspect(u *ui) *cobra.Command {
	var (
		conn   natsFlags
		asJSON bool
	)
	cmd := &cobra.Command{
		Use: "inspect [FILE | - | STREAM SEQUENCE]", Short: "Explain an envelope, without any key", Args: argsBetween(0, 2, "STREAM SEQUENCE"),
		Long: `Shows what an envelope says in clear: which key sealed it, who holds that key, and
what its bytes are. Nothing of it is authenticated without the key. The envelope
comes from a file, from standard input, or from a stream.`,
		Example: "  keyweir inspect SEALED_ORDERS 1\n  keyweir inspect message.bin --json",
		RunE: func(cmd *cobra.Command, args []string) error {
			var (
				in   inspected
				data []byte
				err  error
			)
			if len(args) == 2 {
				seq, perr := strconv.ParseUint(args[1], 10, 64)
				if perr != nil || seq == 0 {
					return usagef("%q is no sequence: a number from 1", args[1])
				}
				nc, err := conn.dial(cmd.Context(), "inspect")
				if err != nil {
					return err
				}
				defer nc.Close()
				m, err := rawMessage(cmd, nc, args[0], seq)
				if err != nil {
					return err
				}
				in = inspected{Stream: args[0], Sequence: m.Sequence, Subject: m.Subject, Stored: &m.Time, Headers: m.Header}
				data = m.Data
			} else if data, err = readEnvelope(u, args); err != nil {
				return err
			}
			if in.Envelope, err = streams.Inspect(data); err != nil {
				err = fmt.Errorf("inspecting: %w", err)
				return hintFor(err, streams.ErrPlaintext, "the bytes do not begin like an envelope; what is stored there may be plaintext")
			}
			if asJSON {
				return u.json(in)
			}
			if err := in.write(u.out); err != nil {
				return err
			}
			u.notef("(--json prints the same as an object)")
			return nil
		},
	}
	conn.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an object")
	return cmd
}

func readEnvelope(u *ui, args []string) ([]byte, error) {
	r := u.in
	if len(args) == 1 && args[0] != "-" {
		f, err := os.Open(args[0])
		if err != nil {
			return nil, hintFor(fmt.Errorf("reading envelope: %w", err), os.ErrNotExist, "for a message of a stream give STREAM and SEQUENCE")
		}
		defer func() { _ = f.Close() }() // only read
		r = f
	} else if isTerminal(u.in) {
		return nil, usagef("missing argument: FILE, - or STREAM SEQUENCE")
	}
	b, err := io.ReadAll(io.LimitReader(r, maxInspect+1))
	if err != nil {
		return nil, fmt.Errorf("reading envelope: %w", err)
	}
	if len(b) > maxInspect {
		return nil, fmt.Errorf("reading envelope: more than %d bytes", maxInspect)
	}
	return b, nil
}

func rawMessage(cmd *cobra.Command, nc *nats.Conn, stream string, seq uint64) (*jetstream.RawStreamMsg, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("opening JetStream: %w", err)
	}
	s, err := js.Stream(cmd.Context(), stream)
	if err != nil {
		return nil, streamError(stream, err)
	}
	m, err := s.GetMsg(cmd.Context(), seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		i := s.CachedInfo().State
		return nil, withHint(fmt.Errorf("reading %s: no message %d", stream, seq), "the stream has messages %d to %d", i.FirstSeq, i.LastSeq)
	}
	if err != nil {
		return nil, streamError(stream, err)
	}
	return m, nil
}

func streamError(stream string, err error) error {
	err = fmt.Errorf("reading stream %s: %w", printable(stream), err)
	err = hintFor(err, jetstream.ErrStreamNotFound, "nats stream ls lists the streams of the server")
	return hintFor(err, nats.ErrNoResponders, "the server has no JetStream, or this user may not use it")
}

func (in *inspected) write(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(tw, "%s\t%s\n", name, printable(fmt.Sprintf(format, args...)))
	}
	e := &in.Envelope
	if in.Stream != "" {
		row("message", "%s, sequence %d", in.Stream, in.Sequence)
		row("subject", "%s", in.Subject)
		row("stored", "%s", in.Stored.UTC().Format(time.RFC3339Nano))
		for _, name := range slices.Sorted(maps.Keys(in.Headers)) {
			row("header", "%s: %s", name, strings.Join(in.Headers[name], ", "))
		}
	}
	row("envelope", "version %d", e.Version)
	row("suite", "%s", e.Suite)
	row("key ID", "%s", e.KeyID)
	row("session", "%s", e.Session)
	row("nonce", "%s", e.Nonce)
	if e.Layered {
		row("layered", "the payload is itself an envelope")
	}
	r := e.Record
	if r == nil {
		row("key record", "by reference: the key service knows it by the key ID")
	} else {
		row("key record", "inline, made %s", r.Created.UTC().Format(time.RFC3339))
		if !r.KeyIDMatches {
			row("", "NOT the record of this key: every reader rejects the message")
		}
		row("scope", "%s", r.Scope)
		row("scheme", "%s, %d of %d must act to open", r.Scheme, r.K, r.N)
		for _, a := range r.Authorities {
			row("authority", "%s, managed key %s, wrap of %d bytes", a.Name, a.ManagedKey, a.WrapSize)
		}
		for _, name := range slices.Sorted(maps.Keys(r.Context)) {
			row("context", "%s = %s", name, r.Context[name])
		}
	}
	record := 0
	if r != nil {
		record = r.Size
	}
	fmt.Fprintln(tw)
	row("header and nonce", "%d bytes", e.Clear-record)
	row("key record", "%d bytes", record)
	row("ciphertext", "%d bytes (payload, headers, subject, order)", e.Sealed)
	row("tag", "%d bytes", e.Size-e.Clear-e.Sealed)
	row("together", "%d bytes", e.Size)
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("writing output: %w", err)
	}
	return nil
}
