package cli

import (
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/keysvc/authority/local"
)

func newDomainKey(u *ui) *cobra.Command {
	return group("domain-key", "Make the domain key of a local authority", newDomainKeyNew(u))
}

func newDomainKeyNew(u *ui) *cobra.Command {
	return &cobra.Command{
		Use: "new FILE", Short: "Write a new domain key into a file", Args: argsBetween(1, 1, "FILE"),
		Long: `Writes a new 256-bit domain key, under which a local authority seals its managed
keys, into FILE, readable by you only. Without the file nothing that was sealed
can be opened again: keep a copy in another place.`,
		Example: "  keyweir domain-key new /etc/keyweir/domain.key",
		RunE: func(_ *cobra.Command, args []string) error {
			if err := local.CreateDomainKey(args[0]); err != nil {
				if errors.Is(err, fs.ErrExist) {
					return refuseOverwrite(args[0])
				}
				return err
			}
			path, err := filepath.Abs(args[0])
			if err != nil {
				path = args[0]
			}
			u.notef("a local authority with it: local:///DIRECTORY?domain-key=file:%s", path)
			return nil
		},
	}
}
