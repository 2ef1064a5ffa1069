package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"
)

// maxLine is the longest line read as one message, the largest payload of NATS.
const maxLine = 64 << 20

func newPub(u *ui) *cobra.Command {
	var (
		conn    natsFlags
		headers []string
		lines   bool
		asJSON  bool
	)
	cmd := &cobra.Command{
		Use: "pub SUBJECT [DATA|-]", Short: "Publish a message to a stream", Args: argsBetween(1, 2, "SUBJECT and DATA"),
		Long: `Publishes to a JetStream stream, as any NATS client does, and waits until the
message is stored. DATA - or none is read from standard input.`,
		Example: `  keyweir pub orders.eu '{"id":1}' -H 'Trace: 7'
  keyweir pub orders.eu --lines < orders.ndjson`,
		RunE: func(cmd *cobra.Command, args []string) error {
			h, err := parseHeaders(headers)
			if err != nil {
				return err
			}
			fromStdin := len(args) < 2 || args[1] == "-"
			if lines && !fromStdin {
				return usagef("--lines reads standard input; leave DATA away")
			}
			if fromStdin && len(args) < 2 && isTerminal(u.in) {
				return usagef("missing DATA; give - to type it")
			}
			nc, err := conn.dial(cmd.Context(), "pub")
			if err != nil {
				return err
			}
			defer nc.Close()
			js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(256))
			if err != nil {
				return fmt.Errorf("opening JetStream: %w", err)
			}
			p := publisher{u: u, js: js, subject: args[0], headers: h, asJSON: asJSON}
			if lines {
				return p.lines(cmd.Context(), u.in)
			}
			data := []byte(nil)
			if fromStdin {
				if data, err = io.ReadAll(io.LimitReader(u.in, maxLine+1)); err != nil {
					return fmt.Errorf("reading message: %w", err)
				}
				if len(data) > maxLine {
					return fmt.Errorf("reading message: more than %d bytes", maxLine)
				}
			} else {
				data = []byte(args[1])
			}
			return p.one(cmd.Context(), data)
		},
	}
	conn.add(cmd)
	cmd.Flags().StringArrayVarP(&headers, "header", "H", nil, "a header as Name: Value; may be repeated")
	cmd.Flags().BoolVar(&lines, "lines", false, "publish every line of standard input as a message")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an object")
	return cmd
}

func parseHeaders(hs []string) (nats.Header, error) {
	if len(hs) == 0 {
		return nil, nil
	}
	out := nats.Header{}
	for _, h := range hs {
		name, value, ok := strings.Cut(h, ":")
		name = strings.TrimSpace(name)
		if !ok || name == "" || strings.ContainsAny(h, "\r\n") {
			return nil, usagef("header %q is not Name: Value", h)
		}
		out[name] = append(out[name], strings.TrimSpace(value))
	}
	return out, nil
}

type publisher struct {
	u       *ui
	js      jetstream.JetStream
	subject string
	headers nats.Header
	asJSON  bool
}

func (p *publisher) msg(data []byte) *nats.Msg {
	h := nats.Header{}
	for k, v := range p.headers {
		h[k] = append([]string(nil), v...)
	}
	return &nats.Msg{Subject: p.subject, Header: h, Data: data}
}

// published is what "keyweir pub --json" prints.
type published struct {
	Stream    string `json:"stream"`
	Sequence  uint64 `json:"sequence"`
	Duplicate bool   `json:"duplicate"`
	Published int    `json:"published"`
}

func (p *publisher) one(ctx context.Context, data []byte) error {
	ack, err := p.js.PublishMsg(ctx, p.msg(data))
	if err != nil {
		return p.explain(err)
	}
	return p.report(published{ack.Stream, ack.Sequence, ack.Duplicate, 1})
}

func (p *publisher) report(r published) error {
	if p.asJSON {
		return p.u.json(r)
	}
	what := "stored"
	if r.Duplicate {
		what = "already stored"
	}
	if r.Published != 1 {
		return p.u.printf("%d messages stored in %s, the last as %d\n", r.Published, r.Stream, r.Sequence)
	}
	return p.u.printf("%s in %s as %d\n", what, r.Stream, r.Sequence)
}

// lines publishes with a bounded number of acknowledgements outstanding.
func (p *publisher) lines(ctx context.Context, r io.Reader) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 64<<10), maxLine)
	var pending []jetstream.PubAckFuture
	var last published
	settle := func(leave int) error {
		for len(pending) > leave {
			select {
			case ack := <-pending[0].Ok():
				last = published{ack.Stream, ack.Sequence, ack.Duplicate, last.Published + 1}
			case err := <-pending[0].Err():
				return p.explain(err)
			case <-ctx.Done():
				return ctx.Err()
			}
			pending = pending[1:]
		}
		return nil
	}
	for sc.Scan() {
		if len(sc.Bytes()) == 0 {
			continue
		}
		f, err := p.js.PublishMsgAsync(p.msg(append([]byte(nil), sc.Bytes()...)))
		if err != nil {
			return p.explain(err)
		}
		pending = append(pending, f)
		if err := settle(255); err != nil {
			return err
		}
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("reading lines: %w", err)
	}
	if err := settle(0); err != nil {
		return err
	}
	if last.Published == 0 {
		return errors.New("publishing: standard input has no line")
	}
	return p.report(last)
}

func (p *publisher) explain(err error) error {
	err = fmt.Errorf("publishing to %s: %w", printable(p.subject), err)
	err = hintFor(err, jetstream.ErrNoStreamResponse, "no stream takes this subject")
	return hintFor(err, nats.ErrNoResponders, "no stream takes this subject, or the server has no JetStream")
}
