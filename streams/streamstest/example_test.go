package streamstest_test

import (
	"context"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/streams"
	"github.com/keyweir/keyweir/streams/streamstest"
)

// A test of an application's handler, against any JetStream: a nats-server in
// the test's process, or one beside it.
func Example() {
	var (
		t        *testing.T // of the test
		js       jetstream.JetStream
		consumer jetstream.Consumer
		handle   func(context.Context, *streams.Message) error
	)
	keys := streamstest.NewKeys()
	sealer := keys.NewSealer(t, streamstest.Sealing{Scope: "tenant/acme"})
	opener, err := streams.New(streams.Config{Keys: keys, Accept: sealer.Accept()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = opener.Close() }()

	m := sealer.Seal(t, "orders.acme.new", nil, []byte(`{"amount": 12}`))
	if _, err := js.PublishMsg(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	keys.Refuse("tenant/acme", keysvc.ErrSuspended) // how does it behave while the key is suspended?
	if err := opener.Consume(t.Context(), consumer, handle); err != nil {
		t.Log(err)
	}
}
