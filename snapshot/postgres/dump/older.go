package dump

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"

	"nodevisor/internal/proc"
	"nodevisor/snapshot/postgres/server"
)

// pg_restore of PostgreSQL 17 and newer begins every session with a setting that servers before 17 don't know, whatever
// server it speaks to (_doSetFixedOutputState in pg_backup_archiver.c), and so --exit-on-error ends it at its first
// statement. What pg_dump 17 wrote no older pg_restore can read.
const (
	timeoutSince   = 17
	timeoutSetting = "transaction_timeout"
	timeoutUnknown = `unrecognized configuration parameter "` + timeoutSetting + `"`
)

// stumbles tells whether a pg_restore complains of a server for that alone.
func stumbles(client, reached string) bool {
	return server.Major(client) >= timeoutSince && server.Major(reached) < timeoutSince
}

// onlyStumbled tells whether that was all that a pg_restore complained of, which had gone on after each error. Its error
// output must be there as a whole: what was cut off may have been another error.
func onlyStumbled(err error) bool {
	var exit *proc.ExitError
	if !errors.As(err, &exit) || exit.Result.Code != 1 || len(exit.Result.Stderr) >= 4<<10 {
		return false
	}
	stumbled := false
	for line := range bytes.Lines(exit.Result.Stderr) {
		text := string(line)
		if strings.Contains(text, " error: ") || strings.Contains(text, " fatal: ") || strings.Contains(text, "ERROR:") || strings.Contains(text, "FATAL:") {
			if !strings.Contains(text, timeoutUnknown) {
				return false
			}
			stumbled = true
		}
	}
	return stumbled
}

// loadText restores an archive in one transaction by way of its SQL, without the setting: there an error that is passed
// over would end the transaction.
func loadText(ctx context.Context, v *server.Server, database string, args ...string) error {
	cmd, err := v.Program("pg_restore", "", append(args, "--file=-")...)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pr, pw := io.Pipe()
	text := &lineFilter{dst: pw, drop: "SET " + timeoutSetting + " = "}
	cmd.Stdout = text
	made := make(chan error, 1)
	go func() {
		_, err := proc.Output(ctx, cmd, 0)
		if err == nil {
			err = text.end()
		}
		pw.CloseWithError(err) // nil is the end of the SQL
		made <- err
	}()
	err = v.LoadSQL(ctx, database, pr, "")
	if err != nil {
		cancel()
	}
	pr.CloseWithError(io.ErrClosedPipe)
	if e := <-made; e != nil && !errors.Is(e, context.Canceled) && !errors.Is(e, io.ErrClosedPipe) {
		err = errors.Join(err, e)
	}
	return err
}

// lineFilter leaves out the first line that begins with drop, and then lets everything through: the setting stands before
// all data.
type lineFilter struct {
	dst  io.Writer
	drop string
	line []byte
	done bool
}

// headerMax bounds what is looked through, in bytes: pg_restore's settings are its first 1,000.
const headerMax = 64 << 10

func (f *lineFilter) Write(p []byte) (int, error) {
	if f.done {
		return f.dst.Write(p)
	}
	f.line = append(f.line, p...)
	for from := 0; ; {
		end := bytes.IndexByte(f.line[from:], '\n') + 1
		if end == 0 {
			if len(f.line) < headerMax {
				return len(p), nil
			}
			break
		}
		if strings.HasPrefix(string(f.line[from:from+end]), f.drop) {
			f.line = append(f.line[:from:from], f.line[from+end:]...)
			break
		}
		from += end
	}
	return len(p), f.end()
}

// end writes what was held back.
func (f *lineFilter) end() error {
	f.done = true
	_, err := f.dst.Write(f.line)
	f.line = nil
	return err
}
