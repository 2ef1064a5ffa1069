package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

// KeyOpener opens data keys: *keysvc.Client is one. The Keys of a gateway must be
// one too if a route holds messages; it is asked for the holding scope only.
type KeyOpener interface {
	OpenKeys(ctx context.Context, records []keysvc.Record) ([]keysvc.OpenedKey, error)
}

var _ KeyOpener = (*keysvc.Client)(nil)

// maxHoldKeys bounds the data keys that are open at a time.
const maxHoldKeys = 16

// holdOpener opens held messages. It belongs to the worker's goroutine.
type holdOpener struct {
	keys    KeyOpener
	scope   string
	readers map[envelope.KeyID]*heldKey
}

// heldKey is an opened data key, until its lease ends.
type heldKey struct {
	reader   *envelope.KeyReader
	notAfter time.Time
}

func newHoldOpener(keys Keys, scope string) *holdOpener {
	o, _ := keys.(KeyOpener) // New made sure
	return &holdOpener{keys: o, scope: scope, readers: make(map[envelope.KeyID]*heldKey)}
}

// close drops every key.
func (o *holdOpener) close() {
	for id, k := range o.readers {
		k.reader.Close()
		delete(o.readers, id)
	}
}

// open opens the message that was held under a link. Errors: ErrKeys if the key
// cannot be had for now; ErrHold for a message that is not what was held.
func (o *holdOpener) open(ctx context.Context, it *item, origin string, held *link) (item, error) {
	broken := func(format string, args ...any) (item, error) {
		return item{}, fmt.Errorf("%w: held message %d %s", ErrHold, it.seq, fmt.Sprintf(format, args...))
	}
	e, err := envelope.Parse(it.msg.Data)
	if err != nil {
		return broken("is no envelope: %v", err)
	}
	r, err := o.reader(ctx, &e)
	if err != nil {
		return item{}, err
	}
	opened, err := r.Open(nil, &e)
	if err != nil {
		return broken("does not open: %v", err)
	}
	m := opened.Meta.Meta()
	if m.SealedSubject != it.msg.Subject || m.OriginSubject != origin || m.Chain != held.chain ||
		m.Sequence != held.sequence || m.Previous != held.previous || m.Published != held.timestamp {
		return broken("is another one than its header says")
	}
	msg := &nats.Msg{Subject: origin, Data: opened.Payload}
	for _, h := range m.Headers {
		if msg.Header == nil {
			msg.Header = make(nats.Header)
		}
		msg.Header[h.Name] = append(msg.Header[h.Name], h.Value)
	}
	return item{msg: msg, seq: held.sequence, timestamp: held.timestamp}, nil
}

func (o *holdOpener) reader(ctx context.Context, e *envelope.Envelope) (*envelope.KeyReader, error) {
	now := time.Now()
	if k := o.readers[e.KeyID]; k != nil {
		if now.Before(k.notAfter) {
			return k.reader, nil
		}
		k.reader.Close()
		delete(o.readers, e.KeyID)
	}
	ctx, cancel := context.WithTimeout(ctx, keysTimeout)
	defer cancel()
	got, err := o.keys.OpenKeys(ctx, []keysvc.Record{{KeyID: e.KeyID, Bytes: e.Record}})
	if err == nil && len(got) != 1 {
		err = errors.New("no answer")
	}
	if err == nil {
		err = got[0].Err
	}
	if err != nil {
		return nil, fmt.Errorf("%w: opening held messages: %w", ErrKeys, err)
	}
	defer got[0].Key.Clear()
	record, err := envelope.ParseRecord(got[0].Record)
	if err != nil {
		return nil, fmt.Errorf("%w: opening held messages: %v", ErrKeys, err)
	}
	if scope := record.Core.Scope(); scope != o.scope || record.Core.ID() != e.KeyID {
		return nil, fmt.Errorf("%w: a held message has a key of scope %s, want %s", ErrHold, scope, o.scope)
	}
	r, err := envelope.NewKeyReader(record, got[0].Key, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: opening held messages: %v", ErrKeys, err)
	}
	if len(o.readers) >= maxHoldKeys {
		o.close()
	}
	o.readers[e.KeyID] = &heldKey{r, got[0].NotAfter}
	return r, nil
}
