package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// requestTimeout bounds one request to JetStream.
const requestTimeout = 5 * time.Second

// stored is one message as a stream's leader holds it.
type stored struct {
	subject string
	seq     uint64
	header  nats.Header
	data    []byte
	time    time.Time
}

type getRequest struct {
	Seq     uint64 `json:"seq,omitempty"`
	LastFor string `json:"last_by_subj,omitempty"`
}

type getResponse struct {
	Error   *jetstream.APIError `json:"error"`
	Message *struct {
		Subject string    `json:"subject"`
		Seq     uint64    `json:"seq"`
		Header  []byte    `json:"hdrs"`
		Data    []byte    `json:"data"`
		Time    time.Time `json:"time"`
	} `json:"message"`
}

// errNoMessage: the stream does not hold that message.
var errNoMessage = errors.New("no such message")

// getFromLeader reads one message through STREAM.MSG.GET, which only the leader
// answers. jetstream.Stream.GetMsg is not used: for a stream with allow_direct it
// asks any replica, and a follower may lag behind what was acknowledged.
func getFromLeader(ctx context.Context, nc *nats.Conn, stream string, req getRequest) (*stored, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("encoding message request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	reply, err := nc.RequestWithContext(ctx, jetstream.DefaultAPIPrefix+"STREAM.MSG.GET."+stream, body)
	if err != nil {
		return nil, fmt.Errorf("reading from stream %s: %w", stream, err)
	}
	var resp getResponse
	if err := json.Unmarshal(reply.Data, &resp); err != nil {
		return nil, fmt.Errorf("reading from stream %s: %w", stream, err)
	}
	switch {
	case resp.Error != nil && resp.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nil, errNoMessage
	case resp.Error != nil:
		return nil, fmt.Errorf("reading from stream %s: %w", stream, resp.Error)
	case resp.Message == nil:
		return nil, fmt.Errorf("reading from stream %s: empty answer", stream)
	}
	m := &stored{subject: resp.Message.Subject, seq: resp.Message.Seq, data: resp.Message.Data, time: resp.Message.Time}
	if len(resp.Message.Header) > 0 {
		if m.header, err = nats.DecodeHeadersMsg(resp.Message.Header); err != nil {
			return nil, fmt.Errorf("reading headers from stream %s: %w", stream, err)
		}
	}
	return m, nil
}

// streamInfo asks for a stream's configuration and state.
func streamInfo(ctx context.Context, js jetstream.JetStream, stream string) (*jetstream.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return nil, fmt.Errorf("asking for stream %s: %w", stream, err)
	}
	return s.CachedInfo(), nil
}
