//go:build unix

package cli_test

import (
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestReload changes the configuration of a gateway at work, by SIGHUP: nothing is
// lost, doubled or reordered, and what cannot be applied changes nothing.
func TestReload(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.stream("orders")
	f.stream("bills")
	orders, bills := route("orders", "", ""), route("bills", "", "")
	f.configure(orders)
	g := f.gateway()
	f.said(g, "msg=relaying", 1)

	// Both streams are written to all the time.
	stop, sent := make(chan struct{}), make(chan int, 1)
	fail := make(chan error, 1)
	go func() {
		const batch = 100
		for n := 0; ; n += batch {
			select {
			case <-stop:
				sent <- n
				return
			default:
			}
			for _, name := range []string{"orders", "bills"} {
				if err := f.publish(name, n+1, n+batch); err != nil {
					fail <- err
					sent <- n
					return
				}
			}
		}
	}()
	reloads, refusals := 0, 0
	hangup := func(done string, count *int) {
		t.Helper()
		if err := g.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		*count++
		f.said(g, done, *count)
	}
	reload := func(want string) {
		t.Helper()
		f.sealed("orders", int(f.state("SEALED_ORDERS").LastSeq)+200) // at work
		hangup(`msg="configuration reloaded"`, &reloads)
		if !strings.Contains(g.String(), want) {
			t.Errorf("no %q in\n%s", want, g)
		}
	}
	refuse := func(want ...string) {
		t.Helper()
		hangup("the configuration before it stays in force", &refusals)
		for _, w := range want {
			if !strings.Contains(g.String(), w) {
				t.Errorf("no %q in\n%s", w, g)
			}
		}
	}

	f.configure(orders, bills)
	reload(`unchanged=orders restarted="" started=bills removed=""`)
	f.sealed("bills", 200)
	f.configure(route("orders", "", "window: 64"), bills)
	reload(`unchanged=bills restarted=orders started="" removed=""`)

	// Refused: a value, a text that is no YAML, two routes in one's way, a file
	// that is gone, and what a process keeps for life.
	f.configure(route("orders", "after_seal: later", ""))
	refuse("path=gateway.routes[0].source.after_seal", "line=8")
	f.write("service: [")
	refuse("keyweir.yaml:1:")
	f.configure(orders, strings.ReplaceAll(bills, "SEALED_BILLS", "SEALED_ORDERS"))
	refuse("path=gateway.routes[1].sealed.stream")
	if err := os.Remove(f.config()); err != nil {
		t.Fatal(err)
	}
	refuse("no such file")
	f.write(strings.Replace(fleetYAML, "ROUTES\n", orders, 1) + "telemetry: {log: {level: debug}}\n")
	refuse("telemetry cannot change while the gateway runs", "hint=\"restart the gateway")
	f.sealed("orders", int(f.state("SEALED_ORDERS").LastSeq)+200)
	f.sealed("bills", int(f.state("SEALED_BILLS").LastSeq)+200)

	// Another connection, other settings of one, another client of the key service.
	f.configure(strings.Replace(orders, "sealed: {nats: hub", "sealed: {nats: again", 1), bills)
	reload(`unchanged=bills restarted=orders started="" removed=""`)
	f.write(strings.Replace(strings.Replace(fleetYAML, "ROUTES\n", orders+bills, 1), `hub: {url: "URL"}`, `hub: {url: "URL", inbox_prefix: _MINE}`, 1))
	reload(`unchanged="" restarted=orders,bills started="" removed=""`)
	f.write(strings.Replace(strings.Replace(fleetYAML, "ROUTES\n", bills+orders, 1), "pins: [KEYSVC]", "pins: [KEYSVC], timeout: 4s", 1))
	reload(`unchanged="" restarted=bills,orders started="" removed=""`)
	f.configure(orders)
	reload("removed=bills")
	f.configure(bills, orders)
	reload(`unchanged=orders restarted="" started=bills removed=""`)

	close(stop)
	n := <-sent
	select {
	case err := <-fail:
		t.Fatal(err)
	default:
	}
	f.sealed("orders", n)
	f.sealed("bills", n)
	f.stop(g)
	f.verify("orders", n)
	f.verify("bills", n)
	for _, name := range []string{"ORDERS", "BILLS"} {
		if left := f.state(name).Msgs; left != 0 {
			t.Errorf("%d messages of %s were not released", left, name)
		}
	}
	t.Logf("%d messages each", n)
}
