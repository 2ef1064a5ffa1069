package cli

import (
	"context"
	"fmt"
	"os"
)

// Stubborn is a program that ignores the first signal.
func Stubborn() {
	u := newUI(os.Stdin, os.Stdout, os.Stderr)
	ctx, stop := withSignals(context.Background(), u)
	defer stop()
	fmt.Println("ready")
	<-ctx.Done()
	fmt.Println("first:", context.Cause(ctx))
	select {}
}
