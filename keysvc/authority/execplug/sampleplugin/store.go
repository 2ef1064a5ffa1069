package main

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
)

// store wraps under the keys of a file.
type store struct{ path string }

// key is one key of the file.
type key struct {
	Versions [][]byte `json:"versions"` // 32 bytes each, oldest first
	Disabled bool     `json:"disabled"`
}

func (s store) key(name string) (key, error) {
	b, err := os.ReadFile(s.path)
	defer clear(b)
	if err != nil {
		return key{}, fmt.Errorf("reading the keys: %w", err)
	}
	var keys map[string]key
	if err := json.Unmarshal(b, &keys); err != nil {
		return key{}, fmt.Errorf("reading the keys: malformed file")
	}
	k, ok := keys[name]
	switch {
	case !ok:
		return key{}, failure("not_found")
	case k.Disabled:
		return key{}, failure("disabled")
	case len(k.Versions) == 0:
		return key{}, failure("destroyed")
	}
	return k, nil
}

// aead returns the cipher of a version, "" for the newest, and its name.
func (k key) aead(version string) (cipher.AEAD, string, error) {
	n := len(k.Versions)
	if version != "" {
		var err error
		if n, err = strconv.Atoi(version); err != nil || n < 1 || n > len(k.Versions) || strconv.Itoa(n) != version {
			return nil, "", failure("invalid")
		}
	}
	block, err := aes.NewCipher(k.Versions[n-1])
	if err != nil || len(k.Versions[n-1]) != 32 {
		return nil, "", fmt.Errorf("reading the keys: a version that is not 32 bytes")
	}
	c, err := cipher.NewGCMWithRandomNonce(block)
	return c, strconv.Itoa(n), err
}

func (s store) wrap(name string, plaintext []byte, context map[string]string) (reply, error) {
	k, err := s.key(name)
	if err != nil {
		return reply{}, err
	}
	c, version, err := k.aead("")
	if err != nil {
		return reply{}, err
	}
	return reply{Key: name, Version: version, Blob: c.Seal(nil, nil, plaintext, bound(name, version, context))}, nil
}

func (s store) unwrap(name, version string, blob []byte, context map[string]string) (reply, error) {
	k, err := s.key(name)
	if err != nil {
		return reply{}, err
	}
	if version == "" {
		return reply{}, failure("invalid")
	}
	c, version, err := k.aead(version)
	if err != nil {
		return reply{}, err
	}
	plaintext, err := c.Open(nil, nil, blob, bound(name, version, context))
	if err != nil {
		return reply{}, failure("invalid")
	}
	return reply{Plaintext: plaintext}, nil
}

func (s store) generate(name string, context map[string]string) (reply, error) {
	plaintext := make([]byte, 32)
	_, _ = rand.Read(plaintext) // never fails
	r, err := s.wrap(name, plaintext, context)
	if err != nil {
		clear(plaintext)
		return reply{}, err
	}
	r.Plaintext = plaintext
	return r, nil
}

// bound is the additional data of a wrap: every text with its length before it,
// pairs sorted by name.
func bound(name, version string, context map[string]string) []byte {
	var b []byte
	add := func(s string) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	add("keyweir/v1/sample-plugin")
	add(name)
	add(version)
	for _, n := range slices.Sorted(maps.Keys(context)) {
		add(n)
		add(context[n])
	}
	return b
}
