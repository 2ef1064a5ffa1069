package keyserver

// EncodeEntry makes a directory entry, to forge one.
var EncodeEntry = encodeEntry

// ForgetRefusals empties the negative cache.
func (s *Server) ForgetRefusals() {
	s.keys.refused.mu.Lock()
	defer s.keys.refused.mu.Unlock()
	clear(s.keys.refused.by)
}

// WithDefaults is what New does first.
func (c Config) WithDefaults() (Config, error) { return c.withDefaults() }
