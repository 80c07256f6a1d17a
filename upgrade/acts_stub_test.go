package upgrade

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// acts are what a re-executed test process can do.
var acts = map[string]func(dir string) error{"full-disk": fullDisk}

// fullDisk replaces a binary on a disk that has room for the old one alone.
func fullDisk(dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	l := layoutOf(dir)
	old := "#!/bin/sh\n" + strings.Repeat("#", 100<<10)
	if err := errors.Join(os.MkdirAll(filepath.Dir(l.Binary("upgrades/v2")), 0o755), os.WriteFile(l.Binary("upgrades/v2"), []byte(old), 0o755)); err != nil {
		return err
	}
	self, err := os.Executable() // megabytes
	if err != nil {
		return err
	}
	_, err = Place(context.Background(), l, Placement{Version: "upgrades/v2", From: self, Force: true})
	if !errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("want ENOSPC, got %w", err)
	}
	if data, err := os.ReadFile(l.Binary("upgrades/v2")); err != nil || string(data) != old {
		return fmt.Errorf("the old binary is gone: %w", err)
	}
	left, err := os.ReadDir(filepath.Dir(l.Binary("upgrades/v2")))
	if err != nil || len(left) != 1 {
		return fmt.Errorf("left over: %v %w", left, err)
	}
	return nil
}
