package status

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"nodevisor/upgrade/plan"
)

// Template is a genesis template that was made: where it lies, and the digests by which operators compare it.
type Template struct {
	Path      string            `json:"path"`
	ChainID   string            `json:"chain_id"`
	Canonical string            `json:"canonical_sha256"` // of the document, however it is written
	SHA256    map[string]string `json:"sha256"`           // of each file, by its name
}

// HaltResult is what a halt came to: the answer of `supervisor halt --json`, and in words the hold's text.
type HaltResult struct {
	At        string    `json:"at"`        // what was asked for: a height, a time, or now
	Height    *int64    `json:"height"`    // of the last block that is known; null: none could be read
	Exact     bool      `json:"exact"`     // no block was made from the asked height on
	Overshoot *int64    `json:"overshoot"` // blocks from the asked height on, as far as is known; null: no height was asked for
	Snapshot  *string   `json:"snapshot"`
	Template  *Template `json:"template"`
	Problems  []string  `json:"problems"` // what could not be done; the halt stands all the same
	Next      []string  `json:"next"`     // the commands that can follow
}

// Measure compares where the node stands with where it was to stop. own is the height of the node's own halt, 0 = none: a
// node of the Cosmos SDK stores that block and doesn't execute it, so what it answers is no overshoot.
func (r *HaltResult) Measure(h plan.Halt, stands, own int64) {
	if stands != plan.UnknownHeight {
		r.Height = &stands
	}
	if h.Height == 0 {
		r.Exact = true
		return
	}
	over := int64(0)
	switch {
	case own == h.Height:
		r.Exact = true
	case stands == plan.UnknownHeight:
		return
	default:
		over = max(0, stands-(h.Height-1))
		r.Exact = over == 0
	}
	r.Overshoot = &over
}

// Text is the result in words.
func (r HaltResult) Text() string {
	parts := []string{"halted at " + r.At + " as an operator asked for"}
	if r.Height != nil {
		parts = append(parts, fmt.Sprintf("the last known height is %d", *r.Height))
	}
	if !r.Exact && r.Overshoot != nil {
		parts = append(parts, fmt.Sprintf("%d %s later than asked for, because the node doesn't halt by itself", *r.Overshoot, Plural(*r.Overshoot, "block")))
	}
	if r.Snapshot != nil {
		parts = append(parts, "snapshot "+*r.Snapshot)
	}
	if t := r.Template; t != nil {
		parts = append(parts, "genesis template "+t.Path)
		for _, name := range slices.Sorted(maps.Keys(t.SHA256)) {
			parts = append(parts, name+" sha256 "+t.SHA256[name])
		}
	}
	return strings.Join(append(parts, r.Problems...), "; ")
}

// Plural is the word for n things, for one that takes an s.
func Plural(n int64, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}
