package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/pattern"
)

// mapTimeout bounds the whole search: a few dozen requests.
const mapTimeout = 2 * time.Minute

// mapping is the search for one consumer's place in a relayed stream.
type mapping struct {
	from, to   *nats.Conn
	source     *jetstream.StreamInfo
	relayed    *jetstream.StreamInfo
	strip, add string // a relayed subject is add + the source's without strip
	out        *mappedConsumer
}

// mapConsumer finds out where the twin of a consumer begins and what it is like.
// It changes nothing.
func mapConsumer(ctx context.Context, from, to *nats.Conn, stream, consumer, relayed, name string) (*mappedConsumer, *jetstream.ConsumerConfig, error) {
	m := &mapping{from: from, to: to, out: &mappedConsumer{Stream: stream, Consumer: consumer, Relayed: relayed, Notes: []string{}}}
	info, err := m.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	m.out.Floor = info.AckFloor.Stream
	if info.Config.AckPolicy == jetstream.AckNonePolicy {
		m.out.Floor = info.Delivered.Stream
		m.out.notef("the consumer acknowledges nothing: what was delivered counts as done")
	} else if info.Delivered.Stream > m.out.Floor {
		m.out.AgainFrom, m.out.AgainTo, m.out.Unacked = m.out.Floor+1, info.Delivered.Stream, info.NumAckPending
	}
	m.out.InUse = info.NumWaiting > 0
	if err := m.findSubjects(ctx); err != nil {
		return nil, nil, err
	}
	filters := info.Config.FilterSubjects
	if info.Config.FilterSubject != "" {
		filters = []string{info.Config.FilterSubject}
	}
	if err := m.findStart(ctx, filters); err != nil {
		return nil, nil, err
	}
	cfg, err := m.twin(&info.Config, filters)
	if err != nil {
		return nil, nil, err
	}
	if name != "" {
		cfg.Durable = name
	}
	cfg.Name, m.out.Twin = cfg.Durable, cfg.Durable
	m.out.notef("positions were compared, not authenticated: only the route has the key")
	return m.out, cfg, nil
}

// open asks for the streams and the consumer, and checks that they fit.
func (m *mapping) open(ctx context.Context) (*jetstream.ConsumerInfo, error) {
	js, err := jetstream.New(m.from)
	if err != nil {
		return nil, fmt.Errorf("opening JetStream: %w", err)
	}
	s, err := js.Stream(ctx, m.out.Stream)
	if err != nil {
		return nil, streamError(m.out.Stream, err)
	}
	m.source = s.CachedInfo()
	// Not stream.Consumer, which refuses push consumers without saying so.
	reply, err := m.from.RequestWithContext(ctx, "$JS.API.CONSUMER.INFO."+m.out.Stream+"."+m.out.Consumer, nil)
	if err != nil {
		return nil, fmt.Errorf("asking for consumer %s: %w", printable(m.out.Consumer), err)
	}
	var info struct {
		Error *jetstream.APIError `json:"error"`
		jetstream.ConsumerInfo
	}
	if err := json.Unmarshal(reply.Data, &info); err != nil {
		return nil, fmt.Errorf("reading about consumer %s: %w", printable(m.out.Consumer), err)
	}
	switch c := &info.Config; {
	case info.Error != nil:
		return nil, withHint(fmt.Errorf("asking for consumer %s of stream %s: %w", printable(m.out.Consumer), printable(m.out.Stream), info.Error),
			"nats consumer ls %s lists them", printable(m.out.Stream))
	case c.DeliverSubject != "":
		return nil, notMapped("make a durable pull consumer for the application, which package streams reads with", "%s is a push consumer", m.out.Consumer)
	case c.Durable == "":
		return nil, notMapped("an ephemeral consumer keeps no place of its own", "%s is not durable", m.out.Consumer)
	}
	js, err = jetstream.New(m.to)
	if err != nil {
		return nil, fmt.Errorf("opening JetStream: %w", err)
	}
	if s, err = js.Stream(ctx, m.out.Relayed); err != nil {
		return nil, streamError(m.out.Relayed, err)
	}
	m.relayed = s.CachedInfo()
	if m.relayed.Config.Metadata[gateway.MetadataShared] != "" {
		return nil, notMapped("make a consumer by hand that begins where the stream does", "partitions share stream %s, so that its messages are not in the order of %s", m.out.Relayed, m.out.Stream)
	}
	if mode := m.relayed.Config.Metadata[gateway.MetadataMode]; mode != gateway.ModeRelayed && mode != gateway.ModeUnsealed {
		return nil, notMapped("name the sealed stream of a route of the gateway, or the plaintext stream of one of keyweir unseal",
			"stream %s has no mode of a relayed stream (%s=%q)", m.out.Relayed, gateway.MetadataMode, mode)
	}
	return &info.ConsumerInfo, nil
}

// subject maps a source pattern.
func (m *mapping) subject(p string) (string, bool) {
	rest, ok := strings.CutPrefix(p, m.strip)
	return m.add + rest, ok
}

// origin maps a relayed pattern back.
func (m *mapping) origin(p string) (string, bool) {
	rest, ok := strings.CutPrefix(p, m.add)
	return m.strip + rest, ok
}

// relayedOrigins are the patterns of the source that the relayed stream takes.
func (m *mapping) relayedOrigins() []string {
	var out []string
	for _, s := range m.relayed.Config.Subjects {
		if o, ok := m.origin(s); ok {
			out = append(out, o)
		}
	}
	return out
}

// twin is the configuration of the consumer on the relayed stream.
func (m *mapping) twin(c *jetstream.ConsumerConfig, filters []string) (*jetstream.ConsumerConfig, error) {
	t := *c
	t.DeliverPolicy, t.OptStartSeq, t.OptStartTime = jetstream.DeliverByStartSequencePolicy, m.out.Start, nil
	t.FilterSubject, t.FilterSubjects = "", nil
	origins := m.relayedOrigins()
	wanted := filters
	if len(wanted) == 0 {
		wanted = m.source.Config.Subjects
	}
	for _, w := range wanted {
		if !slices.ContainsFunc(origins, func(o string) bool { return pattern.Covers(o, w) }) {
			return nil, notMapped("map it to a stream whose route relays all that the consumer reads", "the consumer reads %s, and %s holds only what came from %s", w, m.out.Relayed, strings.Join(origins, ", "))
		}
	}
	m.out.Filters = []string{}
	for _, f := range filters {
		s, ok := m.subject(f)
		if !ok {
			return nil, notMapped("give the consumer filters that name whole subjects", "the filter %s cannot be mapped to subjects of %s", f, m.out.Relayed)
		}
		m.out.Filters = append(m.out.Filters, s)
	}
	switch len(m.out.Filters) {
	case 0:
	case 1:
		t.FilterSubject = m.out.Filters[0]
	default:
		t.FilterSubjects = m.out.Filters
	}
	if t.HeadersOnly {
		t.HeadersOnly = false
		m.out.notef("headers_only is left out: without its payload an envelope cannot be opened")
	}
	if t.MaxDeliver > 0 {
		m.out.notef("max_deliver %d begins to count again", t.MaxDeliver)
	}
	t.Metadata = maps.Clone(c.Metadata)
	maps.DeleteFunc(t.Metadata, func(k, _ string) bool { return strings.HasPrefix(k, "_nats.") })
	if t.Metadata == nil {
		t.Metadata = map[string]string{}
	}
	t.Metadata["keyweir-mapped-from"] = fmt.Sprintf("%s/%s at %d", m.out.Stream, m.out.Consumer, m.out.Floor)
	return &t, nil
}

// storedRequest asks a stream's leader for a message: the one at Seq, or with Next
// the first one at Seq or later whose subject matches.
type storedRequest struct {
	Seq  uint64 `json:"seq"`
	Next string `json:"next_by_subj,omitempty"`
}

type storedMessage struct {
	Subject string    `json:"subject"`
	Seq     uint64    `json:"seq"`
	Header  []byte    `json:"hdrs"`
	Time    time.Time `json:"time"`
}

// getStored reads one message through the leader; nil if the stream holds none.
func getStored(ctx context.Context, nc *nats.Conn, stream string, r storedRequest) (*storedMessage, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encoding message request: %w", err)
	}
	reply, err := nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+stream, body)
	if err != nil {
		return nil, fmt.Errorf("reading from stream %s: %w", printable(stream), err)
	}
	var resp struct {
		Error   *jetstream.APIError `json:"error"`
		Message *storedMessage      `json:"message"`
	}
	switch err := json.Unmarshal(reply.Data, &resp); {
	case err != nil:
		return nil, fmt.Errorf("reading from stream %s: %w", printable(stream), err)
	case resp.Error != nil && resp.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nil, nil
	case resp.Error != nil:
		return nil, fmt.Errorf("reading from stream %s: %w", printable(stream), resp.Error)
	case resp.Message == nil:
		return nil, errors.New("reading from stream: empty answer")
	}
	return resp.Message, nil
}
