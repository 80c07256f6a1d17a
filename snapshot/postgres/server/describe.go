package server

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"nodevisor/snapshot/manifest"
)

// Describe reads what the manifest holds of a database itself. conn is connected to any database of its server.
func Describe(ctx context.Context, conn Session, name string) (manifest.Database, error) {
	d := manifest.Database{Name: name, Locale: map[string]string{}, Settings: []manifest.Setting{}}
	var version int
	err := conn.QueryRow(ctx, `SELECT oid, current_setting('server_version'), current_setting('server_version_num')::int, pg_get_userbyid(datdba)::text,
		pg_encoding_to_char(encoding)::text, datacl::text[], datconnlimit, pg_database_size(oid), shobj_description(oid, 'pg_database'),
		(SELECT spcname::text FROM pg_tablespace t WHERE t.oid = dattablespace)
		FROM pg_database WHERE datname = $1`, name).
		Scan(&d.OID, &d.ServerVersion, &version, &d.Owner, &d.Encoding, &d.Grants, &d.ConnLimit, &d.Size, &d.Comment, &d.Tablespace)
	if err != nil {
		return d, err
	}
	d.ServerVersion, _, _ = strings.Cut(d.ServerVersion, " ") // "15.18 (Debian 15.18-0+deb12u1)"
	if d.Locale, err = locale(ctx, conn, d.OID, version); err != nil {
		return d, err
	}
	rows, err := conn.Query(ctx, `SELECT CASE WHEN setrole = 0 THEN '' ELSE pg_get_userbyid(setrole)::text END, setconfig
		FROM pg_db_role_setting WHERE setdatabase = $1 ORDER BY 1`, d.OID)
	if err != nil {
		return d, err
	}
	d.Settings, err = pgx.AppendRows(d.Settings, rows, pgx.RowToStructByPos[manifest.Setting])
	return d, err
}

// locale reads what a new database must share with the one that it is a copy of, in the words of CREATE DATABASE. The
// columns of pg_database have changed with 15 and 17.
func locale(ctx context.Context, conn Session, oid uint32, version int) (map[string]string, error) {
	icu, rules, provider := "NULL", "NULL", "'c'"
	if version >= 150000 {
		icu, provider = "daticulocale", "datlocprovider"
	}
	if version >= 160000 {
		rules = "daticurules"
	}
	if version >= 170000 {
		icu = "datlocale"
	}
	var p, collate, ctype string
	var loc, rule *string
	err := conn.QueryRow(ctx, fmt.Sprintf("SELECT %s::text, datcollate::text, datctype::text, %s::text, %s::text FROM pg_database WHERE oid = $1", provider, icu, rules), oid).
		Scan(&p, &collate, &ctype, &loc, &rule)
	names := map[string]string{"c": "libc", "i": "icu", "b": "builtin"}
	all := map[string]string{"provider": names[p], "collate": collate, "ctype": ctype}
	if loc != nil {
		all["locale"] = *loc
	}
	if rule != nil {
		all["icu_rules"] = *rule
	}
	return all, err
}

// Bestow gives a database of ours what CREATE DATABASE doesn't copy of the one that it stands for: settings, grants,
// limit and comment, and lets sessions in. It is what turns a copy into the live database: in one transaction with the
// renaming, or before it. A role that a grant or setting names and that is gone is an error.
func Bestow(ctx context.Context, conn Session, name string, d manifest.Database) error {
	steps := [][]string{{"ALTER DATABASE %I WITH ALLOW_CONNECTIONS true CONNECTION LIMIT " + fmt.Sprint(d.ConnLimit), name}, {"ALTER DATABASE %I RESET ALL", name}}
	if d.Comment != nil {
		steps = append(steps, []string{"COMMENT ON DATABASE %I IS %L", name, *d.Comment})
	} else {
		steps = append(steps, []string{"COMMENT ON DATABASE %I IS NULL", name})
	}
	for _, set := range d.Settings {
		for _, line := range set.Config {
			step, err := settingStep(name, set.Role, line)
			if err != nil {
				return err
			}
			steps = append(steps, step)
		}
	}
	steps = append(steps, []string{"REVOKE ALL ON DATABASE %I FROM PUBLIC", name})
	for _, item := range defaultGrants(d) {
		grants, err := grantSteps(name, item)
		if err != nil {
			return err
		}
		steps = append(steps, grants...)
	}
	for _, step := range steps {
		if err := Formatted(ctx, conn, step[0], step[1:]...); err != nil {
			return fmt.Errorf("%s: %w", step[0], err)
		}
	}
	return nil
}

// listGUCs are the parameters whose value is a list of names (GUC_LIST_QUOTE in the server's guc_tables.c): as one
// quoted string such a list would be a single name.
var listGUCs = []string{"search_path", "session_preload_libraries", "shared_preload_libraries", "local_preload_libraries", "temp_tablespaces", "unix_socket_directories"}

func settingStep(database, role, line string) ([]string, error) {
	key, value, ok := strings.Cut(line, "=")
	if !ok {
		return nil, fmt.Errorf("setting %q is not name=value", line)
	}
	format, args := "ALTER DATABASE %I SET %I TO ", []string{database}
	if role != "" {
		format, args = "ALTER ROLE %I IN DATABASE %I SET %I TO ", []string{role, database}
	}
	// A parameter of an extension has a dot in its name, and isn't one identifier.
	parts := strings.Split(key, ".")
	format = strings.Replace(format, "SET %I", "SET "+strings.Repeat("%I.", len(parts)-1)+"%I", 1)
	args = append(args, parts...)
	if !slices.ContainsFunc(listGUCs, func(list string) bool { return strings.EqualFold(list, key) }) {
		return append([]string{format + "%L"}, append(args, value)...), nil
	}
	var values []string
	for _, name := range listed.FindAllString(value, -1) {
		if strings.HasPrefix(name, `"`) {
			name = strings.ReplaceAll(name[1:len(name)-1], `""`, `"`)
		}
		values = append(values, name)
	}
	if len(values) == 0 {
		values = []string{""}
	}
	format += strings.TrimSuffix(strings.Repeat("%L, ", len(values)), ", ")
	return append([]string{format}, append(args, values...)...), nil
}

// listed finds the names of a list as the server stores it: plain, or quoted with quotes doubled.
var listed = regexp.MustCompile(`"(?:[^"]|"")*"|[^,\s]+`)

// defaultGrants are the access privileges as a list; none recorded means those that every new database has (PostgreSQL
// manual, "Privileges").
func defaultGrants(d manifest.Database) []string {
	if d.Grants == nil {
		return []string{"=Tc/"}
	}
	return d.Grants
}

// grantSteps turns an aclitem, such as reader=c/owner or "we""ird"=CTc*/owner, into GRANTs.
func grantSteps(database, item string) ([][]string, error) {
	role, rest, err := GrantRole(item)
	privileges, _, ok := strings.Cut(rest, "/")
	if err != nil || !ok {
		return nil, fmt.Errorf("grant %q is no aclitem", item)
	}
	names := map[rune]string{'C': "CREATE", 'T': "TEMPORARY", 'c': "CONNECT"}
	var steps [][]string
	for i, p := range privileges {
		if p == '*' {
			continue
		}
		name, known := names[p]
		if !known {
			return nil, fmt.Errorf("grant %q holds the unknown privilege %q", item, p)
		}
		step := []string{"GRANT " + name + " ON DATABASE %I TO PUBLIC", database}
		if role != "" {
			step = []string{"GRANT " + name + " ON DATABASE %I TO %I", database, role}
		}
		if strings.HasPrefix(privileges[i+1:], "*") {
			step[0] += " WITH GRANT OPTION"
		}
		steps = append(steps, step)
	}
	return steps, nil
}

// GrantRole cuts the grantee off an aclitem: quoted where it isn't plain, a quote in it doubled; "" is PUBLIC.
func GrantRole(item string) (role, rest string, err error) {
	if !strings.HasPrefix(item, `"`) {
		role, rest, ok := strings.Cut(item, "=")
		if !ok {
			return "", "", errors.New("no =")
		}
		return role, rest, nil
	}
	var b strings.Builder
	for i := 1; i < len(item); i++ {
		switch {
		case item[i] != '"':
			b.WriteByte(item[i])
		case strings.HasPrefix(item[i:], `""`):
			b.WriteByte('"')
			i++
		case strings.HasPrefix(item[i:], `"=`):
			return b.String(), item[i+2:], nil
		default:
			return "", "", errors.New("a quote amid a name")
		}
	}
	return "", "", errors.New("a quote without an end")
}

// FreshOptions makes an empty database with the encoding and the locale of the recorded one.
func FreshOptions(db *manifest.Database) string {
	b := " TEMPLATE template0"
	for _, o := range []struct{ word, value string }{
		{"ENCODING", db.Encoding}, {"LC_COLLATE", db.Locale["collate"]}, {"LC_CTYPE", db.Locale["ctype"]},
	} {
		if o.value != "" {
			b += " " + o.word + " " + literal(o.value)
		}
	}
	loc := db.Locale["locale"]
	switch provider := db.Locale["provider"]; {
	case loc == "":
	case provider == "icu":
		b += " LOCALE_PROVIDER icu ICU_LOCALE " + literal(loc)
	case provider == "builtin":
		b += " LOCALE_PROVIDER builtin BUILTIN_LOCALE " + literal(loc)
	}
	if rules := db.Locale["icu_rules"]; rules != "" {
		b += " ICU_RULES " + literal(rules)
	}
	return b
}

// TablespaceOption puts a fresh database where the recorded one lay: a node's data is often on a disk of its own. It is ""
// for the server's default, and where conn's server has no such tablespace, or its role may not use it. (A copy with
// TEMPLATE goes to the template's tablespace, whose right isn't asked for.)
func TablespaceOption(ctx context.Context, conn Session, db *manifest.Database) (string, error) {
	var option string
	err := conn.QueryRow(ctx, `SELECT coalesce((SELECT ' TABLESPACE ' || quote_ident(spcname) FROM pg_tablespace
		WHERE spcname = $1 AND spcname <> 'pg_default' AND has_tablespace_privilege(oid, 'CREATE')), '')`, db.Tablespace).Scan(&option)
	return option, err
}

// literal is a string in SQL, whatever standard_conforming_strings says.
func literal(text string) string {
	text = strings.ReplaceAll(text, "'", "''")
	if strings.Contains(text, `\`) {
		return ` E'` + strings.ReplaceAll(text, `\`, `\\`) + `'`
	}
	return "'" + text + "'"
}
