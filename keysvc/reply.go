package keysvc

import (
	"crypto/hpke"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"time"

	"github.com/keyweir/keyweir/internal/strictjson"
)

// EncodeReply seals result to the request's ephemeral key and signs the reply.
func EncodeReply(id Identity, instance string, r *Request, result any) ([]byte, error) {
	plain, err := json.Marshal(result)
	if err != nil {
		return nil, fmt.Errorf("encoding %s result: %w", r.Op, err)
	}
	defer clear(plain)
	sealed, err := sealResult(r.ephemeral, r.Hash, plain)
	if err != nil {
		return nil, err
	}
	return signReply(id, replyBody{Request: r.Hash[:], Instance: instance, Sealed: sealed})
}

// EncodeError signs an error reply to the request whose [RequestHash] is given;
// the request need not be valid.
func EncodeError(id Identity, instance string, request [32]byte, err error) ([]byte, error) {
	return signReply(id, replyBody{Request: request[:], Instance: instance, Error: ToWire(err)})
}

func signReply(id Identity, b replyBody) ([]byte, error) {
	b.Time = time.Now().UnixMilli()
	body, err := json.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("encoding reply: %w", err)
	}
	sig, err := SignPurpose(id, PurposeReply, body)
	if err != nil {
		return nil, err
	}
	if n := len(sig) + len(body); n > MaxReply {
		return nil, fmt.Errorf("encoding reply: %d bytes, at most %d: %w", n, MaxReply, ErrInvalid)
	}
	return append(sig, body...), nil
}

// decodeReply checks a signed reply to our own request and decodes its result
// into v. Whatever does not verify is [ErrBadReply]; a verified error reply is
// that error.
func decodeReply(data []byte, pin string, request [32]byte, eph hpke.PrivateKey, v any) error {
	if len(data) <= signatureSize || len(data) > MaxReply {
		return fmt.Errorf("%w: %d bytes", ErrBadReply, len(data))
	}
	sig, body := data[:signatureSize], data[signatureSize:]
	if VerifyPurpose(pin, PurposeReply, body, sig) != nil {
		return fmt.Errorf("%w: not signed by the pinned service", ErrBadReply)
	}
	var b replyBody
	if err := strictjson.Unmarshal(body, &b); err != nil {
		return fmt.Errorf("%w: %v", ErrBadReply, err)
	}
	if subtle.ConstantTimeCompare(b.Request, request[:]) != 1 {
		return fmt.Errorf("%w: reply to another request", ErrBadReply)
	}
	if b.Error != nil {
		if len(b.Sealed) > 0 {
			return fmt.Errorf("%w: an error and a result", ErrBadReply)
		}
		return b.Error.Err()
	}
	plain, err := openResult(eph, request, b.Sealed)
	if err != nil {
		return err
	}
	defer clear(plain)
	if err := strictjson.Unmarshal(plain, v); err != nil {
		return fmt.Errorf("%w: result: %v", ErrBadReply, err)
	}
	return nil
}
