package source

import (
	"fmt"
	"strconv"
	"strings"
)

// HaltHeight is the height at which a node was told to halt by itself, in its arguments (--halt-height of the Cosmos SDK's
// start); 0 = nowhere.
func HaltHeight(args []string) int64 {
	const flag = "--halt-height"
	for i, a := range args {
		value, ok := strings.CutPrefix(a, flag+"=")
		if a == flag && i+1 < len(args) {
			value, ok = args[i+1], true
		}
		var n int64
		if _, err := fmt.Sscan(value, &n); ok && err == nil && n > 0 {
			return n
		}
	}
	return 0
}

// SkipHeights are the heights at which a node was told to pass an upgrade over, in its arguments (--unsafe-skip-upgrades of
// the Cosmos SDK's start, which takes its heights in one word or in several).
func SkipHeights(args []string) map[int64]bool {
	skips := map[int64]bool{}
	add := func(list string) {
		for h := range strings.SplitSeq(list, ",") {
			if n, err := strconv.ParseInt(strings.TrimSpace(h), 10, 64); err == nil {
				skips[n] = true
			}
		}
	}
	const flag = "--unsafe-skip-upgrades"
	for i, a := range args {
		if value, ok := strings.CutPrefix(a, flag+"="); ok {
			add(value)
		}
		if a != flag {
			continue
		}
		for _, next := range args[i+1:] {
			if strings.HasPrefix(next, "-") {
				break
			}
			add(next)
		}
	}
	return skips
}
