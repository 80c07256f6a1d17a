package kwil

import (
	"flag"
	"os"
	"testing"
)

// update rewrites the golden files: go test ./genesis/kwil -update.
var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(m.Run())
}
