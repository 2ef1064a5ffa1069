// Command keyweir is an encryption gateway for event streams on NATS. See
// README.md, or run "keyweir demo".
package main

import (
	"context"
	"os"

	"github.com/keyweir/keyweir/internal/cli"
)

func main() {
	os.Exit(cli.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
