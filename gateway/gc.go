package gateway

import (
	"os"
	"runtime/debug"
)

// gcPercent lets the heap grow to five times of what is in use before it is
// collected.
const gcPercent = 400

// TuneGC makes garbage collections of this process rarer, unless GOGC or GOMEMLIMIT
// is set in the environment: then they hold. A relay makes much garbage, each
// message once, and keeps little, a few MiB, so that the collections that Go's
// default calls for cost a gateway more than a tenth of its processor time. Programs
// whose main task is a gateway may call it once, as the commands of keyweir do; it
// is not for programs that keep much in memory.
func TuneGC() {
	if os.Getenv("GOGC") == "" && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetGCPercent(gcPercent)
	}
}
