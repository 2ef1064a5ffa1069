package cli_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/keyweir/keyweir/streams"
)

// publishers are those that scripts started.
var publishers sync.Map // *testscript.TestScript: *publisher

// publisher publishes to a stream in the background, a message a millisecond.
type publisher struct {
	stop  chan struct{}
	done  chan struct{}
	lines []string // what was acknowledged, as consume writes it; before done is closed, like
	last  int      // the number of the last, and
	err   error
}

// line is one message as the application sees it. Routes carry Nats-Msg-Id under
// another name on the way back.
func line(subject string, h nats.Header, data []byte) string {
	var b strings.Builder
	b.WriteString(subject)
	for _, name := range slices.Sorted(maps.Keys(h)) {
		switch {
		case name == "Keyweir-Msg-Id":
			fmt.Fprintf(&b, " Nats-Msg-Id=%q", h[name])
		case name == "Nats-Msg-Id" || !strings.HasPrefix(name, "Nats-") && !strings.HasPrefix(name, "Keyweir-"):
			fmt.Fprintf(&b, " %s=%q", name, h[name])
		}
	}
	fmt.Fprintf(&b, " %q\n", data)
	return b.String()
}

// cmdPublisher is "publisher start URL FROM", which publishes orders.<eu|us>.<n>
// beside the script, numbered from FROM, and "publisher stop FILE LAST", which ends
// it, writes what was published and sets the variable LAST to the last number.
func cmdPublisher(ts *testscript.TestScript, _ bool, args []string) {
	switch args[0] {
	case "start":
		from, err := strconv.Atoi(args[2])
		ts.Check(err)
		p := &publisher{stop: make(chan struct{}), done: make(chan struct{})}
		publishers.Store(ts, p)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		ts.Defer(func() {
			cancel()
			<-p.done
		})
		go func() {
			defer close(p.done)
			p.last, p.err = p.run(ctx, args[1], from)
		}()
	case "stop":
		v, ok := publishers.LoadAndDelete(ts)
		if !ok {
			ts.Fatalf("no publisher")
		}
		p := v.(*publisher)
		close(p.stop)
		<-p.done
		ts.Check(p.err)
		ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(strings.Join(p.lines, "")), 0o600))
		ts.Setenv(args[2], strconv.Itoa(p.last))
	default:
		ts.Fatalf("usage: publisher start URL FROM, publisher stop FILE LAST")
	}
}

// run publishes at least five messages, and then until it is stopped.
func (p *publisher) run(ctx context.Context, url string, from int) (int, error) {
	nc, err := nats.Connect(url)
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return 0, err
	}
	pace := time.NewTicker(time.Millisecond)
	defer pace.Stop()
	for i := from; ; i++ {
		select {
		case <-pace.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		select {
		case <-p.stop:
			if i >= from+5 {
				return i - 1, nil
			}
		default:
		}
		m := nats.NewMsg(fmt.Sprintf("orders.%s.%d", []string{"eu", "us", "eu"}[i%3], i%5))
		m.Header.Set("Number", strconv.Itoa(i))
		m.Header.Set("Nats-Msg-Id", "id-"+strconv.Itoa(i))
		m.Data = fmt.Appendf(nil, "order %d\x00\n%s", i, strings.Repeat("x", i%300))
		if i%7 == 0 {
			m.Data = nil
		}
		if _, err := js.PublishMsg(ctx, m); err != nil {
			return 0, err
		}
		p.lines = append(p.lines, line(m.Subject, m.Header, m.Data))
	}
}

// cmdDurable is "durable URL STREAM NAME [FILTER]".
func cmdDurable(ts *testscript.TestScript, _ bool, args []string) {
	js, done := dialScript(ts, args[0])
	defer done()
	cfg := jetstream.ConsumerConfig{Durable: args[2], AckPolicy: jetstream.AckExplicitPolicy, AckWait: 20 * time.Second, MaxAckPending: 77}
	if len(args) > 3 {
		cfg.FilterSubject = args[3]
	}
	_, err := js.CreateConsumer(context.Background(), args[1], cfg)
	ts.Check(err)
}

func dialScript(ts *testscript.TestScript, url string) (jetstream.JetStream, func()) {
	nc, err := nats.Connect(url, nats.UserInfo("admin", "admin")) // ignored where nobody is asked
	ts.Check(err)
	js, err := jetstream.New(nc)
	ts.Check(err)
	return js, nc.Close
}

// cmdConsume is "consume URL STREAM CONSUMER COUNT FILE [PROFILE]": it reads with a
// durable consumer, opens with a profile, appends what the application sees to
// FILE and acknowledges it. With FILE - it does not acknowledge. COUNT may be rest.
func cmdConsume(ts *testscript.TestScript, _ bool, args []string) {
	js, done := dialScript(ts, args[0])
	defer done()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := js.Consumer(ctx, args[1], args[2])
	ts.Check(err)
	count := int(c.CachedInfo().NumPending)
	if args[3] != "rest" {
		count, err = strconv.Atoi(args[3])
		ts.Check(err)
	}
	var got strings.Builder
	take := func(m jetstream.Msg) {
		got.WriteString(line(m.Subject(), m.Headers(), m.Data()))
		if args[4] != "-" {
			ts.Check(m.DoubleAck(ctx))
		}
		count--
	}
	if len(args) > 5 {
		o, err := streams.NewFromProfile(ctx, js.Conn(), ts.MkAbs(args[5]))
		ts.Check(err)
		defer func() { _ = o.Close() }()
		for count > 0 {
			// One at a time, so that nothing is fetched that is not read.
			m, err := c.Next(jetstream.FetchMaxWait(10 * time.Second))
			ts.Check(err)
			opened, err := o.Open(ctx, m)
			ts.Check(err)
			take(opened)
		}
	} else {
		for count > 0 {
			m, err := c.Next(jetstream.FetchMaxWait(10 * time.Second))
			if errors.Is(err, nats.ErrTimeout) {
				ts.Fatalf("%d messages are missing", count)
			}
			ts.Check(err)
			take(m)
		}
	}
	if args[4] == "-" {
		return
	}
	f, err := os.OpenFile(ts.MkAbs(args[4]), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	ts.Check(err)
	_, err = f.WriteString(got.String())
	ts.Check(errors.Join(err, f.Close()))
}

// cmdDump is "dump URL STREAM COUNT FILE": what the stream holds, as the
// application sees it, once it holds COUNT messages.
func cmdDump(ts *testscript.TestScript, _ bool, args []string) {
	count, err := strconv.Atoi(args[2])
	ts.Check(err)
	js, done := dialScript(ts, args[0])
	defer done()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := js.OrderedConsumer(ctx, args[1], jetstream.OrderedConsumerConfig{})
	ts.Check(err)
	it, err := c.Messages()
	ts.Check(err)
	defer it.Stop()
	var got strings.Builder
	for n := 1; n <= count; n++ {
		m, err := it.Next(jetstream.NextContext(ctx))
		ts.Check(err)
		meta, err := m.Metadata()
		ts.Check(err)
		if meta.Sequence.Stream != uint64(n) {
			ts.Fatalf("message %d of %s has sequence %d", n, args[1], meta.Sequence.Stream)
		}
		if n == count && meta.NumPending > 0 {
			ts.Fatalf("%s holds %d messages more than %d", args[1], meta.NumPending, count)
		}
		got.WriteString(line(m.Subject(), m.Headers(), m.Data()))
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[3]), []byte(got.String()), 0o600))
}

// cmdSame is "same WANT GOT [PREFIX]": the lines of WANT that begin so are those of
// GOT.
func cmdSame(ts *testscript.TestScript, _ bool, args []string) {
	var want []string
	for l := range strings.Lines(ts.ReadFile(args[0])) {
		if len(args) < 3 || strings.HasPrefix(l, args[2]) {
			want = append(want, l)
		}
	}
	got := slices.Collect(strings.Lines(ts.ReadFile(args[1])))
	if len(want) == 0 {
		ts.Fatalf("%s has no line that counts", args[0])
	}
	if d := cmp.Diff(want, got); d != "" {
		ts.Fatalf("%d lines, want %d (-want +got):\n%.2000s", len(got), len(want), d)
	}
}

// cmdPurge is "purge URL STREAM SEQUENCE": what is below the sequence goes, as by age.
func cmdPurge(ts *testscript.TestScript, _ bool, args []string) {
	seq, err := strconv.ParseUint(args[2], 10, 64)
	ts.Check(err)
	js, done := dialScript(ts, args[0])
	defer done()
	s, err := js.Stream(context.Background(), args[1])
	ts.Check(err)
	ts.Check(s.Purge(context.Background(), jetstream.WithPurgeSequence(seq)))
}

// cmdCrash is "crash NAME": kill -9.
func cmdCrash(ts *testscript.TestScript, _ bool, args []string) {
	v, ok := processes.LoadAndDelete(procKey{ts, args[0]})
	if !ok {
		ts.Fatalf("no process %s", args[0])
	}
	p := v.(*process)
	ts.Check(p.cmd.Process.Kill())
	<-p.done
}

// cmdLimits is "limits URL STREAM SIZE WINDOW": the largest message, -1 for any, and
// the duplicate window.
func cmdLimits(ts *testscript.TestScript, _ bool, args []string) {
	size, err := strconv.ParseInt(args[2], 10, 32)
	ts.Check(err)
	window, err := time.ParseDuration(args[3])
	ts.Check(err)
	js, done := dialScript(ts, args[0])
	defer done()
	s, err := js.Stream(context.Background(), args[1])
	ts.Check(err)
	c := s.CachedInfo().Config
	c.MaxMsgSize, c.Duplicates = int32(size), window
	_, err = js.UpdateStream(context.Background(), c)
	ts.Check(err)
}

// cmdHolds is "holds URL STREAM COUNT".
func cmdHolds(ts *testscript.TestScript, _ bool, args []string) {
	js, done := dialScript(ts, args[0])
	defer done()
	s, err := js.Stream(context.Background(), args[1])
	ts.Check(err)
	if got := strconv.FormatUint(s.CachedInfo().State.Msgs, 10); got != args[2] {
		ts.Fatalf("%s holds %s messages, want %s", args[1], got, args[2])
	}
}

// cmdForget is "forget URL SUBJECT": it waits until the duplicate window of the
// stream that takes SUBJECT is over for what is stored by now.
func cmdForget(ts *testscript.TestScript, _ bool, args []string) {
	js, done := dialScript(ts, args[0])
	defer done()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, err := js.Publish(ctx, args[1], nil, jetstream.WithMsgID("forget"))
	ts.Check(err)
	for { // it forgets in the order of storing
		ack, err := js.Publish(ctx, args[1], nil, jetstream.WithMsgID("forget"))
		ts.Check(err)
		if !ack.Duplicate {
			return
		}
	}
}

// cmdReaches is "reaches URL STREAM SEQUENCE": it waits until the stream ends there.
func cmdReaches(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.ParseUint(args[2], 10, 64)
	ts.Check(err)
	js, done := dialScript(ts, args[0])
	defer done()
	var last uint64
	for end := time.Now().Add(60 * time.Second); last < want; {
		if time.Now().After(end) {
			ts.Fatalf("%s ends at %d, want %d", args[1], last, want)
		}
		<-time.After(20 * time.Millisecond)
		s, err := js.Stream(context.Background(), args[1])
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			continue
		}
		ts.Check(err)
		last = s.CachedInfo().State.LastSeq
	}
}

// cmdClose is "close URL STREAM": it takes the stream's subjects away.
func cmdClose(ts *testscript.TestScript, _ bool, args []string) {
	js, done := dialScript(ts, args[0])
	defer done()
	s, err := js.Stream(context.Background(), args[1])
	ts.Check(err)
	c := s.CachedInfo().Config
	c.Subjects = []string{"closed." + args[1]}
	_, err = js.UpdateStream(context.Background(), c)
	ts.Check(err)
}
