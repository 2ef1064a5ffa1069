package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Context is a context file of the nats CLI, as far as it concerns a
// connection.
type Context struct {
	URL         string `json:"url"`
	Token       string `json:"token"`
	User        string `json:"user"`
	Password    string `json:"password"`
	Creds       string `json:"creds"`
	NKey        string `json:"nkey"`
	UserJWT     string `json:"user_jwt"`
	UserSeed    string `json:"user_seed"`
	Cert        string `json:"cert"`
	Key         string `json:"key"`
	CA          string `json:"ca"`
	NSC         string `json:"nsc"`
	Socks       string `json:"socks_proxy"`
	Domain      string `json:"jetstream_domain"`
	APIPrefix   string `json:"jetstream_api_prefix"`
	InboxPrefix string `json:"inbox_prefix"`
	TLSFirst    bool   `json:"tls_first"`
}

// LoadContext reads a context of the nats CLI, given by name or as the path of
// its file; "" is the selected one. What is not supported
// here is refused.
func LoadContext(name string) (*Context, error) {
	path, err := contextPath(name)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading nats context: no context %q (%s)", name, path)
	}
	if err != nil {
		return nil, fmt.Errorf("reading nats context: %w", err)
	}
	var c Context
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("reading nats context %s: not valid JSON", path)
	}
	if c.NSC != "" || c.Socks != "" || c.Domain != "" || c.APIPrefix != "" {
		return nil, fmt.Errorf("reading nats context %s: nsc, socks_proxy, jetstream_domain and jetstream_api_prefix are not supported here", path)
	}
	for _, p := range []*string{&c.Creds, &c.NKey, &c.Cert, &c.Key, &c.CA} {
		*p = expandHome(*p)
	}
	return &c, nil
}

func contextPath(name string) (string, error) {
	if strings.ContainsRune(name, filepath.Separator) {
		return name, nil
	}
	dir := os.Getenv("XDG_CONFIG_HOME")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("reading nats context: %w", err)
		}
		dir = filepath.Join(home, ".config")
	}
	dir = filepath.Join(dir, "nats")
	if name == "" {
		b, err := os.ReadFile(filepath.Join(dir, "context.txt"))
		if err != nil {
			return "", fmt.Errorf("reading nats context: none is selected")
		}
		name = strings.TrimSpace(string(b))
	}
	if name == "" || name == ".." || strings.ContainsAny(name, `/\`) {
		return "", fmt.Errorf("reading nats context: invalid name %q", name)
	}
	return filepath.Join(dir, "context", name+".json"), nil
}

func expandHome(path string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		if home, err := os.UserHomeDir(); err == nil {
			return filepath.Join(home, rest)
		}
	}
	return path
}
