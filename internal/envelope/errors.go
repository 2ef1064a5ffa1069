package envelope

import "errors"

// The classes of failure. Every error of this package wraps exactly one of
// them; no error carries key bytes or payload.
var (
	// ErrNotEnvelope: the bytes do not begin with the magic; most likely plaintext.
	ErrNotEnvelope = errors.New("envelope: not an envelope")
	// ErrUnsupported: an envelope or record of a version, suite or scheme that
	// this release does not know. A newer release may.
	ErrUnsupported = errors.New("envelope: unsupported version, suite or scheme")
	// ErrMalformed: the bytes outside the seal break the format: lengths, flags,
	// order, trailing bytes.
	ErrMalformed = errors.New("envelope: malformed")
	// ErrTampered: the seal did not open: another key, a changed byte, or sealed
	// bytes that break the format. Deliberately one class.
	ErrTampered = errors.New("envelope: authentication failed")
	// ErrInvalid: the caller's own arguments cannot be sealed: a subject, header
	// or record beyond its maximum, headers out of order, a key of wrong length.
	ErrInvalid = errors.New("envelope: invalid argument")
	// ErrSessionEnded: the session reached its message or byte limit. Start a
	// new one; this one never seals again.
	ErrSessionEnded = errors.New("envelope: session ended")
	// ErrWrongKey: the data key does not match the commitment of its record.
	ErrWrongKey = errors.New("envelope: key does not match its record")
	// ErrOtherWraps: the inline key record is of this key, but its wraps are not
	// the known ones: replaced since by a rotation, or forged. Have an authority
	// open them, at a limited rate, or refuse; never replace known wraps unseen.
	ErrOtherWraps = errors.New("envelope: other wraps than the known ones")
)
