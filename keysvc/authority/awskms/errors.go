package awskms

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strings"
	"syscall"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"github.com/keyweir/keyweir/keysvc/authority"
)

// fault is what went wrong in one call, fit to be shown.
type fault struct {
	sentinel error
	code     string // of KMS; "" if KMS did not answer
	status   int    // of HTTP; 0 if none
	request  string // ID of the request at AWS; "" if none
	detail   string // where there is no code
}

func (f fault) String() string {
	s := f.code
	if s == "" {
		s = f.detail
	}
	var more []string
	if f.status != 0 {
		more = append(more, fmt.Sprintf("status %d", f.status))
	}
	if f.request != "" {
		more = append(more, "request "+f.request)
	}
	if len(more) > 0 {
		s += " (" + strings.Join(more, ", ") + ")"
	}
	return s
}

// codes maps the error codes of KMS, and of the signature check before it, that
// do not follow from the HTTP status.
var codes = map[string]error{
	"NotFoundException": authority.ErrNotFound,

	// The owner of the account says no to these credentials.
	"AccessDenied":                        authority.ErrDenied,
	"AccessDeniedException":               authority.ErrDenied,
	"AuthFailure":                         authority.ErrDenied,
	"IncompleteSignature":                 authority.ErrDenied,
	"IncompleteSignatureException":        authority.ErrDenied,
	"InvalidAccessKeyId":                  authority.ErrDenied,
	"InvalidClientTokenId":                authority.ErrDenied,
	"InvalidGrantTokenException":          authority.ErrDenied,
	"InvalidSignatureException":           authority.ErrDenied,
	"MissingAuthenticationToken":          authority.ErrDenied,
	"MissingAuthenticationTokenException": authority.ErrDenied,
	"NotAuthorized":                       authority.ErrDenied,
	"NotAuthorizedException":              authority.ErrDenied,
	"OptInRequired":                       authority.ErrDenied,
	"SignatureDoesNotMatch":               authority.ErrDenied,
	"SubscriptionRequiredException":       authority.ErrDenied,
	"UnauthorizedOperation":               authority.ErrDenied,
	"UnrecognizedClient":                  authority.ErrDenied,
	"UnrecognizedClientException":         authority.ErrDenied,

	"DisabledException":        authority.ErrDisabled,
	"KMSInvalidStateException": authority.ErrDisabled, // but see invalidState

	"InvalidCiphertextException":    authority.ErrInvalid,
	"IncorrectKeyException":         authority.ErrInvalid,
	"InvalidKeyUsageException":      authority.ErrInvalid,
	"InvalidArnException":           authority.ErrInvalid,
	"DryRunOperationException":      authority.ErrInvalid,
	"UnsupportedOperationException": authority.ErrInvalid,
	"ValidationError":               authority.ErrInvalid,
	"ValidationException":           authority.ErrInvalid,
	"SerializationException":        authority.ErrInvalid,
	"MissingParameter":              authority.ErrInvalid,
	"MissingParameterException":     authority.ErrInvalid,

	"LimitExceededException":    authority.ErrThrottled,
	"RequestLimitExceeded":      authority.ErrThrottled,
	"RequestThrottled":          authority.ErrThrottled,
	"RequestThrottledException": authority.ErrThrottled,
	"SlowDown":                  authority.ErrThrottled,
	"Throttling":                authority.ErrThrottled,
	"ThrottlingException":       authority.ErrThrottled,
	"ThrottledException":        authority.ErrThrottled,
	"TooManyRequestsException":  authority.ErrThrottled,

	// Credentials that ran out, or a clock that is off: whoever renews them is
	// late or unreachable. Nobody decided anything about the key, and nobody can
	// use it meanwhile either.
	"ExpiredToken":          authority.ErrUnavailable,
	"ExpiredTokenException": authority.ErrUnavailable,
	"RequestExpired":        authority.ErrUnavailable,
	"RequestTimeTooSkewed":  authority.ErrUnavailable,

	"DependencyTimeoutException":  authority.ErrUnavailable,
	"InternalFailure":             authority.ErrUnavailable,
	"InternalFailureException":    authority.ErrUnavailable,
	"KMSInternalException":        authority.ErrUnavailable,
	"KeyUnavailableException":     authority.ErrUnavailable,
	"RequestTimeout":              authority.ErrUnavailable,
	"RequestTimeoutException":     authority.ErrUnavailable,
	"ServiceUnavailable":          authority.ErrUnavailable,
	"ServiceUnavailableException": authority.ErrUnavailable,
}

// classify turns an error of the SDK into a fault. The SDK's error goes no
// further: its text holds the message of the other side.
func classify(err error) fault {
	f := fault{sentinel: authority.ErrUnavailable, detail: "no usable answer"}
	if resp, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		f.status, f.request = resp.HTTPStatusCode(), token(resp.ServiceRequestID())
	}
	api, isAPI := errors.AsType[smithy.APIError](err)
	if cred, ok := errors.AsType[*credentialsError](err); ok {
		return credentialsFault(cred)
	}
	// The SDK makes up "UnknownError" where the answer has no code: a proxy or a
	// load balancer spoke, not KMS.
	if !isAPI || token(api.ErrorCode()) == "" || api.ErrorCode() == unknownError {
		f.detail = transportDetail(err, f.status)
		return f
	}
	f.code = token(api.ErrorCode())
	f.sentinel = sentinelOf(f.code, api.ErrorMessage(), f.status, api.ErrorFault())
	return f
}

const unknownError = "UnknownError"

func sentinelOf(code, message string, status int, side smithy.ErrorFault) error {
	switch code {
	case "KMSInvalidStateException":
		return invalidState(message)
	case "AccessDeniedException":
		// KMS says so of a blob that names a key it cannot see. The blob, which
		// anybody can forge, is at fault, not the right to use the key.
		if strings.HasPrefix(message, "The ciphertext refers to a ") {
			return authority.ErrInvalid
		}
	case "InvalidSignatureException", "SignatureDoesNotMatch":
		if strings.HasPrefix(message, "Signature expired") || strings.HasPrefix(message, "Signature not yet current") {
			return authority.ErrUnavailable // a clock, or a process that slept
		}
	}
	if s, ok := codes[code]; ok {
		return s
	}
	switch {
	case status >= 500 || status == http.StatusRequestTimeout:
		return authority.ErrUnavailable
	case status == http.StatusTooManyRequests:
		return authority.ErrThrottled
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return authority.ErrDenied
	case status >= 400 || side == smithy.FaultClient:
		return authority.ErrInvalid
	}
	return authority.ErrUnavailable
}

// invalidState tells the states of a key apart, which KMS names only in the
// message ("... is pending deletion."). Disabled, pending deletion, pending
// import and everything unknown are the owner's decision. Unavailable and
// creating are not, and neither is an external key store that does not respond.
func invalidState(message string) error {
	m := strings.ToLower(strings.TrimRight(message, ". "))
	for _, s := range []string{"unavailable", "creating", "updating"} {
		if strings.HasSuffix(m, " is "+s) || strings.HasSuffix(m, "key state is "+s) || strings.HasSuffix(m, "is in the "+s+" state") {
			return authority.ErrUnavailable
		}
	}
	if strings.Contains(m, "did not respond") {
		return authority.ErrUnavailable
	}
	return authority.ErrDisabled
}

// credentialsError marks an error of the credential chain, so that an answer of
// STS or SSO is not taken for one of KMS.
type credentialsError struct{ err error }

func (e *credentialsError) Error() string { return "obtaining credentials: " + e.err.Error() }
func (e *credentialsError) Unwrap() error { return e.err }

// credentialsFault: a refused role is a refusal, all else an outage.
func credentialsFault(e *credentialsError) fault {
	f := fault{sentinel: authority.ErrUnavailable, detail: "no credentials"}
	if api, ok := errors.AsType[smithy.APIError](e.err); ok && token(api.ErrorCode()) != "" {
		code := token(api.ErrorCode())
		f.detail = "no credentials: " + code
		if errors.Is(codes[code], authority.ErrDenied) {
			f.sentinel, f.code = authority.ErrDenied, "credentials refused: "+code
		}
	}
	return f
}

// transportDetail says in our words why there was no answer of KMS.
func transportDetail(err error, status int) string {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return "host not resolved: " + token(dns.Name)
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "certificate not accepted"
	}
	if no, ok := errors.AsType[syscall.Errno](err); ok {
		return "network: " + no.Error()
	}
	var timeout interface{ Timeout() bool }
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		return "no answer in time"
	}
	if errors.Is(err, errAnswerSize) {
		return "answer too long"
	}
	if status != 0 {
		return "not an answer of kms"
	}
	return "no usable answer"
}

var tokenPattern = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,96}$`)

// token returns s if it looks like a code, an ID or a host, else "": the other
// side chose it, and it goes into logs.
func token(s string) string {
	if !tokenPattern.MatchString(s) {
		return ""
	}
	return s
}
