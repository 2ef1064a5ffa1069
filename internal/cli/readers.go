package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/internal/config"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/streams"
)

func newReaders(u *ui) *cobra.Command {
	return group("readers", "Let applications read sealed streams", newReadersAdd(u))
}

func newReadersAdd(u *ui) *cobra.Command {
	var (
		path, dir, public string
		scopes            []string
		asJSON            bool
	)
	cmd := &cobra.Command{
		Use: "add NAME", Short: "Make a reader's profile, and an identity for it", Args: argsBetween(1, 1, "NAME"),
		Long: `Writes two files into --out: NAME.json, the profile that an application (or
keyweir cat) reads with and that holds no secret, and NAME.nk, the reader's secret
identity. Prints the lines that the configuration of the key service needs; the
configuration itself is not changed.

With --public-key the reader made its identity itself and keeps it.`,
		Example: `  keyweir readers add billing --config keyweir.yaml --scope 'tenant/*' --out billing/`,
		RunE: func(_ *cobra.Command, args []string) error {
			name := args[0]
			if err := fileName(name); err != nil {
				return err
			}
			f, err := loadConfig(path)
			if err != nil {
				return err
			}
			if len(scopes) == 0 {
				scopes = []string{"*"}
			}
			p, err := readerProfile(f, scopes)
			if err != nil {
				return err
			}
			if _, ok := f.Keysvc.Principals[name]; ok {
				return withHint(fmt.Errorf("the configuration already has a principal %q", name), "choose another name, or remove it first")
			}
			r, err := writeReader(p, dir, name, public)
			if err != nil {
				return err
			}
			r.Scopes = scopes
			if asJSON {
				return u.json(r)
			}
			u.notef("Wrote %s. Add to the keysvc section of the configuration and restart the key service:\n", strings.Join(r.files(), " and "))
			return u.printf("principals:\n  %s: %s\ngrants:\n  - {to: %s, may: [open], scopes: [%s]}\n", name, r.PublicKey, name, quoted(scopes))
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().StringVarP(&dir, "out", "o", ".", "directory of the files")
	cmd.Flags().StringArrayVar(&scopes, "scope", nil, "scope, or beginning of scopes ending in *, to accept; may be repeated (default all)")
	cmd.Flags().StringVar(&public, "public-key", "", "public key (U...) of an identity the reader has already")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an object")
	return cmd
}

func quoted(ss []string) string {
	out := make([]string, len(ss))
	for i, s := range ss {
		out[i] = fmt.Sprintf("%q", s)
	}
	return strings.Join(out, ", ")
}

// addedReader is what "keyweir readers add --json" prints.
type addedReader struct {
	Name      string   `json:"name"`
	PublicKey string   `json:"public_key"`
	Profile   string   `json:"profile"`
	Identity  string   `json:"identity,omitempty"`
	Scopes    []string `json:"scopes"`
}

func (r *addedReader) files() []string {
	if r.Identity == "" {
		return []string{r.Profile}
	}
	return []string{r.Profile, r.Identity}
}

// readerProfile makes the profile for scopes of a configuration.
func readerProfile(f *config.File, scopes []string) (*streams.Profile, error) {
	if f.Keysvc == nil {
		return nil, withHint(errors.New("the configuration has no keysvc section"), "give the configuration of the key service: scopes and authorities stand there")
	}
	pin, err := servicePin(f)
	if err != nil {
		return nil, err
	}
	p := &streams.Profile{Version: 1, Service: f.Service, Pins: []string{pin}}
	var authorities [][]string
	for _, s := range f.Keysvc.Scopes {
		p.Scopes = append(p.Scopes, keysvc.ScopeRule{Match: s.Match, Scope: s.Scope})
		for _, set := range append([][]string{s.Authorities}, single(s.Accept)...) {
			if !slices.ContainsFunc(authorities, func(a []string) bool { return slices.Equal(a, set) }) {
				authorities = append(authorities, set)
			}
		}
	}
	p.Accept.Rules = []streams.ProfileRule{{Scopes: scopes, Schemes: []string{"single"}, Authorities: authorities}}
	return p, p.Validate()
}

func single(names []string) [][]string {
	out := make([][]string, len(names))
	for i, n := range names {
		out[i] = []string{n}
	}
	return out
}

// servicePin returns the public key of the service: from its identity where this
// machine has that, else from the gateway's pins.
func servicePin(f *config.File) (string, error) {
	id, err := loadIdentity(f.Keysvc.Identity)
	if err == nil {
		return id.Public(), nil
	}
	if f.Gateway != nil && len(f.Gateway.Keysvc.Pins) > 0 {
		return f.Gateway.Keysvc.Pins[0], nil
	}
	return "", withHint(fmt.Errorf("finding the public key of the service: %w", err),
		"run this where the identity of the key service is, or with a configuration whose gateway section has its pin")
}

// loadIdentity reads an identity that a configuration refers to.
func loadIdentity(ref config.SecretRef) (keysvc.Identity, error) {
	if path, ok := ref.Path(); ok {
		return keysvc.LoadIdentity(path)
	}
	b, err := ref.Read()
	if err != nil {
		return nil, err
	}
	defer clear(b)
	return keysvc.ParseIdentity(b)
}

// writeReader writes profile and, without a public key, a new identity.
func writeReader(p *streams.Profile, dir, name, public string) (*addedReader, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making directory: %w", err)
	}
	r := &addedReader{Name: name, PublicKey: public, Profile: filepath.Join(dir, name+".json")}
	if _, err := os.Lstat(r.Profile); !errors.Is(err, fs.ErrNotExist) {
		return nil, refuseOverwrite(r.Profile)
	}
	if public == "" {
		r.Identity = filepath.Join(dir, name+".nk")
		var err error
		if r.PublicKey, err = writeIdentity(r.Identity, keysvc.KindRequester); err != nil {
			return nil, err
		}
		p.Identity = name + ".nk"
	}
	if err := p.WriteFile(r.Profile); err != nil {
		if r.Identity != "" {
			_ = os.Remove(r.Identity) // useless without the profile
		}
		return nil, err
	}
	return r, nil
}
