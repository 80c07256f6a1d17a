package manifest

import (
	"errors"
	"time"
)

// ErrAway means that the server of a database doesn't answer. What only tidies up is put off then.
var ErrAway = errors.New("the server doesn't answer")

// Database describes what was taken of one PostgreSQL database, and what a restore must give back to it beyond its
// content: CREATE DATABASE … TEMPLATE copies neither settings nor grants of the database itself.
type Database struct {
	Name          string            `json:"name"`           // the real name, also where a clone has another
	OID           uint32            `json:"oid"`            // of the database that was taken
	ServerVersion string            `json:"server_version"` // server_version, such as "15.18"
	ClientVersion string            `json:"client_version"` // pg_dump's; "" until there is an archive
	Owner         string            `json:"owner"`
	Encoding      string            `json:"encoding"`
	Locale        map[string]string `json:"locale"`           // provider, collate, ctype, icu: those of pg_database that a new one must share
	Tablespace    string            `json:"tablespace"`       // its default one; "": a manifest that doesn't know it
	Settings      []Setting         `json:"settings"`         // ALTER DATABASE … SET, also for a role
	Grants        []string          `json:"grants"`           // aclitems of the database itself; null: the defaults
	ConnLimit     int32             `json:"connection_limit"` // of the database itself; -1: none
	Comment       *string           `json:"comment"`
	Size          int64             `json:"size"`  // pg_database_size, in bytes
	Clone         *string           `json:"clone"` // the frozen clone that is kept; nil: there is none
	CloneOID      *uint32           `json:"clone_oid"`
	Compression   string            `json:"compression"` // of the archive: zstd:1, gzip:1; "" until there is one
	DumpedAt      *time.Time        `json:"dumped_at"`
	Tables        []Table           `json:"tables"` // null until the archive was read
}

// Setting is one configuration parameter that is bound to the database (pg_db_role_setting).
type Setting struct {
	Role   string   `json:"role"`   // "" = all roles
	Config []string `json:"config"` // name=value
}

// Table is the content of one table, sequence or large-object store, told apart from how it lies on the disk.
type Table struct {
	Schema string `json:"schema"`
	Name   string `json:"name"`
	Kind   string `json:"kind"` // table | sequence | large-objects
	Rows   int64  `json:"rows"`
	Hash   string `json:"hash"` // hex; the sum of each row's SHA-256 modulo 2^256: no order of rows changes it
}
