package sealedcheck_test

import (
	"context"
	"time"
)

// timeoutContext ends with the test at the latest, where there is no test yet.
func timeoutContext() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	context.AfterFunc(ctx, cancel)
	return ctx
}
