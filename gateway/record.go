package gateway

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

// record is the position as PositionsBucket holds it, under <sealed
// stream>.<partition>. It says what the sealed stream cannot: where the relay
// stands when the message at LastSeq was removed by limits, how far the source
// was read without a match, and what was decided on the first run. It is written
// from acknowledgements only, by compare and swap.
type record struct {
	Version       int    `json:"v"`
	Route         string `json:"route"`
	Partition     uint32 `json:"partition"`
	Partitions    uint32 `json:"partitions"`
	Source        string `json:"source"`
	SourceCreated int64  `json:"source_created"` // unix nanoseconds
	Sealed        string `json:"sealed"`
	SealedCreated int64  `json:"sealed_created"` // unix nanoseconds
	LastSeq       uint64 `json:"last_seq"`       // of the sealed stream
	Chain         string `json:"chain"`
	Position      uint64 `json:"position"`  // every matching source message up to here is sealed, or lost and counted
	Previous      uint64 `json:"previous"`  // source sequence of the last sealed message; 0: none on this chain
	Timestamp     int64  `json:"timestamp"` // of the message at Previous, unix nanoseconds
	Since         int64  `json:"since"`     // see cursor
	Until         int64  `json:"until"`     // see cursor
	Gap           uint64 `json:"gap"`       // lost messages that no envelope has stated yet
	// Resumed: an operator chose this position over what the message at LastSeq
	// says, see Route.ResumeFrom. Cleared by the next sealed message.
	Resumed bool `json:"resumed"`
	// Hold is the stream that the route holds messages in, "" for none: without it,
	// they would be overtaken.
	Hold string `json:"hold,omitempty"`
	// Released says how far held messages were released when the sealed stream
	// ended at LastSeq, see marks; "" for no marks.
	Released string `json:"released,omitempty"`

	// Where partitions share the sealed stream, LastSeq is the partition's last
	// checkpoint, Tenure names who wrote the record, and Clean says that no sealed
	// message of the partition was stored after LastSeq: whoever wants to store one
	// takes it back first.
	Tenure string `json:"tenure,omitempty"`
	Clean  bool   `json:"clean,omitempty"`

	MAC string `json:"mac"`
}

const recordVersion = 1

// mac authenticates every other field.
func (r *record) mac(key keysvc.RouteKey) []byte {
	raw := envelope.ExposeDataKey(key)
	defer clear(raw)
	h := home{route: r.Route, sealed: r.Sealed, sealedCreated: r.SealedCreated, partition: r.Partition, source: r.Source}
	be := binary.BigEndian
	b := appendString(nil, labelRecord)
	b = h.append(append(b, byte(r.Version)))
	b = be.AppendUint32(b, r.Partitions)
	b = be.AppendUint64(b, uint64(r.SourceCreated))
	b = appendString(b, r.Chain)
	for _, n := range []uint64{r.LastSeq, r.Position, r.Previous, uint64(r.Timestamp), uint64(r.Since), uint64(r.Until), r.Gap} {
		b = be.AppendUint64(b, n)
	}
	b = append(b, flag(r.Resumed))
	if r.Hold != "" {
		b = appendString(b, r.Hold)
	}
	if r.Released != "" { // never without Hold
		b = appendString(b, r.Released)
	}
	if r.Tenure != "" {
		b = appendString(b, "\x00tenure") // no stream is called so
		b = appendString(b, r.Tenure)
		b = append(b, flag(r.Clean))
	}
	m := hmac.New(sha256.New, raw)
	m.Write(b)
	return m.Sum(nil)
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}

func (r *record) encode(key keysvc.RouteKey) ([]byte, error) {
	r.Version = recordVersion
	r.MAC = base64.RawURLEncoding.EncodeToString(r.mac(key))
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encoding position record: %w", err)
	}
	return b, nil
}

var errBadRecord = errors.New("position record was not written by this route")

// decodeRecord reads and authenticates a record: the MAC covers every value.
// Whatever is wrong is errBadRecord.
func decodeRecord(key keysvc.RouteKey, b []byte) (*record, error) {
	var r record
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return nil, fmt.Errorf("%w: %v", errBadRecord, err)
	}
	if _, err := d.Token(); err != io.EOF || r.Version != recordVersion {
		return nil, fmt.Errorf("%w: version %d", errBadRecord, r.Version)
	}
	mac, err := b64.DecodeString(r.MAC)
	if err != nil || !hmac.Equal(mac, r.mac(key)) {
		return nil, fmt.Errorf("%w: wrong MAC", errBadRecord)
	}
	return &r, nil
}

// recordStore keeps the revision of one record between writes.
type recordStore struct {
	b        *bucket
	key      string
	route    keysvc.RouteKey
	revision uint64
	last     record // as last read or written
}

// load reads the record: nil without one, errBadRecord for one that is not ours
// (it can still be overwritten).
func (s *recordStore) load(ctx context.Context) (*record, error) {
	raw, revision, err := s.b.get(ctx, s.key)
	if err != nil {
		return nil, fmt.Errorf("reading position record: %w", err)
	}
	s.revision, s.last = revision, record{}
	if raw == nil {
		return nil, nil
	}
	r, err := decodeRecord(s.route, raw)
	if err != nil {
		return nil, err
	}
	s.last = *r
	return r, nil
}

// save writes r unless it says what the bucket already holds. errRecordMoved:
// another instance wrote in between.
func (s *recordStore) save(ctx context.Context, r record) error {
	raw, err := r.encode(s.route)
	if err != nil {
		return err
	}
	if r == s.last {
		return nil
	}
	revision, err := s.b.put(ctx, s.key, raw, s.revision)
	if errors.Is(err, errRevision) {
		// It may be this very record: a write whose answer was lost.
		if held, rev, gerr := s.b.get(ctx, s.key); gerr == nil && bytes.Equal(held, raw) {
			revision, err = rev, nil
		}
	}
	if err != nil {
		if errors.Is(err, errRevision) {
			err = errRecordMoved
		}
		return fmt.Errorf("writing position record: %w", err)
	}
	s.revision, s.last = revision, r
	return nil
}

// unmoved makes sure that the record is the one last read or written.
func (s *recordStore) unmoved(ctx context.Context) error {
	_, revision, err := s.b.get(ctx, s.key)
	if err != nil {
		return fmt.Errorf("reading position record: %w", err)
	}
	if revision != s.revision {
		return fmt.Errorf("reading position record: %w", errRecordMoved)
	}
	return nil
}
