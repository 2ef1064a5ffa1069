package streams_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/streams"
)

// The whole of it: a profile, a consumer as the team has it already, a handler.
func ExampleNewFromProfile() {
	ctx := context.Background()
	nc, err := nats.Connect(os.Getenv("NATS_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		log.Fatal(err)
	}
	consumer, err := js.Consumer(ctx, "SEALED_ORDERS", "billing")
	if err != nil {
		log.Fatal(err)
	}

	opener, err := streams.NewFromProfile(ctx, nc, "/etc/keyweir/billing.json")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = opener.Close() }()
	err = opener.Consume(ctx, consumer, func(ctx context.Context, m *streams.Message) error {
		fmt.Printf("%s: %s\n", m.Subject(), m.Data())
		return nil // acknowledges
	})
	log.Fatal(err)
}

// A loop instead of a handler: the loop acknowledges.
func ExampleOpener_Messages() {
	var (
		ctx      context.Context
		opener   *streams.Opener
		consumer jetstream.Consumer
	)
	for m, err := range opener.Messages(ctx, consumer) {
		if err != nil {
			log.Print(err) // the last one: the zero policy stops
			break
		}
		fmt.Println(m.Subject(), m.Sequence(), m.Published())
		if err := m.Ack(); err != nil {
			log.Print(err)
		}
	}
}

// Messages that will never open go to a dead-letter subject, still sealed.
func ExamplePark() {
	var (
		nc *nats.Conn
		js jetstream.JetStream
	)
	profile, err := streams.LoadProfile("/etc/keyweir/billing.json")
	if err != nil {
		log.Fatal(err)
	}
	cfg, err := profile.Config(nc)
	if err != nil {
		log.Fatal(err)
	}
	cfg.OnUndecryptable = streams.Park(js, "dead.billing")
	opener, err := streams.New(cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = opener.Close() }()
}

// A program with a loop of its own asks what an error means.
func ExampleVerdict() {
	for _, err := range []error{streams.ErrSuspended, streams.ErrTampered, streams.ErrUnknownKey, errors.New("from elsewhere")} {
		fmt.Println(streams.Verdict(err), "-", err)
	}
	// Output:
	// hold - streams: key suspended
	// reject - streams: message was tampered with
	// retry - streams: key unknown to the key service
	// retry - from elsewhere
}
