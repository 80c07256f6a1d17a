package config

import (
	"bufio"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// RenderToml writes cfg as a supervisor.toml: what differs from the default as a key, everything else as a comment with
// its default, each with a line's explanation. What is read back equals cfg; only what has no table of its own
// (Cosmovisor) is lost.
func RenderToml(cfg Config) string {
	r := &renderer{docs: keyDocs()}
	r.line("# Every key and its default. A key that is not set, or commented out, has the default.")
	r.line("# Durations have a unit (300ms, 30s, 10m, 2h); relative paths are relative to home.")
	r.table("", reflect.ValueOf(cfg), reflect.ValueOf(Default()))
	return r.b.String()
}

type renderer struct {
	b    strings.Builder
	docs map[string]string
}

func (r *renderer) line(format string, args ...any) { fmt.Fprintf(&r.b, format+"\n", args...) }

// table writes the struct v: its own keys first, then the tables below it, because a TOML table ends at the next header.
func (r *renderer) table(path string, v, def reflect.Value) {
	type below struct {
		path   string
		v, def reflect.Value
	}
	var tables []below
	for i := range v.NumField() {
		key := v.Type().Field(i).Tag.Get("toml")
		if key == "" || key == "-" {
			continue
		}
		at := join(path, key)
		if isTable(v.Type().Field(i).Type) {
			tables = append(tables, below{at, v.Field(i), def.Field(i)})
			continue
		}
		comment := ""
		if reflect.DeepEqual(v.Field(i).Interface(), def.Field(i).Interface()) {
			comment = "# "
		}
		left := fmt.Sprintf("%s%s = %s", comment, key, tomlValue(v.Field(i)))
		r.line("%-38s  # %s", left, r.docs[at])
	}
	for _, t := range tables {
		r.line("")
		switch t.v.Kind() {
		case reflect.Struct:
			r.line("[%s]", t.path)
			r.table(t.path, t.v, t.def)
		case reflect.Map:
			r.versions(t.path, t.v)
		case reflect.Slice:
			r.array(t.path, t.v)
		}
	}
}

// versions writes one table for each version.
func (r *renderer) versions(path string, v reflect.Value) {
	r.line("# [%s.\"<name>\"]  %s", path, r.docs[path])
	for _, name := range slices.Sorted(maps.Keys(v.Interface().(map[string]Version))) {
		r.line("[%s.%s]", path, tomlKey(name))
		elem := v.MapIndex(reflect.ValueOf(name))
		r.table(path, elem, reflect.Zero(elem.Type()))
	}
}

// array writes one table for each element.
func (r *renderer) array(path string, v reflect.Value) {
	if v.Len() == 0 {
		r.line("# [[%s]]  %s", path, r.docs[path])
	}
	for i := range v.Len() {
		r.line("[[%s]]", path)
		r.table(path, v.Index(i), reflect.Zero(v.Index(i).Type()))
	}
}

// isTable tells what has a header of its own: structs, arrays of structs and maps of them.
func isTable(t reflect.Type) bool {
	if t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		t = t.Elem()
	}
	return t.Kind() == reflect.Struct
}

// tomlValue renders a value on one line; nil is rendered as what it would be if it were there.
func tomlValue(v reflect.Value) string {
	if v.Type() == reflect.TypeFor[time.Duration]() {
		return TomlString(shortDuration(time.Duration(v.Int())))
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			if v.Kind() == reflect.Pointer {
				return tomlValue(reflect.Zero(v.Type().Elem()))
			}
			return `""`
		}
		return tomlValue(v.Elem())
	case reflect.String:
		return TomlString(v.String())
	case reflect.Slice:
		var items []string
		for i := range v.Len() {
			items = append(items, tomlValue(v.Index(i)))
		}
		return "[" + strings.Join(items, ", ") + "]"
	case reflect.Map:
		var items []string
		for _, k := range slices.SortedFunc(slices.Values(v.MapKeys()), func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) }) {
			items = append(items, tomlKey(k.String())+" = "+tomlValue(v.MapIndex(k)))
		}
		return "{" + strings.Join(items, ", ") + "}"
	case reflect.Float64:
		text := strconv.FormatFloat(v.Float(), 'g', -1, 64)
		if !strings.ContainsAny(text, ".einN") {
			text += ".0" // else it would read back as a whole number
		}
		return strings.ToLower(text)
	}
	return fmt.Sprint(v.Interface())
}

// shortDuration is d without zero parts: "1m", not "1m0s".
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// TomlString is s as a basic string of TOML, with its quotes. strconv.Quote isn't one: TOML knows no \x, \a or \v.
func TomlString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteRune(c)
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\t':
			b.WriteString(`\t`)
		case c < 0x20 || c == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, c)
		default:
			b.WriteRune(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// tomlKey quotes a key where it must be.
func tomlKey(key string) string {
	bare := key != "" && strings.Trim(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == ""
	if bare {
		return key
	}
	return TomlString(key)
}

// keyDocs are the explanations of all keys, by path.
func keyDocs() map[string]string {
	docs := map[string]string{}
	for lines := bufio.NewScanner(strings.NewReader(keyDocText)); lines.Scan(); {
		if path, doc, ok := strings.Cut(strings.TrimSpace(lines.Text()), " "); ok {
			docs[path] = strings.TrimSpace(doc)
		}
	}
	return docs
}

const keyDocText = `
node.name              file name of the node's binary (DAEMON_NAME)
node.home              the node's home directory, absolute (DAEMON_HOME)
node.root              the tree of versions, in Cosmovisor's layout
node.args              what the node is started with when run is given nothing
node.env               added to the node's environment
node.stop_signal       asks the node to stop
node.stop_timeout      then SIGKILL (DAEMON_SHUTDOWN_GRACE)
node.restart           never | on-failure | always
node.backoff           before the first restart; doubles up to backoff_max
node.backoff_max       the longest wait before a restart
node.backoff_reset     after a life of this length the waits begin anew
node.backoff_limit     give up after so many restarts; 0 = never
node.hold              while held: exit (code 79) | wait
version                what differs from [node] while that version runs: args, env
version.args           instead of [node] args
version.env            over [node] env
upgrade.plan_file      where the node announces an upgrade; "" = nowhere
upgrade.restart_after  start the new version at once (DAEMON_RESTART_AFTER_UPGRADE)
upgrade.delay          wait after the stop (DAEMON_RESTART_DELAY)
upgrade.poll           how often files are looked at where nothing tells of changes (DAEMON_POLL_INTERVAL)
upgrade.allow_download fetch binaries that a plan names; a checksum is always required (DAEMON_ALLOW_DOWNLOAD_BINARIES)
upgrade.on_failure     when a new version fails its probation: hold | rollback | retry
upgrade.probe          arguments of a staged binary's trial run; [] = none
upgrade.recase         plan names are lower-cased (not COSMOVISOR_DISABLE_RECASE)
upgrade.pre_upgrade_max_retries  how often pre-upgrade is called again after exit code 31
upgrade.custom_pre_upgrade       a script in root that runs before the switch (COSMOVISOR_CUSTOM_PREUPGRADE)
upgrade.probation.up             alive this long
upgrade.probation.height_above_plan  and a block above the plan's height was read
upgrade.probation.attempts       starts that may end by themselves before on_failure
height.url             the height, read from any JSON over HTTP
height.path            where the number stands in it: result.sync_info.latest_block_height
height.body            POSTed to url where it is set
height.grpc            the node's gRPC address (DAEMON_GRPC_ADDRESS)
height.log             a regular expression over the node's lines, with (?P<height>...)
snapshot.dir           "" = <home>/supervisor/snapshots (DAEMON_DATA_BACKUP_DIR)
snapshot.skip          no snapshot before an upgrade (UNSAFE_SKIP_BACKUP)
snapshot.on            upgrade, halt, stop, exit
snapshot.method        auto | reflink | hardlink | copy
snapshot.keep          so many verified ones are kept
snapshot.min_free      a share, or a size such as 20G, that stays free
snapshot.pg_bin        where pg_dump and pg_restore lie
snapshot.source        what a snapshot holds; none = the data directory
snapshot.source.name   the source's folder in the snapshot
snapshot.source.kind   dir | postgres
snapshot.source.path   the directory; run refuses to start without it, so make it for a new node
snapshot.source.exclude              patterns over the paths in it
snapshot.source.never_restore_older  signer states: files that are never taken back
snapshot.source.after                only once these sources are complete
snapshot.source.dsn                  the database, without a password
snapshot.source.password_file        holds the password alone, 0600
snapshot.source.mode                 auto | clone | dump
snapshot.source.fallback             a clone that fails in the window: dump | hold
snapshot.source.admin_dsn            for CREATE and RENAME DATABASE; default: the same server, database postgres
snapshot.source.scratch_dsn          where verify --deep restores, if this server doesn't allow it
snapshot.source.disconnect           application names that may be disconnected for a clone or a swap
snapshot.source.keep_clones          clones that stay once their archive is verified; default 1
snapshot.source.free_space           room on the server, where it can't be seen from here
genesis.kind           what a template is made of: kwil | cosmos | command; "" = none
genesis.version        kwil: the version that the template is for, v0.9 | v0.10
genesis.from           the old genesis document: parameters are carried from it
genesis.source         kwil: the name of the postgres source; "" = the only one
genesis.binary         cosmos: the new binary, which migrates and validates; "" = the current version's
genesis.migrate        cosmos: the target of the new binary's migrate; "" = none
genesis.export         cosmos: further arguments of export
genesis.command        command: a program and its arguments
genesis.timeout        the longest that making a template may take
genesis.on             halt, upgrade, stop
genesis.set            values to set in the template, by their paths
control.socket         "" = <home>/supervisor/control.sock
control.group          its members may read the status
log.format             auto | text | json
log.level              debug | info | warn | error
metrics.listen         host:port, such as 127.0.0.1:9464; "" = none
notify.command         a program and its arguments, run at events
notify.webhook         an address that is posted to at events
systemd.ready          READY=1 when the node is started | healthy
systemd.node_notify    the node says READY=1 itself
unit                   another unit of the host, over D-Bus: name, at, action
unit.name              such as price-feeder.service
unit.at                before-stop | after-stop | before-start | after-healthy
unit.action            start | stop | restart | wait
security.allow_writable  paths whose mode is accepted as it is
`
