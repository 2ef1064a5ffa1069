package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/plainrelay"
)

// relayOrder is a route of the benchmark.
type relayOrder struct {
	URL            string // "": the server in the worker's process
	Source, Sealed string // streams; the second one, or one for each partition, is made
	Partitions     int
	Memory         bool // the second one's storage, else file
	SyncAlways     bool
	Engine         string
	Plain          bool // without sealing; Sealed must be one of plainrelay's
}

const (
	relayPrefix  = "KEYWEIR_BENCH_"
	relaySource  = relayPrefix + "SOURCE"
	relayPattern = "bench.*.*"
)

// relaySubjects is how many subjects, and scopes, the messages have.
const relaySubjects = 16

// relaySubject is the subject of message i, bench.p<partition>.t<number>.
func relaySubject(i, partitions int) string {
	n := i % relaySubjects
	return fmt.Sprintf("bench.p%d.t%d", n%partitions, n)
}

// partitionPattern is what a partition takes.
func partitionPattern(partition, partitions int) string {
	if partitions == 1 {
		return relayPattern
	}
	return fmt.Sprintf("bench.p%d.*", partition)
}

// partitionStreams are the names of a route's sealed streams, as the gateway makes
// them.
func partitionStreams(stream string, partitions int) []string {
	if partitions == 1 {
		return []string{stream}
	}
	out := make([]string, partitions)
	for i := range out {
		out[i] = fmt.Sprintf("%s-%d", stream, i)
	}
	return out
}

// workerRelay is a gateway at work in a worker process.
type workerRelay struct {
	g      *gateway.Gateway
	cancel context.CancelFunc
	done   chan struct{}
	err    error // set before done is closed
}

func startRelay(ctx context.Context, o *relayOrder, w *benchWorker) (*workerRelay, error) {
	if !strings.HasPrefix(o.Sealed, relayPrefix) || o.Source != relaySource {
		return nil, errors.New("relaying: not the streams of a benchmark")
	}
	engine, err := gateway.ParseEngine(o.Engine)
	if err != nil {
		return nil, err
	}
	keys, err := newRelayKeys(relayPattern)
	if err != nil {
		return nil, err
	}
	if w.server == nil { // whose streams may be in memory
		gateway.TuneGC() // like the gateway command
	}
	if err := w.connect(o.URL); err != nil {
		return nil, err
	}
	r := gateway.Route{
		Name: o.Sealed, Engine: engine, // a new name each time, and with it a new route key
		Source: gateway.Source{Conn: w.source, Stream: o.Source, Subjects: []string{relayPattern}, AfterSeal: gateway.AfterSealKeep, Start: gateway.StartFirst()},
		Sealed: gateway.Sealed{Conn: w.sealed, Stream: o.Sealed, Subject: "sealed.>", Create: &gateway.CreateSealed{}},
	}
	if o.Partitions > 1 {
		r.Source.Subjects = nil
		for i := range o.Partitions {
			r.Source.Partitions = append(r.Source.Partitions, []string{partitionPattern(i, o.Partitions)})
		}
	}
	if o.Memory {
		r.Sealed.Create.Storage = gateway.MemoryStorage
	}
	if o.SyncAlways {
		r.Sealed.SyncInterval = gateway.SyncAlways
	}
	g, err := gateway.New(gateway.Config{Keys: keys, Routes: []gateway.Route{r}, Instance: "bench", ClaimTTL: 2 * time.Second, Logger: w.log})
	if err != nil {
		return nil, err
	}
	if o.Plain {
		if err := g.RelayPlain(plainrelay.ForBenchmark()); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	wr := &workerRelay{g: g, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(wr.done)
		wr.err = g.Run(ctx)
	}()
	return wr, nil
}

// stop ends the relay and says which engine it used.
func (r *workerRelay) stop() (string, error) {
	r.cancel()
	<-r.done
	s := r.g.Stats()[0]
	if r.err != nil {
		return "", fmt.Errorf("relaying: %w", r.err)
	}
	return s.Engine.String(), nil
}
