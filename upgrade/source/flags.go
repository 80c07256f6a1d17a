package source

import (
	"fmt"
	"strconv"
	"strings"
)

// HaltHeight is the height at which a node that starts now halts by itself: --halt-height among its arguments, else
// halt-height in config/app.toml of its home (the Cosmos SDK's start); 0 = nowhere, or not known. It does file I/O.
func HaltHeight(home string, args []string) int64 {
	text, ok := flagValue(args, "halt-height")
	if !ok {
		app, err := readTOML[appConfig](appPath(home))
		if err != nil || app.HaltHeight == nil {
			return 0
		}
		text = fmt.Sprint(app.HaltHeight)
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0
	}
	return max(0, n)
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
