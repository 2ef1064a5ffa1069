package transittest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// key is one key of the engine.
type key struct {
	kind          string
	derived       bool
	convergent    bool
	softDeleted   bool
	versions      [][]byte // version 1 first
	born          []int64
	minDecryption int
}

// request holds the parameters of all operations.
type request struct {
	Plaintext      string `json:"plaintext"`
	Ciphertext     string `json:"ciphertext"`
	Context        string `json:"context"`
	AssociatedData string `json:"associated_data"`
	Bits           int    `json:"bits"`

	RoleID   string `json:"role_id"`
	SecretID string `json:"secret_id"`
	Role     string `json:"role"`
	JWT      string `json:"jwt"`
}

// AddKey makes a key of a type such as aes256-gcm96. A key of that name is replaced.
func (s *Server) AddKey(name, kind string, derived bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made++
	s.keys[name] = &key{kind: kind, derived: derived, versions: [][]byte{material()}, born: []int64{1_700_000_000 + int64(s.made)}}
}

// Change changes a key: rotate, soft-delete, soft-delete-restore, delete,
// convergent, or min_decryption_version=N. The key must exist.
func (s *Server) Change(name, change string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.keys[name]
	what, value, _ := strings.Cut(change, "=")
	switch what {
	case "rotate":
		s.made++
		k.versions, k.born = append(k.versions, material()), append(k.born, 1_700_000_000+int64(s.made))
	case "soft-delete":
		k.softDeleted = true
	case "soft-delete-restore":
		k.softDeleted = false
	case "delete":
		delete(s.keys, name)
	case "convergent":
		k.convergent = true
	case "min_decryption_version":
		n, err := strconv.Atoi(value)
		if err != nil {
			panic("transittest: " + err.Error())
		}
		k.minDecryption = n
	default:
		panic("transittest: no change " + change)
	}
}

func material() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return b
}

// userError is an error of the engine that becomes status 400.
type userError string

func (e userError) Error() string { return string(e) }

// engine answers MOUNT/op[/type]/name; parts begin at op.
func (s *Server) engine(w http.ResponseWriter, r *http.Request, parts []string, body request) {
	op, name := parts[0], parts[len(parts)-1]
	k := s.keys[name]
	if op == "keys" && r.Method == http.MethodGet && len(parts) == 2 {
		if k == nil {
			Fail(404)(w, r)
			return
		}
		reply(w, map[string]any{"data": k.describe(name)})
		return
	}
	if r.Method != http.MethodPost {
		Fail(405, "unsupported operation")(w, r)
		return
	}
	if k == nil {
		Fail(400, "encryption key not found")(w, r)
		return
	}
	if k.softDeleted {
		// The documentation does not say how this is answered.
		Fail(500, "1 error occurred:\n\t* internal error\n\n")(w, r)
		return
	}
	if s.deaf {
		body.AssociatedData = ""
	}
	data, err := k.operate(op, parts, body)
	if err != nil {
		Fail(400, err.Error())(w, r)
		return
	}
	reply(w, map[string]any{"data": data})
}

func (k *key) operate(op string, parts []string, b request) (map[string]any, error) {
	bind, aad, err := k.binding(b)
	if err != nil {
		return nil, err
	}
	made := func(plain []byte) (map[string]any, error) {
		text, err := k.seal(plain, bind, aad)
		return map[string]any{"ciphertext": text, "key_version": len(k.versions)}, err
	}
	switch {
	case op == "encrypt" && len(parts) == 2:
		plain, err := base64.StdEncoding.DecodeString(b.Plaintext)
		if err != nil {
			return nil, userError("failed to base64-decode plaintext")
		}
		return made(plain)
	case op == "decrypt" && len(parts) == 2:
		plain, err := k.open(b.Ciphertext, bind, aad)
		return map[string]any{"plaintext": base64.StdEncoding.EncodeToString(plain)}, err
	case op == "rewrap" && len(parts) == 2:
		plain, err := k.open(b.Ciphertext, bind, nil) // takes no associated data
		if err != nil {
			return nil, err
		}
		aad = nil
		return made(plain)
	case op == "datakey" && len(parts) == 3 && parts[1] == "plaintext":
		if b.Bits != 256 {
			return nil, userError("invalid bit length")
		}
		plain := material()
		aad = nil // Vault's takes no associated data
		data, err := made(plain)
		if err == nil {
			data["plaintext"] = base64.StdEncoding.EncodeToString(plain)
		}
		return data, err
	}
	return nil, userError("unsupported operation")
}

// binding decodes context and associated data.
func (k *key) binding(b request) (bind, aad []byte, err error) {
	if bind, err = base64.StdEncoding.DecodeString(b.Context); err != nil {
		return nil, nil, userError("failed to base64-decode context")
	}
	if aad, err = base64.StdEncoding.DecodeString(b.AssociatedData); err != nil {
		return nil, nil, userError("failed to base64-decode associated_data")
	}
	if k.derived && len(bind) == 0 {
		return nil, nil, userError("missing 'context' for key derivation; the key was created using a derived key, which means additional, per-request information must be included in order to perform operations with the key")
	}
	if !k.derived {
		bind = nil // ignored
	}
	return bind, aad, nil
}

func (k *key) aead(version int, bind []byte) (cipher.AEAD, error) {
	m := k.versions[version-1]
	if k.derived {
		var err error
		if m, err = hkdf.Key(sha256.New, m, nil, string(bind), 32); err != nil {
			return nil, err
		}
	}
	if k.kind == "aes128-gcm96" {
		m = m[:16]
	}
	block, err := aes.NewCipher(m)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func (k *key) seal(plain, bind, aad []byte) (string, error) {
	version := len(k.versions)
	c, err := k.aead(version, bind)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("vault:v%d:%s", version, base64.StdEncoding.EncodeToString(c.Seal(nil, nil, plain, aad))), nil
}

func (k *key) open(text string, bind, aad []byte) ([]byte, error) {
	rest, ok := strings.CutPrefix(text, "vault:v")
	if !ok {
		return nil, userError("invalid ciphertext: no prefix")
	}
	v, b64, ok := strings.Cut(rest, ":")
	version, err := strconv.Atoi(v)
	switch {
	case !ok:
		return nil, userError("invalid ciphertext: wrong number of fields")
	case err != nil || version < 1:
		return nil, userError("invalid ciphertext: version number could not be decoded")
	case version > len(k.versions):
		return nil, userError("invalid ciphertext: version is too new")
	case version < k.minDecryption:
		return nil, userError("ciphertext or signature version is disallowed by policy (too old)")
	}
	b, err := base64.StdEncoding.DecodeString(b64) // lenient, as the servers are
	if err != nil {
		return nil, userError("invalid ciphertext: could not decode base64")
	}
	c, err := k.aead(version, bind)
	if err != nil {
		return nil, err
	}
	plain, err := c.Open(nil, nil, b, aad)
	if err != nil {
		return nil, userError(err.Error())
	}
	return plain, nil
}

func (k *key) describe(name string) map[string]any {
	born := map[string]int64{}
	for i, at := range k.born {
		born[strconv.Itoa(i+1)] = at
	}
	cipherKey := strings.Contains(k.kind, "gcm") || strings.Contains(k.kind, "poly1305")
	d := map[string]any{
		"name": name, "type": k.kind, "derived": k.derived, "deletion_allowed": false,
		"min_available_version": 0, "min_decryption_version": max(1, k.minDecryption), "min_encryption_version": 0,
		"latest_version": len(k.versions), "exportable": false, "allow_plaintext_backup": false,
		"supports_encryption": cipherKey, "supports_decryption": cipherKey, "supports_signing": !cipherKey,
		"supports_derivation": cipherKey, "auto_rotate_period": 0, "imported_key": false,
		"soft_deleted": k.softDeleted, "keys": born,
	}
	if k.derived {
		d["kdf"], d["convergent_encryption"] = "hkdf_sha256", k.convergent
	}
	return d
}
