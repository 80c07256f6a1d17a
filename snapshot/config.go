package snapshot

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Config is the table [snapshot].
type Config struct {
	Dir     string         `toml:"dir"`      // absolute, or relative to home; "" = <home>/supervisor/snapshots (DAEMON_DATA_BACKUP_DIR)
	Skip    bool           `toml:"skip"`     // upgrades take none (UNSAFE_SKIP_BACKUP)
	On      []string       `toml:"on"`       // upgrade, halt, stop, exit
	Method  string         `toml:"method"`   // auto | reflink | hardlink | copy
	Keep    int            `toml:"keep"`     // verified ones that prune leaves
	MinFree string         `toml:"min_free"` // "10%" or a size in bytes with an optional K, M, G, T
	PgBin   string         `toml:"pg_bin"`   // where pg_dump and pg_restore lie
	Sources []SourceConfig `toml:"source"`
}

// SourceConfig is one table [[snapshot.source]].
type SourceConfig struct {
	Name              string   `toml:"name"`
	Kind              string   `toml:"kind"`                // dir
	Path              string   `toml:"path"`                // relative to home, or absolute
	Exclude           []string `toml:"exclude"`             // patterns (path.Match) over the path within the source
	NeverRestoreOlder []string `toml:"never_restore_older"` // signer states: base names
	After             []string `toml:"after"`               // starts only once these are complete
}

// DefaultConfig is what holds where neither file, environment nor flag says otherwise. No source means the data
// directory, if there is one.
func DefaultConfig() Config {
	return Config{On: []string{"upgrade", "halt"}, Method: "auto", Keep: 2, MinFree: "10%"}
}

// Validate reports every mistake at once.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("[snapshot] "+format, args...)) }
	for _, on := range c.On {
		if !slices.Contains([]string{"upgrade", "halt", "stop", "exit"}, on) {
			bad("on: %q is none of upgrade, halt, stop, exit", on)
		}
	}
	if !slices.Contains([]string{"auto", "reflink", "hardlink", "copy"}, c.Method) {
		bad("method: %q is none of auto, reflink, hardlink, copy", c.Method)
	}
	if c.Keep < 1 {
		bad("keep: must be at least 1")
	}
	if _, err := ParseMinFree(c.MinFree); err != nil {
		bad("min_free: %v", err)
	}
	names := map[string]bool{}
	for i, s := range c.Sources {
		switch {
		case s.Name == "" || strings.ContainsAny(s.Name, "/\x00\n") || s.Name == "." || s.Name == "..":
			bad("source %d: name: %q is no file name", i+1, s.Name)
		case names[s.Name]:
			bad("source %d: name: %q is there twice", i+1, s.Name)
		}
		names[s.Name] = true
		if s.Kind != "dir" {
			bad("source %q: kind: %q is not dir", s.Name, s.Kind)
		}
		if s.Path == "" {
			bad("source %q: path: must not be empty", s.Name)
		}
	}
	for _, s := range c.Sources {
		for _, a := range s.After {
			if !names[a] || a == s.Name {
				bad("source %q: after: no other source is called %q", s.Name, a)
			}
		}
	}
	return errors.Join(errs...)
}

// MinFree is a floor for the free space of a file system: bytes, or a share of its size.
type MinFree struct {
	Bytes   uint64
	Percent float64
}

// ParseMinFree reads "10%", "0", "500M", "20G" (powers of 1024).
func ParseMinFree(s string) (MinFree, error) {
	if p, ok := strings.CutSuffix(s, "%"); ok {
		v, err := strconv.ParseFloat(p, 64)
		if err != nil || v < 0 || v >= 100 {
			return MinFree{}, fmt.Errorf("%q is no percentage below 100", s)
		}
		return MinFree{Percent: v}, nil
	}
	digits := strings.TrimRight(strings.ToUpper(s), "KMGTIB")
	n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 54)
	if err != nil {
		return MinFree{}, fmt.Errorf("%q is neither a percentage nor a size", s)
	}
	unit := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(s)[len(digits):], "B"), "I")
	shift, ok := map[string]uint{"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[unit]
	if !ok || n > (1<<63-1)>>shift {
		return MinFree{}, fmt.Errorf("%q is neither a percentage nor a size", s)
	}
	return MinFree{Bytes: n << shift}, nil
}
