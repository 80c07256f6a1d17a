package server

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
)

// libpqEnv are the keywords of a connection string that client programs are given in their environment, where neither
// ps nor a log shows them (PostgreSQL manual, "libpq: Environment Variables").
var libpqEnv = map[string]string{
	"host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE", "user": "PGUSER", "passfile": "PGPASSFILE", "service": "PGSERVICE", "servicefile": "PGSERVICEFILE",
	"sslmode": "PGSSLMODE", "sslkey": "PGSSLKEY", "sslcert": "PGSSLCERT", "sslcertmode": "PGSSLCERTMODE", "sslrootcert": "PGSSLROOTCERT", "sslsni": "PGSSLSNI",
	"sslcrl": "PGSSLCRL", "sslcrldir": "PGSSLCRLDIR", "sslnegotiation": "PGSSLNEGOTIATION", "channel_binding": "PGCHANNELBINDING", "require_auth": "PGREQUIREAUTH",
	"ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION", "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION", "gssencmode": "PGGSSENCMODE",
	"krbsrvname": "PGKRBSRVNAME", "target_session_attrs": "PGTARGETSESSIONATTRS", "options": "PGOPTIONS", "connect_timeout": "PGCONNECT_TIMEOUT",
}

// libpqOnly are keywords that libpq acts on and pgx would hand to the server as parameters, which refuses them.
var libpqOnly = []string{
	"gssencmode", "sslcrl", "sslcrldir", "ssl_min_protocol_version", "ssl_max_protocol_version", "keepalives", "keepalives_idle", "keepalives_interval",
	"keepalives_count", "tcp_user_timeout", "fallback_application_name", "load_balance_hosts", "sslcompression", "requirepeer", "gsslib", "gssdelegation",
}

// parseDSN reads a connection string in either of libpq's forms into its keywords. Its errors show nothing of the string:
// a mistake in it may be a password that went astray.
func parseDSN(dsn string) (map[string]string, error) {
	if strings.ContainsRune(dsn, 0) {
		return nil, errors.New("it holds a NUL byte")
	}
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		return parseURI(dsn)
	}
	return parseKeywords(dsn)
}

// parseURI reads the URI as libpq and the driver do (PostgreSQL manual, "Connection URIs"), which isn't quite as RFC 3986
// says: the first @ ends the user, and a + stays one.
func parseURI(dsn string) (map[string]string, error) {
	bad := errors.New("it is no URI: postgresql://user@host:port/database?keyword=value")
	_, rest, _ := strings.Cut(dsn, "://")
	all := map[string]string{}
	if at := strings.IndexAny(rest, "@/"); at >= 0 && rest[at] == '@' {
		all["user"], all["password"], _ = strings.Cut(rest[:at], ":")
		rest = rest[at+1:]
	}
	rest, query, _ := strings.Cut(rest, "?")
	authority, name, _ := strings.Cut(rest, "/")
	all["dbname"] = name
	var ok bool
	if all["host"], all["port"], ok = splitHosts(authority); !ok {
		return nil, bad
	}
	maps.DeleteFunc(all, func(_, value string) bool { return value == "" })
	for key, value := range all {
		text, err := unescape(value)
		if err != nil {
			return nil, bad
		}
		all[key] = text
	}
	given, err := parseQuery(query)
	if err != nil {
		return nil, err
	}
	maps.Copy(all, given) // over what stands before it, as libpq and the driver have it
	return canonical(all), nil
}

// splitHosts reads host:port,[address]:port into two lists of the same length; ports is "" where none is given.
func splitHosts(authority string) (hosts, ports string, ok bool) {
	var names, numbers []string
	for netloc := range strings.SplitSeq(authority, ",") {
		host, port, _ := strings.Cut(netloc, ":")
		if strings.HasPrefix(netloc, "[") {
			address, after, closed := strings.Cut(netloc[1:], "]")
			if !closed || address == "" || after != "" && after[0] != ':' {
				return "", "", false
			}
			host, port = address, strings.TrimPrefix(after, ":")
		}
		names, numbers = append(names, host), append(numbers, port)
	}
	hosts, ports = strings.Join(names, ","), strings.Join(numbers, ",")
	if strings.Trim(ports, ",") == "" {
		ports = ""
	}
	return hosts, ports, true
}

// parseQuery reads keyword=value&keyword=value.
func parseQuery(query string) (map[string]string, error) {
	all := map[string]string{}
	for query != "" {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		key, value, _ := strings.Cut(pair, "=")
		key, errKey := unescape(key)
		value, errValue := unescape(value)
		if strings.Count(pair, "=") != 1 || errKey != nil || errValue != nil {
			return nil, errors.New("what follows the ? in it is no keyword=value&keyword=value")
		}
		if _, twice := all[strings.ToLower(key)]; twice {
			return nil, errors.New("a keyword stands twice in it")
		}
		all[strings.ToLower(key)] = value
	}
	return all, nil
}

// unescape decodes %XX; blanks around a part are dropped, and within it refused, as libpq has it.
func unescape(part string) (string, error) {
	part = strings.Trim(part, " ")
	text, err := url.PathUnescape(part)
	if err != nil || strings.Contains(part, " ") || strings.ContainsRune(text, 0) {
		return "", errors.New("not decodable")
	}
	return text, nil
}

// parseKeywords reads "host=… dbname='…'"; a backslash takes the next character as it is.
func parseKeywords(s string) (map[string]string, error) {
	const space = " \t\n\r\v\f"
	all := map[string]string{}
	for s = strings.TrimLeft(s, space); s != ""; s = strings.TrimLeft(s, space) {
		key, rest, ok := strings.Cut(s, "=")
		if key = strings.TrimRight(key, space); !ok || key == "" || strings.ContainsAny(key, space) {
			return nil, errors.New(`it is no list of keyword=value, such as "host=/var/run/postgresql dbname=chain user=node"`)
		}
		s = strings.TrimLeft(rest, space)
		quoted := strings.HasPrefix(s, "'")
		s = strings.TrimPrefix(s, "'")
		var value strings.Builder
		end := space
		if quoted {
			end = "'"
		}
		i := 0
		for ; i < len(s) && strings.IndexByte(end, s[i]) < 0; i++ {
			if s[i] == '\\' {
				if i++; i == len(s) {
					break // libpq drops it
				}
			}
			value.WriteByte(s[i])
		}
		if quoted {
			if i >= len(s) {
				return nil, errors.New("a quoted value in it has no end")
			}
			i++
		}
		all[strings.ToLower(key)], s = value.String(), s[i:]
	}
	return canonical(all), nil
}

func canonical(all map[string]string) map[string]string {
	if name, ok := all["database"]; ok { // pgx takes both
		all["dbname"] = name
		delete(all, "database")
	}
	return all
}

// CheckDSN reports what no connection string of ours may hold.
func CheckDSN(key, dsn string) (errs []error) {
	all, err := parseDSN(dsn)
	if err != nil {
		return []error{fmt.Errorf("%s: %w", key, err)}
	}
	for _, secret := range []string{"password", "sslpassword"} {
		if _, ok := all[secret]; ok {
			errs = append(errs, fmt.Errorf("%s: holds a %s: take it out, and put it alone into a file of mode 0600 that password_file names", key, secret))
		}
	}
	if _, ok := all["hostaddr"]; ok {
		errs = append(errs, fmt.Errorf("%s: hostaddr is not supported: give the address as host", key))
	}
	if strings.Contains(all["host"], ",") {
		errs = append(errs, fmt.Errorf("%s: names several hosts: a snapshot is of one server, name that", key))
	}
	return errs
}

// shown renders where a connection string leads: user@host:port/database, without opening anything.
func shown(dsn string) string {
	all, err := parseDSN(dsn)
	if err != nil {
		return "a database"
	}
	get := func(key, env, def string) string {
		for _, v := range []string{all[key], os.Getenv(env)} {
			if v != "" {
				return v
			}
		}
		return def
	}
	text := get("host", "PGHOST", "localhost") + ":" + get("port", "PGPORT", "5432")
	if user := get("user", "PGUSER", ""); user != "" {
		text = user + "@" + text
	}
	return text + "/" + get("dbname", "PGDATABASE", get("user", "PGUSER", ""))
}

// passedOn are variables that libpq reads and that name no database of ours: programs get them as we have them.
func passedOn() []string {
	keep := []string{"PATH", "HOME", "PGPASSFILE", "PGSERVICEFILE", "PGSERVICE", "PGSYSCONFDIR", "KRB5CCNAME", "LD_LIBRARY_PATH"}
	for _, key := range slices.Sorted(maps.Keys(libpqEnv)) {
		if env := libpqEnv[key]; strings.HasPrefix(key, "ssl") || strings.HasPrefix(key, "gss") || key == "channel_binding" || key == "require_auth" {
			keep = append(keep, env)
		}
	}
	var env []string
	for _, name := range keep {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}
