package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"nodevisor/internal/hint"
	"nodevisor/internal/proc"
	"nodevisor/supervisor/status"
)

// testTemplates makes templates by a program of the test's.
type testTemplates runConfig

func (c testTemplates) path(snapshot string) string {
	return filepath.Join(c.Home, "supervisor", "snapshots", snapshot+".genesis")
}

func (c testTemplates) Export(ctx context.Context, snapshot string, height int64) error {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", c.Templates, "template", c.path(snapshot), strconv.FormatInt(height, 10))
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := proc.Run(cmd); err != nil {
		return &hint.Error{Op: "run the export", Err: fmt.Errorf("%w: %s", err, &out), Hint: "look at its output"}
	}
	return nil
}

func (c testTemplates) describe(snapshot string) (*status.Template, error) {
	_, err := os.Stat(c.path(snapshot))
	return &status.Template{Path: c.path(snapshot), ChainID: "c-2", SHA256: map[string]string{"genesis.json": "ab12"}}, err
}

// restoring counts the starts in the file "restoring", as the marker of `genesis init` does, and allows three of them.
func (c runConfig) restoring(log *slog.Logger) *Restoring {
	marker := filepath.Join(c.Home, "restoring")
	return &Restoring{
		Begin: func(context.Context) (bool, error) {
			data, err := os.ReadFile(marker)
			if errors.Is(err, fs.ErrNotExist) {
				return false, nil
			}
			if len(data) >= 3 {
				return false, hint.New("start the node", "", "it ended 3 times before its state was restored", "supervisor resume")
			}
			if len(data) > 0 {
				log.Info("the database is made anew")
			}
			return true, os.WriteFile(marker, append(data, 'x'), 0o600)
		},
		Done: func() error { return os.Remove(marker) },
	}
}
