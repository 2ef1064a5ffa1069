// Package cli is the command line of Keyweir, one file per subcommand.
//
// Its manners: standard output is data and nothing else; standard error begins
// its lines with "keyweir: error:", "keyweir: hint:" or "keyweir: warning:"; the
// exit code is 0 for success, 1 for a failure and 2 for wrong usage; whatever
// lists something has --json. A first SIGINT or SIGTERM ends the work cleanly, a
// second one at once.
//
// It is the composition root: the only package, with devstack, that names the
// providers of authorities.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// Main runs the command line with args, which do not include the program's name,
// and returns the exit code.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	u := newUI(stdin, stdout, stderr)
	ctx, stop := withSignals(ctx, u)
	defer stop()
	root := newRoot(u)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	if errors.Is(err, errInterrupted) || errors.Is(err, context.Canceled) && errors.Is(context.Cause(ctx), errInterrupted) {
		u.errorf("interrupted")
		return 1
	}
	u.fail(err)
	if usage := (*usageError)(nil); errors.As(err, &usage) {
		if usage.hint == "" {
			u.hintf("%s --help explains it", cmd.CommandPath())
		}
		return 2
	}
	return 1
}

func newRoot(u *ui) *cobra.Command {
	root := &cobra.Command{
		Use:   "keyweir",
		Short: "Encryption gateway for event streams on NATS",
		Long: `Keyweir seals what is published to NATS before any broker stores it, with keys
that come from a KMS; only readers that a policy names can open it.

To see it work, with nothing else installed:

    keyweir demo

To try it with the nats CLI:

    keyweir dev`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          subcommandArgs,
		RunE:          needSubcommand,
	}
	root.SetIn(u.in)
	root.SetOut(u.out)
	root.SetErr(u.err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err: err} })
	root.CompletionOptions.HiddenDefaultCmd = false
	root.AddCommand(
		newBench(u), newCat(u), newConfig(u), newDeadLetters(u), newConsumers(u), newDemo(u), newDev(u), newDomainKey(u), newGateway(u),
		newIdentity(u), newInspect(u), newKeysvc(u), newPub(u), newPurge(u), newReaders(u), newUnseal(u), newVerify(u), newVersion(u),
	)
	return root
}

// usageError is a mistake in how the command was called: exit code 2.
type usageError struct {
	err  error
	hint string
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }
func (e *usageError) Hint() string  { return e.hint }

func usagef(format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format, args...)}
}

// argsBetween wants least to most arguments; what names them in the error.
func argsBetween(least, most int, what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usagef("missing argument: %s", what)
		case len(args) > most && most == 0:
			return usagef("unexpected argument %q", args[0])
		case len(args) > most:
			return usagef("unexpected argument %q after %s", args[most], what)
		}
		return nil
	}
}

var noArgs = argsBetween(0, 0, "")

// group is a command that only has subcommands.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: subcommandArgs, RunE: needSubcommand}
	cmd.AddCommand(subs...)
	return cmd
}

func subcommandArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := &usageError{err: fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())}
	cmd.SuggestionsMinimumDistance = 2
	if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
		err.hint = "did you mean " + cmd.CommandPath() + " " + s[0] + "?"
	}
	return err
}

func needSubcommand(cmd *cobra.Command, _ []string) error {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" {
			names = append(names, c.Name())
		}
	}
	return usagef("%s needs a command: %s", cmd.CommandPath(), strings.Join(names, ", "))
}
