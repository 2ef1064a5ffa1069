package gateway

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

// benchKeys grants sessions of one data key.
type benchKeys struct {
	key    envelope.DataKey
	record *envelope.Record
	rules  *keysvc.ScopeRules
}

func newBenchKeys(b testing.TB) *benchKeys {
	b.Helper()
	key, id := envelope.GenerateDataKey(), envelope.NewRecordID()
	part, err := envelope.PartCommitment(envelope.ExposeDataKey(key), id, 1)
	if err != nil {
		b.Fatal(err)
	}
	rules, err := keysvc.NewScopeRules([]keysvc.ScopeRule{{Match: "in.*.>", Scope: "{{wildcard(1)}}"}})
	if err != nil {
		b.Fatal(err)
	}
	return &benchKeys{key, &envelope.Record{
		Core: envelope.Core{
			Scheme: envelope.SchemeSingle, K: 1, N: 1, RecordID: id, Commitment: key.Commit(),
			Context:     []envelope.Pair{{Name: envelope.ContextScope, Value: "x"}},
			Authorities: []envelope.PartHolder{{Authority: "local", Commitment: part}},
		},
		Wraps: []envelope.Wrap{{ManagedKey: "k", Version: "1", Bytes: []byte("wrapped")}},
	}, rules}
}

func (k *benchKeys) Scopes(context.Context) (*keysvc.ScopeRules, error) { return k.rules, nil }

func (k *benchKeys) RouteKey(context.Context, string) (keysvc.RouteKey, error) { return k.key, nil }

func (k *benchKeys) Generate(_ context.Context, subjects []string) ([]keysvc.SealKey, error) {
	out := make([]keysvc.SealKey, len(subjects))
	for i, s := range subjects {
		scope, _, err := k.rules.Scope(s)
		if err != nil {
			return nil, err
		}
		grant, err := envelope.NewGrant(k.key, k.record)
		if err != nil {
			return nil, err
		}
		out[i] = keysvc.SealKey{
			Scope: scope, Grant: grant, Messages: envelope.MaxSessionMessages, Bytes: envelope.MaxSessionBytes,
			NotAfter: time.Now().Add(time.Hour), RefreshAt: time.Now().Add(time.Hour),
		}
	}
	return out, nil
}

// sealLoop is what the worker does per message between the source and the
// connection: keys, headers, seal, position.
type sealLoop struct {
	sealer *sealer
	signer *signer
	items  []item
	seq    uint64
}

func newSealLoop(b testing.TB, size int, header nats.Header) *sealLoop {
	b.Helper()
	keys := newBenchKeys(b)
	inst, _, err := newInstruments(noop.NewMeterProvider())
	if err != nil {
		b.Fatal(err)
	}
	ring := newKeyring(keys, envelope.SessionConfig{Record: envelope.RecordReference}, "sealed.", newRouteMetrics(inst))
	b.Cleanup(ring.close)
	if err := ring.loadRules(context.Background()); err != nil {
		b.Fatal(err)
	}
	l := &sealLoop{
		sealer: &sealer{keys: ring, maxSize: 1 << 20, fixed: engineHeaderSize("SEALED")},
		signer: newSigner(keys.key, &home{route: "r", sealed: "SEALED", source: "IN"}, envelope.ChainID{1}, 1),
	}
	for i := range batchSize {
		m := &nats.Msg{Subject: fmt.Sprintf("in.t%d.orders.created", i%16), Header: header, Data: make([]byte, size)}
		l.items = append(l.items, item{msg: m, timestamp: 1700000000000000000})
	}
	return l
}

func (l *sealLoop) batch(b testing.TB) {
	for i := range l.items {
		l.seq++
		l.items[i].seq = l.seq
	}
	if n, err := l.sealer.keys.prepare(context.Background(), l.items); n != len(l.items) {
		b.Fatal(err)
	}
	for i := range l.items {
		o, err := l.sealer.seal(&l.items[i], l.items[i].seq-1, 0, time.Now())
		if err != nil {
			b.Fatal(err)
		}
		if l.signer.header(o.source, o.source, o.previous, o.timestamp) == "" {
			b.Fatal("empty position")
		}
	}
}

func BenchmarkSealLoop(b *testing.B) {
	header := nats.Header{"Content-Type": {"application/json"}, "Trace": {"abc"}}
	for _, size := range []int{256, 1024, 16384} {
		for name, h := range map[string]nats.Header{"plain": nil, "headers": header} {
			b.Run(fmt.Sprintf("%s/%dB", name, size), func(b *testing.B) {
				l := newSealLoop(b, size, h)
				l.batch(b)
				b.ReportAllocs()
				b.SetBytes(int64(size))
				for i := 0; i < b.N; i += batchSize {
					l.batch(b)
				}
			})
		}
	}
}

// The hot path allocates the position's text and nothing else.
func TestSealLoopAllocations(t *testing.T) {
	l := newSealLoop(t, 1024, nats.Header{"Content-Type": {"application/json"}})
	l.batch(t)
	perBatch := testing.AllocsPerRun(20, func() { l.batch(t) })
	if per := perBatch / batchSize; per > 1.1 {
		t.Errorf("%.2f allocations per message, want 1", per)
	}
}
