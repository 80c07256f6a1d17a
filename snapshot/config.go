package snapshot

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"nodevisor/snapshot/datadir"
	"nodevisor/snapshot/postgres"
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

// SourceConfig is one table [[snapshot.source]]: the keys of both kinds.
type SourceConfig struct {
	Name              string   `toml:"name"`
	Kind              string   `toml:"kind"`                // dir | postgres
	Path              string   `toml:"path"`                // relative to home, or absolute
	Exclude           []string `toml:"exclude"`             // patterns (path.Match) over the path within the source
	NeverRestoreOlder []string `toml:"never_restore_older"` // signer states: base names
	After             []string `toml:"after"`               // starts only once these are complete

	// Of kind postgres.
	DSN          string   `toml:"dsn"`           // without a password
	PasswordFile string   `toml:"password_file"` // 0600
	Mode         string   `toml:"mode"`          // auto | clone | dump
	Fallback     string   `toml:"fallback"`      // a clone that fails in the window: dump | hold
	AdminDSN     string   `toml:"admin_dsn"`     // for CREATE and RENAME DATABASE; "" = the same server, database postgres
	ScratchDSN   string   `toml:"scratch_dsn"`   // where verify --deep restores, if this server doesn't allow it
	Disconnect   []string `toml:"disconnect"`    // application names that may be disconnected for a clone or a swap
	KeepClones   *int     `toml:"keep_clones"`   // clones that stay once their archive is verified; nil = 1
	FreeSpace    string   `toml:"free_space"`    // room on the server, where it can't be seen from here: a size
}

// database gives the keys of a database their defaults.
func (s SourceConfig) database() postgres.Config {
	c := postgres.Config{
		DSN: s.DSN, PasswordFile: s.PasswordFile, Mode: cmp.Or(s.Mode, "auto"), Fallback: cmp.Or(s.Fallback, "dump"), AdminDSN: s.AdminDSN,
		ScratchDSN: s.ScratchDSN, Disconnect: s.Disconnect, KeepClones: 1, FreeSpace: -1,
	}
	if s.KeepClones != nil {
		c.KeepClones = *s.KeepClones
	}
	if room, err := ParseMinFree(s.FreeSpace); err == nil && s.FreeSpace != "" && room.Percent == 0 {
		c.FreeSpace = int64(room.Bytes)
	}
	return c
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
		for _, err := range s.validateKind() {
			bad("source %q: %v", s.Name, err)
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

// validateKind checks the keys of the source's kind, and that there are none of the other's.
func (s SourceConfig) validateKind() []error {
	switch s.Kind {
	case datadir.Kind:
		errs := unwanted(map[string]bool{
			"dsn": s.DSN != "", "password_file": s.PasswordFile != "", "mode": s.Mode != "", "fallback": s.Fallback != "", "admin_dsn": s.AdminDSN != "",
			"scratch_dsn": s.ScratchDSN != "", "disconnect": len(s.Disconnect) > 0, "keep_clones": s.KeepClones != nil, "free_space": s.FreeSpace != "",
		}, postgres.Kind)
		if s.Path == "" {
			errs = append(errs, errors.New("path: must not be empty"))
		}
		return errs
	case postgres.Kind:
		errs := unwanted(map[string]bool{"path": s.Path != "", "exclude": len(s.Exclude) > 0, "never_restore_older": len(s.NeverRestoreOlder) > 0}, datadir.Kind)
		if room, err := ParseMinFree(s.FreeSpace); s.FreeSpace != "" && (err != nil || room.Percent > 0) {
			errs = append(errs, fmt.Errorf("free_space: %q is no size, such as 200G", s.FreeSpace))
		}
		return append(errs, s.database().Validate()...)
	}
	return []error{fmt.Errorf("kind: %q is neither dir nor postgres", s.Kind)}
}

// unwanted reports the keys that are set and belong to another kind.
func unwanted(set map[string]bool, kind string) (errs []error) {
	for _, key := range slices.Sorted(maps.Keys(set)) {
		if set[key] {
			errs = append(errs, fmt.Errorf("%s: belongs to a source of kind %s", key, kind))
		}
	}
	return errs
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
