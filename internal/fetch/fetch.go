package fetch

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/internal/progress"
)

// ErrChecksum means that what the server sent is not what the plan names. It is never tried again.
var ErrChecksum = errors.New("checksum mismatch")

const (
	defaultMaxBytes = 1 << 30 // of a download, and of what is unpacked from it; nodes are of 50 to 300 MB
	defaultMaxFiles = 1000    // entries of an archive
	defaultDeadline = 30 * time.Minute
	defaultBackoff  = time.Second
	infoDeadline    = 2 * time.Minute
	retries         = 3 // after network trouble

	bodyDir = "body" // in the stage: what the server sent
	outDir  = "out"  // in the stage: what was unpacked from it
)

// Request is one download of a binary. The zero values of the last fields stand for defaults.
type Request struct {
	URL  string // as in the plan, with ?checksum=sha256:HEX or sha512:HEX
	Name string // file name of the binary: DAEMON_NAME
	Dir  string // where the staging directory is made; on the file system of the target, for the rename

	MaxBytes int64         // of the download, and of what is unpacked from it; 0 = 1 GiB
	MaxFiles int64         // entries of an archive; 0 = 1000
	Deadline time.Duration // for everything, retries included; 0 = 30 minutes
	Backoff  time.Duration // before the first retry, doubled for each further one; 0 = 1 second

	Program string            // the downloader; "" = Program()
	Observe progress.Observer // "download", in bytes
	Log     *slog.Logger      // nil = none
}

// Binary downloads the plan's binary, verifies it and returns the path of that one file, executable and synced, in a fresh
// staging directory where nothing else is, and its own SHA-256 in hexadecimal (the plan's digest is that of the archive,
// where it is one), to be compared again before the file is first run. The caller publishes it by rename and removes
// filepath.Dir(path). On error nothing is left.
//
// Errors: *hint.Error where a person can help; ErrChecksum; ctx's own.
func Binary(ctx context.Context, req Request) (file, sum string, err error) {
	req = req.withDefaults()
	began := time.Now()
	err = req.download(ctx, func(ctx context.Context, s *stage, body string) (err error) {
		if file, sum, err = req.unpack(ctx, s, body); err != nil {
			return req.explain("unpack download", err)
		}
		req.Log.Info("binary downloaded and verified", "url", Redact(req.URL), "sha256", sum, "took", time.Since(began))
		return nil
	})
	return file, sum, err
}

// File downloads a file that is no program, a genesis document or a state, and verifies it; nothing is unpacked. It returns
// the path of that one file, of mode 0600 and synced, in a fresh staging directory, and its SHA-256. The caller removes
// filepath.Dir(path). On error nothing is left. Errors: as Binary's.
func File(ctx context.Context, req Request) (file, sum string, err error) {
	req = req.withDefaults()
	err = req.download(ctx, func(_ context.Context, s *stage, body string) (err error) {
		file, sum, err = s.take(path.Dir(body), req.Name, req.MaxBytes, 0o600)
		return err
	})
	return file, sum, err
}

// Info downloads a plan's info where the plan holds only its URL: at most 1 MiB. The URL must carry a checksum, always:
// a document that names what is to be run is as good as the program.
func Info(ctx context.Context, rawURL string) ([]byte, error) {
	return Request{URL: rawURL, Deadline: infoDeadline}.info(ctx)
}

func (r Request) info(ctx context.Context) (data []byte, err error) {
	r.Name, r.MaxBytes, r.Dir = "info", maxInfo, cmp.Or(r.Dir, os.TempDir())
	r = r.withDefaults()
	err = r.download(ctx, func(_ context.Context, s *stage, body string) error {
		defer s.remove()
		f, err := s.open(body, r.MaxBytes)
		if err != nil {
			return fmt.Errorf("cannot read plan info: %w", err)
		}
		defer f.Close()
		if data, err = io.ReadAll(io.LimitReader(f, r.MaxBytes+1)); err != nil {
			return fmt.Errorf("cannot read plan info: %w", err)
		}
		return r.verify(bytes.NewReader(data)) // hashed again, over the very bytes that are returned
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}

// download gets the body into a stage of its own, and hands both to use. The stage is removed where anything fails; else it
// is use's, or the caller's.
func (r *Request) download(ctx context.Context, use func(ctx context.Context, s *stage, body string) error) error {
	if r.Name == "" || r.Name != filepath.Base(r.Name) || r.Name == "." || r.Name == ".." || r.Name == "/" {
		return fmt.Errorf("cannot download: %q is not a file name", r.Name)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, r.Deadline,
		&failure{kind: Refused, text: fmt.Sprintf("not done within %s", r.Deadline)})
	defer cancel()
	s, err := newStage(r.Dir)
	if err != nil {
		return err
	}
	body, err := r.body(ctx, s)
	if err == nil {
		err = use(ctx, s, body)
	}
	if err != nil {
		s.remove()
	}
	return err
}

func (r Request) withDefaults() Request {
	r.MaxBytes = cmp.Or(r.MaxBytes, defaultMaxBytes)
	r.MaxFiles = cmp.Or(r.MaxFiles, defaultMaxFiles)
	r.Deadline = cmp.Or(r.Deadline, defaultDeadline)
	r.Backoff = cmp.Or(r.Backoff, defaultBackoff)
	if r.Log == nil {
		r.Log = slog.New(slog.DiscardHandler)
	}
	return r
}

// body gets the file that the server sends and verifies its digest. It returns its name in the stage.
func (r *Request) body(ctx context.Context, s *stage) (name string, err error) {
	_, _, clean, err := ParseChecksum(r.URL)
	if err != nil {
		return "", err
	}
	u, err := url.Parse(clean)
	if err != nil {
		return "", fmt.Errorf("cannot download %s: %w", Redact(clean), err)
	}
	if err := AllowedURL(u); err != nil {
		return "", &hint.Error{Op: "download", Path: Redact(clean), Err: err, Hint: byHand}
	}
	if r.Program == "" {
		if r.Program, err = Program(); err != nil {
			return "", err
		}
	}
	if err := r.attempts(ctx, s, clean); err != nil {
		return "", r.explain("download", err)
	}
	name = path.Join(bodyDir, r.Name)
	f, err := s.open(name, r.MaxBytes)
	if err != nil {
		return "", r.explain("download", err)
	}
	defer f.Close()
	return name, r.verify(f)
}

// attempts runs the downloader until it succeeds, at most 1+retries times, each time with an empty directory: go-getter
// would take a file that is already there for the result, or append to it.
func (r *Request) attempts(ctx context.Context, s *stage, clean string) error {
	for attempt, delay := 1, r.Backoff; ; attempt, delay = attempt+1, 2*delay {
		dir, err := s.fresh(bodyDir)
		if err != nil {
			return err
		}
		r.Log.Info("downloading", "url", Redact(clean), "attempt", attempt)
		_, err = run(ctx, s, r.Program, r.args(ctx, "--url="+clean, "--out="+dir), r.Observe)
		var failed *failure
		if !errors.As(err, &failed) || failed.kind != Temporary || attempt > retries || ctx.Err() != nil {
			return err
		}
		r.Log.Warn("download failed, trying again", "url", Redact(clean), "attempt", attempt, "error", err, "in", delay)
		// Jitter: a network's validators all ask at the same height.
		select {
		case <-time.After(delay + rand.N(delay/4+1)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// unpack takes the binary out of the verified body: the body itself, or the one file of that name in an archive.
func (r *Request) unpack(ctx context.Context, s *stage, body string) (file, sum string, err error) {
	dir, err := s.fresh(outDir)
	if err != nil {
		return "", "", err
	}
	if _, err := run(ctx, s, r.Program, r.args(ctx, "--unpack="+filepath.Join(s.path, body), "--out="+dir), nil); err != nil {
		return "", "", err
	}
	return s.take(outDir, r.Name, r.MaxBytes, 0o755)
}

// args adds to a mode's arguments those of both.
func (r *Request) args(ctx context.Context, mode ...string) []string {
	left := r.Deadline
	if at, ok := ctx.Deadline(); ok {
		left = time.Until(at)
	}
	return append(mode, "--name="+r.Name, fmt.Sprintf("--max-bytes=%d", r.MaxBytes), fmt.Sprintf("--max-files=%d", r.MaxFiles),
		"--deadline="+max(left, time.Second).String())
}

// verify compares the digest of what f holds with the plan's.
func (r *Request) verify(f io.Reader) error {
	algo, want, _, err := ParseChecksum(r.URL)
	if err != nil {
		return err
	}
	h, err := newHash(algo)
	if err != nil {
		return err
	}
	got, err := digest(f, h)
	if err != nil {
		return fmt.Errorf("cannot hash download: %w", err)
	}
	if got != want {
		return &hint.Error{
			Op: "verify download", Path: Redact(r.URL), Err: fmt.Errorf("%w: %s is %s, the plan says %s", ErrChecksum, algo, got, want),
			Hint: "do not run what that server offers; " + byHand,
		}
	}
	return nil
}

// explain wraps err with what a person can do about it.
func (r *Request) explain(op string, err error) error {
	var failed *failure
	next := byHand
	if errors.Is(err, context.Canceled) {
		next = "" // the caller's own wish
	}
	if errors.As(err, &failed) && failed.kind == NoSpace {
		next = "free some space on the file system of " + r.Dir + ", or " + byHand
	}
	return &hint.Error{Op: op, Path: Redact(r.URL), Err: err, Hint: next}
}
