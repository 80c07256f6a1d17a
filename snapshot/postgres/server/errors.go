package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"

	"nodevisor/internal/hint"
	"nodevisor/snapshot/manifest"
)

// SQLSTATEs that a person can do something about (PostgreSQL manual, Appendix A).
const (
	StateNoRights       = "42501" // insufficient_privilege
	StateBadPassword    = "28P01" // invalid_password
	StateBadRole        = "28000" // invalid_authorization_specification
	StateNoDatabase     = "3D000" // invalid_catalog_name
	StateTooMany        = "53300" // too_many_connections
	StateDiskFull       = "53100" // disk_full
	StateLockTimeout    = "55P03" // lock_not_available
	StateInUse          = "55006" // object_in_use
	StateDuplicate      = "42P04" // duplicate_database
	StateNotConnectable = "55000" // object_not_in_prerequisite_state: datallowconn is false
	StateStarting       = "57P03" // cannot_connect_now
	StateShutdown       = "57P01" // admin_shutdown
	StateCrash          = "57P02" // crash_shutdown
)

// State is the SQLSTATE in err's chain, or "".
func State(err error) string {
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// Explain turns what a server or the way to it said into an error that says what to do. It wraps the cause, and
// manifest.ErrAway where the server doesn't answer.
func (v *Server) Explain(ctx context.Context, op string, err error) error {
	if err == nil {
		return nil
	}
	next, cause := v.diagnose(ctx, err)
	return &hint.Error{Op: op, Path: v.Where(), Err: cause, Hint: next}
}

// ExplainUnlessHinted is Explain for what may have an explanation already.
func (v *Server) ExplainUnlessHinted(ctx context.Context, op string, err error) error {
	if err == nil || hint.Of(err) != "" || State(err) == "" && !isAway(err) {
		return err
	}
	return v.Explain(ctx, op, err)
}

func (v *Server) diagnose(ctx context.Context, err error) (next string, cause error) {
	var pg *pgconn.PgError
	switch {
	case ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded):
		return "", fmt.Errorf("%w: %w", context.Cause(ctx), err)
	case errors.As(err, &pg):
		return v.diagnoseState(pg, err)
	case isTLS(err):
		return "set sslmode and sslrootcert in " + v.key() + " as the server's ssl settings and certificate are", fmt.Errorf("TLS: %w", err)
	case isAway(err):
		return "start it: systemctl start postgresql; then look at host and port in " + v.key(), fmt.Errorf("%w: %w", manifest.ErrAway, err)
	}
	return "", err
}

func (v *Server) diagnoseState(pg *pgconn.PgError, err error) (next string, cause error) {
	switch pg.Code {
	case StateBadPassword:
		return "put the role's password into password_file, PGPASSFILE or the credential " + v.source + ".password", fmt.Errorf("the password is wrong or missing: %w", err)
	case StateBadRole:
		if pg.Routine == "ClientAuthentication" { // by its name: the text is in the server's language
			return "add a line for this role and address to pg_hba.conf, or use the host and sslmode that it expects", fmt.Errorf("the server's pg_hba.conf doesn't let us in: %w", err)
		}
		return "correct user in " + v.key() + ", or CREATE ROLE … LOGIN", fmt.Errorf("there is no such role, or it may not log in here: %w", err)
	case StateNoDatabase:
		return "correct dbname in " + v.key() + "; psql -l lists what is there", fmt.Errorf("there is no such database: %w", err)
	case StateNoRights:
		return "supervisor doctor    # it lists the rights that are needed", fmt.Errorf("the role lacks a right: %w", err)
	case StateTooMany:
		return "raise max_connections, or end idle sessions", fmt.Errorf("the server has no connection left: %w", err)
	case StateDiskFull:
		return "make room where the server's data lies, or set mode = \"dump\"", fmt.Errorf("the server's disk is full: %w", err)
	case StateLockTimeout:
		return "SELECT pid, application_name, query FROM pg_stat_activity WHERE state <> 'idle'", fmt.Errorf("another session holds a lock: %w", err)
	case StateStarting, StateShutdown, StateCrash:
		return "wait until it has started: pg_isready", fmt.Errorf("%w: %w", manifest.ErrAway, err)
	}
	if strings.HasPrefix(pg.Code, "08") {
		return "pg_isready", fmt.Errorf("%w: %w", manifest.ErrAway, err)
	}
	return "", err
}

func isTLS(err error) bool {
	var record tls.RecordHeaderError
	var alert tls.AlertError
	var verify *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	return errors.As(err, &record) || errors.As(err, &alert) || errors.As(err, &verify) || errors.As(err, &authority) || errors.As(err, &host) ||
		strings.Contains(err.Error(), "server refused TLS") // pgconn has no type for it
}

// isAway tells whether nobody answered, or the line broke.
func isAway(err error) bool {
	var op *net.OpError
	var lookup *net.DNSError
	var failed *pgconn.ConnectError
	return errors.As(err, &op) || errors.As(err, &lookup) || errors.As(err, &failed) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, pgconn.ErrConnClosed) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || pgconn.Timeout(err)
}
