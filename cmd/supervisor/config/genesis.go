package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"nodevisor/genesis"
	"nodevisor/genesis/kwil"
)

// validate reports every mistake of the table at once, each text beginning with "[genesis] key: ".
func (c Genesis) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("[genesis] "+format, args...)) }
	if c.Kind != "" && !slices.Contains(genesis.Kinds(), c.Kind) {
		bad("kind: %q is none of %s", c.Kind, strings.Join(genesis.Kinds(), ", "))
	}
	if c.Kind == genesis.Kwil {
		if _, err := kwil.ParseVersion(c.Version); err != nil {
			bad("version: %w", err)
		}
	}
	if c.Kind == genesis.Command && (len(c.Command) == 0 || c.Command[0] == "") {
		bad("command: the kind command needs a program")
	}
	// A key of another kind is a misunderstanding, and what it was meant for would be missing in the template.
	for _, use := range []struct {
		key, kind string
		set       bool
	}{
		{"version", genesis.Kwil, c.Version != ""},
		{"source", genesis.Kwil, c.Source != ""},
		{"binary", genesis.Cosmos, c.Binary != ""},
		{"migrate", genesis.Cosmos, c.Migrate != ""},
		{"export", genesis.Cosmos, len(c.Export) > 0},
		{"command", genesis.Command, len(c.Command) > 0},
	} {
		if use.set && c.Kind != "" && c.Kind != use.kind {
			bad("%s: is for kind = %q", use.key, use.kind)
		}
	}
	if strings.HasPrefix(c.Migrate, "-") {
		bad("migrate: %q is no target", c.Migrate)
	}
	if c.Timeout <= 0 {
		bad("timeout: must be above 0")
	}
	for _, on := range c.On {
		if !slices.Contains([]string{"halt", "upgrade", "stop"}, on) {
			bad("on: %q is none of halt, upgrade, stop", on)
		}
	}
	if err := genesis.CheckSet(c.Set); err != nil {
		bad("set: %w", err)
	}
	return errors.Join(errs...)
}

// checkGenesis wants the files that [genesis] names: at the halt it would be too late to miss one.
func (l *loader) checkGenesis() {
	g := l.cfg.Genesis
	if g.Kind == "" {
		return
	}
	for _, file := range [][2]string{{"from", g.From}, {"binary", g.Binary}} {
		key, path := file[0], file[1]
		if path == "" {
			continue
		}
		if _, err := readableFile(l.cfg.UnderHome(path)); err != nil {
			l.bad(l.origin.Keys["genesis."+key], fmt.Errorf("[genesis] %s: %w", key, err))
		}
	}
}

// readableFile is the regular file at path.
func readableFile(path string) (fs.FileInfo, error) {
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	}
	return info, err
}
