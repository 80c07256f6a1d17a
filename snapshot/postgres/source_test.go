package postgres

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestEveryConnectionStringIsChecked(t *testing.T) {
	c := Config{DSN: "host=h", AdminDSN: "host=h password=x", ScratchDSN: "password=y", Mode: ModeDump, Fallback: "hold"}
	assert.Len(t, c.Validate(), 2)
}
