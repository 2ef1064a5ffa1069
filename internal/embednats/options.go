package embednats

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"

	"github.com/nats-io/nats-server/v2/server"
)

// ListenError says that the client address cannot be listened on. Unwrap gives
// the cause, syscall.EADDRINUSE where somebody else listens there.
type ListenError struct {
	Addr string // host:port
	Err  error
}

func (e *ListenError) Error() string {
	if errors.Is(e.Err, syscall.EADDRINUSE) {
		return fmt.Sprintf("listening on %s: address already in use", e.Addr)
	}
	return fmt.Sprintf("listening on %s: %v", e.Addr, e.Err)
}

// Unwrap returns the cause.
func (e *ListenError) Unwrap() error { return e.Err }

// Hint says what a user can do about it.
func (e *ListenError) Hint() string {
	if errors.Is(e.Err, syscall.EADDRINUSE) {
		return "another server, perhaps a nats-server, uses this address; stop it or listen on port 0 for a free one"
	}
	return "check that the host is an address of this machine and that the port may be used"
}

func (o Options) serverOptions() (*server.Options, error) {
	if o.MaxMemory < 0 || o.MaxStore < 0 {
		return nil, errors.New("configuring nats-server: negative JetStream limit")
	}
	if o.StoreDir == "" && (o.MaxStore > 0 || o.SyncAlways) {
		return nil, errors.New("configuring nats-server: a store limit or sync always needs a store directory")
	}
	opts := new(server.Options)
	if o.Config != "" {
		if err := opts.ProcessConfigString(o.Config); err != nil {
			return nil, fmt.Errorf("configuring nats-server: %w", err)
		}
		if opts.Host != "" || opts.Port != 0 || opts.StoreDir != "" || opts.ServerName != "" {
			return nil, errors.New("configuring nats-server: address, name and store directory are not set in Config")
		}
		if opts.JetStreamMaxMemory != 0 || opts.JetStreamMaxStore != 0 || opts.SyncAlways || opts.SyncInterval != 0 {
			return nil, errors.New("configuring nats-server: JetStream limits and sync are not set in Config")
		}
	}
	if o.StoreDir == "" {
		// Only the configuration's text can say "no file storage": a zero field
		// means the default.
		if err := opts.ProcessConfigString("jetstream { max_file_store: 0 }"); err != nil {
			return nil, fmt.Errorf("configuring nats-server: %w", err)
		}
	}
	if err := o.listen(opts); err != nil {
		return nil, err
	}
	opts.ServerName = o.Name
	opts.JetStream = true
	opts.StoreDir = o.StoreDir
	opts.JetStreamMaxMemory = o.MaxMemory
	opts.JetStreamMaxStore = o.MaxStore
	opts.SyncAlways = o.SyncAlways
	opts.NoSigs = true // signals belong to the process that embeds the server
	if o.Configure != nil {
		o.Configure(opts)
	}
	return opts, refuse(opts)
}

func (o Options) listen(opts *server.Options) error {
	if o.Listen == "" {
		opts.DontListen = true
		return nil
	}
	host, port, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return &ListenError{Addr: o.Listen, Err: err}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return &ListenError{Addr: o.Listen, Err: fmt.Errorf("invalid port %q", port)}
	}
	opts.Host, opts.Port = host, int(n)
	if n == 0 {
		opts.Port = server.RANDOM_PORT
	}
	return nil
}

// refuse rejects every way in that nobody asked this package for.
func refuse(o *server.Options) error {
	for _, l := range []struct {
		what string
		on   bool
	}{
		{"websocket", o.Websocket.Port != 0},
		{"mqtt", o.MQTT.Port != 0},
		{"leafnode", o.LeafNode.Port != 0 || len(o.LeafNode.Remotes) > 0},
		{"gateway", o.Gateway.Port != 0 || o.Gateway.Name != ""},
		{"monitoring", o.HTTPPort != 0 || o.HTTPSPort != 0},
		{"profiling", o.ProfPort != 0},
	} {
		if l.on {
			return fmt.Errorf("configuring nats-server: %s is not allowed in an embedded server", l.what)
		}
	}
	return nil
}
