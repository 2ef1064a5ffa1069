package sealedcheck

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/internal/envelope"
)

// Headers of a sealed message, in clear.
const (
	headerVersion = "Keyweir"
	headerSource  = "Keyweir-Source"
)

// position is what the header Keyweir-Source says:
//
//	<chain>:<sequence>:<previous>:<source created>:<source timestamp>:<mac>
//
// On a message that the gateway had held back, five more fields say where the route
// stood when it was released, as far as it concerns the gateway only:
//
//	<chain>:<sequence>:<previous>:<source created>:<source timestamp>:
//	<route's chain>:<position>:<previous>:<source created>:<source timestamp>:<mac>
type position struct {
	chain              envelope.ChainID
	sequence, previous uint64
	created            int64 // unix nanoseconds
}

const (
	linkFields  = 5
	maxLink     = 32 + 4*(1+20) + 1
	maxPosition = 2*maxLink + 43
)

var b64 = base64.RawURLEncoding.Strict()

// Why headers are not those of a sealed message.
var (
	errVersionHeader   = errors.New("the header Keyweir is not 1")
	errNoSource        = errors.New("there is no header Keyweir-Source")
	errSourceTwice     = errors.New("there is more than one header Keyweir-Source")
	errMalformedSource = errors.New("the header Keyweir-Source is malformed")
)

// readHeaders returns the position in the headers of a sealed message.
func readHeaders(h nats.Header) (position, error) {
	if v := h[headerVersion]; len(v) != 1 || v[0] != "1" {
		return position{}, errVersionHeader
	}
	switch v := h[headerSource]; len(v) {
	case 0:
		return position{}, errNoSource
	case 1:
		return parsePosition(v[0])
	}
	return position{}, errSourceTwice
}

// parsePosition accepts exactly what a gateway writes, save that nobody here can
// check the MAC.
func parsePosition(value string) (position, error) {
	f := strings.Split(value, ":")
	n := len(f) - 1
	if len(value) > maxPosition || n != linkFields && n != 2*linkFields {
		return position{}, errMalformedSource
	}
	mac, err := b64.DecodeString(f[n])
	p, ok := parseLink(f)
	if err != nil || len(mac) != sha256.Size || !ok || p.previous >= p.sequence {
		return position{}, errMalformedSource
	}
	if n == 2*linkFields {
		if route, ok := parseLink(f[linkFields:]); !ok || route.previous > route.sequence {
			return position{}, errMalformedSource
		}
	}
	return p, nil
}

// parseLink reads <chain>:<sequence>:<previous>:<created>:<timestamp>.
func parseLink(f []string) (position, bool) {
	chain, err0 := envelope.ParseChainID(f[0])
	seq, err1 := strconv.ParseUint(f[1], 10, 64)
	previous, err2 := strconv.ParseUint(f[2], 10, 64)
	created, err3 := strconv.ParseInt(f[3], 10, 64)
	timestamp, err4 := strconv.ParseInt(f[4], 10, 64)
	if errors.Join(err0, err1, err2, err3, err4) != nil ||
		strconv.FormatUint(seq, 10) != f[1] || strconv.FormatUint(previous, 10) != f[2] ||
		strconv.FormatInt(created, 10) != f[3] || strconv.FormatInt(timestamp, 10) != f[4] {
		return position{}, false
	}
	return position{chain, seq, previous, created}, true
}
