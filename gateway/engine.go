package gateway

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Engine is a way to publish to the sealed stream. All write the same messages
// under the same fence and recover alike, so a route may change its engine between
// two runs.
type Engine int

const (
	// EngineAuto takes durable for a stream of one replica on file whose server
	// syncs always, if the stream allows it, else async.
	EngineAuto Engine = iota
	// EngineFast publishes batches under the server's flow control, which needs
	// allow_batched (server 2.14). It spares the server acknowledgements, but a
	// single message may wait for the end of the batch before it.
	EngineFast
	// EngineDurable publishes atomic batches, one at a time, which needs
	// allow_atomic (server 2.12). A server that syncs always then syncs once a
	// batch instead of once a message.
	EngineDurable
	// EngineAsync publishes message by message and needs nothing of the server.
	EngineAsync
)

var engineNames = [...]string{EngineAuto: "auto", EngineFast: "fast", EngineDurable: "durable", EngineAsync: "async"}

func (e Engine) String() string {
	if e >= 0 && int(e) < len(engineNames) {
		return engineNames[e]
	}
	return fmt.Sprintf("Engine(%d)", int(e))
}

// ParseEngine parses "auto", "fast", "durable" or "async", and "" as "auto";
// anything else is [ErrConfig].
func ParseEngine(s string) (Engine, error) {
	if s == "" {
		return EngineAuto, nil
	}
	for e, name := range engineNames {
		if name == s {
			return Engine(e), nil
		}
	}
	return 0, fmt.Errorf("%w: engine %q, want auto, fast, durable or async", ErrConfig, s)
}

// chooseEngine says which engine serves a sealed stream, and why. The stream's
// configuration, as its leader reports it, tells what that server can do: older
// ones do not know the settings. version is the connected server's, for the text.
func chooseEngine(want Engine, c *jetstream.StreamConfig, sync time.Duration, version string) (Engine, string, error) {
	lacks := func(setting, since string) error {
		return fmt.Errorf("%w: engine %v needs %s on stream %s, which servers have from %s (connected to %s)", ErrEngine, want, setting, c.Name, since, version)
	}
	switch want {
	case EngineFast:
		if !c.AllowBatchPublish {
			return 0, "", lacks("allow_batched", "2.14")
		}
		return want, "set by the route", nil
	case EngineDurable:
		if !c.AllowAtomicPublish {
			return 0, "", lacks("allow_atomic", "2.12")
		}
		return want, "set by the route", nil
	case EngineAsync:
		return want, "set by the route", nil
	}
	switch always := sync < 0 && c.Replicas <= 1 && c.Storage == jetstream.FileStorage; {
	case always && c.AllowAtomicPublish:
		return EngineDurable, "one replica and sync_interval: always", nil
	case always:
		return EngineAsync, "the stream has no allow_atomic, which sync_interval: always calls for", nil
	}
	return EngineAsync, "it waits for nothing", nil
}

// engine publishes sealed messages in order, each under the fence: every message
// is stored at the sequence it was signed for, or refused. publish, drain and
// close belong to the worker's goroutine; the rest is safe for concurrent use.
type engine interface {
	// publish takes a copy of m and returns when it may be forgotten, not when it
	// is stored. It blocks while the window is full. After any error the engine is
	// of no more use: what was not acknowledged may or may not be stored.
	publish(ctx context.Context, m *outgoing) error
	// acked is how far everything was acknowledged, without a hole.
	acked() acked
	// failed is closed when the engine failed; err says why.
	failed() <-chan struct{}
	err() error
	// drain waits until all is acknowledged.
	drain(ctx context.Context) error
	close()
}

// acked is the last message of an unbroken row of acknowledgements.
type acked struct {
	sealed    uint64 // sequence in the sealed stream, or where partitions share it, a count that begins with one
	stored    uint64 // sequence that the next message must follow: sealed, or that of the last checkpoint
	source    uint64 // source sequence up to which all is sealed, or held; 0: none of this engine's
	previous  uint64 // of the last source message on the chain: source, unless messages were held
	timestamp int64  // of the source message at previous
	payload   uint64 // bytes of payload acknowledged by this engine
}

// engineConfig is what every engine starts with.
type engineConfig struct {
	nc         *nats.Conn
	stream     string
	signer     *signer
	lastSeq    uint64 // the first message must follow it
	window     int    // messages that may await their acknowledgement
	ackTimeout time.Duration
	plain      bool                     // what is stored is no envelope
	marks      *marker                  // writes checkpoints, where partitions share the stream; else nil
	onAck      func(took time.Duration) // one at a time is measured; nil: nobody wants to know
}

func newEngine(kind Engine, cfg engineConfig) (engine, error) {
	switch kind {
	case EngineFast:
		return newFast(cfg)
	case EngineDurable:
		return newDurable(cfg, defaultBatchLimits)
	}
	return newAsync(cfg)
}

// Headers of atomic batches.
const (
	headerBatchID     = "Nats-Batch-Id"
	headerBatchSeq    = "Nats-Batch-Sequence"
	headerBatchCommit = "Nats-Batch-Commit"
)

// engineHeaderSize is what the headers of any engine need at most: which message
// is too large must not depend on the engine.
func engineHeaderSize(stream string) int {
	return len("NATS/1.0\r\n\r\n") + len(HeaderVersion) + 1 + len(HeaderSource) + maxSourceHeader +
		len(jetstream.ExpectedStreamHeader) + len(stream) + len(jetstream.ExpectedLastSeqHeader) + 20 +
		len(headerBatchID) + batchIDSize + len(headerBatchSeq) + 4 + len(headerBatchCommit) + 1 + 7*len(": \r\n")
}

// batchIDSize is the length of rand.Text.
const batchIDSize = 26
