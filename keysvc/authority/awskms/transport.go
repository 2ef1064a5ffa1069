package awskms

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
)

// maxAnswer bounds what is read of one answer; the longest valid one is below 8 KiB.
const maxAnswer = 64 << 10

var errAnswerSize = errors.New("awskms: answer too long")

// transport is the HTTP client under the SDK: no redirects, which would carry key
// material elsewhere, a time limit for each attempt, bounded answers.
type transport struct{ client *http.Client }

// newTransport takes over what the SDK configured (AWS_CA_BUNDLE, proxies).
func newTransport(configured aws.HTTPClient, attempt time.Duration) *transport {
	b, ok := configured.(*awshttp.BuildableClient)
	if !ok {
		b = awshttp.NewBuildableClient()
	}
	tr := b.GetTransport() // a copy
	tr.MaxResponseHeaderBytes = maxAnswer
	tr.MaxIdleConnsPerHost = 16
	return &transport{&http.Client{
		Transport:     tr,
		Timeout:       attempt, // headers and body
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Do implements the SDK's HTTPClient. It sends a copy of the body: the SDK closes
// its own as soon as the header of the answer is there, which, if the answer is
// quick, breaks the connection under the rest of it.
func (t *transport) Do(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		b, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		req = req.Clone(req.Context())
		req.Body = io.NopCloser(bytes.NewReader(b))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	}
	resp, err := t.client.Do(req)
	if err != nil {
		return nil, err
	}
	resp.Body = &boundedBody{ReadCloser: resp.Body, left: maxAnswer}
	return resp, nil
}

type boundedBody struct {
	io.ReadCloser
	left int
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errAnswerSize
	}
	if len(p) > b.left {
		p = p[:b.left]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= n
	return n, err
}

// checkEndpoint refuses endpoints that would show key material to the network.
func checkEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("malformed endpoint, want https://HOST[:PORT]")
	}
	if u.Scheme == "https" || u.Scheme == "http" && loopback(u.Hostname()) {
		return nil
	}
	return fmt.Errorf("endpoint with scheme %q, want https (http only on loopback)", u.Scheme)
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// newRetryer is the SDK's standard retryer (a quota shared by all calls keeps an
// outage from multiplying requests) with our limits and pauses.
func newRetryer(l Limits) aws.Retryer {
	throttled := retry.IsErrorThrottles(retry.DefaultThrottles)
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts = l.MaxAttempts
		o.MaxBackoff = l.MaxBackoff
		o.Backoff = retry.BackoffDelayerFunc(func(attempt int, err error) (time.Duration, error) {
			return pause(l.MaxBackoff, attempt, throttled.IsErrorThrottle(err).Bool()), nil
		})
		o.Retryables = append(o.Retryables,
			retry.RetryableHTTPStatusCode{Codes: map[int]struct{}{http.StatusTooManyRequests: {}}})
	})
}

// pause is how long to wait after the given attempt, counted from 1: it doubles
// up to most, and a random half of it spreads the clients.
func pause(most time.Duration, attempt int, throttled bool) time.Duration {
	d := 50 * time.Millisecond
	if throttled {
		d = 200 * time.Millisecond
	}
	for i := 1; i < attempt && d < most; i++ {
		d *= 2
	}
	d = min(d, most)
	return d/2 + rand.N(d/2+1)
}
