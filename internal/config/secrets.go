package config

import (
	"bytes"
	"errors"
	"io/fs"
	"os"

	"github.com/nats-io/nkeys"
)

// CheckSecrets reads every secret that the file refers to and refuses an
// identity that equals the key of a NATS connection: a server makes a client
// sign any nonce with that key, so it cannot also sign requests. The error joins
// every problem and repeats no secret.
func (f *File) CheckSecrets() error {
	c := checker{File: f}
	identities := map[string]string{} // public key, without its kind -> path
	identity := func(path string, ref SecretRef, kind nkeys.PrefixByte, what string) {
		b, err := ref.Read()
		if err != nil {
			c.fail(path, "%v", err)
			return
		}
		defer clear(b)
		raw, prefix, ok := seedKey(b)
		if !ok || prefix != kind {
			c.fail(path, "%v holds no seed of %s", ref, what)
			return
		}
		if other, ok := identities[raw]; ok {
			c.fail(path, "is the same key as %s; make one for each", other)
		}
		identities[raw] = path
	}
	if f.Gateway != nil {
		identity("gateway.identity", f.Gateway.Identity, nkeys.PrefixByteUser, "an identity (SU...)")
	}
	if f.Unseal != nil && !f.elsewhere(f.Unseal.Identity) {
		identity("unseal.identity", f.Unseal.Identity, nkeys.PrefixByteUser, "an identity (SU...)")
	}
	if f.Keysvc != nil {
		identity("keysvc.identity", f.Keysvc.Identity, nkeys.PrefixByteServer, "a service (SN...)")
	}
	for _, name := range sorted(f.NATS) {
		path, n := "nats."+name, f.NATS[name]
		seeds := map[string][]byte{}
		read := func(key string, ref SecretRef) {
			if ref.IsZero() {
				return
			}
			b, err := ref.Read()
			if err != nil {
				c.fail(path+"."+key, "%v", err)
				return
			}
			seeds[key] = b
		}
		read("creds", n.Creds)
		read("nkey", n.NKey)
		read("password", n.Password)
		read("token", n.Token)
		if n.Context != "" {
			ctx, err := LoadContext(n.Context)
			if err != nil {
				c.fail(path+".context", "%v", err)
				continue
			}
			for _, p := range []string{ctx.Creds, ctx.NKey} {
				if p == "" {
					continue
				}
				b, err := os.ReadFile(p)
				if err != nil {
					c.fail(path+".context", "%v", err)
					continue
				}
				seeds["context"] = b
			}
			if ctx.UserSeed != "" {
				seeds["context"] = []byte(ctx.UserSeed)
			}
		}
		for _, key := range sorted(seeds) {
			raw, _, ok := seedKey(seeds[key])
			clear(seeds[key])
			if at, same := identities[raw]; ok && same {
				c.fail(path+"."+key, "is the same key as %s: an identity is never used to connect to NATS", at)
			}
		}
	}
	return errors.Join(c.errs...)
}

// elsewhere reports whether a secret of the unseal section belongs to another
// host: a file that configures other processes too does not say which of them runs
// here, and the host of a gateway should not have what opens.
func (f *File) elsewhere(ref SecretRef) bool {
	path, ok := ref.Path()
	if !ok || f.Gateway == nil && f.Keysvc == nil {
		return false
	}
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// seedKey returns the raw public key of a seed, alone or inside a credentials
// file, and its kind.
func seedKey(b []byte) (string, nkeys.PrefixByte, bool) {
	kp, err := nkeys.ParseDecoratedNKey(b)
	if err != nil {
		kp, err = nkeys.FromSeed(bytes.TrimSpace(b))
	}
	if err != nil {
		return "", 0, false
	}
	defer kp.Wipe()
	public, err := kp.PublicKey()
	if err != nil {
		return "", 0, false
	}
	raw, err := nkeys.Decode(nkeys.Prefix(public), []byte(public))
	if err != nil {
		return "", 0, false
	}
	return string(raw), nkeys.Prefix(public), true
}
