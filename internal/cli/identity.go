package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/keysvc"
)

func newIdentity(u *ui) *cobra.Command {
	return group("identity", "Make and show enrolled identities", newIdentityNew(u), newIdentityShow(u))
}

func newIdentityNew(u *ui) *cobra.Command {
	var service bool
	cmd := &cobra.Command{
		Use: "new FILE", Short: "Make an identity and print its public key", Args: argsBetween(1, 1, "FILE"),
		Long: `Writes a new identity's secret seed into FILE, readable by you only, and prints
its public key, which is what a configuration names. An identity signs requests
to the key service; never use it to connect to NATS.`,
		Example: "  keyweir identity new gateway.nk\n  keyweir identity new --service keysvc.nk",
		RunE: func(_ *cobra.Command, args []string) error {
			kind := keysvc.KindRequester
			if service {
				kind = keysvc.KindService
			}
			public, err := writeIdentity(args[0], kind)
			if err != nil {
				return err
			}
			return u.printf("%s\n", public)
		},
	}
	cmd.Flags().BoolVar(&service, "service", false, "make the identity of a key service (N...)")
	return cmd
}

func newIdentityShow(u *ui) *cobra.Command {
	return &cobra.Command{
		Use: "show FILE", Short: "Print the public key of an identity", Args: argsBetween(1, 1, "FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			id, err := keysvc.LoadIdentity(args[0])
			if err != nil {
				return err
			}
			return u.printf("%s\n", id.Public())
		},
	}
}

// writeIdentity makes an identity and writes its seed to a new file.
func writeIdentity(path string, kind keysvc.Kind) (public string, err error) {
	id, seed, err := keysvc.NewIdentity(kind)
	if err != nil {
		return "", err
	}
	defer clear(seed)
	if err := writeSecret(path, append(seed, '\n')); err != nil {
		return "", err
	}
	return id.Public(), nil
}

// writeSecret writes b to a new file that only its owner can read, and clears b.
func writeSecret(path string, b []byte) error {
	defer clear(b)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return refuseOverwrite(path)
	}
	if err != nil {
		return fmt.Errorf("writing secret: %w", err)
	}
	_, err = f.Write(b)
	if serr := f.Sync(); err == nil {
		err = serr
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(path)
		return fmt.Errorf("writing secret: %w", err)
	}
	return nil
}

// fileName makes a name that somebody chose safe to be part of a path.
func fileName(name string) error {
	if name == "" || strings.ContainsAny(name, `/\`) || strings.HasPrefix(name, ".") || filepath.Base(name) != name {
		return usagef("%q cannot be part of a file name", name)
	}
	return nil
}
