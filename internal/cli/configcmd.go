package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/internal/config"
)

func newConfig(u *ui) *cobra.Command {
	return group("config", "Check the configuration file", newConfigCheck(u), newConfigPermissions(u), newConfigSchema(u))
}

// configFlag adds --config.
func configFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVarP(path, "config", "c", "", "configuration file (required)")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml")
}

func loadConfig(path string) (*config.File, error) {
	if path == "" {
		return nil, usagef("--config is required")
	}
	return config.Load(path)
}

func newConfigCheck(u *ui) *cobra.Command {
	var (
		path            string
		secrets, asJSON bool
	)
	cmd := &cobra.Command{
		Use: "check", Short: "Check a configuration file", Args: noArgs,
		Long: `Reports everything that is wrong with a configuration file, each with its place.
With --secrets the referenced secrets are read as well: they must exist, be of
the right kind, and an identity must not be the key of a NATS connection.`,
		Example: "  keyweir config check --config keyweir.yaml --secrets",
		RunE: func(*cobra.Command, []string) error {
			f, err := loadConfig(path)
			if err == nil {
				err = f.CheckAuthorities(checkAuthority)
			}
			if err == nil && secrets {
				err = f.CheckSecrets()
			}
			problems := config.Problems(err)
			if asJSON && (err == nil || problems != nil) {
				if err := u.json(toJSONProblems(problems)); err != nil {
					return err
				}
			}
			if err != nil {
				return withHint(err, "keyweir config schema describes every key")
			}
			if asJSON {
				return nil
			}
			return u.printf("%s: ok\n", path)
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().BoolVar(&secrets, "secrets", false, "read the referenced secrets and check them")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an array of problems")
	return cmd
}

type jsonProblem struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	Path   string `json:"path,omitempty"`
	Reason string `json:"reason"`
}

func toJSONProblems(ps []*config.Problem) []jsonProblem {
	out := make([]jsonProblem, len(ps))
	for i, p := range ps {
		out[i] = jsonProblem{p.File, p.Line, p.Column, p.Path, p.Reason}
	}
	return out
}

func newConfigSchema(u *ui) *cobra.Command {
	return &cobra.Command{
		Use: "schema", Short: "Print the JSON schema of the configuration file", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			b, err := config.Schema()
			if err != nil {
				return err
			}
			return u.printf("%s", b)
		},
	}
}

// fileExistsHint explains the refusal to overwrite.
func refuseOverwrite(path string) error {
	return withHint(fmt.Errorf("%s exists already", path), "a key that is overwritten is lost: move the file away first")
}
