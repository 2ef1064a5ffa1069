package authoritytest

import (
	"fmt"
	"slices"
	"testing"

	"github.com/keyweir/keyweir/keysvc/authority"
)

func checkBlobLimits(t *testing.T, h Harness) {
	a := open(t, h)
	p := random(32)
	w := wrap(t, a, "", p, someContext())
	for what, blob := range map[string][]byte{
		"a nil blob":          nil,
		"an empty blob":       {},
		"an oversized blob":   append(slices.Clone(w.Blob), make([]byte, authority.MaxBlob)...),
		"an oversized random": random(authority.MaxBlob + 1),
	} {
		bad := w
		bad.Blob = blob
		refusedUnwrap(t, what, a, bad, someContext(), authority.ErrInvalid, p)
	}
	d := newDamage(t, h, a, w, p)
	defer d.report()
	d.refuse("a byte appended", append(slices.Clone(w.Blob), 0))
	d.refuse("the blob twice", append(slices.Clone(w.Blob), w.Blob...))
	d.refuse("random bytes", random(len(w.Blob)))
	d.refuse("zeros", make([]byte, len(w.Blob)))
	d.refuse("a full-sized random blob", random(authority.MaxBlob))
}

func checkTruncated(t *testing.T, h Harness) {
	a := open(t, h)
	p := random(32)
	w := wrap(t, a, "", p, someContext())
	d := newDamage(t, h, a, w, p)
	defer d.report()
	for n := 1; n < len(w.Blob); n++ {
		d.refuse(fmt.Sprintf("the blob cut to %d of %d bytes", n, len(w.Blob)), slices.Clone(w.Blob[:n]))
		d.refuse(fmt.Sprintf("the first %d of %d bytes missing", n, len(w.Blob)), slices.Clone(w.Blob[n:]))
	}
}

func checkBitFlips(t *testing.T, h Harness) {
	a := open(t, h)
	p := random(32)
	w := wrap(t, a, "", p, someContext())
	d := newDamage(t, h, a, w, p)
	defer d.report()
	for i := range w.Blob {
		for bit := range 8 {
			// One bit of every byte, and every bit of the last 64 bytes: key
			// material and tag of most formats.
			if bit != i%8 && i < len(w.Blob)-64 {
				continue
			}
			b := slices.Clone(w.Blob)
			b[i] ^= 1 << bit
			d.refuse(fmt.Sprintf("bit %d of byte %d flipped", bit, i), b)
		}
	}
}

// damage sends damaged blobs and counts what a quirk exempts.
type damage struct {
	t       testing.TB
	h       Harness
	a       authority.Authority
	w       authority.Wrapped
	secret  []byte
	sent    int
	exempts map[string]int // why -> how many
}

func newDamage(t testing.TB, h Harness, a authority.Authority, w authority.Wrapped, secret []byte) *damage {
	return &damage{t: t, h: h, a: a, w: w, secret: secret, exempts: map[string]int{}}
}

func (d *damage) refuse(what string, blob []byte) {
	d.t.Helper()
	if d.h.Quirks.Exempt != nil {
		if why := d.h.Quirks.Exempt(d.w.Blob, blob); why != "" {
			d.exempts[why]++
			return
		}
	}
	d.sent++
	bad := d.w
	bad.Blob = blob
	refusedUnwrap(d.t, what, d.a, bad, someContext(), authority.ErrInvalid, d.secret)
}

func (d *damage) report() {
	d.t.Helper()
	for why, n := range d.exempts {
		d.t.Logf("quirk: %d damaged blobs not sent: %s", n, why)
	}
	if d.sent == 0 {
		d.t.Error("every damaged blob is exempt: the check checked nothing")
	}
	unwrap(d.t, d.a, d.w, someContext(), d.secret) // the genuine one still opens
}
