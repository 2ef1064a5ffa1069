//go:build unix

package cli_test

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/natstest"
)

// unsealRoute opens what the fleet's route orders seals, into a stream of its own.
func unsealRoute(name, settings string) string {
	return fmt.Sprintf(`    - name: %s
      sealed: {nats: hub, stream: SEALED_ORDERS, subjects: ["sealed.>"], start: first}
      plain: {nats: again, stream: PLAIN_%s, subjects: ["orders.*"], prefix: %s., create: {storage: memory}, sync_interval: always}
      %s
`, name, strings.ToUpper(name), name, settings)
}

// unseal writes a configuration with an unseal section.
func (f *fleet) unseal(more string, routes ...string) {
	f.t.Helper()
	section := "unseal:\n  identity: \"file:DIR/reader.nk\"\n  profile: \"DIR/unseal.json\"\n  nats: hub\n  claim_ttl: 1s\n  routes:\n" + strings.Join(routes, "")
	f.write(strings.Replace(fleetYAML, "ROUTES\n", route("orders", "after_seal: keep", ""), 1) + section + more)
}

// TestReloadUnseal is TestReload for unsealing.
func TestReloadUnseal(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.stream("orders")
	f.profile("unseal", 0)
	back, two := unsealRoute("back", ""), unsealRoute("two", "")
	f.unseal("", back)
	f.said(f.gateway(), "msg=relaying", 1)
	p := f.start("unsealing started", "unseal", "--config", f.config())
	f.said(p, "msg=relaying", 1)

	n := 0
	// more seals messages, part of which are on their way when it returns.
	more := func() {
		t.Helper()
		if err := f.publish("orders", n+1, n+300); err != nil {
			t.Fatal(err)
		}
		n += 300
		f.sealed("orders", n-200)
	}
	reloads, refusals := 0, 0
	hangup := func(done string, count *int, want ...string) {
		t.Helper()
		more()
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		*count++
		f.said(p, done, *count)
		for _, w := range want {
			if !strings.Contains(p.String(), w) {
				t.Errorf("no %q in\n%s", w, p)
			}
		}
	}
	reload := func(want string) {
		t.Helper()
		hangup(`msg="configuration reloaded"`, &reloads, want)
	}
	refuse := func(want ...string) {
		t.Helper()
		hangup("the configuration before it stays in force", &refusals, want...)
	}

	f.unseal("", back, two)
	reload(`unchanged=unseal-back restarted="" started=unseal-two removed=""`)
	f.unseal("", unsealRoute("back", "window: 64"), two)
	reload(`unchanged=unseal-two restarted=unseal-back started="" removed=""`)

	f.unseal("", unsealRoute("back", "on_undecryptable: ignore"))
	refuse("path=unseal.routes[0].on_undecryptable")
	f.unseal("", unsealRoute("back", "on_undecryptable: park"))
	refuse("path=unseal.routes[0].park")
	f.configure(route("orders", "after_seal: keep", ""))
	refuse("has no unseal section")
	f.unseal("telemetry: {log: {level: debug}}\n", back)
	refuse("telemetry cannot change while unsealing runs", `hint="restart it`)
	f.unseal("", strings.Replace(back, "orders.*", "other.*", 1), two)
	f.write(strings.Replace(f.yaml, "claim_ttl: 1s\n  routes:\n    - name: back", "claim_ttl: 2s\n  routes:\n    - name: back", 1))
	refuse("unseal.claim_ttl cannot change")

	// Another profile: what opens is made anew, and the one before it closed.
	f.unseal("", back, two)
	f.profile("unseal", 4*time.Second)
	reload(`unchanged="" restarted=unseal-back,unseal-two started="" removed=""`)
	f.unseal("", back, two)
	reload(`unchanged=unseal-back,unseal-two restarted="" started="" removed=""`)
	f.unseal("", two)
	reload("removed=unseal-back")
	f.unseal("", two, back)
	reload(`unchanged=unseal-two restarted="" started=unseal-back removed=""`)
	more()

	for _, name := range []string{"back", "two"} {
		f.opened(name, n)
	}
	f.stop(p)
}

// opened waits for messages 1..n of plaintext, and wants each once and in order.
func (f *fleet) opened(name string, n int) {
	f.t.Helper()
	stream := "PLAIN_" + strings.ToUpper(name)
	natstest.Eventually(f.t, 60*time.Second, func() error {
		if got := f.state(stream).LastSeq; got < uint64(n) {
			return fmt.Errorf("%d of %d messages of %s are opened", got, n, name)
		}
		return nil
	})
	c, err := f.js.OrderedConsumer(f.t.Context(), stream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		f.t.Fatal(err)
	}
	it, err := c.Messages()
	if err != nil {
		f.t.Fatal(err)
	}
	defer it.Stop()
	for i := 1; i <= n; i++ {
		m, err := it.Next(jetstream.NextMaxWait(30 * time.Second))
		if err != nil {
			f.t.Fatalf("%s: reading message %d: %v", stream, i, err)
		}
		if got, want := string(m.Data()), "orders "+strconv.Itoa(i); got != want {
			f.t.Fatalf("%s: message %d is %q, want %q", stream, i, got, want)
		}
	}
	if got := f.state(stream).Msgs; got != uint64(n) {
		f.t.Errorf("%s holds %d messages, want %d", stream, got, n)
	}
}
