package envelope

// SessionSubkey exposes the derivation of a session's AES key.
func SessionSubkey(k DataKey, id KeyID, salt Salt) []byte {
	return sessionSubkey(k, SuiteHKDFSHA256AES256GCM, id, salt).b[:]
}

// Advance pretends that the session sealed so much already.
func (s *Session) Advance(messages, bytes uint64) { s.sealed, s.bytes = messages, bytes }

// Sessions returns how many sessions the reader keeps.
func (r *KeyReader) Sessions() (listed, indexed int, last bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.recent.Len(), len(r.sessions), r.last.Load() != nil
}

// Keeps reports whether the reader keeps the session of salt.
func (r *KeyReader) Keeps(salt Salt) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sessions[sessionKey{SuiteHKDFSHA256AES256GCM, salt}] != nil
}

// ParseMeta parses opened plaintext.
func ParseMeta(b []byte) (v MetaView, payload []byte, ok bool) {
	payload, ok = v.parse(b, false)
	return v, payload, ok
}

// AppendMeta encodes m with pad zero bytes.
func AppendMeta(m *Meta, pad int) ([]byte, error) {
	l, err := m.measure()
	if err != nil {
		return nil, err
	}
	b := make([]byte, l.size+pad)
	m.put(b, l, pad)
	return b, nil
}

// SubkeyIsCleared reports whether nothing of the grant's subkey is left.
func (g *Grant) SubkeyIsCleared() bool { return DataKey{s: g.subkey}.IsZero() }
